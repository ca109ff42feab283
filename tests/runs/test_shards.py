"""Shards of a synthetic dataset: the same pictures as in one go, joined, and what is refused."""

import json
import shutil

import pytest
from toolbox import QUIET, facts, flip, synthesis_plan, synthetic

from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.runs import Result
from kdcli.stages import synthesize


def shard(pictures, out, text, **options):
    return synthesize.run(synthesis_plan(pictures, out, shard=text, **options), QUIET).path


def merge(out, *paths, **options):
    given = {"merge": [str(p) for p in paths], "out": str(out), **options}
    plan = synthesize.plan(resolve(synthesize.Config, options=given), QUIET, unless_complete=True)
    return plan.path if isinstance(plan, Result) else synthesize.run(plan, QUIET).path


@pytest.fixture(scope="module")
def halves(pictures, tmp_path_factory):
    """Two shards of a mixer in pixels."""
    folder = tmp_path_factory.mktemp("halves")
    return [shard(pictures, folder / str(i), f"{i}/2", mixer="mixup") for i in (1, 2)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_forty_from_any_number_of_shards(count, pictures, variations, tmp_path, reference):
    paths = []
    for i in range(1, count + 1):  # each with a cache of its own, as on another machine
        cache = {"cache": str(tmp_path / f"cache-{i}")}
        paths.append(shard(pictures, tmp_path / str(i), f"{i}/{count}", weights=str(variations), **cache))
        rows = synthetic(paths[-1])
        assert [row["number"] for row in rows] == list(range((i - 1) * 40 // count, i * 40 // count))
        assert facts(paths[-1])["images_of_all_shards"] == 40
    joined = merge(tmp_path / "joined", *reversed(paths))
    assert synthetic(joined) == reference


@pytest.fixture(scope="module")
def reference(pictures, variations, tmp_path_factory):
    """The forty pictures of one run."""
    out = tmp_path_factory.mktemp("reference") / "whole"
    return synthetic(synthesize.run(synthesis_plan(pictures, out, weights=str(variations)), QUIET).path)


def test_the_joined_dataset(halves, tmp_path):
    joined = merge(tmp_path / "joined", *halves)
    found = facts(joined)
    assert (found["kind"], found["mixer"], found["images"]) == ("dataset", "mixup", 40)
    assert [p["role"] for p in found["parents"]] == ["shard1", "shard2"]
    assert (joined / "contact_sheet.png").read_bytes() == (halves[0] / "contact_sheet.png").read_bytes()
    assert [row["number"] for row in synthetic(joined)] == list(range(40))
    before = joined.stat().st_ino
    assert merge(tmp_path / "joined", *halves) == joined  # complete
    assert joined.stat().st_ino == before


def test_a_shard_missing(halves, tmp_path):
    with pytest.raises(InputError, match=r"--merge lacks shard 2/2\. Give all shards of the run"):
        merge(tmp_path / "out", halves[0])


def test_a_shard_twice(halves, tmp_path):
    with pytest.raises(InputError, match=r"are both shard 1/2\. Give each once"):
        merge(tmp_path / "out", halves[0], halves[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "mixup", "seed": 1}, r"another run than .*: config\.seed \(0 then, 1 now\)"),
        ({"mixer": "cutmix"}, r"another run than .*: config\.mixer \('mixup' then, 'cutmix' now\)"),
        ({"mixer": "mixup", "count": 30}, r"another run than .*: config\.count \(40 then, 30 now\)"),
        (
            {"mixer": "mixup", "data.train": "test"},
            r"another run than .*: config\.data\.train .*; data\.data",
        ),
    ],
)
def test_a_shard_of_another_run(options, message, halves, pictures, tmp_path):
    other = shard(pictures, tmp_path / "other", "2/2", **options)
    with pytest.raises(InputError, match=message):
        merge(tmp_path / "out", halves[0], other)
    assert not (tmp_path / "out.partial").exists()


def test_a_shard_of_another_number_of_shards(halves, pictures, tmp_path):
    other = shard(pictures, tmp_path / "other", "3/3", mixer="mixup")
    with pytest.raises(InputError, match=r"another run than .*: shards \('2' then, '3' now\)"):
        merge(tmp_path / "out", halves[0], other)


def test_data_that_were_moved_are_the_same_run(halves, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "moved")
    other = shard(tmp_path / "moved", tmp_path / "other", "2/2", mixer="mixup")
    assert synthetic(merge(tmp_path / "out", halves[0], other)) == [
        *synthetic(halves[0]),
        *synthetic(halves[1]),
    ]


def test_what_is_no_shard(halves, pictures, teacher, tmp_path):
    whole = synthesize.run(synthesis_plan(pictures, tmp_path / "whole", mixer="mixup"), QUIET).path
    for path in (whole, teacher):
        with pytest.raises(InputError, match=rf"{path} is no shard of a synthetic dataset"):
            merge(tmp_path / "out", halves[0], path)
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        merge(tmp_path / "out", tmp_path / "nowhere")


def test_a_shard_whose_manifest_lacks_what_is_joined(halves, tmp_path):
    for number, lacking in enumerate(("images", "licences", "contact_sheet.png")):
        other = tmp_path / str(number)
        shutil.copytree(halves[1], other)
        manifest = facts(other)
        (manifest["files"] if "." in lacking else manifest).pop(lacking)
        (other / "kdcli.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=rf"{other} is no shard of a synthetic dataset"):
            merge(tmp_path / "out", halves[0], other)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0"])
def test_a_shard_of_an_impossible_number(halves, tmp_path, text):
    other = tmp_path / "other"
    shutil.copytree(halves[1], other)
    manifest = facts(other)
    manifest["identity"]["config"]["shard"] = text
    (other / "kdcli.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"{other} is damaged: it is shard {text}\."):
        merge(tmp_path / "out", halves[0], other)


def test_a_damaged_shard(halves, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(halves[1], broken)
    (part,) = broken.glob("data-*.arrow")
    flip(part)
    with pytest.raises(InputError, match=rf"{part} is damaged: its sha256 differs"):
        merge(tmp_path / "out", halves[0], broken)


def test_a_merge_reads_nothing_else(halves, tmp_path):
    for flag, more in {"--data": {"data.source": "cars/"}, "--shard": {"shard": "1/2"}}.items():
        with pytest.raises(UsageError, match=f"{flag} is given, and --merge joins what is made"):
            merge(tmp_path / "out", *halves, **more)
    with pytest.raises(UsageError, match="--merge joins finished shards on one process: leave out -n"):
        merge(tmp_path / "out", *halves, processes=2)


def test_a_dry_run_of_a_merge(halves, tmp_path):
    given = {"merge": [str(p) for p in halves], "out": str(tmp_path / "out")}
    plan = synthesize.plan(resolve(synthesize.Config, options=given), QUIET)
    assert json.loads(json.dumps(plan.to_json(), default=str))["images"] == 40
    assert list(tmp_path.iterdir()) == []
