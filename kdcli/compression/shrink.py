"""How fast a row shrinks that the group lasso alone drives, under SGD with momentum as torch has it.

    v ← μ·v + λ·W/‖W‖ + ω·W,  W ← W − η·v

W keeps its direction, so that its length along it, which can change sign, is all that moves: by about
η·λ/(1 − μ) a step. Near zero it swings from side to side, as widely as the rate lets it. So the threshold
below which a row is removed, the course of the rate and the number of steps belong together: at a constant
rate of 0.01 with λ = 0.004 and μ = 0.9 a row never stays below 1e-5, however long the training is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def norms(
    rates: Iterable[float],
    *,
    strength: float,
    momentum: float,
    start: float = 1.0,
    weight_decay: float = 0.0,
) -> list[float]:
    """Norm of the row after each step.

    Args:
        rates: learning rate η of each step from that on where the row is reset.
        strength: λ.
        momentum: μ; there is none yet at the first step.
        start: norm before it.
        weight_decay: ω.
    """
    length, velocity, found = start, 0.0, []
    for rate in rates:
        pull = math.copysign(strength, length) if length else 0.0
        velocity = momentum * velocity + pull + weight_decay * length
        length -= float(rate) * velocity
        found.append(abs(length))
    return found


def steps_to_shrink(
    rates: Iterable[float],
    *,
    strength: float,
    momentum: float,
    threshold: float,
    start: float = 1.0,
    weight_decay: float = 0.0,
) -> int | None:
    """Steps until the norm is below the threshold and stays there to the end; None if it does not.

    A row that swings through zero is below the threshold for a step or two much earlier: that does not count,
    for the rows are looked at when the training has ended.

    Args:
        rates: learning rate of each step from that on where the row is reset.
        strength: λ.
        momentum: μ.
        threshold: below which a row is removed.
        start: norm before the first step.
        weight_decay: ω.
    """
    course = norms(rates, strength=strength, momentum=momentum, start=start, weight_decay=weight_decay)
    for steps in range(len(course), -1, -1):
        norm = course[steps - 1] if steps else start
        if not norm < threshold:
            return None if steps == len(course) else steps + 1
    return 0


def final_norm(
    rates: Iterable[float],
    *,
    strength: float,
    momentum: float,
    start: float = 1.0,
    weight_decay: float = 0.0,
) -> float:
    """Norm of the row after all steps.

    Args:
        rates: learning rate of each step from that on where the row is reset.
        strength: λ.
        momentum: μ.
        start: norm before the first step.
        weight_decay: ω.
    """
    course = norms(rates, strength=strength, momentum=momentum, start=start, weight_decay=weight_decay)
    return course[-1] if course else start
