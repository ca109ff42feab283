"""Boxes: read in both forms of tables, checked against their pictures; what is none is refused by its row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import encode

from kdcli.data.batches import training_loader
from kdcli.data.order import Pool
from kdcli.data.samples import Data
from kdcli.data.sources import open_data, open_unlabelled
from kdcli.data.views import TrainingView
from kdcli.errors import InputError, UsageError
from kdcli.sections import DataSection, ViewSection
from kdcli.tasks.detection.boxes import strata
from kdcli.tasks.detection.target import BoxColumns, Boxes, BoxReader

WIDTH, HEIGHT = 40, 30
Row = tuple[bytes, Any]


def opened(source: Path, *need: str, **options: Any) -> Data:
    """Without a split named, train and a carved validation; else these, with nothing carved."""
    more = {"validation": "train"} if need else {}
    config = DataSection(source=str(source), **{**more, **options})
    return open_data(config, BoxReader, need=need or ("train", "validation"))


def boxes_of(data: Data, split: str = "train") -> Boxes:
    targets = data.split(split).targets
    assert isinstance(targets, Boxes)
    return targets


def picture(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    return encode(Image.new("RGB", size, (number % 250, number // 250, 9)))


def objects(*cells: tuple[Sequence[float], Any], **more: list[Any]) -> dict[str, Any]:
    return {"bbox": [list(box) for box, _ in cells], "category": [name for _, name in cells], **more}


def rows(*cells: Any) -> list[Row]:
    return [(picture(i), cell) for i, cell in enumerate(cells)]


def table_of(table: list[Row], *, listed: bool = False, **columns: list[Any]) -> datasets.Dataset:
    """A dataset of pictures and objects, as a struct of lists, or ``listed``, as a list of structs."""
    cells = [cell for _, cell in table]
    if listed:
        cells = [cell and [dict(zip(cell, one)) for one in zip(*cell.values())] for cell in cells]
    images = [{"bytes": data, "path": None} for data, _ in table]
    made = datasets.Dataset.from_dict({"image": images, "objects": cells, **columns})
    return made.cast_column("image", datasets.Image())


def saved(folder: Path, table: list[Row] | dict[str, list[Row]], **more: Any) -> Path:
    splits = table if isinstance(table, dict) else {"train": table}
    made = {name: table_of(own, **more) for name, own in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


PLAIN = (
    objects(([2, 3, 10, 8], "cat"), ([20, 10, 5.5, 6], "dog")),
    objects(([0, 0, 40, 30], "cow")),
    objects(),
    None,
    objects(([1, 1, 4, 4], "dog"), ([30, 20, 9, 9], "dog"), ([5, 5, 8, 8], "cat")),
)


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [False, True])
def test_both_forms_are_read_alike(tmp_path: Path, listed: bool) -> None:
    data = opened(saved(tmp_path / "d", rows(*PLAIN), listed=listed), "train")
    boxes = boxes_of(data)
    assert (data.task, data.classes, data.notes) == ("detection", ["cat", "cow", "dog"], ())
    assert boxes.labels.tolist() == [0, 0, 0, -1, 0]
    assert boxes.offsets.tolist() == [0, 2, 3, 3, 3, 6]
    assert (boxes.boxes.dtype, boxes.classes.dtype, boxes.ignored.dtype) == (np.float64, np.int64, bool)
    for i, cell in enumerate(PLAIN):  # again, by hand
        corners, classes, ignored = boxes.truth(i)
        expected = [[x, y, x + w, y + h] for x, y, w, h in (cell or {"bbox": []})["bbox"]]
        assert corners.tolist() == expected
        assert [data.classes[c] for c in classes] == (cell or {"category": []})["category"]
        assert not ignored.any()


def test_forms_give_the_same_fingerprint(tmp_path: Path) -> None:
    first = opened(saved(tmp_path / "a", rows(*PLAIN)), "train")
    second = opened(saved(tmp_path / "b", rows(*PLAIN), listed=True), "train")
    assert first.fingerprint == second.fingerprint


def test_other_names_of_the_keys(tmp_path: Path) -> None:
    cell = {"id": [7], "boxes": [[1.0, 2.0, 3.0, 4.0]], "category_id": [1], "area": [12.0]}
    source = saved(tmp_path / "d", rows(cell, {**cell, "category_id": [0]}))
    data = opened(source, "train")
    assert data.classes == ["0", "1"]
    assert boxes_of(data).classes.tolist() == [1, 0]


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    lines = []
    for i, cell in enumerate(PLAIN):
        (folder / f"{i}.png").write_bytes(picture(i))
        lines.append(json.dumps({"file_name": f"{i}.png", "objects": cell}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = opened(tmp_path / "data", "train")
    assert data.classes == ["cat", "cow", "dog"]
    assert data.fingerprint == opened(saved(tmp_path / "saved", rows(*PLAIN)), "train").fingerprint
    assert "(train/0.png)" in data.split("train").where(0)


def test_class_labels_keep_their_names_and_numbers(tmp_path: Path) -> None:
    kind = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(datasets.ClassLabel(names=["zebra", "ant", "bee"])),
    }
    table = table_of(rows(objects(([1, 2, 3, 4], 2)), objects(([1.5, 2, 3, 4], 0)), objects(), None))
    table.cast_column("objects", kind).save_to_disk(str(tmp_path / "d"))
    data = opened(tmp_path / "d", "train")
    assert data.classes == ["zebra", "ant", "bee"]
    assert boxes_of(data).classes.tolist() == [2, 0]
    assert data.notes == ("no box of train is of 1 of the 3 classes ('ant'): they cannot be learned",)
    with pytest.raises(InputError, match=r"names its 3 classes itself \('zebra', 'ant', 'bee'\)"):
        opened(tmp_path / "d", "train", class_names=["a", "b", "c"])
    wrong = table_of(rows(objects(([1, 2, 3, 4], -1)))).cast_column("objects", kind)
    wrong.save_to_disk(str(tmp_path / "wrong"))
    with pytest.raises(InputError, match="train row 0: a box is of category -1, outside the 3 classes"):
        opened(tmp_path / "wrong", "train")


def test_numbers_are_named_or_their_own_names(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", rows(objects(([1, 2, 3, 4], 1)), objects(([1, 2, 3, 4], 3))))
    data = opened(source, "train")
    assert data.classes == ["1", "2", "3"]
    assert boxes_of(data).classes.tolist() == [0, 2]
    assert data.notes[0] == "column 'objects': labels start at 1; they are taken as the classes 1 to 3"
    named = opened(source, "train", class_names=["none", "cat", "dog", "cow"])
    assert (named.classes, boxes_of(named).classes.tolist()) == (["none", "cat", "dog", "cow"], [1, 3])
    with pytest.raises(
        InputError, match=r"row 1: a box is of category 3, outside the 3 classes of data\.class_names, 0 to 2"
    ):
        opened(source, "train", class_names=["cat", "dog", "cow"])


def test_marked_boxes_are_ignored(tmp_path: Path) -> None:
    cells = [([1, 2, 3, 4], "a"), ([5, 6, 7, 8], "b"), ([9, 9, 2, 2], "a")]
    crowd = objects(*cells, iscrowd=[0, 1, 0], difficult=[False, False, True])
    alone = objects(cells[0], iscrowd=[1], difficult=[False])
    data = opened(saved(tmp_path / "d", rows(crowd, alone)), "train")
    boxes = boxes_of(data)
    assert boxes.ignored.tolist() == [False, True, True, True]
    read = data.split("train").beside(0, (WIDTH, HEIGHT), 5000)
    assert (read["boxes"].tolist(), read["classes"].tolist()) == ([[1, 2, 4, 6]], [0])
    assert data.notes == ("no box of train is of 1 of the 2 classes ('b'): they cannot be learned",)
    assert len(data.split("train").beside(1, (WIDTH, HEIGHT), 5000)["classes"]) == 0
    assert boxes.strata.tolist() == [1, 0]


def test_claims() -> None:
    def claimed(kind: Any, column: str = "objects", **options: Any) -> bool:
        table = datasets.Dataset.from_dict({column: []}, features=datasets.Features({column: kind}))
        return BoxReader.claims(table, DataSection(source="x", **options))

    number, box = datasets.Value("int64"), datasets.List(datasets.Value("float64"))
    of_lists = {"bbox": datasets.List(box), "category": datasets.List(number)}
    assert claimed(of_lists)
    assert claimed(datasets.List({"boxes": box, "label": number}))
    assert not claimed(of_lists, "things")
    assert claimed(of_lists, "things", box_column="things")
    assert not claimed({"bbox": datasets.List(box)})
    assert not claimed({"bbox": box, "category": number})
    assert not claimed(datasets.List(number))


def test_a_column_of_another_name(tmp_path: Path) -> None:
    table = table_of(rows(*PLAIN)).rename_column("objects", "things")
    table.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(
        InputError, match=r"no column 'objects' of boxes among image, things\. .*data\.box_column"
    ):
        opened(tmp_path / "d", "train")
    with pytest.raises(InputError, match=r"no column 'thinks'; it has: image, things\. Did you mean"):
        opened(tmp_path / "d", "train", box_column="thinks")
    with pytest.raises(InputError, match=r"column 'image' of train holds no lists of boxes \('bbox'\)"):
        opened(tmp_path / "d", "train", box_column="image")
    assert boxes_of(opened(tmp_path / "d", "train", box_column="things")).offsets[-1] == 6


# -- what is refused, and what is said -----------------------------------------------------------------------

FINE = objects(([1, 2, 3, 4], "a"))


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (objects(([50, 2, 3, 4], "a")), {},
         r"train row 2: its box \[50, 2, 3, 4\] lies outside its picture of 40 x 30 pixels"),
        (objects(([1, -9, 3, 4], "a")), {}, r"row 2: its box \[1, -9, 3, 4\] lies outside"),
        (objects(([9, 9, -3, 4], "a")), {}, r"row 2: its box \[9, 9, -3, 4\] has a negative width or height"),
        (objects(([30, 9, 15, 12], "a")), {"box_format": "xyxy"},
         r"row 2: its box \[30, 9, 15, 12\] has x2 < x1 or y2 < y1"),
        (objects(([9, 9, float("nan"), 4], "a")), {}, r"row 2: its box \[9, 9, nan, 4\] is not of four fin"),
        (objects(([9, 9, float("inf"), 4], "a")), {}, r"row 2: its box \[9, 9, inf, 4\] is not of four fin"),
        (objects(([9, 9, 4], "a")), {}, "train row 2: a box has 3 numbers, and four are wanted"),
        ({"bbox": [None], "category": ["a"]}, {}, r"train row 2: a box is empty \(null\), and four"),
        (objects(([9, 9, 4, 4], None)), {}, r"train row 2: a box has no category \(null\)"),
        ({"bbox": [[9, 9, 4, 4]], "category": []}, {},
         r"train row 2: it has 1 boxes \('bbox'\) and 0 categories \('category'\)"),
    ],
)  # fmt: skip
def test_what_is_no_box_is_refused(tmp_path: Path, cell: Any, options: dict[str, Any], message: str) -> None:
    whole = objects(([0.0, 0.0, 40.0, 30.0], "a"))
    with pytest.raises(InputError, match=message):
        opened(saved(tmp_path / "d", rows(FINE, whole, cell, FINE)), "train", **options)


def test_types_that_hold_no_boxes(tmp_path: Path) -> None:
    text = [{"bbox": [["1", "2", "3", "4"]], "category": ["a"]}]
    with pytest.raises(InputError, match="train: boxes are stored as lists of string, not of numbers"):
        opened(saved(tmp_path / "a", rows(*text)), "train")
    flat = [{"bbox": [1, 2, 3, 4], "category": [1, 1, 1, 1]}]
    with pytest.raises(InputError, match="boxes are stored as int64; a box is a list of four numbers"):
        opened(saved(tmp_path / "b", rows(*flat)), "train")
    half = [{"bbox": [[1, 2, 3, 4]], "category": [0.5]}]
    with pytest.raises(InputError, match="categories are stored as double; they are names or numbers"):
        opened(saved(tmp_path / "c", rows(*half)), "train")
    crowd = [objects(([1, 2, 3, 4], "a"), iscrowd=[0, 1])]
    with pytest.raises(InputError, match="train row 0: it has 1 boxes and 2 values of 'iscrowd'"):
        opened(saved(tmp_path / "d", rows(*crowd)), "train")
    crowd = [objects(([1, 2, 3, 4], "a"), iscrowd=["no"])]
    with pytest.raises(InputError, match="'iscrowd' is stored as string; it is 1 or 0"):
        opened(saved(tmp_path / "e", rows(*crowd)), "train")
    with pytest.raises(InputError, match="a box in column 'objects' is of category -2; classes are numbered"):
        opened(saved(tmp_path / "f", rows(objects(([1, 2, 3, 4], -2)))), "train")


def test_boxes_are_cut_to_their_pictures_and_empty_ones_left_out(tmp_path: Path) -> None:
    cells = (
        objects(([1, 2, 3, 4], "a"), ([5, 5, 0, 4], "a")),
        objects(([38.5, -1, 4, 5], "b"), ([4, 4, 2, 0], "b"), ([0, 0, 40.0000001, 30], "a")),
    )
    data = opened(saved(tmp_path / "d", rows(*cells)), "train")
    boxes = boxes_of(data)
    assert boxes.boxes.tolist() == [[1, 2, 4, 6], [38.5, 0, 40, 4], [0, 0, 40, 30]]
    assert (boxes.offsets.tolist(), boxes.classes.tolist()) == ([0, 1, 3], [0, 1, 0])
    assert data.notes == (
        "2 boxes of train have no width or no height: left out, first that of train row 0",
        "train: 1 box reaches beyond its picture and is cut to it, first that of train row 1",
    )


def test_corners_that_are_read_as_sides_are_refused(tmp_path: Path) -> None:
    cells = [objects(([1, 2, 9, 9], "a")), objects(([20, 10, 38, 28], "b"), ([3, 3, 5, 5], "a"))]
    source = saved(tmp_path / "d", rows(*cells))
    with pytest.raises(
        InputError,
        match=r"train row 1: its box \[20, 10, 38, 28\] leaves its picture of 40 x 30 pixels if it is x, y, "
        r"width, height, and all boxes of train fit theirs as corners \(x1, y1, x2, y2\)\. .*"
        "--set data.box_format=xyxy",
    ):
        opened(source, "train")
    corners = boxes_of(opened(source, "train", box_format="xyxy")).boxes
    assert corners.tolist() == [[1, 2, 9, 9], [20, 10, 38, 28], [3, 3, 5, 5]]
    # one box that cannot be corners: then it is the others that reach too far
    cells.append(objects(([20, 20, 6, 6], "a")))
    assert "2 boxes reach" not in str(opened(saved(tmp_path / "e", rows(*cells)), "train").notes)
    assert "1 box reaches beyond" in str(opened(tmp_path / "e", "train").notes)


def test_a_careless_box_does_not_hide_a_wrong_convention(tmp_path: Path) -> None:
    """Of forty boxes of corners one reaches a pixel beyond its picture."""
    cells = [objects(([10, 10, 30, 29], "a")) for _ in range(39)]
    source = saved(tmp_path / "d", rows(objects(([10, 10, 41, 29], "a")), *cells))
    with pytest.raises(InputError, match="and nearly all boxes of train fit theirs as corners"):
        opened(source, "train")


def test_sides_that_are_read_as_corners_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", rows(objects(([1, 2, 9, 9], "a")), objects(([20, 10, 10, 15], "b"))))
    with pytest.raises(
        InputError,
        match=r"row 1: its box \[20, 10, 10, 15\] is inverted if it is x1, y1, x2, y2, and all boxes of "
        r"train fit theirs as a corner with width and height \(x, y, width, height\)\. .*box_format=xywh",
    ):
        opened(source, "train", box_format="xyxy")


@pytest.mark.parametrize("stored", ["xywh", "xyxy"])
def test_fractions_are_refused(tmp_path: Path, stored: str) -> None:
    source = saved(tmp_path / "d", rows(objects(([0.1, 0.2, 0.5, 0.6], "a"))))
    with pytest.raises(InputError, match=r"row 0: its box \[0.1, 0.2, 0.5, 0.6\] and all others .*in pixels"):
        opened(source, "train", box_format=stored)


def test_declared_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)), exif=exif)  # upright 30 x 40
    table = [(turned, objects(([1, 2, 3, 35], "a"))), (picture(1), objects()), (picture(2), FINE)]
    fine = saved(tmp_path / "a", table, width=[30, 40, None], height=[40, 30, None])
    assert boxes_of(opened(fine, "train")).truth(0)[0].tolist() == [[1, 2, 4, 37]]
    stored = saved(tmp_path / "b", table, width=[40, 40, 40], height=[30, 30, 30])
    with pytest.raises(
        InputError,
        match=r"train row 0: the columns width and height say 40 x 30, and its picture has 30 x 40 pixels\. "
        "If its EXIF orientation",
    ):
        opened(stored, "train")
    scaled = saved(tmp_path / "c", table, width=[30, 80, 40], height=[40, 60, 30])
    with pytest.raises(InputError, match=r"row 1: .* say 80 x 60, and its picture has 40 x 30 .*scale them"):
        opened(scaled, "train")


def test_categories_that_only_another_split_has(tmp_path: Path) -> None:
    other = rows(FINE, objects(([1, 2, 3, 4], "bb")))
    source = saved(tmp_path / "d", {"train": rows(FINE, objects(([1, 2, 3, 4], "bbc"))), "test": other})
    with pytest.raises(
        InputError,
        match=r"test row 1: a box is of 'bb', none of the 2 classes of train\. Did you mean 'bbc'\? Name all",
    ):
        opened(source, "test")
    assert boxes_of(opened(source, "test", class_names=["a", "bb", "bbc"]), "test").classes.tolist() == [0, 1]
    numbers = {"train": rows(objects(([1, 2, 3, 4], 0))), "test": rows(objects(([1, 2, 3, 4], 5)))}
    with pytest.raises(
        InputError, match="test row 0: a box is of category 5, outside the 1 classes of train"
    ):
        opened(saved(tmp_path / "e", numbers), "test")
    mixed = {"train": rows(objects(([1, 2, 3, 4], 0))), "test": rows(FINE)}
    with pytest.raises(InputError, match="test: categories are text, and numbers in train: save them alike"):
        opened(saved(tmp_path / "f", mixed), "test")


def test_classes_come_from_train_whatever_is_opened(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", {"train": rows(*PLAIN), "test": rows(objects(([1, 2, 3, 4], "dog")))})
    assert opened(source, "test").classes == ["cat", "cow", "dog"]
    alone = saved(tmp_path / "e", {"test": rows(*PLAIN)})
    assert opened(alone, "test").classes == ["cat", "cow", "dog"]


def test_data_without_boxes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture of train has a box in column 'objects'"):
        opened(saved(tmp_path / "a", rows(objects(), None, objects())), "train")
    crowd = objects(([1, 2, 3, 4], "a"), iscrowd=[1])
    with pytest.raises(InputError, match="no picture of train has a box to learn from"):
        opened(saved(tmp_path / "b", rows(crowd, crowd)), "train")


# -- as targets ----------------------------------------------------------------------------------------------


def test_another_box_is_other_data(tmp_path: Path) -> None:
    first = opened(saved(tmp_path / "a", rows(*PLAIN)), "train")
    changes: list[tuple[Any, ...]] = [
        (*PLAIN[:1], objects(([0, 0, 40, 29.5], "cow")), *PLAIN[2:]),
        (*PLAIN[:1], objects(([0, 0, 40, 30], "cat")), *PLAIN[2:]),
        (*PLAIN[:2], None, *PLAIN[3:]),
    ]
    found = {first.split("train").fingerprint}
    for number, cells in enumerate(changes):
        data = opened(saved(tmp_path / str(number), rows(*cells)), "train", class_names=["cat", "cow", "dog"])
        found.add(data.split("train").fingerprint)
    flagged = objects(([0, 0, 40, 30], "cow"), iscrowd=[1])
    data = opened(saved(tmp_path / "flag", rows(PLAIN[0], flagged, *PLAIN[2:])), "train")
    assert len(found | {data.split("train").fingerprint}) == 5
    back = opened(saved(tmp_path / "back", rows(*PLAIN)[::-1]), "train")
    assert back.split("train").fingerprint == first.split("train").fingerprint


def test_targets_are_taken_hidden_and_blank(tmp_path: Path) -> None:
    boxes = boxes_of(opened(saved(tmp_path / "d", rows(*PLAIN)), "train"))
    for keep in (np.array([4, 0, 2]), np.array([True, False, True, True, False]), np.zeros(5, bool)):
        taken = boxes.take(keep)
        numbers = np.arange(5)[keep]
        assert taken.labels.tolist() == boxes.labels[numbers].tolist()
        assert taken.hashed.tolist() == boxes.hashed[numbers].tolist()
        for new, old in enumerate(numbers):
            for one, other in zip(taken.truth(new), boxes.truth(int(old))):
                assert one.tolist() == other.tolist()
    hidden = boxes.hidden(np.array([0]))
    assert hidden.labels.tolist() == [-1, 0, 0, -1, 0]
    assert hidden.offsets.tolist() == [0, 0, 1, 1, 1, 4]
    assert hidden.truth(4)[0].tolist() == boxes.truth(4)[0].tolist()
    assert (hidden.hashed[0], hidden.hashed[1]) == (0, boxes.hashed[1])
    blank = boxes.blank(3)
    assert (blank.labels.tolist(), len(blank.truth(2)[0])) == ([-1, -1, -1], 0)
    assert blank.strata.tolist() == [-1, -1, -1]


def test_labels_are_hidden_and_corrupt_pictures_skipped(tmp_path: Path) -> None:
    table = [*rows(*PLAIN), (b"no picture", FINE)]
    data = opened(
        saved(tmp_path / "d", table), "train", on_bad_image="skip", max_bad_fraction=0.5, labels_per_class=2,
        class_names=["a", "cat", "cow", "dog"],
    )  # fmt: skip
    train = data.split("train")
    assert (len(train), len(data.skipped), int(train.labelled().sum())) == (5, 1, 2)
    boxes = boxes_of(data)
    assert all(len(boxes.truth(i)[0]) == 0 for i in np.flatnonzero(~train.labelled()))


def test_strata_are_the_rarest_class() -> None:
    rng = np.random.default_rng(0)
    rows_, classes = np.sort(rng.integers(0, 300, 500)), rng.choice(5, 500, p=[0.5, 0.3, 0.13, 0.06, 0.01])
    labels = np.where(np.arange(300) % 7, 0, -1)
    keep = labels[rows_] == 0
    rows_, classes = rows_[keep], classes[keep]
    found = strata(labels, rows_, classes)
    having = [{int(c) for c in classes[rows_ == i]} for i in range(300)]
    counts = [sum(c in own for own in having) for c in range(5)]
    rarest = [min(own, key=lambda c: (counts[c], c)) if own else None for own in having]
    for i in range(300):
        if labels[i]:
            assert found[i] == -1
        elif rarest[i] is None:
            assert found[i] == 0
        else:
            assert found[i] == (1 if rarest.count(rarest[i]) < 20 else 2 + rarest[i])
    assert {-1, 0, 1, 2} < set(found.tolist())


def test_validation_is_carved_by_strata(tmp_path: Path) -> None:
    """Of 40 pictures with the rare class, 60 with the common one and 20 without any: a quarter of each."""
    common = objects(([1, 2, 3, 4], "common"))
    both = objects(([1, 2, 3, 4], "common"), ([4, 4, 9, 9], "rare"))
    table = rows(*([both] * 40 + [common] * 60 + [objects()] * 20))
    data = opened(saved(tmp_path / "d", table), validation_fraction=0.25)
    train, validation = boxes_of(data), boxes_of(data, "validation")
    assert (len(train.labels), len(validation.labels)) == (90, 30)
    assert np.bincount(validation.classes).tolist() == [25, 10]
    assert int((np.diff(validation.offsets) == 0).sum()) == 5
    again = opened(tmp_path / "d", validation_fraction=0.25)
    assert again.fingerprint == data.fingerprint


def test_batches_carry_boxes(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d", rows(*PLAIN)), "train")
    extra = open_unlabelled(str(tmp_path / "d"), DataSection()).splits["extra train"]
    train = data.split("train")
    pool = Pool((train, extra.unlabelled(train.targets)))
    cut = TrainingView(ViewSection(scale=(1, 1), fit="squash", hflip=0), 20, 0)
    (batch,) = training_loader(pool, cut, max_pixels=5000)([[(7, 0), (0, 0), (3, 0), (2, 0), (4, 0)]])
    assert batch["y"].tolist() == [-1, 0, -1, 0, 0]
    assert [len(own) for own in batch["boxes"]] == [0, 2, 0, 0, 3]
    assert all((own.dtype, own.shape[1:]) == (torch.float32, (4,)) for own in batch["boxes"])
    assert [own.tolist() for own in batch["classes"]] == [[], [0, 2], [], [], [2, 2, 0]]
    expected = [[x / 40 + w / 80, y / 30 + h / 60, w / 40, h / 30] for x, y, w, h in PLAIN[0]["bbox"]]
    torch.testing.assert_close(batch["boxes"][1], torch.tensor(expected))
    columns = BoxColumns().plain(batch)
    assert columns["labelled"].tolist() == [False, True, False, True, True]
    assert columns["objects"].tolist() == [0, 2, 0, 0, 3]
    assert columns["objects"].dtype == torch.float32
    with pytest.raises(UsageError, match="pictures with boxes are not mixed"):
        BoxColumns().mixed(batch, 0.5)


def test_views_are_the_same_in_loader_processes(tmp_path: Path) -> None:
    train = opened(saved(tmp_path / "d", rows(*PLAIN)), "train").split("train")
    cut = TrainingView(ViewSection(scale=(0.3, 1), zoom_out=0.5, iou_crop=0.8), 20, 0)
    keys = [[(i, view) for i in range(5)] for view in range(4)]
    first = list(training_loader(Pool((train,)), cut, max_pixels=5000)(keys))
    second = list(training_loader(Pool((train,)), cut, max_pixels=5000, workers=2)(keys))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["x"], other["x"])
        for name in ("boxes", "classes"):
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))
    assert len({batch["x"].numpy().tobytes() for batch in first}) == 4


def test_boxes_of_less_than_a_pixel_of_the_view_leave_with_their_classes(tmp_path: Path) -> None:
    cells = objects(([0, 0, 1.9, 30], "a"), ([3, 3, 2, 9], "b"), ([3, 3, 9, 1.4], "c"), ([3, 3, 9, 9], "d"))
    train = opened(saved(tmp_path / "d", rows(cells)), "train").split("train")
    cut = TrainingView(ViewSection(scale=(1, 1), fit="squash", hflip=0), 20, 0)  # half, and two thirds
    _, moved = cut(train.picture(0, 5000), 0, 1, train.beside(0, (WIDTH, HEIGHT), 5000))
    columns = train.targets.columns(np.array([0]), [moved])
    assert columns["classes"][0].tolist() == [1, 3]
    assert len(columns["boxes"][0]) == 2


def test_the_reader_imports_without_torch() -> None:
    code = "import kdcli.tasks.detection.target, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
