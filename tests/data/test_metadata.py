"""Metadata files beside pictures: typed as the library types them, and leading nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from toolbox import class_folders, tiny_picture

from kdcli.data.loading import load
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")

ROWS = [{"file_name": f"x/{(7 * i) % 20}.png", "label": i % 2, "when": "2020-01-01"} for i in range(20)]


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as JSON lines, CSV or parquet."""
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif file.suffix == ".csv":
        lines = [",".join(str(value) for value in row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        datasets.Dataset.from_list(rows).to_parquet(file)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_types_and_order_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    class_folders(tmp_path, {"x": 20})
    write(tmp_path / f"metadata.{kind}", ROWS)
    table = load(str(tmp_path)).tables["train"]
    assert table.column_names == ["image", "label", "when"]
    assert table.features["label"] == datasets.Value("int64")
    assert (table.features["when"] == datasets.Value("timestamp[s]")) == (kind == "jsonl")
    cells = table.cast_column("image", datasets.Image(decode=False))["image"][:]
    assert cells == [{"bytes": None, "path": str(tmp_path / str(row["file_name"]))} for row in ROWS]
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert theirs.features == table.features
    assert theirs.cast_column("image", datasets.Image(decode=False))["image"][:] == cells


def test_second_pictures_and_rows_without_one(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train": 12})
    for i in range(12):
        Image.new("L", (8, 8), i % 2).save(tmp_path / "train" / f"{i}_m.png")
    rows = [{"file_name": f"{i}.png", **({"mask_file_name": f"{i}_m.png"} if i else {})} for i in range(12)]
    write(tmp_path / "train" / "metadata.jsonl", rows)
    table = load(str(tmp_path)).tables["train"]
    assert table.features == {"image": datasets.Image(), "mask": datasets.Image()}
    data = open_task_data(DataSection(source=str(tmp_path)), "train")
    assert (data.task, data.classes) == ("segmentation", ["0", "1"])


def test_several_files_of_one_split(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 10, "b": 10})
    for number, name in enumerate("ab"):
        rows = [{"file_name": f"{i}.png", "label": number} for i in range(10)]
        write(tmp_path / name / "metadata.csv", rows)
    assert load(str(tmp_path)).tables["train"]["label"][:] == [0] * 10 + [1] * 10
    write(tmp_path / "b" / "metadata.csv", [{"file_name": "1.png", "label": "text"}])
    with pytest.raises(InputError, match=r"a/metadata\.csv and .*b/metadata\.csv have unlike columns"):
        load(str(tmp_path))
    (tmp_path / "b" / "metadata.csv").unlink()
    write(tmp_path / "b" / "metadata.jsonl", [{"file_name": "1.png", "label": 1}])
    with pytest.raises(InputError, match="metadata files are of one kind"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "../o/0.png",
        "x/../../o/0.png",
        "..",
        "{root}/o/0.png",
        "file://{root}/o/0.png",
        "http://a/b.png",
        "x/\0.png",
    ],
)
@pytest.mark.parametrize("column", ["file_name", "mask_file_name"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, column: str) -> None:
    class_folders(tmp_path, {"o": 1, "d/x": 3})
    rows = [{"file_name": "x/0.png", "mask_file_name": "x/1.png"} for _ in range(3)]
    rows[2][column] = name.format(root=tmp_path)
    write(tmp_path / "d" / "metadata.jsonl", rows)
    with pytest.raises(
        InputError, match=r"metadata\.jsonl row 3: '.*' is no path to a file below .*/d\. Files"
    ):
        load(str(tmp_path / "d"))


def test_names_may_turn_within_the_folder(tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 20})
    rows = [{"file_name": f"y/../x/{i}.png", "label": i % 2} for i in range(20)]
    write(tmp_path / "metadata.jsonl", rows)
    assert open_task_data(DataSection(source=str(tmp_path)), "train").classes == ["0", "1"]


def test_a_fifo_that_metadata_name_is_not_opened(tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 20})
    os.mkfifo(tmp_path / "x" / "pipe")
    write(tmp_path / "metadata.jsonl", [*ROWS, {"file_name": "x/pipe", "label": 0, "when": ""}])
    with pytest.raises(InputError, match=r"x/pipe is no regular file"):
        open_task_data(DataSection(source=str(tmp_path)), "train")


def test_pictures_that_are_named_nowhere_are_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 20, "y": 3})
    write(tmp_path / "metadata.csv", ROWS)
    assert open_task_data(DataSection(source=str(tmp_path)), "train").notes == (
        f"{tmp_path}: 3 pictures are named in no metadata file and not read, first y/0.png",
        f"{tmp_path}: labels are those of the metadata files; folders are not taken for classes",
    )


def test_metadata_stand_where_their_split_is(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train": 4, "test": 4})
    rows = [{"file_name": f"{i}.png", "label": i % 2} for i in range(4)]
    write(tmp_path / "train" / "metadata.jsonl", rows)
    with pytest.raises(InputError, match="the test split has no metadata file, as train has"):
        load(str(tmp_path))
    write(tmp_path / "test" / "metadata.jsonl", rows)
    assert set(load(str(tmp_path)).tables) == {"train", "test"}
    write(tmp_path / "metadata.jsonl", rows)
    with pytest.raises(
        InputError, match=r"/metadata\.jsonl lies beside the split folders\. Put one into each"
    ):
        load(str(tmp_path))


def test_columns_that_name_no_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 2})
    write(tmp_path / "metadata.csv", [{"file": "x/0.png", "label": 1}])
    with pytest.raises(
        InputError, match=r"has no column 'file_name' that names pictures; it has: file, label"
    ):
        load(str(tmp_path))
    write(tmp_path / "metadata.csv", [{"file_name": "x/0.png", "image": "x"}])
    with pytest.raises(InputError, match="the columns 'file_name' and 'image' mean the same"):
        load(str(tmp_path))
    (tmp_path / "metadata.csv").write_bytes(tiny_picture(0))
    with pytest.raises(InputError, match=r"cannot read data from .*metadata\.csv"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_beyond_all_measure_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    class_folders(tmp_path, {"x": 20})
    file = write(tmp_path / f"metadata.{kind}", ROWS)
    with open(file, "r+b") as stream:
        stream.truncate(1 << 40)  # sparse
    with pytest.raises(InputError, match=rf"{file} has 1,099,511,627,776 bytes, more than 536,870,912"):
        load(str(tmp_path))
