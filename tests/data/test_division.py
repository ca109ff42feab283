"""A column of splits is heeded: rows for a test are not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toolbox import tiny_picture

from kdcli.data.samples import Data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")

EIGHT = ["train", "Test", "train", "train", "test", "train", "train", "test"]


def parquet(file: Path, splits: list[Any], name: str = "split", start: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": tiny_picture(start + i), "path": None} for i in range(len(splits))],
        "label": [i % 2 for i in range(len(splits))],
        name: splits,
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(file)
    return file


def opened(source: Path, *need: str) -> Data:
    return open_task_data(DataSection(source=str(source), validation_fraction=0.4), *need)


@pytest.mark.parametrize("name", ["split", "Split", "subset", "partition"])
def test_rows_go_where_their_column_says(tmp_path: Path, name: str) -> None:
    source = parquet(tmp_path / "data.parquet", EIGHT, name)
    data = opened(source, "train", "validation", "test")
    assert {role: len(samples) for role, samples in data.splits.items()} == {
        "train": 3, "validation": 2, "test": 3,
    }  # fmt: skip
    test = data.split("test")
    assert [test.data(i) for i in range(3)] == [tiny_picture(1), tiny_picture(4), tiny_picture(7)]
    assert test.labels.tolist() == [1, 0, 1]
    assert f"{source}: the column {name} divides the rows: train 5, test 3" in data.notes


def test_a_column_of_class_labels_and_of_metadata(tmp_path: Path) -> None:
    file = parquet(tmp_path / "d" / "data.parquet", EIGHT)
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    typed = table.cast_column("split", datasets.Value("string")).class_encode_column("split")
    typed.save_to_disk(str(tmp_path / "saved"))
    assert len(opened(tmp_path / "saved", "test").split("test")) == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = ["file_name,label,split"]
    for i, split in enumerate(EIGHT):
        (folder / f"{i}.png").write_bytes(tiny_picture(i))
        lines.append(f"{i}.png,{'ab'[i % 2]},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    data = opened(folder, "train", "test")
    assert len(data.split("test")) == 3
    assert data.split("test").data(0) == tiny_picture(1)


def test_a_single_split_is_called_what_its_rows_say(tmp_path: Path) -> None:
    source = parquet(tmp_path / "data.parquet", ["test"] * 8)
    assert len(opened(source, "test").split("test")) == 8
    with pytest.raises(InputError, match="has no split 'train'"):
        opened(source, "train")


@pytest.mark.parametrize("values", [["a", "b"] * 4, [0, 1] * 4, [None] * 8])
def test_columns_that_say_nothing_of_splits_divide_nothing(tmp_path: Path, values: list[Any]) -> None:
    data = opened(parquet(tmp_path / "data.parquet", values), "train", "validation")
    assert sum(map(len, data.splits.values())) == 8
    assert data.notes == ()


@pytest.mark.parametrize("odd", ["maybe", None])
def test_rows_of_no_split_are_refused(tmp_path: Path, odd: str | None) -> None:
    source = parquet(tmp_path / "data.parquet", [*EIGHT[:7], odd])
    with pytest.raises(InputError, match=rf"the column split says .* and of some it says '{odd or ''}'\."):
        opened(source, "train")


def test_a_column_that_contradicts_the_name_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "d" / "train.parquet", ["train"] * 8)
    parquet(tmp_path / "d" / "test.parquet", ["test"] * 4, start=20)
    assert len(opened(tmp_path / "d", "train", "test").split("test")) == 4
    parquet(tmp_path / "d" / "test.parquet", ["train"] * 4, start=20)
    with pytest.raises(
        InputError, match=r"the column split of 'test' gives rows to train\. Keep what is true"
    ):
        opened(tmp_path / "d", "train")
