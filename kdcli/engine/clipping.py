"""Gradients clipped by the norm of each network, and a record of the norms that they had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcli.engine.turn import TurnModule
from kdcli.words import Party, Turn


@dataclass
class Clipped:
    """The steps of one network whose gradient could have been clipped.

    Attributes:
        limit: largest norm that a gradient keeps; of the latest phase where phases differ.
        clipped: steps whose gradient was longer.
        norms: how many steps had which norm before it was clipped, rounded to three digits.
    """

    limit: float
    clipped: int = 0
    norms: dict[str, int] = field(default_factory=dict)

    def add(self, norm: float, limit: float) -> None:
        """One more step; none where an fp16 overflow made it be skipped."""
        if math.isfinite(norm):
            key = f"{norm:.2e}"
            self.limit = limit
            self.clipped += norm > limit
            self.norms[key] = self.norms.get(key, 0) + 1

    @property
    def steps(self) -> int:
        """How many there were."""
        return sum(self.norms.values())

    @property
    def median(self) -> float:
        """Norm that half of the steps exceed, to three digits; the lower of two. NaN without steps."""
        seen = 0
        for norm in sorted(self.norms, key=float):
            seen += self.norms[norm]
            if 2 * seen >= self.steps:
                return float(norm)
        return math.nan

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        found = {"limit": self.limit, "steps": self.steps, "clipped": self.clipped}
        return {**found, "median_norm": self.median} if self.steps else found

    def said_of(self, network: str) -> str:
        """What a run says of it at its end."""
        return (
            f"clipped  {self.clipped:,} of {self.steps:,} steps of {network} at a norm of {self.limit:g}, "
            f"the median norm was {self.median:g} (optim.clip_grad)"
        )


def clipped_together(turn: Turn, parties: Sequence[Party]) -> dict[str, tuple[str, ...]]:
    """The trained parties of a turn that share a norm, by the name of their network.

    Whole networks side by side (peers) have one each, as if each learned alone. What a method builds beside a
    single network (a regressor, exits) and branches on its trunk are parts of it. Beside several networks,
    such parts have a norm together.
    """
    known = {party.name: party for party in parties}
    whole = [name for name in turn.trains if known[name].build is None and not known[name].tail]
    if len(whole) < 2:
        return {(whole or list(turn.trains))[0]: tuple(turn.trains)}
    parts = tuple(name for name in turn.trains if name not in whole)
    return {**{name: (name,) for name in whole}, **({parts[0]: parts} if parts else {})}


class Clipping:
    """Clips the gradients of one turn.

    Args:
        turn: whose.
        parties: of the method.
        module: that runs the turn.
        limit: largest norm of a network's gradient, None to leave all as they are.
    """

    def __init__(self, turn: Turn, parties: Sequence[Party], module: TurnModule, limit: float | None) -> None:
        self.limit = limit
        networks = clipped_together(turn, parties)
        if limit is None or len(networks) == 1:  # all together, in the order of the module
            self._parameters = {next(iter(networks)): [p for p in module.parameters() if p.requires_grad]}
        else:
            self._parameters = {
                name: [p for own in group for p in module.trained[own].parameters() if p.requires_grad]
                for name, group in networks.items()
            }

    def __call__(self) -> dict[str, Tensor]:
        """Clip; returns the norm that the gradient of each network had before."""
        norms = {}
        for name, parameters in self._parameters.items():
            found = [p for p in parameters if p.grad is not None]
            if not found:  # nothing reaches it in this step
                continue
            norms[name] = torch.nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
            if self.limit is not None:
                torch.nn.utils.clip_grads_with_norm_(found, self.limit, norms[name])
        return norms

    def record(self, kept: dict[str, Clipped], norms: Mapping[str, float]) -> dict[str, float]:
        """Add a step to the records of a run; returns how many steps of each network were clipped so far."""
        if self.limit is None:
            return {}
        for name, norm in norms.items():
            kept.setdefault(name, Clipped(self.limit)).add(norm, self.limit)
        return {f"clipped/{name}": kept[name].clipped for name in norms}
