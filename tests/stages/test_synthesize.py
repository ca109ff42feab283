"""``kdcli synthesize`` from pictures to a dataset, and what it refuses."""

import errno
import importlib
import io
import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from toolbox import QUIET, StopAfter, encode, facts, flip, synthesis_plan, synthetic

from kdcli import cli
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.sources import open_train
from kdcli.errors import BadImageError, InputError, Preempted, UsageError
from kdcli.launch import StopSignal
from kdcli.runs import Result
from kdcli.sections import SourceSection
from kdcli.stages import synthesize
from kdcli.synthesis.cutmix import cutmix


def make(pictures, out, **options):
    return synthesize.run(synthesis_plan(pictures, out, **options), QUIET).path


def pixels(artifact):
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in synthetic(artifact)]
    )


@pytest.fixture(scope="module")
def mixed(pictures, variations, tmp_path_factory):
    """Forty pictures made in one go."""
    return make(pictures, tmp_path_factory.mktemp("mixed") / "whole", weights=str(variations))


# -- what is written -----------------------------------------------------------------------------------------


def test_the_artifact(mixed, pictures, variations):
    table = datasets.load_from_disk(str(mixed))
    assert table.column_names == ["image", "source_ids", "mixer", "seed", "number"]
    assert table["number"][:] == list(range(40))
    assert table[0]["image"].size == (16, 16)
    ids = {f"{int(i):016x}" for i in open_train(SourceSection(source=str(pictures))).split("train").ids}
    rows = synthetic(mixed)
    assert all(len(set(row["source_ids"])) == 2 and set(row["source_ids"]) <= ids for row in rows)
    assert {(row["mixer"], row["seed"]) for row in rows} == {("variation-tokens", 0)}
    assert len({row["image"]["bytes"] for row in rows}) == 40
    sheet = Image.open(mixed / "contact_sheet.png")
    assert sheet.size == (3 * 168 + 24, 8 * 168 + 8)  # two sources and the result, eight rows
    found = facts(mixed)
    assert (found["kind"], found["mixer"], found["images"]) == ("dataset", "variation-tokens", 40)
    assert found["images_per_second"] > 0
    assert found["cost"] == {"unet_forwards": 240}
    assert found["parents"][0]["path"] == str(variations)
    assert {"diffusers", "transformers"} <= set(found["versions"])
    assert not list(mixed.parent.glob("*.partial"))


def test_again_it_is_complete(mixed, tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps(facts(mixed)["config"]))  # a legal --config
    config = resolve(synthesize.Config, file=tmp_path / "config.yaml")
    found = synthesize.plan(config, QUIET, unless_complete=True)
    assert isinstance(found, Result)
    assert found.summary["images"] == 40
    with pytest.raises(InputError, match=r"other settings: config\.seed \(0 then, 1 now\)"):
        synthesize.plan(config.model_copy(update={"seed": 1}), QUIET, unless_complete=True)


def test_a_seed_makes_other_pictures(mixed, pictures, variations, tmp_path):
    other = make(pictures, tmp_path / "out", weights=str(variations), seed=1, count=4)
    assert (pixels(other) != pixels(mixed)[:4]).any()


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batch_sizes_agree(batch, mixed, pictures, variations, tmp_path):
    other = pixels(make(pictures, tmp_path / "out", weights=str(variations), batch_size=batch))
    assert np.abs(other.astype(int) - pixels(mixed)).max() <= 1  # of 255
    assert (other == pixels(mixed)).mean() > 0.99


def test_every_source_is_encoded_once_for_all_runs(pictures, variations, tmp_path):
    def encoded():
        files = tmp_path.glob("cache/*/segment-*/ids.npy")
        return sorted(int(i) for file in files for i in np.load(file))

    make(pictures, tmp_path / "a", weights=str(variations))
    first = encoded()
    assert set(first) == {int(i, 16) for row in synthetic(tmp_path / "a") for i in row["source_ids"]}
    make(
        pictures,
        tmp_path / "b",
        weights=str(variations),
        seed=1,
        sources=3,
        **{"sampling.strengths": [1, 2, 0]},
    )
    both = encoded()
    assert len(first) < len(both) == len(set(both)) <= 66


def test_image_mixer_weights_take_five_tokens_and_clip_preprocessing(pictures, image_mixer, mixed, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "out", weights=str(image_mixer), count=4)
    assert (plan.kind, plan.config.sampling.pad_tokens) == ("imagemixer", 5)
    out = synthesize.run(plan, QUIET).path
    assert synthetic(out)[0]["mixer"] == "imagemixer"
    assert (pixels(out) != pixels(mixed)[:4]).any()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"mixer": "variation"}, "variation"),
        ({"mixer": "imagemixer", "sources": 1}, "variation"),
        ({"mixer": "imagemixer", "sources": 3}, "variation-tokens"),
        ({"mixer": "tokens-mean"}, "tokens-mean"),
    ],
)
def test_variation_weights_are_never_called_image_mixer(options, kind, pictures, variations, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "out", weights=str(variations), **options)
    assert (plan.kind, plan.config.sampling.pad_tokens) == (kind, 0)


def test_per_image(pictures, tmp_path):
    out = make(pictures, tmp_path / "out", mixer="mixup", count=None, per_image=2)
    train = open_train(SourceSection(source=str(pictures))).split("train")
    assert [row["source_ids"][0] for row in synthetic(out)] == [
        f"{int(i):016x}" for i in train.ids for _ in "ab"
    ]


def test_a_mixer_in_pixels_needs_no_weights(pictures, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "out", mixer="cutmix", resolution=20)
    out = synthesize.run(plan, QUIET).path
    draw = plan.draw(17)
    sources = [plan.samples.picture(i, 10**6) for i in draw.sources]
    expected = np.asarray(cutmix(sources, draw.noise, size=(20, 20), alpha=1.0))
    assert np.array_equal(pixels(out)[17], expected)
    assert not (tmp_path / "cache").exists()


def test_a_mixer_in_pixels_imports_no_diffusion_library(pictures, tmp_path, monkeypatch):
    import kdcli.synthesis

    for name in ("pipeline", "imagemixer", "clip"):  # else they would not be imported again
        monkeypatch.delitem(sys.modules, f"kdcli.synthesis.{name}", raising=False)
        monkeypatch.delattr(kdcli.synthesis, name, raising=False)
    monkeypatch.delitem(sys.modules, "kdcli.synthesis.making", raising=False)
    for library in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError):
        importlib.import_module("kdcli.synthesis.pipeline")
    assert facts(make(pictures, tmp_path / "out", mixer="cutmix", count=4))["images"] == 4


def test_labels_and_text_are_never_read(pictures, mixed, variations, tmp_path):
    """The same pictures with columns that end whoever decodes them make the same."""
    train = datasets.load_from_disk(str(pictures))["train"]
    cells = train.cast_column("image", datasets.Image(decode=False))["image"][:]
    features = {"image": datasets.Image(), "label": datasets.Audio(), "text": datasets.Audio()}
    trap = [{"bytes": b"no sound", "path": None}] * len(cells)
    schema = datasets.Features(features).arrow_schema
    table = pyarrow.table({"image": cells, "label": trap, "text": trap}, schema=schema)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "trap"))
    for name in ("label", "text"):
        with pytest.raises((ImportError, RuntimeError, ValueError)):
            datasets.load_from_disk(str(tmp_path / "trap"))[0][name]
    made = synthetic(make(tmp_path / "trap", tmp_path / "out", weights=str(variations)))
    assert made == synthetic(mixed)


def test_distill_reads_it_from_a_pipe(mixed, pictures, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{mixed}\n"))
    arguments = (
        f"distill --teacher {teacher} --student test_resnet --from-scratch --data {pictures} --extra -"
    )
    arguments += (
        f" --image-size 32 --max-steps 2 --batch-size 8 --out {tmp_path / 'out'} --quiet --device cpu"
    )
    answer = io.StringIO()
    arguments += f" --cache {tmp_path / 'cache'} --extra-ratio 1"
    assert cli.run(arguments.split(), answer, StopSignal()) == 0
    config = facts(tmp_path / "out")["config"]
    assert config["data"]["extra"] == [str(mixed)]


def test_a_dry_run_shows_the_plan(pictures, variations, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "out", weights=str(variations), shard="2/4")
    stream = io.StringIO()
    plan.describe(Console(stream=stream))
    text = stream.getvalue()
    assert "66 pictures, no labels" in text
    assert "ddim in 3 steps, guidance 3, no padding, 16 px" in text
    assert "10 pictures of 40 (shard 2/4)" in text
    found = json.loads(json.dumps(plan.to_json(), default=str))
    assert (found["mixer"], found["images"], found["images_of_all_shards"]) == ("variation-tokens", 10, 40)
    assert not tmp_path.joinpath("out.partial").exists()


# -- resume --------------------------------------------------------------------------------------------------


def test_a_signal_commits_what_is_ready(pictures, variations, mixed, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "out", weights=str(variations))
    with pytest.raises(Preempted, match="SIGTERM; run the same command again"):
        synthesize.run(plan, QUIET, stop=StopAfter(8))
    partial = tmp_path / "out.partial"
    (part,) = partial.glob("data-*.arrow")
    first, end = (int(n) for n in part.stem.split("-")[1:])
    assert first == 0
    assert 0 < end < 40
    before = part.stat()
    stream = io.StringIO()
    out = synthesize.run(plan, Console(stream=stream)).path
    assert "pictures: 40/40 images" in stream.getvalue()
    assert (out / part.name).stat().st_ino == before.st_ino  # not made again
    assert synthetic(out) == synthetic(mixed)


def test_a_full_disk(pictures, variations, mixed, tmp_path, monkeypatch, capsys):
    """The third part finds no space: exit 4 and one message; what was committed before is kept."""
    real, writes = os.write, []

    def write(fd, data):
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name.endswith(".draft"):
            writes.append(name)
            if len(writes) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    arguments = (
        f"synthesize --weights {variations} --data {pictures} --count 40 --steps 3 --device cpu --set "
    )
    arguments += f"commit_images=8 --out {tmp_path / 'out'} --cache {tmp_path / 'cache'}"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert cli.run(arguments.split(), io.StringIO(), StopSignal()) == 4
    text = capsys.readouterr().err
    assert text.count("error: ") == 1
    assert "error: no space left on the disk while writing" in text
    assert "bytes wanted). Free some space and run the same command again" in text
    assert len(list(tmp_path.glob("out.partial/data-*.arrow"))) == 2
    assert cli.run(arguments.split(), io.StringIO(), StopSignal()) == 0
    assert synthetic(tmp_path / "out") == synthetic(mixed)


# -- bad input -----------------------------------------------------------------------------------------------

WAYS = r"Three ways out: convert the published Image Mixer once .* or --mixer mixup or cutmix"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, InputError, rf"--mixer imagemixer needs --weights\. {WAYS}"),
        ({"weights": "no/such/folder"}, InputError, rf"--weights no/such/folder does not exist\. {WAYS}"),
        ({"mixer": "variation"}, InputError, rf"no weights lambdalabs/.*@v2\.0 .* {WAYS}"),
        ({"mixer": "mixup", "sources": 67}, InputError, r"--sources 67 is more than the 66 pictures of"),
        ({"mixer": "cutmix", "sources": 3}, UsageError, r"--mixer cutmix takes 2 source\(s\), not 3"),
        ({"mixer": "cutmix", "weights": "w"}, UsageError, "--mixer cutmix has no use for --weights"),
        ({"mixer": "cutmix", "sampling.steps": 9}, UsageError, r"has no use for sampling \(steps, guidance"),
        ({"mixer": "mixup", "precision": "bf16"}, UsageError, "--mixer mixup has no use for --precision"),
        (
            {"mixer": "mixup", "per_image": 2},
            UsageError,
            "--count and --per-image both say how many: give one",
        ),
        ({"mixer": "mixup", "shard": "41/40"}, UsageError, "a shard is i/n, from 1/n to n/n"),
        (
            {"mixer": "mixup", "data.min_side": 29},
            InputError,
            r"train row 0: a source of 28 x 28 pixels is too",
        ),
        ({"mixer": "mixup", "data.train": "trian"}, InputError, r"has no split 'trian'; it has: train, test"),
        ({"mixer": "mixup", "data.source": None}, UsageError, "--data is required"),
    ],
)
def test_refused(options, kind, message, pictures, tmp_path):
    with pytest.raises(kind, match=message):
        synthesis_plan(pictures, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 2}, "--mixer imagemixer has no use for --alpha"),
        ({"sources": 2, "sampling.strengths": [1]}, r"--strengths: 1 for 2 sources; repeat per source"),
        ({"sources": 6, "sampling.pad_tokens": 5}, r"--sources 6 is more than --pad-tokens 5"),
        ({"resolution": 20}, r"--resolution 20 is no multiple of 8"),
    ],
)
def test_refused_with_weights(options, message, pictures, variations, tmp_path):
    with pytest.raises(UsageError, match=message):
        synthesis_plan(pictures, tmp_path / "out", weights=str(variations), **options)


def test_a_mean_of_many_fits_into_one_token(pictures, variations, tmp_path):
    options = {"mixer": "tokens-mean", "sources": 6, "sampling.pad_tokens": 1}
    plan = synthesis_plan(pictures, tmp_path / "out", weights=str(variations), **options)
    assert (plan.config.sources, plan.config.sampling.pad_tokens) == (6, 1)


def saved(folder: Path, cells: list[bytes]) -> Path:
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": cell, "path": None} for cell in cells]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


def test_damaged_sources(tmp_path):
    whole = [encode(np.full((20, 20, 3), 40 * i, np.uint8)) for i in range(5)]
    source = saved(tmp_path / "data", [*whole, b"\x89PNG no picture"])
    with pytest.raises(BadImageError, match=r"train row 5: not a readable .* --on-bad-image skip"):
        synthesis_plan(source, tmp_path / "out", mixer="mixup")
    skip = {"data.on_bad_image": "skip", "data.max_bad_fraction": 0.5}
    out = make(source, tmp_path / "out", mixer="mixup", **skip)
    assert len(facts(out)["data"]["skipped"]) == 1
    # cut off behind its header, it is met when it is decoded
    source = saved(tmp_path / "cut", [*whole, encode(np.zeros((64, 64, 3), np.uint8))[:60]])
    with pytest.raises(BadImageError, match="train row 5: damaged picture"):
        make(source, tmp_path / "other", mixer="mixup", sources=6)


def test_weights_that_were_damaged_since_are_other_weights(pictures, image_mixer, tmp_path):
    import shutil

    folder = tmp_path / "weights"
    shutil.copytree(image_mixer, folder)
    before = synthesis_plan(pictures, tmp_path / "out", weights=str(folder)).target.identity["parents"]
    flip(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert (
        synthesis_plan(pictures, tmp_path / "out", weights=str(folder)).target.identity["parents"] != before
    )


def test_half_precision_off_cuda(pictures, variations, tmp_path):
    from kdcli.errors import EnvironmentFault

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EnvironmentFault, match="--precision fp16 needs a CUDA device"):
        synthesis_plan(pictures, tmp_path / "out", weights=str(variations), precision="fp16")


def test_bf16(pictures, variations, mixed, tmp_path):
    out = make(pictures, tmp_path / "out", weights=str(variations), precision="bf16", count=4)
    difference = np.abs(pixels(out).astype(int) - pixels(mixed)[:4])
    assert 0 < difference.mean() < 10
