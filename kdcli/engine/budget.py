"""How many fixed views a run makes, and what their cache costs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcli.data.cache import Store
from kdcli.errors import UsageError

_AUTO_VIEWS = 8  # more fixed views than this are not worth their disk unless asked for
_MOST_VIEWS = 64  # of few pictures that are drawn often


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


def stream_views(
    text: str, streams: Sequence[Stream], *, teacher: bool, cacheable: bool, affordable: int
) -> int | tuple[int | None, ...] | None:
    """Numbers of fixed views of pictures that are drawn in one stream, or in two of unlike speeds.

    With ``auto`` few pictures that are drawn often, such as the labelled ones that fill half of each batch,
    have as many views as they are drawn, up to 64, and up to as many rows as the others have: crops of theirs
    that come back ten times are learned by heart, and more cost as little as the pictures are few.

    Args:
        text: see :func:`fixed_views`, as all others.
        streams: one or two.
        teacher: whether the objective has one.
        cacheable: whether fixed views can stand for what the teacher sees.
        affordable: views of all pictures that the disk has room for.

    Raises:
        UsageError: see :func:`fixed_views`.
    """
    epochs = sum(own.drawn for own in streams) / sum(own.pictures for own in streams)
    common = fixed_views(text, teacher=teacher, cacheable=cacheable, epochs=epochs, affordable=affordable)
    if text != "auto" or common is None or len(streams) == 1:
        return common
    room = affordable * sum(own.pictures for own in streams)
    counts: list[int | None] = []
    for own, other in (streams, streams[::-1]):
        most = min(max(_AUTO_VIEWS, _AUTO_VIEWS * other.pictures // own.pictures), _MOST_VIEWS)
        counts.append(max(1, min(math.ceil(own.drawn / own.pictures), most, room // (2 * own.pictures))))
    return tuple(counts)


@dataclass(frozen=True)
class Stream:
    """Pictures that fill a part of every batch.

    Attributes:
        pictures: how many.
        drawn: how many in all steps.
    """

    pictures: int
    drawn: float


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
