"""Rows of a training log, as a report keeps and draws them: numbers by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

PANELS = 48  # quantities of one log that are drawn
_STEP = "step"


def numbers_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    """Of each row its step and its numbers; a row without a step, or without a number beside it, is left out.

    NaN and infinity stay: they are what was logged.
    """
    for row in rows:
        found = {name: value for name, value in row.items() if _is_number(value)}
        if _STEP in found and math.isfinite(found[_STEP]) and len(found) > 1:
            yield found


def drawn(curves: Iterable[Mapping[str, float]]) -> tuple[list[str], int]:
    """Names of the quantities that are drawn, as they come, and how many more there are."""
    names = list(dict.fromkeys(name for row in curves for name in row if name != _STEP))
    return list(islice(names, PANELS)), max(0, len(names) - PANELS)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
