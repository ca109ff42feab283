"""The training that a paper used, as data: settings of a run, and where each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Published settings of one method on one data set.

    Attributes:
        name: the data set, and the student where settings differ by it; what ``--recipe`` calls it.
        settings: values by key of the configuration: ``optim.lr``, ``views.hflip``, ``method.beta``.
        source: where they stand: a section of the paper, a file of official code, or "from memory".
        notes: of keys, what is to be said of their value.
        left_out: what the recipe has beside them and no key can say.
        unknown: what is not published in what could be read.
    """

    name: str
    settings: Mapping[str, Any]
    source: str
    notes: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def source_of(self, key: str) -> str:
        """Where the value of ``key`` stands, and what is to be said of it."""
        return f"{self.source}; {self.notes[key]}" if key in self.notes else self.source


def as_yaml(value: Any) -> str:
    """A setting as YAML has it; numbers with as many digits as are told apart."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_yaml, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
