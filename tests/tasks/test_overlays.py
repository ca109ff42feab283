"""Overlays: every class its colour, void white, PNG in the page that reads back."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from kdcli.report.thumbnails import SIDE, palette
from kdcli.tasks.segmentation.overlays import overlay, panels


def test_every_class_has_a_colour_of_its_own() -> None:
    for count in (1, 4, 21, 150):
        colours = palette(count)
        assert (colours.shape, colours.dtype) == ((count, 3), np.uint8)
        assert len(np.unique(colours, axis=0)) == count
    first = palette(21).astype(int)
    gaps = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert gaps.min() > 15


def test_a_picture_is_tinted_by_class_and_void_is_white() -> None:
    picture = Image.new("RGB", (3, 1), (100, 100, 100))
    found = np.asarray(overlay(picture, np.array([[0, 1, 255]], np.uint8), 2, strength=0.5)).astype(int)
    for pixel, colour in zip(found[0], palette(2).astype(int)):
        assert np.abs(pixel - (100 + colour) / 2).max() <= 1
    assert found[0, 2].tolist() == [255, 255, 255]


def test_panels_are_pngs_of_a_bounded_size() -> None:
    picture = Image.new("RGB", (600, 300), (9, 9, 9))
    masks = np.zeros((300, 600), np.uint8)
    found = panels(picture, masks, {"a": masks + 1, "b": masks}, 3)
    assert [name for name, _ in found] == ["picture", "truth", "a", "b"]
    images = [Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))) for _, text in found]
    assert {(image.format, image.size) for image in images} == {("PNG", (SIDE, SIDE // 2))}
    assert found[1][1] == found[3][1] != found[2][1]
