"""The maker of detection data, on tiny drawings and tiny aerial pictures."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import boxes as example

SPLITS = ("train", "val", "test")


def package(folder: Path, per_class: int = 60) -> Path:
    """A package of emoji: opaque rectangles in a transparent square, each of a colour of its own."""
    images = folder / "img" / "google" / "64"
    images.mkdir(parents=True)
    entries = []
    for label, name in enumerate([*example.CLASSES, "Objects"]):
        for i in range(per_class):
            picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            picture.paste((20 * label, 4 * i, 99, 255), (8, 4 + i % 9, 8 + 40, 60))
            picture.save(images / f"{label}-{i}.png")
            entries.append({"unified": f"{label}-{i:03d}", "category": name, "image": f"{label}-{i}.png"})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def annotations(out: Path, split: str) -> dict:
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    example.emoji(package(folder / "package"), folder / "out", {"train": 40, "val": 9, "test": 12}, size=64)
    return folder / "out"


def test_coco_folders(made):
    for split, count in (("train", 40), ("val", 9), ("test", 12)):
        found = annotations(made, split)
        assert [category["name"] for category in found["categories"]] == list(example.CLASSES)
        assert [category["id"] for category in found["categories"]] == [1, 2, 3, 4, 5, 6]
        assert len(found["images"]) == len(list((made / split).iterdir())) == count
        for image in found["images"]:
            assert Image.open(made / split / image["file_name"]).size == (image["width"], image["height"])
        numbers = [annotation["id"] for annotation in found["annotations"]]
        assert numbers == list(range(1, len(numbers) + 1))
        for annotation in found["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 64
            assert 0 <= y < y + height <= 64
            assert annotation["area"] == width * height
            assert not annotation["iscrowd"]


def test_none_to_six_objects_of_the_sizes_asked_for(made):
    found = annotations(made, "train")
    counts = [sum(a["image_id"] == i["id"] for a in found["annotations"]) for i in found["images"]]
    assert min(counts) == 0
    assert 4 <= max(counts) <= example.MOST
    heights = np.array([a["bbox"][3] for a in found["annotations"]]) / 64
    assert heights.max() <= example.MOST_SIDE
    assert heights.min() < 0.15 < 0.3 < heights.max()
    assert {a["category_id"] for a in found["annotations"]} == {1, 2, 3, 4, 5, 6}


def test_same_pictures_at_every_call(made, tmp_path):
    example.emoji(package(tmp_path / "package"), tmp_path / "out", {"train": 5, "val": 9, "test": 0}, size=64)
    assert annotations(tmp_path / "out", "val") == annotations(made, "val")
    for image in annotations(made, "val")["images"]:
        name = image["file_name"]
        assert (tmp_path / "out" / "val" / name).read_bytes() == (made / "val" / name).read_bytes()


def test_emoji_of_a_split_appear_in_no_other(tmp_path):
    parts = example.shared(example.drawings(package(tmp_path / "package")))
    everything = []
    for name in example.CLASSES:
        colours = [picture.getpixel((20, 40)) for split in SPLITS for picture in parts[split][name]]
        assert [len(parts[split][name]) for split in SPLITS] == [36, 9, 15]
        everything += colours
    assert len(set(everything)) == len(everything) == 60 * len(example.CLASSES)


def test_boxes_are_exact_on_a_plain_ground():
    """The box is the smallest around the pixels that differ from the ground."""
    drawing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (16, 24, 48, 64))
    ground, rng, seen = [Image.new("RGB", (90, 70), "blue")], np.random.default_rng(3), 0
    for _ in range(40):
        image, marks = example.pasted({"one": [drawing]}, ground, 64, rng)
        if len(marks) == 1:
            red = np.asarray(image)[..., 0] > 127
            rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
            x, y, width, height = marks[0][0]
            assert (x, y) == (columns[0], rows[0])
            assert (x + width, y + height) == (columns[-1] + 1, rows[-1] + 1)
            seen += 1
        for i, (one, _) in enumerate(marks):
            for other, _ in marks[:i]:
                assert example.hidden(one, other) <= example.HIDDEN
    assert seen >= 3


def test_hidden():
    assert example.hidden((0, 0, 4, 4), (2, 2, 4, 4)) == 4 / 16
    assert example.hidden((0, 0, 8, 8), (6, 6, 2, 4)) == 4 / 8
    assert example.hidden((0, 0, 4, 4), (4, 0, 4, 4)) == example.hidden((0, 0, 4, 4), (9, 9, 1, 1)) == 0


def test_parts_cover_a_side():
    assert example.parts(1249, 400, False) == [(0, 416), (416, 833), (833, 1249)]
    assert example.parts(400, 400, True) == [(0, 400)]
    assert example.parts(90, 400, False) == [(0, 90)]
    assert example.parts(800, 400, True) == [(0, 400), (200, 600), (400, 800)]


def test_boxes_are_clipped_to_tiles_and_left_out_below_a_third():
    image = Image.fromarray(np.arange(80 * 40 * 3).reshape(40, 80, 3).astype(np.uint8))
    boxes = [(2.0, 3.0, 10.0, 10.0), (34.0, 0.0, 9.0, 10.0), (37.0, 20.0, 9.0, 10.0), (38.0, 20.0, 9.0, 4.0)]
    (left, in_left), (right, in_right) = example.cut(image, boxes, 40, overlap=False)
    assert [box for box, _ in in_left] == [(2, 3, 10, 10), (34, 0, 6, 10), (37, 20, 3, 10)]
    assert [box for box, _ in in_right] == [(0, 0, 3, 10), (0, 20, 6, 10), (0, 20, 7, 4)]
    assert np.array_equal(np.hstack([np.asarray(left), np.asarray(right)]), np.asarray(image))


def trees(folder: Path) -> Path:
    """Aerial pictures of the names of the package's, of colours of their own, with a few trees."""
    data = folder / "deepforest" / "data"
    data.mkdir(parents=True)
    for number, name in enumerate(example.TREES):
        Image.new("RGB", (80, 40), (40 * number, 9, 9)).save(data / f"{name}.png")
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{x + 8}</xmax>"
            f"<ymax>17</ymax></bndbox></object>"
            for kind, x in (("Tree", 2), ("Dead", 50), ("Alive", 62))[: number + 1]
        )
        (data / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


@pytest.mark.parametrize("wheel", [False, True])
def test_trees_are_split_by_picture(tmp_path, wheel):
    source = trees(tmp_path / "unpacked")
    if wheel:
        shutil.make_archive(str(tmp_path / "deepforest"), "zip", source)
        source = tmp_path / "deepforest.zip"
    example.trees(source, tmp_path / "out", tile=40)
    colours = {}
    for split in SPLITS:
        found = annotations(tmp_path / "out", split)
        assert found["categories"] == [{"id": 1, "name": "Tree"}]
        files = [tmp_path / "out" / split / image["file_name"] for image in found["images"]]
        colours[split] = [round(Image.open(file).getpixel((3, 3))[0] / 40) for file in files]
        boxes = [a["bbox"] for a in found["annotations"]]
        assert all(box[1:] == [5, 8, 12] for box in boxes)
    assert colours == {"train": [0, 0, 0], "val": [1, 1, 2, 2], "test": [3, 3]}
    counts = {split: len(annotations(tmp_path / "out", split)["annotations"]) for split in SPLITS}
    assert counts == {"train": 1, "val": 5, "test": 3}
