"""Small pictures inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any

SIDE = 224  # the longer side in pixels


def address(image: Any, side: int = SIDE) -> str:
    """The ``data:`` address of a picture as PNG, no larger than ``side``."""
    image = image.copy()
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
