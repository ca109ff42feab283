"""Labels as tables have them: numbers from 0 or from 1, truth values, text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

TRUTH = ["false", "true"]
"""Names of the classes of a column of truth values."""


def numbers_as_names(values: Iterable[int]) -> list[str]:
    """Class names of labels that are plain numbers: "0" to the highest, or from "1" where none is 0.

    Negative numbers mark pictures without a label.
    """
    known = {int(value) for value in values if value >= 0}
    return [str(i) for i in range(1 if min(known, default=0) == 1 else 0, max(known, default=-1) + 1)]


def first_number(kind: Any, classes: Sequence[str]) -> int:
    """The number of the first class in a column of this type: 1 where its names begin there, else 0."""
    import datasets

    plain = isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint"))
    return int(classes[0]) if plain and classes else 0


def note_of_first(column: str, classes: Sequence[str]) -> list[str]:
    """What to say where numbers do not begin at 0."""
    if not classes or classes[0] != "1":
        return []
    return [f"column '{column}': labels start at 1; they are taken as the classes 1 to {classes[-1]}"]
