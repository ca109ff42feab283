"""Labels as tables have them: from 0 or from 1, truth values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toolbox import tiny_picture

from kdcli.data.labels import first_number, note_of_first, numbers_as_names
from kdcli.data.samples import Data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


def opened(file: Path, labels: list[Any], kind: pa.DataType | None = None) -> Data:
    cells = [{"bytes": tiny_picture(i), "path": None} for i in range(len(labels))]
    pq.write_table(pa.table({"image": cells, "label": pa.array(labels, kind)}), file)
    return open_task_data(DataSection(source=str(file)), "train")


def named(data: Data) -> list[str | None]:
    """Names of the classes of the training pictures, in the order of their rows."""
    train = data.split("train")
    order = np.argsort(train.rows)
    return [None if n < 0 else (data.classes or [])[n] for n in train.labels[order].tolist()]


@pytest.mark.parametrize(
    ("values", "names"),
    [([0, 2], "012"), ([1, 2, 3], "123"), ([-1, 1, 2], "12"), ([2, 3], "0123"), ([-1], ""), ([], "")],
)
def test_numbers_count_from_0_or_1(values: list[int], names: str) -> None:
    assert numbers_as_names(values) == list(names)


def test_where_numbers_begin_is_said_once_it_is_1() -> None:
    assert note_of_first("y", ["0", "1"]) == []
    assert note_of_first("y", ["1", "2"]) == [
        "column 'y': labels start at 1; they are taken as the classes 1 to 2"
    ]
    assert first_number(datasets.Value("uint8"), ["1", "2"]) == 1
    assert first_number(datasets.ClassLabel(names=["1", "2"]), ["1", "2"]) == 0
    assert first_number(datasets.Value("string"), ["1", "2"]) == 0


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64()])
def test_labels_from_1_are_as_many_classes(tmp_path: Path, kind: pa.DataType) -> None:
    data = opened(tmp_path / "a.parquet", [1, 2, 3] * 10, kind)
    assert data.classes == ["1", "2", "3"]
    rows = data.split("train").rows
    assert named(data) == [str(1 + row % 3) for row in sorted(rows.tolist())]
    assert data.notes == ("column 'label': labels start at 1; they are taken as the classes 1 to 3",)


def test_unlabelled_pictures_beside_labels_from_1(tmp_path: Path) -> None:
    data = opened(tmp_path / "a.parquet", [None, -1, *([1, 2] * 20)])
    assert (data.classes, named(data)[:2]) == (["1", "2"], [None, None])


def test_a_number_that_is_missing_is_still_a_class_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class '2' has no labelled picture in train"):
        opened(tmp_path / "a.parquet", [1, 3] * 10)
    with pytest.raises(InputError, match="class '0' and 1 more has no labelled picture"):
        opened(tmp_path / "a.parquet", [2, 3] * 10)


def test_truth_values_are_two_classes(tmp_path: Path) -> None:
    data = opened(tmp_path / "a.parquet", [True, False, None] * 10)
    assert data.classes == ["false", "true"]
    rows = sorted(data.split("train").rows.tolist())
    assert named(data) == [("true", "false", None)[row % 3] for row in rows]
