"""Pictures of detections: objects and what models find, drawn on the picture, as PNG inside the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdcli.console import legible
from kdcli.metrics.detection import Truth
from kdcli.report.thumbnails import address, palette

SIDE = 320  # the longer side of a picture on the page: text is no smaller than it can be read
SCORE = 0.3  # detections from here on are drawn,
LEAST, MOST = 3, 40  # at least, and at most, so many of the best

_LINE, _DASH, _TEXT = 2, 5, 11  # pixels
_NAME = 20  # characters


def worth(detections: np.ndarray) -> np.ndarray:
    """The detections of one picture that are drawn, the best first: [k, 6].

    Args:
        detections: [K, 6]: x1, y1, x2, y2, score, class number; those of a score up to 0 are none.
    """
    found = detections[detections[:, 4] > 0]
    found = found[np.argsort(-found[:, 4], kind="stable")]
    return found[: min(MOST, max(LEAST, int((found[:, 4] >= SCORE).sum())))]


def drawn(
    picture: Any, boxes: np.ndarray, labels: Sequence[str], colours: np.ndarray, dashed: np.ndarray
) -> Any:
    """A picture, its longer side ``SIDE`` pixels, with boxes on it; the first lie on top.

    Args:
        picture: RGB, of any size.
        boxes: [n, 4]: x1, y1, x2, y2 in the picture's pixels.
        labels: n texts beside the boxes.
        colours: uint8 [n, 3].
        dashed: bool [n]: which of them have broken lines.
    """
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    shown = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3)
    pen = ImageDraw.Draw(shown)
    limits = np.array([width, height, width, height]) - 1
    places = np.concatenate([np.floor(boxes[:, :2] * scale), np.ceil(boxes[:, 2:] * scale) - 1], 1)
    corners = places.clip(0, limits).astype(int)
    order = range(len(boxes) - 1, -1, -1)
    for i in order:
        x1, y1, x2, y2 = corners[i].tolist()
        for side in _sides(x1, y1, max(x1, x2), max(y1, y2), bool(dashed[i])):
            pen.rectangle(side, fill=tuple(colours[i].tolist()))
    for i in order:
        _write(pen, labels[i], corners[i].tolist(), colours[i], (width, height))
    return shown


def panels(
    picture: Any, truth: Truth, detections: Mapping[str, np.ndarray], classes: Sequence[str]
) -> list[tuple[str, str]]:
    """Captions and images (``data:`` addresses of PNG) of one picture: its objects, and what models find.

    Args:
        picture: RGB.
        truth: its objects; those that are ignored have broken lines.
        detections: of each model [K, 6]: x1, y1, x2, y2 in the picture's pixels, score, class number.
        classes: names by class number.
    """
    colours, names = palette(len(classes)), [_short(legible(name)) for name in classes]
    said = [names[c] for c in truth.classes]
    shown = [("truth", drawn(picture, truth.boxes, said, colours[truth.classes], truth.ignored))]
    for model, rows in detections.items():
        best = worth(rows)
        numbers = best[:, 5].astype(int)
        said = [f"{names[c]} {score:.2f}" for c, score in zip(numbers, best[:, 4].tolist())]
        none = np.zeros(len(best), bool)
        shown.append((model, drawn(picture, best[:, :4].astype(np.float64), said, colours[numbers], none)))
    return [(name, address(image, SIDE)) for name, image in shown]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _sides(x1: int, y1: int, x2: int, y2: int, dashed: bool) -> Iterator[tuple[int, int, int, int]]:
    """Filled rectangles that make up the outline of a box, which lies within it."""
    thick = _LINE - 1
    for first, last in _strokes(x1, x2, dashed):
        yield first, y1, last, min(y1 + thick, y2)
        yield first, max(y2 - thick, y1), last, y2
    for first, last in _strokes(y1, y2, dashed):
        yield x1, first, min(x1 + thick, x2), last
        yield max(x2 - thick, x1), first, x2, last


def _strokes(start: int, end: int, dashed: bool) -> list[tuple[int, int]]:
    if not dashed:
        return [(start, end)]
    return [(at, min(at + _DASH - 1, end)) for at in range(start, end + 1, 2 * _DASH)]


def _write(pen: Any, text: str, box: Sequence[int], colour: np.ndarray, size: tuple[int, int]) -> None:
    """A text on a patch of the colour, above a box or, where the picture ends there, within it."""
    font = ImageFont.load_default(_TEXT)
    wide, high = int(pen.textlength(text, font)) + 4, _TEXT + 3
    x = max(0, min(box[0], size[0] - wide))
    y = box[1] - high if box[1] >= high else max(0, min(box[1], size[1] - high))
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=tuple(colour.tolist()))
    dark = float(colour @ np.array([0.299, 0.587, 0.114])) > 140  # the eye's weights of red, green and blue
    pen.text((x + 2, y), text, fill="black" if dark else "white", font=font)
