"""What is observed of the first rows of a training beside its terms: sums, which cost no call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcli.engine.turn import TurnModule

Observe = Callable[[Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Watch:
    """What a job wants to have observed.

    Attributes:
        turns: by turn, what makes scalars that add up over batches, of the turn's columns, taps and derives.
        prefix: of the names of all scalars, which no term has.
        count: the name of the scalar that counts rows; the others are divided by it.
        rows: as many are enough.
        tell: is given the means, once.
    """

    turns: Mapping[str, Observe]
    prefix: str
    count: str
    rows: int
    tell: Callable[[Mapping[str, float]], None]

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over the rows that were observed, beside their number; empty without rows."""
        rows = sums.get(self.count, 0.0)
        return {name: v if name == self.count else v / rows for name, v in sums.items()} if rows else {}


class Observer:
    """The turns of a phase while something is observed of them.

    Args:
        watch: what; None for nothing.
        modules: the turns by name, as they were before they were wrapped.
        sums: what was observed so far; added to.
        world: processes that share each batch.
    """

    def __init__(
        self, watch: Watch | None, modules: Mapping[str, TurnModule], sums: dict[str, float], world: int
    ) -> None:
        self.watch, self.modules, self.sums, self.world = watch, modules, sums, world
        if watch is not None and not self._enough():
            for name, observe in watch.turns.items():
                if name in modules:
                    modules[name].observe = observe

    def take(self, values: dict[str, float]) -> dict[str, float]:
        """Means over processes of what a turn gave: the terms, when what was observed is taken out."""
        if self.watch is None:
            return values
        for name in [name for name in values if name.startswith(self.watch.prefix)]:
            self.sums[name] = self.sums.get(name, 0.0) + values.pop(name) * self.world
        return values

    def told(self, last: bool) -> dict[str, float]:
        """The means once there are rows enough, or the last step is done; else, and from then on, nothing."""
        watch = self.watch
        observing = [module for module in self.modules.values() if module.observe is not None]
        if watch is None or not observing or not (self._enough() or last):
            return {}
        for module in observing:
            module.observe = None
        means = watch.means(self.sums)
        if means:
            watch.tell(means)
        return means

    def _enough(self) -> bool:
        return self.watch is not None and self.sums.get(self.watch.count, 0.0) >= self.watch.rows
