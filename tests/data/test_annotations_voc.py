"""Pascal VOC XML: pixels counted from 1, partners by stem, lists that divide; untrusted files refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toolbox import class_folders, encode

from kdcli.data.annotations import voc
from kdcli.data.loading import load
from kdcli.errors import InputError

datasets = pytest.importorskip("datasets")

DOG = ("dog", (1, 1, 20, 10), "0")
CAT = ("cat", (3, 4.5, 3, 6), "1")


def picture(file: Path, width: int = 20, height: int = 10) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(Image.new("RGB", (width, height), (len(str(file)), 5, 9))))
    return file


def thing(name: str, box: tuple[float, ...], difficult: str | None = None) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name> {name}\n</name>{flag}<bndbox>{sides}</bndbox></object>"


def xml(*objects: str, size: str = "<width>20</width><height>10</height>", called: str = "x.png") -> str:
    whole = "".join(objects)
    return f"<annotation><filename>{called}</filename><size>{size}</size>{whole}</annotation>"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def paths(table: Any) -> list[str]:
    return [cell["path"] for cell in table.cast_column("image", datasets.Image(decode=False))["image"]]


def stems(raw: Any) -> dict[str, list[str]]:
    return {split: [Path(path).stem for path in paths(table)] for split, table in raw.tables.items()}


LAYOUTS = {
    "devkit": ("Annotations/{}.xml", "JPEGImages/{}.png", ("",)),
    "deep": ("x/VOC/Annotations/{}.xml", "x/VOC/JPEGImages/{}.png", ("",)),
    "beside": ("{}.xml", "{}.png", ("",)),
    "roboflow": ("{}.xml", "{}.png", ("train/", "valid/", "test/")),
    "in splits": ("{}.xml", "{}.png", ("train/", "val/")),
    "inner": ("{0}/labels/{1}.xml", "{0}/images/{1}.png", ("train", "valid")),
    "outer": ("annotations/{0}/{1}.xml", "images/{0}/{1}.png", ("train", "test")),
    "one folder": ("{0}/xml/{1}.xml", "pictures/{1}.png", ("train", "test")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    file, image, parts = LAYOUTS[layout]
    expected = []
    for number, part in enumerate(parts):
        for own in "ba":
            stem = f"{own}{number if layout == 'one folder' else ''}"
            names = (part, stem) if "{0}" in file else (part + stem,)
            expected.append(str(picture(tmp_path / image.format(*(part, stem) if "{1}" in image else names))))
            write(tmp_path / file.format(*names), xml(*[thing(*DOG), thing(*CAT)] if own == "a" else []))
    raw = load(str(tmp_path))
    assert raw.notes == []
    usual = {"": "train", "val": "validation", "valid": "validation"}
    assert list(raw.tables) == [usual.get(part.rstrip("/"), part.rstrip("/")) for part in parts]
    found = [path for table in raw.tables.values() for path in paths(table)]
    assert (sorted(found), found) == (
        sorted(expected),
        [p for t in raw.tables.values() for p in sorted(paths(t))],
    )
    for table in raw.tables.values():
        assert table.column_names == ["image", "objects", "width", "height"]
        assert table["objects"][:] == [
            {
                "bbox": [[0.0, 0.0, 20.0, 10.0], [2.0, 3.5, 1.0, 2.5]],  # both ends are inside
                "category": [1, 0],
                "difficult": [False, True],
            },
            {"bbox": [], "category": [], "difficult": []},
        ]
        assert table["width"][:] == [20, 20]
        assert table["height"][:] == [10, 10]
        kind = table.features["objects"]["category"].feature
        assert kind == datasets.ClassLabel(names=["cat", "dog"])


def devkit(base: Path, names: str, lists: dict[str, str]) -> Path:
    for name in names:
        picture(base / "JPEGImages" / f"{name}.png")
        write(base / "Annotations" / f"{name}.xml", xml(thing(*DOG)))
    for name, text in lists.items():
        write(base / "ImageSets" / "Main" / f"{name}.txt", text)
    return base


def test_lists_divide(tmp_path: Path) -> None:
    lists = {
        "train": "c\na\n",
        "val": "b",
        "trainval": "a\nb\nc\n",
        "test": "\nd \r\ne\n",
        "dog_train": "a  1\nc -1\n",
    }
    base = devkit(tmp_path / "VOC2007", "abcdefg", lists)
    (base / "Annotations" / "e.xml").unlink()
    picture(base / "SegmentationClass" / "a.png")
    picture(base / "SegmentationClass" / "e.png")
    raw = load(str(tmp_path))
    assert stems(raw) == {"train": ["a", "c"], "validation": ["b"], "test": ["d", "e"]}
    assert raw.tables["test"]["objects"][1] is None
    assert paths(raw.tables["test"])[1] == str(base / "JPEGImages" / "e.png")
    assert raw.notes == [
        f"{tmp_path}: files that are not read: 1 .txt",
        f"{tmp_path}: 4 pictures are told of in no XML file in use and not read, first "
        "VOC2007/JPEGImages/f.png",
        f"{tmp_path}: 1 pictures in lists have no XML file and are not annotated, first "
        "VOC2007/JPEGImages/e.png",
        f"{tmp_path}: 2 XML files are in no list of ImageSets/Main and not read, first "
        "VOC2007/Annotations/f.xml",
    ]


def test_years_are_joined_and_trainval_is_train_where_it_is_alone(tmp_path: Path) -> None:
    devkit(tmp_path / "VOC2007", "ab", {"trainval": "b", "test": "a"})
    devkit(tmp_path / "VOC2012", "abcd", {"train": "a", "trainval": "a\nb\nc\nd"})
    raw = load(str(tmp_path))
    assert stems(raw) == {"train": ["b", "a"], "test": ["a"]}
    file = tmp_path / "VOC2012" / "ImageSets" / "Main" / "trainval.txt"
    assert f"{file} is not read beside train.txt, and names 3 pictures more" in raw.notes


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "a\nno\n"}, r"train\.txt line 2: 'no' names no XML file and no picture below .*VOC\."),
        ({"train": "a\n../a\n"}, r"train\.txt line 2: '\.\./a' names no XML file"),
        ({"train": "a\na.png\n"}, r"train\.txt line 2: 'a\.png' names no XML file"),
        ({"train": "a\n\n a\n"}, r"train\.txt line 3: 'a' stands in line 1 already"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    devkit(tmp_path / "VOC", "a", lists)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


def test_a_name_in_a_list_that_may_be_several_is_refused(tmp_path: Path) -> None:
    devkit(tmp_path, "a", {"train": "b"})
    for folder in "xy":
        write(tmp_path / folder / "b.xml", xml())
    with pytest.raises(
        InputError, match=r"train\.txt line 1: 'b' may be .*x/b\.xml or .*y/b\.xml\. Move one away"
    ):
        load(str(tmp_path))


def test_parts_of_objects_are_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write(tmp_path / "a.xml", xml(thing(*DOG).replace("<bndbox>", part + "<bndbox>", 1)))
    table = load(str(tmp_path)).tables["train"]
    assert table["objects"][0] == {"bbox": [[0, 0, 20, 10]], "category": [0], "difficult": [False]}


def test_sizes_that_are_not_declared(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    write(tmp_path / "a.xml", xml(thing(*DOG), size="<width>0</width><height>0</height>"))
    write(tmp_path / "b.xml", f"<?xml version='1.0'?>\n<!-- - -->\n<annotation>{thing(*CAT)}</annotation>")
    assert load(str(tmp_path)).tables["train"].column_names == ["image", "objects"]


def test_boxes_that_begin_at_pixel_0_are_said(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.xml", xml(thing("dog", (0, 2, 20, 8)), thing("dog", (4, 0, 5, 9))))
    raw = load(str(tmp_path))
    boxes = [[0.0, 1.0, 20.0, 7.0], [3.0, 0.0, 2.0, 9.0]]
    assert [cell["bbox"] for cell in raw.tables["train"]["objects"]] == [boxes, boxes]
    assert raw.notes == [
        f"{tmp_path}: boxes begin at pixel 0 in 2 XML files, first a.xml; VOC counts pixels from 1. These "
        "boxes begin at the edge; if all corners are counted from 0, the others begin one pixel too far to "
        "the left and above"
    ]


def test_of_several_pictures_the_name_in_the_file_decides(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
    file = write(tmp_path / "a.xml", xml(thing(*DOG), called="C:\\data\\a.tif"))
    assert paths(load(str(tmp_path)).tables["train"]) == [str(tmp_path / "a.tif")]
    write(file, xml(thing(*DOG), called="b.tif"))
    with pytest.raises(InputError, match=r"a\.xml may be of a\.png or a\.tif, by its name\. Move one away"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml("<object><bndbox/></object>"), "object 1 has no name"),
        (xml(thing(*DOG), "<object><name>a</name></object>"), "object 2 has the box None, None, None"),
        (xml(thing("a", (1, 2, 3))), "object 1 has the box 1, 2, 3, None, where xmin, ymin, xmax, ymax are"),
        (xml(thing("a", (-1, 2, 3, 4))), "object 1 has the box -1, 2, 3, 4, where .*, in pixels from 1"),
        (xml(thing("a", (1, 2, float("nan"), 4))), "object 1 has the box 1, 2, nan, 4"),
        (xml(thing("a", (5, 2, 4, 4))), r"object 1: its box ends before it begins \(5, 2, 4, 4\)"),
        (xml(thing("a", (0, 2, 0, 4))), r"object 1: its box ends before it begins \(0, 2, 0, 4\)"),
        (xml(thing("a", (1, 1, 2, 2), "often")), "object 1 has difficult 'often', where 0 or 1"),
        (xml(size="<width>-3</width><height>4</height>"), "it declares a size of -3 x 4 pixels"),
        (xml(size="<width>a</width><height>4</height>"), "it declares a size of a x 4 pixels"),
        (xml(size="<width>3</width>"), "it declares a size of 3 x None pixels"),
        (xml()[:-3], "is not valid XML: "),
        ("<annotation>" * 40, "is nested more than 32 deep"),
        ("<!DOCTYPE annotation [<!ENTITY a 'b'>]><annotation>&a;</annotation>", "has a document type"),
        ("<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'><annotation/>", "has a document type"),
        ("<annotation>&a;</annotation>", "is not valid XML: undefined entity"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.xml", text)
    with pytest.raises(InputError, match=rf"a\.xml,? ?.*{message}"):
        load(str(tmp_path))


def test_files_that_have_no_place_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    write(tmp_path / "train" / "a.xml", xml(thing(*DOG)))
    loose = write(tmp_path / "b.xml", xml(thing(*DOG)))
    with pytest.raises(
        InputError, match=r"b\.xml lies beside the split folders \(1 such\)\. Move it into one"
    ):
        load(str(tmp_path))
    lost = loose.rename(tmp_path / "train" / "b.xml")
    with pytest.raises(InputError, match=r"train/b\.xml: there is no picture of this name below"):
        load(str(tmp_path))
    (tmp_path / "Annotations").mkdir()
    lost.rename(tmp_path / "train" / "Annotations.xml").unlink()
    write(tmp_path / "x" / "train" / "a.xml", xml())
    with pytest.raises(
        InputError, match=r"train/a\.xml and .*x/train/a\.xml are both of train/a\.png\. Remove one"
    ):
        load(str(tmp_path))


def test_no_object_at_all_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.xml", xml())
    with pytest.raises(InputError, match="names no class"):
        load(str(tmp_path))


def test_too_large_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.xml", xml(thing(*DOG)))
    monkeypatch.setattr(voc, "_LIMIT", 100)
    with pytest.raises(InputError, match=r"cannot read .*a\.xml: it has more than 100 bytes"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "<annotation", "<annotations/>", "<!DOCTYPE html><annotation/>", "<a><annotation/></a>"]
)
def test_stray_xml_beside_class_folders(tmp_path: Path, text: str) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    write(tmp_path / "a" / "0.xml", text)
    os.mkfifo(tmp_path / "b" / "pipe.xml")
    raw = load(str(tmp_path))
    assert raw.tables["train"].column_names == ["image", "label"]
    assert raw.notes == [f"{tmp_path}: files that are not read: 2 .xml"]


def test_encodings(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    text = xml(thing("Hündin", (1, 1, 2, 2)))
    (tmp_path / "a.xml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.xml").write_bytes(b"<?xml version='1.0' encoding='latin-1'?>" + text.encode("latin-1"))
    write(tmp_path / "c.xml", xml())
    table = load(str(tmp_path)).tables["train"]
    assert table.features["objects"]["category"].feature.names == ["Hündin"]
    assert [cell["category"] for cell in table["objects"]] == [[0], [0], []]
