"""What a search draws settings from: spans and choices, by key of the configuration. Data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.words.recipes import as_yaml


@dataclass(frozen=True)
class Span:
    """All numbers from ``low`` to ``high``; evenly by their logarithm where ``log``."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def said(self) -> str:
        """As a setting has it: ``[0.0001, 0.01, log]``."""
        return f"[{as_yaml(self.low)}, {as_yaml(self.high)}{', log' if self.log else ''}]"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def said(self) -> str:
        """As a setting has it: ``[kd, dkd, choice]``."""
        return f"[{', '.join(map(as_yaml, self.values))}, choice]"


Dimension = Span | Choice
Space = Mapping[str, Dimension]

LOG, CHOICE = "log", "choice"


def dimension(value: Any) -> Dimension | None:
    """What a written value says: two numbers are the ends of a span, else each entry is a choice.

    ``log`` or ``choice`` may stand at the end of the list. One value alone is the only choice; None leaves
    the key out of the search.

    Raises:
        ValueError: a span without numbers, from high to low, or by logarithm from 0 or below; no values.
    """
    if value is None:
        return None
    given = list(value) if isinstance(value, list | tuple) else [value]
    word = given.pop() if given and given[-1] in (LOG, CHOICE) else ""
    if not given:
        raise ValueError("no values: two numbers, or a list of choices")
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    if word == CHOICE or (word == "" and (len(given) != 2 or len(numbers) != 2)):
        if any(given.count(v) > 1 for v in given):
            raise ValueError("a choice is given twice")
        return Choice(tuple(given))
    if len(given) != 2 or len(numbers) != 2:
        raise ValueError(f"{word} is for two numbers, from and to")
    low, high = given
    if not low < high:
        raise ValueError(f"from {as_yaml(low)} to {as_yaml(high)}: the first has to be less than the second")
    if word == LOG and low <= 0:
        raise ValueError("log is for numbers above 0")
    return Span(low, high, log=word == LOG, whole=isinstance(low, int) and isinstance(high, int))
