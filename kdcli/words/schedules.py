"""Weights that change while a phase is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Weight = float | Callable[[float], float]
"""A number, or a schedule: a function of how much of its phase is done, from 0 to 1."""


@dataclass(frozen=True)
class Until:
    """The schedule that is ``value`` until a part of the phase is done, and ``after`` from there on."""

    value: float
    stop: float
    after: float = 0.0

    def __call__(self, done: float) -> float:
        """The weight."""
        return self.value if done < self.stop else self.after

    def __str__(self) -> str:
        return f"{self.value:g} until {self.stop:.0%}, then {self.after:g}"


@dataclass(frozen=True)
class Linear:
    """The schedule that goes from ``first`` to ``last`` while ``begin`` to ``end`` of the phase are done."""

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __call__(self, done: float) -> float:
        """The weight."""
        part = min(max((done - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.first + part * (self.last - self.first)

    def __str__(self) -> str:
        return f"{self.first:g} to {self.last:g}, from {self.begin:.0%} to {self.end:.0%}"


@dataclass(frozen=True)
class RampUp:
    """The schedule value·exp(−5·(1 − done/length)²), full from ``length`` on (Laine & Aila 2017).

    A length of 0 is the full value at once.
    """

    value: float
    length: float

    def __call__(self, done: float) -> float:
        """The weight."""
        part = min(done / self.length, 1.0) if self.length > 0 else 1.0
        return self.value * math.exp(-5.0 * (1.0 - part) ** 2)

    def __str__(self) -> str:
        return f"{self.value:g}, ramped up until {self.length:.0%}"


@dataclass(frozen=True)
class Warmup:
    """The schedule value·min(1, step/steps): from 0 in the first step to ``value`` after ``steps`` of them.

    A schedule knows parts of a phase, so ``phase`` is how many steps that has, which
    :func:`kdcli.words.pacing.paced` fills in once a run's length is known. Until then it is 0, and the weight
    is ``value``.
    """

    value: float
    steps: int
    phase: int = 0

    def __call__(self, done: float) -> float:
        """The weight."""
        if not self.phase or not self.steps:
            return self.value
        return self.value * min(done * self.phase / self.steps, 1.0)

    def __str__(self) -> str:
        return f"{self.value:g}, from 0 over {self.steps:,} steps"
