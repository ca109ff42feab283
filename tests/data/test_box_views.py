"""Views with boxes beside them: objects painted in colours of their own lie where their boxes say."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import encode
from torchvision.tv_tensors import BoundingBoxes, Mask

from kdcli.artifacts.model import InputSpec
from kdcli.data.images import decode
from kdcli.data.other_views import AnotherView, plain_cut
from kdcli.data.views import TrainingView, WholeCut, evaluation_view
from kdcli.errors import UsageError
from kdcli.sections import ViewSection

SIZES = [(97, 61), (64, 64), (50, 133), (7, 50), (1, 30), (30, 1), (3, 3), (1, 1)]
WHOLE: dict[str, Any] = {"scale": (1, 1), "hflip": 0.0}
SQUASHED: dict[str, Any] = {**WHOLE, "fit": "squash"}
KINDS: dict[str, dict[str, Any]] = {
    "square": WHOLE,
    "squashed": SQUASHED,
    "flipped": {**SQUASHED, "hflip": 0.5, "vflip": 0.5},
    "crops": {"scale": (0.1, 1), "hflip": 0.5, "vflip": 0.5},
    "zoomed out": {**SQUASHED, "zoom_out": 1},
    "by boxes": {**SQUASHED, "iou_crop": 1},
    "everything": {"zoom_out": 0.5, "iou_crop": 0.8, "interpolation": "random", "vflip": 0.5},
}


def scene(size: tuple[int, int], seed: int) -> tuple[Image.Image, dict[str, Any]]:
    """Up to seven rectangles apart from one another on black, and their boxes.

    The bits of a class number, from 1 on, say which channels its colour has: in a mixture with black these
    pass one half together.
    """
    rng = np.random.default_rng([*size, seed])
    pixels, taken = np.zeros((size[1], size[0], 3), np.uint8), np.zeros(size[::-1], bool)
    boxes, classes = [], []
    for number in range(1, 8):
        for _ in range(20):
            w, h = (int(rng.integers(min(side, 1 + side // 8), 1 + max(side // 3, 1))) for side in size)
            x, y = int(rng.integers(0, size[0] - w + 1)), int(rng.integers(0, size[1] - h + 1))
            if not taken[y : y + h, x : x + w].any():
                taken[max(y - 4, 0) : y + h + 4, max(x - 4, 0) : x + w + 4] = True
                pixels[y : y + h, x : x + w] = [255 * (number >> bit & 1) for bit in range(3)]
                boxes.append([x, y, x + w, y + h])
                classes.append(number)
                break
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Image.fromarray(pixels), {
        "boxes": BoundingBoxes(corners, format="XYXY", canvas_size=size[::-1]),
        "classes": torch.tensor(classes),
    }


def extents(x: torch.Tensor) -> dict[int, list[int]]:
    """By class the corners x1, y1, x2, y2 of its pixels, and how many of them there are."""
    found = {}
    bits = (x > 127).int()
    numbers = bits[0] + 2 * bits[1] + 4 * bits[2]
    for number in set(numbers.unique().tolist()) - {0}:
        rows, columns = torch.where(numbers == number)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found[number] = [*map(int, corners), len(rows)]
    return found


def check(x: torch.Tensor, moved: dict[str, Any], centres_only: bool = False) -> int:
    """Compare the boxes of a view with its pixels; returns how many could be compared.

    Args:
        x: the view.
        moved: its boxes.
        centres_only: whether objects whose centre was cut off have lost their box.
    """
    height, width = x.shape[-2:]
    assert moved["boxes"].canvas_size == (height, width)
    assert len(moved["boxes"]) == len(moved["classes"])
    seen, compared = extents(x), 0
    for number, box in zip(moved["classes"].tolist(), moved["boxes"].tolist()):
        assert all(-1e-4 <= value <= side + 1e-4 for value, side in zip(box, [width, height] * 2))
        w, h = box[2] - box[0], box[3] - box[1]
        if min(w, h) >= 3:  # of less, an interpolation may leave no bright pixel
            assert number in seen
        if number in seen and not (centres_only and w * h == 0):
            np.testing.assert_allclose(seen[number][:4], box, atol=2)
            compared += 1
    if not centres_only:
        sides = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
        with_box = set(moved["classes"][(sides > 0).all(dim=1)].tolist())
        assert {number for number, (*_, count) in seen.items() if count > 8} <= with_box
    return compared


@pytest.mark.parametrize("kind", KINDS)
def test_objects_lie_where_their_boxes_say(kind: str) -> None:
    compared = 0
    for number, size in enumerate(SIZES):
        image, beside = scene(size, 1)
        cut = TrainingView(ViewSection(**{"interpolation": "bilinear", **KINDS[kind]}), 48, 5)
        for view in range(12):
            compared += check(*cut(image, view, number, beside), "iou_crop" in KINDS[kind])
    assert compared > 100


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_picture(size: tuple[int, int]) -> None:
    image, beside = scene(size, 2)
    cut = WholeCut(InputSpec((33, 47), interpolation="bilinear"))
    x, moved = cut(image, 0, 0, beside)
    assert check(x, moved) >= 1
    scale = torch.tensor([47 / size[0], 33 / size[1]] * 2)
    torch.testing.assert_close(moved["boxes"].as_subclass(torch.Tensor), beside["boxes"] * scale)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(3, Image.Transpose.ROTATE_180), (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_90)],
)
def test_pictures_that_are_turned(orientation: int, stored: Image.Transpose) -> None:
    upright, beside = scene((97, 61), 3)
    exif = Image.Exif()
    exif[274] = orientation
    image = decode(encode(upright.transpose(stored), exif=exif))
    assert image.size == (97, 61)
    cut = TrainingView(ViewSection(scale=(0.3, 1), interpolation="bilinear"), 48, 5)
    assert sum(check(*cut(image, view, 1, beside)) for view in range(8)) > 10


def test_crops_and_boxes_are_cut_off() -> None:
    """Not by the code under test: a view of a known crop holds the part of a box that lies in it."""
    image, _ = scene((60, 30), 0)
    corners = torch.tensor([[0.0, 0, 20, 30], [10, 5, 50, 25], [46, 0, 60, 30]])
    beside = {"boxes": BoundingBoxes(corners, format="XYXY", canvas_size=(30, 60))}
    _, moved = TrainingView(ViewSection(**WHOLE), 30, 0)(image, 0, 0, beside)  # the middle: x from 15 to 45
    assert moved["boxes"].tolist() == [[0, 0, 5, 30], [0, 5, 30, 25], [30, 0, 30, 30]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_a_function_of_its_numbers(kind: str) -> None:
    image, beside = scene((97, 61), 1)
    cut = TrainingView(ViewSection(**KINDS[kind]), 32, 7)
    x, moved = cut(image, 3, 99, beside)
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = torch.get_rng_state()
    again, boxes = TrainingView(ViewSection(**KINDS[kind]), 32, 7)(image, 3, 99, beside)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, again)
    assert torch.equal(moved["boxes"], boxes["boxes"])
    assert beside["boxes"].tolist() == scene((97, 61), 1)[1]["boxes"].tolist()  # nothing is changed in place
    found = {cut(image, view, 99, beside)[0].numpy().tobytes() for view in range(12)}
    fixed = kind in ("square", "squashed")
    assert len(found) == 1 if fixed else len(found) > 2


@pytest.mark.parametrize("kind", ["square", "squashed", "crops", "zoomed out"])
def test_pictures_without_boxes_and_without_anything_beside(kind: str) -> None:
    image, beside = scene((97, 61), 1)
    none = {
        "boxes": BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(61, 97)),
        "classes": torch.zeros(0, dtype=torch.int64),
    }
    cut = TrainingView(ViewSection(**KINDS[kind]), 32, 7)
    for view in range(5):
        x, moved = cut(image, view, 3, none)
        assert moved["boxes"].shape == (0, 4)
        assert torch.equal(x, cut(image, view, 3, beside)[0])
        assert torch.equal(x, cut(image, view, 3))
        assert torch.equal(AnotherView(cut, 1)(image, view, 3), AnotherView(cut, 1)(image, view, 3))


def test_crops_by_boxes_leave_pictures_without_boxes_alone() -> None:
    image, _ = scene((97, 61), 1)
    none = {"boxes": BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(61, 97))}
    whole = TrainingView(ViewSection(**SQUASHED), 32, 7)(image, 0, 3)
    cut = TrainingView(ViewSection(**{**SQUASHED, "iou_crop": 1}), 32, 7)
    for view in range(5):
        x, moved = cut(image, view, 3, none)
        assert torch.equal(x, whole)
        assert moved["boxes"].canvas_size == (32, 32)


def test_crops_by_boxes_need_boxes() -> None:
    image, _ = scene((97, 61), 1)
    cut = TrainingView(ViewSection(iou_crop=0.1), 32, 7)
    for beside in (None, Mask(torch.zeros(61, 97, dtype=torch.uint8))):
        with pytest.raises(UsageError, match=r"views\.iou_crop is chosen by the boxes beside .*--views live"):
            cut(image, 0, 0, beside)
    with pytest.raises(UsageError, match=r"views\.auto_augment moves the picture without its mask or boxes"):
        TrainingView(ViewSection(auto_augment="rand-m9"), 32, 7)(image, 0, 0, scene((97, 61), 1)[1])


def test_crops_by_boxes_keep_a_box_whole_or_its_centre() -> None:
    image, beside = scene((97, 61), 1)
    cut = TrainingView(ViewSection(**{**SQUASHED, "iou_crop": 1}), 64, 7)
    counts = []
    for view in range(40):
        _, moved = cut(image, view, 3, beside)
        sides = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
        counts.append(int((sides > 0).all(dim=1).sum()))
    assert min(counts) >= 1
    assert min(counts) < max(counts) == len(beside["classes"])


def test_a_larger_canvas_is_black_and_of_no_class() -> None:
    image, beside = scene((40, 20), 1)
    white = Image.new("RGB", image.size, "white")
    cut = TrainingView(ViewSection(**{**SQUASHED, "zoom_out": 1}), 64, 7)
    mask = Mask(torch.ones(20, 40, dtype=torch.uint8))
    parts = []
    for view in range(20):
        x, moved = cut(white, view, 3, {**beside, "mask": mask})
        assert set(moved["mask"].unique().tolist()) <= {1, 255}
        assert ((x[0] > 127) == (moved["mask"] == 1)).float().mean() > 0.95
        parts.append(float((moved["mask"] == 1).float().mean()))
    assert min(parts) < 0.12  # at most a sixteenth is left of a picture on the largest canvas
    assert max(parts) > 0.4
    assert min(parts) > 1 / 20


def test_a_picture_that_is_squashed_is_what_evaluation_sees() -> None:
    image, _ = scene((97, 61), 1)
    for mode in ("bilinear", "bicubic"):
        cut = TrainingView(ViewSection(**{**SQUASHED, "interpolation": mode}), 32, 0)
        spec = InputSpec((32, 32), interpolation=mode, crop_mode="squash")
        assert torch.equal(cut(image, 4, 2), evaluation_view(image, spec))
        assert torch.equal(plain_cut(cut)(image, 0, 0), cut(image, 0, 0))
        assert torch.equal(WholeCut(InputSpec((32, 32), interpolation=mode))(image, 0, 0), cut(image, 0, 0))
