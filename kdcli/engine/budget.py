"""How many fixed views a run makes, and what their cache costs."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from kdcli.data.cache import Store
from kdcli.errors import UsageError

_AUTO_VIEWS = 8  # more fixed views than this are not worth their disk unless asked for


def fixed_views(text: str, *, teacher: bool, cacheable: bool, epochs: float, affordable: int) -> int | None:
    """Number of fixed views per picture, None for a new view each time.

    Args:
        text: ``--views``: a number, ``live`` or ``auto``.
        teacher: whether the objective has one.
        cacheable: whether fixed views can stand for what the teacher sees (not where pictures are mixed).
        epochs: how often each picture is drawn.
        affordable: views that the disk has room for.

    Raises:
        UsageError: not a number of views, or fixed views that cannot serve.
    """
    if text not in ("auto", "live") and not (text.isdigit() and int(text) > 0):
        raise UsageError(f"--views: a number above 0, live or auto, got '{text}'.")
    if text.isdigit():
        if teacher and not cacheable:
            raise UsageError(
                "--views K caches the teacher's answers, or its last features, of fixed views: mixed "
                "pictures, crops that follow boxes (views.iou_crop), and methods that read more of the "
                "teacher, need --views live."
            )
        return int(text)
    if text == "live" or not (teacher and cacheable):
        return None
    return min(math.ceil(epochs), _AUTO_VIEWS, affordable) or None


def affordable_views(root: Path, samples: int, row_bytes: int) -> int:
    """How many views of all samples, each of ``row_bytes``, fit in 80 % of the free disk."""
    root = root.absolute()
    while not os.path.exists(root):  # not there, or not to be looked into: said where it is filled
        root = root.parent
    return int(0.8 * shutil.disk_usage(root).free / (samples * row_bytes))


def bytes_per_view(width: int, store: Store, features: int = 0) -> int:
    """Size of one cached row of so many logits, or numbers of an embedding, with its id and view.

    ``features`` are further numbers, which are never cut to a top K.
    """
    row = width * (4 if store.name == "fp32" else 2)
    if store.top and store.top < width - 1:
        row = (store.top + 1) * 8
    return 12 + row + features * (4 if store.name == "fp32" else 2)
