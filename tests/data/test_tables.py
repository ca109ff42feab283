"""Parquet is read from the file itself, within bounds; saved datasets name no other file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toolbox import flip, tiny_picture

from kdcli.data import tables
from kdcli.data.loading import load
from kdcli.data.samples import cell_bytes
from kdcli.errors import EnvironmentFault, InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's own cache, away from the user's."""
    folder = tmp_path_factory.mktemp("hf-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def rows(count: int, start: int = 0, **columns: list[Any]) -> pa.Table:
    cells = [{"bytes": tiny_picture(start + i), "path": None} for i in range(count)]
    return pa.table({"image": cells, "label": [i % 2 for i in range(count)], **columns})


def stored(source: Path) -> list[bytes]:
    """The bytes of all pictures."""
    (table,) = load(str(source)).tables.values()
    return [cell["bytes"] for cell in table["image"]]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_was_replaced_gives_its_own_pictures(tmp_path: Path, folder: bool) -> None:
    file = tmp_path / "train.parquet"
    source = tmp_path if folder else file
    pq.write_table(rows(20), file)
    before, time = stored(source), file.stat().st_mtime_ns
    first = open_task_data(DataSection(source=str(source)), "train").fingerprint
    pq.write_table(rows(20, start=100), file)
    os.utime(file, ns=(time, time))
    assert stored(source) == [tiny_picture(100 + i) for i in range(20)] != before
    assert open_task_data(DataSection(source=str(source)), "train").fingerprint != first


def test_pictures_that_were_replaced_in_a_folder_give_their_own_labels(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    for i in range(20):
        (tmp_path / "ab"[i % 2] / f"{i}.png").write_bytes(tiny_picture(i))
    first = load(str(tmp_path)).tables["train"]["label"][:]
    time = (tmp_path / "a" / "0.png").stat().st_mtime_ns
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    os.utime(tmp_path / "b" / "0.png", ns=(time, time))
    assert sum(load(str(tmp_path)).tables["train"]["label"][:]) == sum(first) + 1


def test_nothing_is_kept_of_what_was_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(rows(50), tmp_path / "train.parquet", row_group_size=7)
    plain = stored(tmp_path / "train.parquet")
    monkeypatch.setattr(tables, "_IN_MEMORY", 512)  # now through a file without a name
    monkeypatch.setattr(tables, "_BATCH", 600)
    raw = load(str(tmp_path))
    assert stored(tmp_path / "train.parquet") == plain == [tiny_picture(i) for i in range(50)]
    assert list(cache.rglob("*")) == []
    assert raw.tables["train"][49]["label"] == 1
    assert raw.tables["train"].features == datasets.Dataset(rows(1)).features


def test_many_rows_are_the_same_rows_whatever_their_size(tmp_path: Path) -> None:
    pq.write_table(rows(3000), tmp_path / "train.parquet", row_group_size=900)
    assert stored(tmp_path) == [tiny_picture(i) for i in range(3000)]
    (table,) = load(str(tmp_path)).tables.values()
    assert table.data.num_rows == 3000
    assert len(table.data.table["image"].chunks) == 1


def test_no_space_for_many_rows_is_a_fault_of_the_machine(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(rows(50), tmp_path / "train.parquet")
    monkeypatch.setattr(tables, "_IN_MEMORY", 512)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/kdcli"))
    with pytest.raises(EnvironmentFault, match="/proc/kdcli"):
        load(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_file_that_unpacks_to_far_more_than_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    monkeypatch.setattr(tables, "_LARGEST", 1 << 22)
    cell = {"bytes": b"\x89PNG" + bytes(100_000), "path": None}
    bomb, file = pa.table({"image": [cell] * 200, "label": [0] * 200}), tmp_path / "train.parquet"
    pq.write_table(bomb, file, compression="zstd", use_dictionary=dictionary)
    assert file.stat().st_size < 1 << 16
    with pytest.raises(
        InputError,
        match=r"train\.parquet has [\d,]+ bytes and unpacks to more than 4,194,304\. .*save_to_disk",
    ):
        load(str(file))
    pq.write_table(bomb.slice(0, 30), file, compression="zstd")
    assert len(stored(file)) == 30


def test_a_batch_stays_small_where_a_dictionary_repeats_one_large_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH", 1 << 20)
    cell = {"bytes": b"\x89PNG" + bytes(500_000), "path": None}
    pq.write_table(pa.table({"image": [cell] * 100}), tmp_path / "a.parquet", compression="zstd")
    largest = max(part.nbytes for part in tables._batches(tmp_path / "a.parquet", 1 << 30))
    assert largest <= 1 << 20
    pq.write_table(pa.table({"image": [cell] * 100}), tmp_path / "b.parquet", use_dictionary=False)
    assert len(list(tables._batches(tmp_path / "b.parquet", 1 << 30))) < 10  # nothing repeats there


def test_a_flipped_bit_is_seen_where_the_file_has_checksums(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(rows(20), file, write_page_checksum=True, compression="none")
    flip(file, file.read_bytes().index(tiny_picture(10)) + 60)
    with pytest.raises(InputError, match=r"cannot read data from .*train\.parquet: .*(CRC|checksum|corrupt)"):
        load(str(file))


def test_parquet_types_are_those_of_the_library(tmp_path: Path, cache: Path) -> None:
    data = datasets.Dataset(
        rows(20, text=pa.array(["é", None] * 10, pa.large_string()), deep=[{"a": [1]}] * 20)
    )
    data = data.cast_column("image", datasets.Image()).cast_column(
        "label", datasets.ClassLabel(names=["x", "y"])
    )
    data.to_parquet(tmp_path / "a.parquet")
    theirs = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))
    (ours,) = load(str(tmp_path / "a.parquet")).tables.values()
    assert ours.features == theirs.features
    assert ours.data.table.schema.types == theirs.data.table.schema.types
    assert ours.remove_columns("image")[:] == theirs.remove_columns("image")[:]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())])])
def test_raw_bytes_are_pictures_where_they_begin_as_one(tmp_path: Path, kind: pa.DataType) -> None:
    cells: list[Any] = [None, *(tiny_picture(i, "JPEG" if i % 2 else "PNG") for i in range(19))]
    if pa.types.is_struct(kind):
        cells = [{"bytes": cell} for cell in cells]
    columns = {"code": pa.array([b"\0\1"] * 20), "photo": pa.array(cells, kind), "label": ["a", "b"] * 10}
    pq.write_table(pa.table(columns).slice(1), tmp_path / "a.parquet")
    data = open_task_data(DataSection(source=str(tmp_path / "a.parquet")), "train")
    assert (data.classes, len(data.split("train"))) == (["a", "b"], 17)
    assert data.split("train").picture(0, 100).size == (8, 8)
    pq.write_table(pa.table(columns).drop_columns("photo"), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no picture column among code, label"):
        open_task_data(DataSection(source=str(tmp_path / "b.parquet")), "train")


def test_raw_bytes_beside_pictures_stay_what_they_are(tmp_path: Path) -> None:
    small = [tiny_picture(i) for i in range(20)]
    pq.write_table(rows(20, thumbnail=small), tmp_path / "a.parquet")
    (table,) = load(str(tmp_path / "a.parquet")).tables.values()
    assert table.features["thumbnail"] == datasets.Value("binary")
    assert len(open_task_data(DataSection(source=str(tmp_path / "a.parquet")), "train").split("train")) == 18


@pytest.mark.parametrize("name", ["../other.arrow", "{root}/other.arrow", "x\0.arrow", "pipe"])
def test_a_saved_dataset_names_only_its_own_files(tmp_path: Path, name: str) -> None:
    datasets.Dataset(rows(20)).save_to_disk(str(tmp_path / "d"))
    (tmp_path / "d" / "data-00000-of-00001.arrow").rename(tmp_path / "other.arrow")
    os.mkfifo(tmp_path / "d" / "pipe")
    state = tmp_path / "d" / "state.json"
    facts = json.loads(state.read_text())
    facts["_data_files"][0]["filename"] = name.format(root=tmp_path)
    state.write_text(json.dumps(facts))
    message = (
        "is no regular file" if name == "pipe" else r"names '.*', a file outside its directory\. Refused"
    )
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "d"))
    state.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"state\.json is not valid JSON: .*recursion"):
        load(str(tmp_path / "d"))


def test_nothing_of_a_cell_that_names_a_file_with_a_nul_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train row 4: its picture is not stored .*'a\\x00b\.png'"):
        cell_bytes({"bytes": None, "path": "a\0b.png"}, tmp_path, "train row 4")


def test_the_hash_of_the_file_is_not_what_a_table_is_called(tmp_path: Path) -> None:
    pq.write_table(rows(20), tmp_path / "a.parquet")
    (one,), (two,) = (load(str(tmp_path / "a.parquet")).tables.values() for _ in range(2))
    assert one._fingerprint != two._fingerprint  # nothing cached by the library is ever found again
    sha = hashlib.sha256(b"".join(stored(tmp_path / "a.parquet"))).hexdigest()
    assert sha == hashlib.sha256(b"".join(tiny_picture(i) for i in range(20))).hexdigest()


def test_a_saved_dataset_whose_path_means_two_to_the_library_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"image": [tiny_picture(0)]}).save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "a::b").mkdir()
    os.rename(tmp_path / "plain", tmp_path / "a::b" / "saved")
    with pytest.raises(
        InputError, match=r"a::b/saved: a saved dataset is not read below a path with '::'.* Rename"
    ):
        load(str(tmp_path / "a::b" / "saved"))
