"""``kdcli synthesize`` without data: from a teacher to a dataset, whole, in shards, cut off, and refused."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import QUIET, StopAfter, facts, inversion_plan, rows, synthetic

from kdcli.artifacts import manifest as manifests
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.sources import open_unlabelled
from kdcli.errors import Diverged, InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.runs import Result
from kdcli.sections import SourceSection
from kdcli.stages import synthesize


def make(teacher, out, **options):
    return synthesize.run(inversion_plan(teacher, out, **options), QUIET).path


@pytest.fixture(scope="module")
def whole(normed, tmp_path_factory):
    """Twenty pictures in blocks of eight, in one go."""
    return make(normed, tmp_path_factory.mktemp("inverted") / "whole")


# -- what is written -----------------------------------------------------------------------------------------


def test_the_artifact(whole, normed):
    table = datasets.load_from_disk(str(whole))
    assert table.column_names == ["image", "source_ids", "mixer", "seed", "number", "target"]
    assert table[0]["image"].size == (32, 32)
    assert table["number"][:] == list(range(20))
    assert table["target"][:] == [j % 4 for j in range(20)]
    made = synthetic(whole)
    assert all(row["source_ids"] == [] and row["mixer"] == "deepinversion" for row in made)
    assert len({row["image"]["bytes"] for row in made}) == 20
    assert Image.open(whole / "contact_sheet.png").size == (8 * 168 + 8, 3 * 168 + 8)
    found = facts(whole)
    assert (found["kind"], found["mixer"], found["images"]) == ("dataset", "deepinversion", 20)
    assert found["targets"] == build(str(normed)).classes
    assert found["parents"][0]["role"] == "teacher"
    assert found["cost"] == {"teacher_forwards": 3 * 6 * 8}
    assert [row["block"] for row in rows(whole)] == [0, 1, 2]
    assert {"loss", "label", "statistics", "tv_l2", "agreement"} <= set(rows(whole)[0])
    assert sorted(p.suffix for p in whole.iterdir()) == sorted(
        [".arrow"] * len(list(whole.glob("*.arrow"))) + [".json"] * 3 + [".jsonl", ".png"]
    )


def test_the_settings_are_the_papers(whole, tmp_path, normed):
    config = facts(whole)["config"]["inversion"]
    assert {k: config[k] for k in ("lr", "statistics", "tv_l2", "l2", "jitter", "flip", "label")} == {
        "lr": 0.05,
        "statistics": 10.0,
        "tv_l2": 2.5e-5,
        "l2": 0.0,
        "jitter": 2,
        "flip": 0.0,
        "label": 1.0,
    }
    assert config["latent"] is None
    default = inversion_plan(normed, tmp_path / "o", **{"inversion.batch": None, "inversion.steps": None})
    assert (default.section.batch, default.section.steps) == (256, 2000)


def test_extra_reads_it_without_labels(whole):
    extra = open_unlabelled(str(whole), SourceSection())
    (samples,) = extra.splits.values()
    assert extra.classes is None
    assert not samples.labelled().any()


def test_the_licence_of_the_teachers_data_goes_with_them(normed, tmp_path):
    import shutil

    teacher = tmp_path / "teacher"
    shutil.copytree(normed, teacher)
    manifest = facts(teacher)
    manifest["data"]["licence"] = "CC-BY-4.0"
    (teacher / "kdcli.json").write_text(json.dumps(manifest))
    out = make(teacher, tmp_path / "out", count=8, **{"inversion.steps": 1})
    assert facts(out)["licences"] == {"data": "CC-BY-4.0"}
    assert datasets.load_from_disk(str(out)).info.license == "data: CC-BY-4.0"


def test_again_it_is_complete(whole, normed, tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps(facts(whole)["config"]))  # a legal --config
    config = resolve(synthesize.Config, file=tmp_path / "config.yaml")
    assert isinstance(synthesize.plan(config, QUIET, unless_complete=True), Result)
    with pytest.raises(InputError, match=r"other settings: config\.inversion\.batch \(8 then, 4 now\)"):
        inversion_plan(normed, whole, **{"inversion.batch": 4})


def test_a_dry_run_shows_the_plan(normed, tmp_path):
    stream = io.StringIO()
    plan = inversion_plan(normed, tmp_path / "out", shard="2/2")
    plan.describe(Console(stream=stream))
    assert "4 of 4 classes by deepinversion, no data" in stream.getvalue()
    assert "4 pictures of 20 (shard 2/2, whole blocks)" not in stream.getvalue()
    assert "12 pictures of 20 (shard 2/2, whole blocks)" in stream.getvalue()
    assert json.loads(json.dumps(plan.to_json(), default=str))["images"] == 12


# -- the same pictures, however they are made ----------------------------------------------------------------


def test_shards_hold_whole_blocks_and_join(whole, normed, tmp_path):
    parts = [make(normed, tmp_path / str(i), shard=f"{i}/2") for i in (1, 2)]
    assert [[row["number"] for row in synthetic(part)] for part in parts] == [[*range(8)], [*range(8, 20)]]
    given = {"merge": [str(p) for p in parts], "out": str(tmp_path / "joined")}
    joined = synthesize.run(synthesize.plan(resolve(synthesize.Config, options=given), QUIET), QUIET).path
    assert synthetic(joined) == synthetic(whole)
    assert facts(joined)["targets"] == facts(whole)["targets"]


def test_a_longer_run_begins_with_the_same_pictures(whole, normed, tmp_path):
    assert synthetic(make(normed, tmp_path / "out", count=10)) == synthetic(whole)[:10]


@pytest.mark.parametrize("looks", [0, 1, 4, 11, 16])
def test_stopped_anywhere_it_goes_on(looks, whole, normed, tmp_path):
    """Also within a block, whose pixels and moments are kept."""
    plan = inversion_plan(normed, tmp_path / "out", **{"commit_images": 1})
    with pytest.raises(Preempted, match=r"; run the same command again"):
        synthesize.run(plan, QUIET, stop=StopAfter(looks))
    partial = tmp_path / "out.partial"
    assert len(list(partial.glob("data-*.arrow"))) == looks // 8
    assert len(list(partial.glob("round-*/state-*"))) == (looks % 8 > 0)  # else it was between two
    assert synthetic(synthesize.run(plan, QUIET).path) == synthetic(whole)


def test_a_block_that_rested_is_not_begun_anew(normed, tmp_path):
    """With the kept pixels spoilt the result is another: so they are what the run goes on with."""
    from safetensors.torch import load_file, save_file

    plan = inversion_plan(normed, tmp_path / "out", count=8)
    with pytest.raises(Preempted):
        synthesize.run(plan, QUIET, stop=StopAfter(5))
    state = tmp_path / "out.partial" / "round-000000000" / "state-000000000004"
    file = state / "weights.safetensors"
    kept = load_file(file)
    save_file({"pictures/pixels": kept["pictures/pixels"] + 1}, file)
    with pytest.raises(InputError, match=r"the running state .*round-000000000.* is damaged"):
        synthesize.run(plan, QUIET)
    hashes = json.loads((state / "hashes.json").read_text())
    (state / "hashes.json").write_text(json.dumps({**hashes, file.name: manifests.file_hash(file)}))
    out = synthesize.run(plan, QUIET).path
    assert synthetic(out) != synthetic(make(normed, tmp_path / "b", count=8))
    assert not list(out.glob("round-*"))


def test_bf16_makes_nearly_the_same(whole, normed, tmp_path):
    other = rows(make(normed, tmp_path / "out", precision="bf16"))
    for ours, theirs in zip(rows(whole), other):
        assert ours["loss"] != theirs["loss"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)


def test_nan_ends_it(normed, tmp_path):
    with pytest.raises(Diverged, match=r"became (nan|NaN|inf).*Lower inversion\.lr"):
        make(normed, tmp_path / "out", **{"inversion.lr": 1e12, "inversion.steps": 3})


# -- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.source": "cars/"}, "no use for --data: it makes pictures from the teacher alone"),
        ({"count": None}, "--count is required"),
        ({"teacher": None}, "--mixer deepinversion: --teacher is required"),
        ({"batch_size": 16}, r"no use for --batch-size: --set inversion\.batch"),
        ({"weights": "w"}, "no use for --weights"),
        ({"precision": "fp16"}, "fp16 would need loss scaling; use bf16 or no"),
        ({"student": "s"}, "no use for --student; adaptive-deepinversion has"),
        ({"mixer": "adaptive-deepinversion"}, r"--student \(or use deepinversion\) is required"),
        (
            {"inversion.latent": 3},
            r"deepinversion has no use for inversion\.latent\..* It heeds: batch, steps, lr",
        ),
        ({"shard": "1/4"}, "20 pictures in blocks of 8 leave it empty"),
    ],
)
def test_refused(options, message, normed, tmp_path):
    with pytest.raises(UsageError, match=message):
        inversion_plan(normed, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_other_mixers_have_no_use_for_a_teacher(pictures, normed, tmp_path):
    given = {"mixer": "mixup", "data.source": str(pictures), "out": str(tmp_path / "out")}
    for more, what in (({"teacher": str(normed)}, "--teacher"), ({"inversion.steps": 3}, "inversion")):
        with pytest.raises(UsageError, match=f"mixup has no use for {what}"):
            synthesize.plan(resolve(synthesize.Config, options={**given, **more}), QUIET)


def test_weights_that_are_all_zero_are_refused(normed, tmp_path):
    zero = dict.fromkeys(("inversion.label", "inversion.statistics", "inversion.tv_l2"), 0.0)
    with pytest.raises(UsageError, match="every term of --mixer deepinversion weighs 0"):
        inversion_plan(normed, tmp_path / "out", **zero)


def test_a_model_of_layer_norms_is_refused(teacher, tmp_path):
    with pytest.raises(InputError, match=rf"{teacher} has no batch norm .* use --mixer lopes"):
        inversion_plan(teacher, tmp_path / "out")


def test_a_backbone_without_classes_is_refused(normed, tmp_path):
    with pytest.raises(InputError, match=r"no weights for test_resnet"):
        inversion_plan("test_resnet", tmp_path / "out")


# -- what it is worth ----------------------------------------------------------------------------------------


def test_pictures_are_what_the_teacher_takes_for_their_class(normed, tmp_path):
    out = make(
        normed,
        tmp_path / "out",
        count=8,
        **{"inversion.steps": 60, "inversion.statistics": 0.1, "inversion.clip": True},
    )
    network = build(str(normed)).eval()
    pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in synthetic(out)]
    with torch.no_grad():
        logits = network(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    agreement = (logits.argmax(dim=1).numpy() == [row["target"] for row in synthetic(out)]).mean()
    assert agreement == rows(out)[0]["agreement"] == facts(out)["metrics"]["agreement"]
    assert agreement >= 0.75


# -- against a student ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rival(probed):
    """A toy ViT with a normalisation of its own, that knows the same classes."""
    return probed("test_vit")


def test_adaptive_pictures_are_sought_where_a_student_disagrees(normed, rival, tmp_path):
    options = {"mixer": "adaptive-deepinversion", "student": str(rival), "count": 8, "inversion.steps": 40}
    weights = {
        "inversion.lr": 0.02,
        "inversion.statistics": 0.0,
        "inversion.label": 0.0,
        "inversion.tv_l2": 0.0,
    }
    out = make(normed, tmp_path / "out", **options, **weights, **{"inversion.competition": 1.0})
    (row,) = rows(out)
    assert row["loss"] == pytest.approx(row["competition"])
    early = make(normed, tmp_path / "early", **{**options, **weights, "inversion.steps": 1})
    assert row["competition"] < rows(early)[0]["competition"]
    assert [p["role"] for p in facts(out)["parents"]] == ["teacher", "student"]
    assert facts(out)["config"]["inversion"]["competition"] == 1.0


def test_the_student_decides_the_pictures(normed, rival, whole, tmp_path):
    options = {"mixer": "adaptive-deepinversion", "student": str(rival), "count": 8}
    adaptive = synthetic(make(normed, tmp_path / "out", **options, **{"inversion.competition": 20.0}))
    assert adaptive[0]["mixer"] == "adaptive-deepinversion"
    assert adaptive[0]["image"] != synthetic(whole)[0]["image"]
    off = make(normed, tmp_path / "off", **options, **{"inversion.competition": 0})
    assert [row["image"] for row in synthetic(off)] == [row["image"] for row in synthetic(whole)][:8]


def test_each_network_sees_its_own_normalisation(normed, rival):
    from dataclasses import replace

    from kdcli.models.pictures import Renormalised

    teacher, student = build(str(normed)), build(str(rival))
    student.spec = replace(student.spec, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), size=(16, 16))
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = Renormalised(teacher.spec, replace(student.spec, size=(32, 32)))(teacher.prepare(x))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (student.spec.mean, student.spec.std))
    assert torch.allclose(seen, (x / 255 - mean) / std, atol=1e-5)
    assert Renormalised(teacher.spec, student.spec)(teacher.prepare(x)).shape == (2, 3, 16, 16)
    assert torch.equal(teacher.restore(teacher.prepare(x)), x)


def test_a_student_of_other_classes_is_refused(normed, pictures, tmp_path, probed):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(probed("test_vit"), other)
    manifest = facts(other)
    manifest["classes"] = ["a", "b", "c", "d"]
    (other / "kdcli.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="classes"):
        inversion_plan(normed, tmp_path / "out", mixer="adaptive-deepinversion", student=str(other))
