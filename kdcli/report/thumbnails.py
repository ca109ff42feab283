"""Small pictures inside a page, and the colours of classes on them."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import Any

import numpy as np

SIDE = 224  # the longer side in pixels


def address(image: Any, side: int = SIDE) -> str:
    """The ``data:`` address of a picture as PNG, no larger than ``side``."""
    image = image.copy()
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def palette(classes: int) -> np.ndarray:
    """Colours of C classes, hues a golden angle apart: uint8 [C, 3]."""
    colours = [
        colorsys.hsv_to_rgb(0.61 + i * 0.61803398875, (0.85, 0.6)[i // 8 % 2], (0.95, 0.7)[i // 4 % 2])
        for i in range(classes)
    ]
    return (np.array(colours).reshape(-1, 3) * 255).round().astype(np.uint8)
