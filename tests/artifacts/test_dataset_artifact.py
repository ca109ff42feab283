"""Dataset artifacts: what ``datasets`` opens, written part by part, whatever breaks in between."""

import datasets
import pytest
from test_store import calls_of, crash, error_of, fault, forked, no_space

from kdcli.artifacts import dataset
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import open_output
from kdcli.errors import EnvironmentFault, InputError

FEATURES = datasets.Features({"name": datasets.Value("string"), "number": datasets.Value("int64")})
ROWS = 7


def write(folder, first, end):
    columns = {"name": [f"row {i}" for i in range(first, end)], "number": list(range(first, end))}
    return dataset.write_part(folder, first, columns, FEATURES)


def run(out):
    """Write what is missing, two rows a part; returns how many rows were there before."""
    with open_output(out, {}) as output:
        if output is None:
            return ROWS
        dataset.remove_drafts(output.partial)
        missing = dataset.missing(output.partial, range(ROWS))
        for first in [i for i in missing if i % 2 == 0]:
            write(output.partial, first, min(first + 2, ROWS))
        names = dataset.finish(output.partial, FEATURES, {"data": "MIT", "weights": ""})
        output.commit(Manifest("dataset", "toy", {}), names)
        return ROWS - len(missing)


def check(out):
    manifests.verify(out, manifests.read(out))
    table = datasets.load_from_disk(str(out))
    assert table["number"][:] == list(range(ROWS))
    assert table["name"][:] == [f"row {i}" for i in range(ROWS)]
    assert table.features == FEATURES


def test_plain_datasets_opens_it(tmp_path):
    assert run(tmp_path / "out") == 0
    check(tmp_path / "out")
    table = datasets.load_from_disk(str(tmp_path / "out"))
    assert (table.info.license, str(table.split)) == ("data: MIT", "train")
    assert table.select([3])[0] == {"name": "row 3", "number": 3}
    assert dataset.head(tmp_path / "out", "number", 3) == [0, 1, 2]
    assert dataset.head(tmp_path / "out", "number", 99) == list(range(ROWS))


def test_its_fingerprint_follows_its_rows(tmp_path):
    for name, start in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, start, start + 3)
        dataset.finish(tmp_path / name, FEATURES, {})
    a, b, c = (datasets.load_from_disk(str(tmp_path / name))._fingerprint for name in "abc")
    assert a == b != c


def test_missing_rows(tmp_path):
    write(tmp_path, 2, 4)
    write(tmp_path, 6, 7)
    assert dataset.missing(tmp_path, range(1, 8)) == [1, 4, 5, 7]
    assert [(first, end) for first, end, _ in dataset.parts(tmp_path)] == [(2, 4), (6, 7)]


def test_a_damaged_part_is_named(tmp_path):
    path = write(tmp_path, 0, 3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{path} is damaged: .* Delete it and rerun"):
        dataset.missing(tmp_path, range(3))


def test_copied_parts(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", 0, 3)
    second = write(tmp_path / "a", 3, 5)
    dataset.copy_parts(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / second.name).unlink()
    dataset.copy_parts(tmp_path / "a", tmp_path / "b")
    assert dataset.missing(tmp_path / "b", range(5)) == []


def test_crash_at_every_call(tmp_path):
    total = len(calls_of(lambda: run(tmp_path / "whole")))
    kept = set()
    for at in range(1, total + 1):
        out = tmp_path / str(at)

        def work(at=at, out=out):
            with fault(at, crash):
                run(out)

        assert forked(work) == 137
        assert not out.exists() or check(out) is None
        kept.add(run(out))
        check(out)
    assert kept == {0, 2, 4, 6, ROWS}


def test_no_space_at_every_call(tmp_path):
    total, refused = len(calls_of(lambda: run(tmp_path / "whole"))), 0
    for at in range(1, total + 1):
        out = tmp_path / str(at)
        with fault(at, no_space):
            error = error_of(lambda out=out: run(out))
        if error is not None:
            refused += 1
            assert type(error) is EnvironmentFault
            assert str(error).startswith("no space left on the disk while writing")
        run(out)
        check(out)
    assert refused > total - 10
