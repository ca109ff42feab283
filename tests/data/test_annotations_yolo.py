"""YOLO text: the places of labels, names by number, fractions of the upright picture; refusals by line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toolbox import class_folders, encode

from kdcli.data.annotations import yolo
from kdcli.data.loading import load
from kdcli.errors import InputError

datasets = pytest.importorskip("datasets")

LINES = "0 0.5 0.5 1 1\n2 0.25 0.5 0.5 0.25\r\n\n"
BOXES = [[0.0, 0.0, 40.0, 20.0], [0.0, 7.5, 20.0, 5.0]]
YAML = "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: [cat, dog, emu]\n"


def picture(file: Path, width: int = 40, height: int = 20, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".png": "PNG"}[file.suffix]
    file.write_bytes(encode(Image.new("RGB", (width, height), (len(str(file)), 5, 9)), kind, **options))
    return file


def write(file: Path, text: str = LINES) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def paths(table: Any) -> list[str]:
    return [cell["path"] for cell in table.cast_column("image", datasets.Image(decode=False))["image"]]


def one(root: Path, lines: str = LINES, names: str = "cat\ndog\nemu\n") -> Path:
    """A single picture, its text beside it, and names."""
    write(root / "classes.txt", names)
    picture(root / "a.png")
    return write(root / "a.txt", lines)


LAYOUTS = {
    "ultralytics": ("images/{}/{}.jpg", "labels/{}/{}.txt", "data.yaml", ("train2017", "val2017")),
    "covered": ("coco/images/{}/{}.png", "coco/labels/{}/{}.txt", "coco/coco.yaml", ("train", "val")),
    "roboflow": ("{}/images/{}.jpg", "{}/labels/{}.txt", "data.yaml", ("train", "valid", "test")),
    "beside": ("{}/{}.png", "{}/{}.txt", "obj.names", ("obj_train_data", "obj_Validation_data")),
    "inner": ("{}/{}.png", "{}/labels/{}.txt", "classes.txt", ("train", "test")),
    "plain": ("images{}/{}.png", "labels{}/{}.txt", "labels/classes.txt", ("",)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    image, text, names, parts = LAYOUTS[layout]
    write(tmp_path / names, YAML if names.endswith(".yaml") else "cat\ndog\nemu\n\n")
    for part in parts:
        for own in "ab":
            picture(tmp_path / image.format(part, own))
            write(tmp_path / text.format(part, own), LINES if own == "a" else "\n")
    raw = load(str(tmp_path))
    usual = ("train", "test", "validation")
    assert list(raw.tables) == [next((u for u in usual if u[:3] in part.lower()), "train") for part in parts]
    assert raw.notes == []
    for part, table in zip(parts, raw.tables.values()):
        assert table.column_names == ["image", "objects"]
        assert paths(table) == [str(tmp_path / image.format(part, own)) for own in "ab"]
        assert table["objects"][:] == [{"bbox": BOXES, "category": [0, 2]}, {"bbox": [], "category": []}]
        kind = table.features["objects"]["category"].feature
        assert kind == datasets.ClassLabel(names=["cat", "dog", "emu"])


def test_boxes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    one(tmp_path)
    turned = Image.Exif()
    turned[274] = 6  # shown turned by a quarter
    (tmp_path / "a.png").unlink()
    picture(tmp_path / "a.jpg", exif=turned)
    boxes = [[0.0, 0.0, 20.0, 40.0], [0.0, 15.0, 10.0, 10.0]]
    assert load(str(tmp_path)).tables["train"]["objects"][0]["bbox"] == boxes


@pytest.mark.parametrize(("head", "whole"), [(100, True), (2000, False), (1 << 18, True)])
def test_sizes_of_jpegs_come_from_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: int, whole: bool
) -> None:
    one(tmp_path)
    (tmp_path / "a.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (200, 400, 3), np.uint8)
    (tmp_path / "a.jpg").write_bytes(encode(noise, "JPEG"))
    read, opened = yolo.cell_bytes, []
    monkeypatch.setattr(yolo, "_HEAD", head)
    monkeypatch.setattr(yolo, "cell_bytes", lambda *cell: opened.append(cell) or read(*cell))
    boxes = load(str(tmp_path)).tables["train"]["objects"][0]["bbox"]
    assert boxes == [[10 * side for side in box] for box in BOXES]
    assert len(opened) == whole


def test_a_picture_without_a_file_has_no_objects_and_is_said(tmp_path: Path) -> None:
    one(tmp_path)
    picture(tmp_path / "b.png")
    picture(tmp_path / "deep" / "c.png")
    raw = load(str(tmp_path))
    assert [len(cell["bbox"]) for cell in raw.tables["train"]["objects"]] == [2, 0, 0]
    assert raw.notes == [
        f"{tmp_path}: 2 of 3 pictures of train have no text file and count as such without objects, first "
        "b.png"
    ]


def test_pictures_elsewhere_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("images/x/a", "images/y/b", "masks/a", "runs/train/val"):
        picture(tmp_path / "train" / f"{name}.png")
    write(tmp_path / "train" / "labels" / "x" / "a.txt")
    write(tmp_path / "names.yml", "names: {0: cat, 1: dog, 2: 3}")
    raw = load(str(tmp_path))
    assert [Path(path).name for path in paths(raw.tables["train"])] == ["a.png", "b.png"]
    assert raw.tables["train"].features["objects"]["category"].feature.names == ["cat", "dog", "3"]
    assert raw.notes[0] == (
        f"{tmp_path}: 2 pictures are beside folders that have text files and not read, first "
        "train/masks/a.png"
    )


def test_numbers_of_classes_need_not_be_dense(tmp_path: Path) -> None:
    one(tmp_path, "7 0.5 0.5 1 1\n2.0 .5 5e-1 1 1\n")
    (tmp_path / "classes.txt").unlink()
    write(tmp_path / "data.yaml", "names:\n  7: seven\n  2: two\n")
    table = load(str(tmp_path)).tables["train"]
    assert table["objects"][0]["category"] == [1, 0]
    assert table.features["objects"]["category"].feature.names == ["two", "seven"]


def test_paths_in_yaml_that_say_something_else_are_said(tmp_path: Path) -> None:
    one(tmp_path)
    write(
        tmp_path / "data.yaml",
        "train: images/train\nval: [images/test]\ntest: test.txt\nnames: [cat, dog, emu]\n",
    )
    assert load(str(tmp_path)).notes == [
        f"{tmp_path}/data.yaml: 'val' is 'images/test'; this is not heeded, for folders tell the splits",
        f"{tmp_path}/data.yaml: 'test' is 'test.txt'; this is not heeded, for folders tell the splits",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 0.5 0.5 1",
            r"has 4 numbers where 5 are wanted \(class x y width height\): polygons, turned boxes",
        ),
        ("0 0.5 0.5 1 1 0.9", "has 6 numbers where 5"),
        ("0 0 0 0 1 1 1 1 0", "has 9 numbers where 5 are wanted .*polygons"),
        ("0 0.5 0.5 x 1", r"'0 0\.5 0\.5 x 1' where 'class x y width height' is wanted"),
        ("0 0.5 0.5 nan 1", "'0 0.5 0.5 nan 1' where"),
        ("0 0.5 0.5 1_0 1", "'0 0.5 0.5 1_0 1' where"),
        ("0,0.5,0.5,1,1", "'0,0.5,0.5,1,1' where"),
        (
            "0 20 10 40 20",
            r"'0 20 10 40 20' goes beyond 0 and 1\. Boxes are fractions .* divide pixels by its",
        ),
        ("0 0.5 0.5 1.001 1", r"'0 0\.5 0\.5 1\.001 1' goes beyond 0 and 1"),
        ("0 0.5 -0.5 1 1", r"'0 0\.5 -0\.5 1 1' goes beyond 0 and 1"),
        ("3 0.5 0.5 1 1", r"is of class 3, for which .*classes\.txt has no name"),
        ("0.5 0.5 0.5 1 1", "is of class 0.5, for which"),
        ("-1 0.5 0.5 1 1", "is of class -1, for which"),
    ],
)
def test_lines_that_do_not_fit_are_refused(tmp_path: Path, line: str, message: str) -> None:
    one(tmp_path, f"{LINES}{line}\n")
    with pytest.raises(InputError, match=rf"a\.txt line 4:? {message}"):
        load(str(tmp_path))


def test_polygons_alone_are_told_from_other_text(tmp_path: Path) -> None:
    one(tmp_path, "0 0.1 0.1 0.2 0.2 0.3 0.1\n")
    with pytest.raises(InputError, match=r"a\.txt line 1 has 7 numbers where 5 are wanted .*polygons"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "cat\ncat\n", r"classes\.txt: two classes are called 'cat'"),
        ("classes.txt", "cat\n\ndog\n", r"classes\.txt: '' is no name of a class"),
        ("data.yaml", "names: [a, b, c]\nnc: 4\n", r"data\.yaml: 'nc' says 4 classes, and 'names' has 3"),
        ("data.yaml", "names: [a, b, 1.5]\n", r"data\.yaml: 1\.5 is no name of a class\. Put it into quotes"),
        ("data.yaml", "names: [a, b, true]\n", r"data\.yaml: True is no name of a class"),
        ("data.yaml", "names: {a: b}\n", r"data\.yaml: 'names' is no list, and no mapping from the numbers"),
        ("data.yaml", "names: abc\n", r"data\.yaml: 'names' is no list"),
        ("data.yaml", "names: []\n", r"data\.yaml names no class"),
        ("data.yaml", "names: [a\n", r"cannot read data from .*data\.yaml"),
        ("data.yaml", "names: &a [*a]\n", r"cannot read data from .*data\.yaml: it is nested more than"),
        (
            "data.yaml",
            "names: [!!python/name:os.system '']\n",
            r"cannot read data from .*data\.yaml: could not det",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    one(tmp_path)
    (tmp_path / "classes.txt").unlink()
    write(tmp_path / file, text)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


def test_names_are_yes_and_no_where_they_are_called_so(tmp_path: Path) -> None:
    one(tmp_path, "0 0.5 0.5 1 1\n", "no\nyes\n")
    write(tmp_path / "data.yaml", "names: [no, yes]\n")
    names = load(str(tmp_path)).tables["train"].features["objects"]["category"].feature.names
    assert names == ["no", "yes"]
    write(tmp_path / "data.yaml", "names: [yes, no]\n")
    with pytest.raises(InputError, match=r"classes\.txt and .*data\.yaml name other classes\. Keep the one"):
        load(str(tmp_path))


def test_no_names_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt")
    with pytest.raises(
        InputError, match=r"no file names the classes of its YOLO text\. Write their names into"
    ):
        load(str(tmp_path))


def test_a_split_without_any_text_is_refused(tmp_path: Path) -> None:
    one(tmp_path / "train")
    picture(tmp_path / "test" / "b.png")
    with pytest.raises(
        InputError, match=r"none of the pictures of test has a text file.*, first test/b\.png\. Put"
    ):
        load(str(tmp_path))


def test_what_has_no_partner_is_refused(tmp_path: Path) -> None:
    one(tmp_path / "train")
    lost = write(tmp_path / "train" / "b.txt")
    write(tmp_path / "train" / "notes.txt", "none of objects")
    with pytest.raises(
        InputError, match=r"1 text files hold objects of pictures that are not there.*train/b\.txt"
    ):
        load(str(tmp_path))
    lost.unlink()
    picture(tmp_path / "train" / "a.jpg")
    with pytest.raises(InputError, match=r"train/a\.txt may be of train/a\.jpg or train/a\.png, by its name"):
        load(str(tmp_path))
    (tmp_path / "train" / "a.jpg").unlink()
    (tmp_path / "train" / "classes.txt").rename(tmp_path / "classes.txt")
    assert load(str(tmp_path)).notes == [f"{tmp_path}: files that are not read: 1 .txt"]
    one(tmp_path)
    with pytest.raises(
        InputError, match=r"/a\.png lies beside the split folders \(1 such with a text file\)"
    ):
        load(str(tmp_path))


def test_a_damaged_picture_is_not_annotated_and_said(tmp_path: Path) -> None:
    one(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    write(tmp_path / "b.txt")
    raw = load(str(tmp_path))
    assert raw.tables["train"]["objects"][1] is None
    assert raw.notes == [
        f"{tmp_path}: boxes of 1 pictures are not read, since the size of these cannot be told, first b.png: "
        "not a readable PNG, JPEG, WEBP, BMP, GIF, TIFF or PPM picture"
    ]


def test_a_picture_outside_of_the_data_is_not_opened(tmp_path: Path) -> None:
    one(tmp_path / "data")
    (tmp_path / "data" / "a.png").unlink()
    picture(tmp_path / "a.jpg", 4000, 2000)
    (tmp_path / "data" / "a.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"data/a\.jpg.*Files outside the data and URLs are never opened"):
        load(str(tmp_path / "data"))


def test_two_kinds_are_refused(tmp_path: Path) -> None:
    one(tmp_path)
    write(tmp_path / "a.xml", "<annotation/>")
    with pytest.raises(
        InputError, match=r"two kinds: Pascal VOC XML \(a\.xml\) and YOLO text \(a\.txt\)\. Move one"
    ):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["a dog on a sofa", "", "0 0.5 0.5 1", "0.5 0.5 0.5 1 1", "2024 May 5 at 10 h 12"]
)
def test_stray_text_beside_class_folders(tmp_path: Path, text: str) -> None:
    class_folders(tmp_path, {"labels": 3, "images": 3})
    for name in ("labels/0.txt", "images/0.txt"):
        write(tmp_path / name, text)
    write(tmp_path / "data.yaml", "names: [\n")
    os.mkfifo(tmp_path / "images" / "1.txt")
    raw = load(str(tmp_path))
    assert raw.tables["train"].column_names == ["image", "label"]
    assert raw.notes == [f"{tmp_path}: files that are not read: 3 .txt and 1 .yaml"]


def test_class_folders_with_text_like_objects_but_without_names(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    write(tmp_path / "a" / "0.txt")
    assert load(str(tmp_path)).tables["train"].column_names == ["image", "label"]
