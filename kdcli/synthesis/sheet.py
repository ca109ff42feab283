"""A contact sheet: each row has the sources of a new picture, and the new picture beside them.

Pictures that have no sources stand side by side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageOps

_TILE, _GAP = 160, 8


def contact_sheet(rows: Sequence[tuple[Sequence[Any], Any]]) -> bytes:
    """PNG of rows (K sources, result); a wider gap sets off the result.

    Args:
        rows: pictures of any size.
    """
    columns = max(len(sources) for sources, _ in rows) + 1
    step = _TILE + _GAP
    sheet = Image.new("RGB", (columns * step + 3 * _GAP, len(rows) * step + _GAP), "white")
    for y, (sources, result) in enumerate(rows):
        for x, picture in [*enumerate(sources), (columns - 1, result)]:
            apart = 2 * _GAP if x == columns - 1 else 0
            sheet.paste(_tile(picture), (_GAP + x * step + apart, _GAP + y * step))
    return png(sheet)


def gallery(pictures: Sequence[Any], columns: int = 8) -> bytes:
    """PNG of pictures of any size, row by row."""
    step, rows = _TILE + _GAP, -(-len(pictures) // columns)
    sheet = Image.new("RGB", (min(columns, len(pictures)) * step + _GAP, rows * step + _GAP), "white")
    for place, picture in enumerate(pictures):
        y, x = divmod(place, columns)
        sheet.paste(_tile(picture), (_GAP + x * step, _GAP + y * step))
    return png(sheet)


def _tile(picture: Any) -> Any:
    return ImageOps.pad(picture, (_TILE, _TILE), Image.Resampling.BICUBIC, color="white")


def png(picture: Any) -> bytes:
    """A picture as PNG, lightly compressed: zlib's best would cost more time than some mixers."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
