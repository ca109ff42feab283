"""COCO JSON: every layout gives the same normal form, and whatever does not fit is refused by its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from toolbox import class_folders, encode

from kdcli.data.annotations import coco
from kdcli.data.loading import load
from kdcli.errors import InputError

datasets = pytest.importorskip("datasets")

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]


def picture(file: Path, width: int = 20, height: int = 10) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(Image.new("RGB", (width, height), (len(str(file)), 5, 9))))
    return file


def content(*names: str) -> dict[str, Any]:
    """Two objects in the first picture, none in the others."""
    images = [{"id": 7 + i, "file_name": name, "width": 20, "height": 10} for i, name in enumerate(names)]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2.5, 3, 4.25], "iscrowd": 0, "area": 1},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 2,
            "bbox": [0, 0, 20, 10],
            "iscrowd": 1,
            "segmentation": [[1]],
        },
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def images(*entries: dict[str, Any]) -> dict[str, Any]:
    """What follows in place of the two pictures: ids are 7 and 8 and their files a.png and b.png."""
    usual = ({"id": 7 + i, "file_name": f"{name}.png"} for i, name in enumerate("ab"))
    return {"images": [own | entry for own, entry in zip(usual, entries)]}


def annotation(**more: Any) -> dict[str, Any]:
    """One annotation, with something changed."""
    return {"annotations": [{"id": 5, "image_id": 7, "category_id": 9, "bbox": [1] * 4} | more]}


def write(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def paths(table: Any) -> list[str]:
    return [cell["path"] for cell in table.cast_column("image", datasets.Image(decode=False))["image"]]


LAYOUTS = {
    "coco": ("annotations/instances_{}.json", "{}/", "", {"train2017": "train", "val2017": "validation"}),
    "images": (
        "annotations/instances_{}.json",
        "images/{}/",
        "",
        {"train2017": "train", "val2017": "validation"},
    ),
    "named": ("labels/my_{}.json", "pictures/{}/deep/", "", {"train": "train", "test": "test"}),
    "roboflow": (
        "{}/_annotations.coco.json",
        "{}/",
        "",
        {"train": "train", "valid": "validation", "test": "test"},
    ),
    "inner": (
        "{}/_annotations.coco.json",
        "{}/images/",
        "images/",
        {"train": "train", "valid": "validation"},
    ),
    "beside": ("{}.json", "pictures/{}_part/", "", {"train": "train", "val": "validation"}),
    "root": ("data/{}.json", "data/all/{}-x/", "all/{}-x/", {"train": "train", "dev": "validation"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    file, folder, prefix, splits = LAYOUTS[layout]
    for name in splits:
        for own in ("a.png", "b.png"):  # of the same names in all splits
            picture(tmp_path / folder.format(name) / own)
        write(
            tmp_path / file.format(name), content(*(prefix.format(name) + own for own in ("b.png", "a.png")))
        )
    raw = load(str(tmp_path))
    assert (list(raw.tables), raw.notes) == (list(splits.values()), [])
    for name, split in splits.items():
        table = raw.tables[split]
        assert table.column_names == ["image", "objects", "width", "height"]
        assert paths(table) == [str(tmp_path / folder.format(name) / own) for own in ("b.png", "a.png")]
        assert table["objects"][:] == [
            {
                "bbox": [[1.0, 2.5, 3.0, 4.25], [0.0, 0.0, 20.0, 10.0]],
                "category": [1, 0],
                "iscrowd": [False, True],
            },
            {"bbox": [], "category": [], "iscrowd": []},
        ]
        assert table["width"][:] == [20, 20]
        assert table["height"][:] == [10, 10]
        kind = table.features["objects"]["category"].feature
        assert kind == datasets.ClassLabel(names=["cat", "dog"])  # in the order of the ids


@pytest.mark.parametrize(("file", "split"), [("annotations.json", "train"), ("val.json", "validation")])
def test_one_file_alone(tmp_path: Path, file: str, split: str) -> None:
    picture(tmp_path / "cover" / "images" / "a.png")
    picture(tmp_path / "cover" / "images" / "spare.png")
    write(tmp_path / "cover" / file, content("a.png"))
    raw = load(str(tmp_path))
    assert list(raw.tables) == [split]
    assert raw.notes == [
        f"{tmp_path}: 1 pictures are named in no COCO file and not read, first cover/images/spare.png"
    ]


def test_sizes_that_are_not_declared(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    value = content("a.png", "b.png")
    del value["images"][0]["width"], value["images"][0]["height"]
    write(tmp_path / "a.json", value)
    assert load(str(tmp_path)).tables["train"]["width"][:] == [None, 20]
    value["images"][1] |= {"width": 0, "height": 0}
    write(tmp_path / "a.json", value)
    assert load(str(tmp_path)).tables["train"].column_names == ["image", "objects"]


def test_other_kinds_of_the_same_pictures_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "a.png")
    write(tmp_path / "annotations" / "instances_train2017.json", content("a.png"))
    write(tmp_path / "annotations" / "person_keypoints_train2017.json", content("a.png"))
    write(tmp_path / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    assert load(str(tmp_path)).notes == [
        f"{tmp_path}: files that are not read: 1 .json",
        f"{tmp_path}: annotations/person_keypoints_train2017.json is not read, since instances_… beside it "
        "has the boxes",
    ]


def test_unlike_categories_are_matched_by_name(tmp_path: Path) -> None:
    for name, categories in (
        ("train", CATEGORIES),
        ("val", [{"id": 1, "name": "dog"}, {"id": 2, "name": "emu"}]),
    ):
        picture(tmp_path / name / "a.png")
        value = content("a.png") | {"categories": categories}
        value["annotations"] = [{"image_id": 7, "category_id": categories[0]["id"], "bbox": [0, 0, 1, 1]}]
        write(tmp_path / name / "x.json", value)
    raw = load(str(tmp_path))
    for table in raw.tables.values():
        assert table.features["objects"]["category"].feature.names == ["cat", "dog", "emu"]
        assert table["objects"][0]["category"] == [1]
    assert raw.notes == [
        f"{tmp_path}/val/x.json has other categories than {tmp_path}/train/x.json: they are matched by name"
    ]


def test_splits_that_share_a_folder_are_said(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "train" / f"{name}.png")
    write(tmp_path / "train.json", content("a.png"))
    write(tmp_path / "val.json", content("b.png") | {"annotations": []})
    assert load(str(tmp_path)).notes == [
        f"{tmp_path}: 1 pictures of validation lie in the folder of another split, first train/b.png",
        f"{tmp_path}/val.json holds no annotation: all of its pictures count as such without objects",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            images({"file_name": "no.png"}, {}),
            r"1 of the 2 pictures that it names are not there.*'no\.png'\. Put",
        ),
        (images({}, {"id": 7}), "two images have the id 7"),
        (
            images({}, {"file_name": "x/../a.png"}),
            r"two images have the same file, 'a\.png' and 'x/\.\./a\.png'",
        ),
        (images({"file_name": None}), r"the image 7 has no id or no file_name \(None\)"),
        (images({"id": None}), r"the image None has no id"),
        (images(), "names no picture"),
        ({"images": {}}, "'images' is no list of objects"),
        (images({"width": -1, "height": 4}), r"'a\.png': it declares a size of -1 x 4 pixels"),
        (images({"width": "x", "height": 4}), "declares a size of x x 4"),
        (images({"width": [2], "height": 4}), r"declares a size of \[2\] x 4"),
        (images({"width": float("inf"), "height": 4}), "declares a size of inf x 4"),
        (images({"width": 20}), "declares a size of 20 x None pixels"),
        (images({"width": 2.5, "height": 4}), "declares a size of 2.5 x 4 pixels"),
        (annotation(image_id=99), "annotation 5 is of the image 99, which 'images' has not"),
        (annotation(image_id=[7]), r"annotation 5 is of the image \[7\], which"),
        (annotation(category_id=3), "annotation 5 is of the category 3, which 'categories' has not"),
        (
            annotation(id=0, category_id="9"),
            "annotation 0 is of the category '9', which 'categories' has not",
        ),
        (annotation(bbox=None), "annotation 5 has the bbox None, where x, y"),
        (annotation(bbox=[1, 1, 1]), r"annotation 5 has the bbox \[1, 1, 1\]"),
        (annotation(bbox=[1, 1, 1, float("nan")]), "annotation 5 has the bbox .*nan"),
        (annotation(bbox=[10**400, 1, 1, 1]), "annotation 5 has the bbox"),
        (annotation(bbox=[True, 1, 1, 1]), "annotation 5 has the bbox"),
        (annotation(iscrowd=2), "annotation 5 has iscrowd 2, where 0 or 1"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two classes are called 'a'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories have the id 1"),
        ({"categories": [{"id": 1}]}, "the category 1 has no name"),
        ({"categories": [{"id": 1, "name": " "}]}, "' ' is no name of a class"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, r"'\\ud800' is no name of a class"),
        ({"categories": [{"id": "1", "name": "a"}]}, "a category has the id '1', where a whole number"),
        ({"categories": []}, "names no class"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    write(tmp_path / "a.json", content("a.png", "b.png") | change)
    with pytest.raises(InputError, match=rf"a\.json.*{message}"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["../o.png", "x/../../o.png", "..\\o.png", "/etc/passwd", "http://a/b.png", "a\0"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "o.png")
    picture(tmp_path / "d" / "a.png")
    write(tmp_path / "d" / "a.json", content("a.png", name))
    with pytest.raises(
        InputError, match=r"d/a\.json: '.*' is no path to a file below .*/d\. Files elsewhere"
    ):
        load(str(tmp_path / "d"))


def test_a_name_that_may_be_several_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / "y" / "a.png")
    write(tmp_path / "j.json", content("a.png"))
    with pytest.raises(
        InputError, match=r"j\.json: 'a\.png' may be x/a\.png or y/a\.png\. Put the file beside"
    ):
        load(str(tmp_path))


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    whole = write(tmp_path / "a.json", content("a/0.png")).read_text()
    (tmp_path / "a.json").write_text(
        whole[: whole.index('"categories"') - 3]
    )  # no longer has all of the keys
    with pytest.raises(InputError, match=r"a\.json is not valid JSON: .* Was it cut off\? Get it again\."):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("train/a.json", "train/b.json", r"train/a\.json and .*train/b\.json are both of the train split"),
        (
            "a.json",
            "train/b.json",
            r"a\.json beside train/b\.json: of which split is it\? Call it train\.json",
        ),
    ],
)
def test_two_files_of_one_split_or_of_none_are_refused(
    tmp_path: Path, one: str, other: str, message: str
) -> None:
    for file in (one, other):
        picture((tmp_path / file).with_suffix(".png"))
        write(tmp_path / file, content(Path(file).stem + ".png"))
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


def test_too_large_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", content("a.png"))
    monkeypatch.setattr(coco, "_LIMIT", 100)
    with pytest.raises(InputError, match=r"cannot read .*a\.json: it has more than 100 bytes"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[]",
        '{"images": [], "annotations": []}',
        '["images", "annotations", "categories"]',
        '{"all": {"images": [], "annotations": [], "categories": []}}',
        '{"images": [{"file_name": "none.png"}], "annotations": "bbox"}',
    ],
)
def test_stray_json_beside_class_folders(tmp_path: Path, text: str) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "x.json").write_text(text)
    os.mkfifo(tmp_path / "b" / "pipe.json")
    raw = load(str(tmp_path))
    assert raw.tables["train"].column_names == ["image", "label"]
    assert raw.notes == [f"{tmp_path}: files that are not read: 2 .json"]


def test_sidecars_of_many_pictures_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    for i in range(3):
        write(tmp_path / "a" / f"{i}.json", {"version": 1})
    opened = []
    monkeypatch.setattr(coco, "_has_words", lambda file: opened.append(file))
    load(str(tmp_path))
    assert len(opened) == 3
    monkeypatch.setattr(coco, "_MANY", 2)
    load(str(tmp_path))
    assert len(opened) == 3


def test_words_are_found_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", content("a.png"))
    for size in (16, 17, 18, 19):
        monkeypatch.setattr(coco, "_CHUNK", size)
        assert load(str(tmp_path)).tables["train"].column_names[1] == "objects"


def test_metadata_are_read_before_annotations(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 1}')
    write(tmp_path / "a.json", content("a.png"))
    raw = load(str(tmp_path))
    assert raw.tables["train"].column_names == ["image", "label"]
    assert raw.notes[-1] == (
        f"{tmp_path}: annotations as COCO JSON (a.json) are not read beside a metadata file"
    )
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": [')  # nor is damage
    assert load(str(tmp_path)).notes == raw.notes


def test_two_kinds_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", content("a.png"))
    (tmp_path / "a.xml").write_text("<annotation/>")
    with pytest.raises(
        InputError,
        match=r"holds annotations of two kinds: COCO JSON \(a\.json\) and Pascal VOC XML \(a\.xml\)\. Move",
    ):
        load(str(tmp_path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.sampled_from("./\\a:pngé\0\n\ud800x"), max_size=12),
    size=st.floats() | st.integers() | st.none(),
)
def test_no_name_or_size_leads_anywhere_else(tmp_path: Path, name: str, size: Any) -> None:
    if not (tmp_path / "d").exists():
        picture(tmp_path / "a.png")
        picture(tmp_path / "d" / "a.png")
    value = content("a.png")
    value["images"][0] = {"id": 7, "file_name": name, "width": size, "height": size}
    write(tmp_path / "d" / "a.json", value)
    try:
        table = load(str(tmp_path / "d")).tables["train"]
    except InputError as error:
        message = str(error)
    else:
        message = "a.json"
        assert paths(table) == [str(tmp_path / "d" / "a.png")]
        assert table.column_names[2:] == (["width", "height"] if size else [])
    assert "a.json" in message
