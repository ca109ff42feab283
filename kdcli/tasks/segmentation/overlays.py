"""Pictures of a segmentation: truth and predictions laid over the picture, as PNG inside the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from kdcli.report.thumbnails import address, palette

_VOID = 255


def overlay(picture: Any, labels: np.ndarray, classes: int, strength: float = 0.6) -> Any:
    """A picture tinted by the class of each pixel; void pixels are white.

    Args:
        picture: RGB, of any size.
        labels: uint8 [H, W] of the picture's size.
        classes: C.
        strength: of the tint, 0 to 1.
    """
    colours = np.full((256, 3), 255, np.uint8)
    colours[:classes] = palette(classes)
    tint = Image.fromarray(colours[labels])
    mixed = np.asarray(Image.blend(picture, tint, strength))
    return Image.fromarray(np.where((labels == _VOID)[..., None], np.uint8(255), mixed))


def panels(
    picture: Any, truth: np.ndarray, predictions: Mapping[str, np.ndarray], classes: int
) -> list[tuple[str, str]]:
    """Captions and images (``data:`` addresses of PNG) of one picture: itself, its truth, the predictions."""
    layers = {"truth": truth, **predictions}
    shown = [("picture", picture), *((name, overlay(picture, m, classes)) for name, m in layers.items())]
    return [(name, address(image)) for name, image in shown]
