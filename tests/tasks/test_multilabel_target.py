"""Several labels for each picture: lists, vectors, columns of 0 and 1; splits, hidden and mixed labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toolbox import encode

from kdcli.errors import InputError, UsageError
from kdcli.sections import DataSection, OptimSection, ViewSection
from kdcli.tasks import open_task_data, task_of
from kdcli.tasks.multilabel.target import AnswerColumns, Answers, strata

ROWS = [["cat"], ["dog", "cat"], [], ["dog"], None, ["bird", "cat"], ["dog", "bird"], ["cat"]]


def saved(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> str:
    count = len(next(iter(columns.values())))
    pictures = [encode(np.full((8, 8, 3), 7 * i, np.uint8)) for i in range(count)]
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in pictures], **columns},
        features=datasets.Features({"image": datasets.Image(), **features}),
    )
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(folder))
    return str(folder)


def opened(source: str, **options: Any) -> Any:
    return open_task_data(DataSection(source=source, **options), "train", "validation")


NUMBERS = {"bird": 0, "cat": 1, "dog": 2}
HOT = [None if row is None else [float(name in row) for name in NUMBERS] for row in ROWS]


@pytest.mark.parametrize("kind", ["names", "numbers", "class labels", "vector", "columns"])
def test_every_form_gives_the_same_answers(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {}
    text, number = datasets.Value("string"), datasets.Value("int64")
    numbers = [None if row is None else [NUMBERS[name] for name in row] for row in ROWS]
    forms: dict[str, Any] = {
        "names": ({"labels": ROWS}, {"labels": datasets.List(text)}),
        "numbers": ({"labels": numbers}, {"labels": datasets.List(number)}),
        "class labels": ({"tags": numbers}, {"tags": datasets.List(datasets.ClassLabel(names=[*NUMBERS]))}),
        "vector": ({"labels": HOT}, {"labels": datasets.List(datasets.Value("float32"), length=3)}),
        "columns": (
            {name: [None if row is None else row[i] for row in HOT] for i, name in enumerate(NUMBERS)},
            dict.fromkeys(NUMBERS, datasets.Value("float32")),
        ),
    }
    if kind == "columns":
        options["label_columns"] = [*NUMBERS]
    if kind in ("numbers", "vector"):
        options["class_names"] = [*NUMBERS]
    data = opened(saved(tmp_path / "d", *forms[kind]), **options)
    assert (data.task, data.classes) == ("multi-label", [*NUMBERS])
    found = data.split("train").targets.answers
    expected = np.array([row or [math.nan] * 3 for row in HOT], np.float32)
    np.testing.assert_array_equal(found, expected)
    assert data.split("train").labels.tolist() == [1, 2, 3, 2, -1, 0, 0, 1]


def test_without_names_numbers_are_the_names(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "d", {"labels": [[2], [0], [1, 2]]}, {"labels": datasets.List(datasets.Value("int8"))}
    )
    assert opened(source).classes == ["0", "1", "2"]


def test_some_answers_may_be_missing(tmp_path: Path) -> None:
    columns = {"a": [1, None, 0, 1], "b": [0, 1, None, 1]}
    source = saved(tmp_path / "d", columns, dict.fromkeys("ab", datasets.Value("int8")))
    answers = opened(source, label_columns=["a", "b"]).split("train").targets.answers
    assert np.isnan(answers).tolist() == [[False, False], [True, False], [False, True], [False, False]]


def test_the_fingerprint_covers_the_answers(tmp_path: Path) -> None:
    kinds = {"labels": datasets.List(datasets.Value("string"))}
    one = opened(saved(tmp_path / "a", {"labels": [["x", "y"], ["y"], ["x"]]}, kinds))
    two = opened(saved(tmp_path / "b", {"labels": [["x"], ["y"], ["x", "y"]]}, kinds))
    assert one.split("train").fingerprint != two.split("train").fingerprint


def test_strata_are_the_rarest_labels() -> None:
    answers = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [math.nan] * 3, [1, 1, 1]], np.float32)
    assert strata(answers).tolist() == [1, 0, 3, -1, 2]


def test_hidden_and_blank_answers_are_unknown() -> None:
    answers = np.eye(3, dtype=np.float32)
    targets = Answers(strata(answers), answers)
    hidden = targets.hidden(np.array([1]))
    assert np.isnan(hidden.answers[1]).all()
    assert hidden.labels.tolist() == [0, -1, 2]
    assert targets.blank(2).columns(np.array([0, 1]), [])["answers"].isnan().all()
    assert targets.take(np.array([2])).answers.tolist() == [[0, 0, 1]]


def test_mixed_pictures_have_mixed_answers() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.0, math.nan], [1.0, 1.0], [0.0, 1.0]])
    found = AnswerColumns().mixed({"answers": answers, "y": torch.tensor([0, 1, -1, 0])}, 0.75)
    torch.testing.assert_close(found["target"][0], torch.tensor([0.75, 0.25]))
    assert found["target"][1].isnan().tolist() == [False, True]
    assert found["labelled"].tolist() == [True, False, False, True]


def test_class_balance_weighs_yes_by_how_rare_it_is(tmp_path: Path) -> None:
    rows = [["a", "b"], ["b"], ["b"], []]
    source = saved(tmp_path / "d", {"labels": rows}, {"labels": datasets.List(datasets.Value("string"))})
    section = DataSection(source=source, class_balance="loss")
    task = task_of(open_task_data(section, "train", "validation"), section, OptimSection(), ViewSection())
    assert task.supervised("s")[0].args == ("s.logits", "target", "label_weight")
    columns = task.target_columns(np.zeros(2)).plain({"answers": torch.zeros(2, 2), "y": torch.zeros(2)})
    assert columns["label_weight"].tolist() == [[3.0, pytest.approx(1 / 3)]] * 2


@pytest.mark.parametrize(
    ("columns", "kind", "options", "message"),
    [
        (
            {"a": [0, 2, 1]},
            "int8",
            {"label_columns": ["a"]},
            "train row 1: 2 where a label is answered by 1 or 0",
        ),
        ({"a": [0, 1, 1]}, "int8", {"label_columns": ["a", "c"]}, "has no column 'c'"),
        ({"a": [0, 0, 0]}, "int8", {"label_columns": ["a"]}, "label 'a' has no labelled picture in train"),
        (
            {"a": [1, 1, 1]},
            "int8",
            {"label_columns": ["a"]},
            "label 'a' is on every labelled picture in train",
        ),
        ({"a": [1, 0, 1]}, "int8", {"task": "multi-label"}, "has no column of lists of labels"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, columns: dict[str, Any], kind: str, options: dict[str, Any], message: str
) -> None:
    source = saved(tmp_path / "d", columns, dict.fromkeys(columns, datasets.Value(kind)))
    with pytest.raises(InputError, match=message):
        opened(source, **options)


def test_names_must_fit_the_numbers(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", {"labels": [[0], [1]]}, {"labels": datasets.List(datasets.Value("int8"))})
    with pytest.raises(InputError, match="gives 3 names, and column 'labels' has 2 labels"):
        opened(source, class_names=["a", "b", "c"])
    with pytest.raises(UsageError, match=r"data\.label_columns is for multi-label, and .* is opened for"):
        opened(source, task="classification", label_columns=["a"])
