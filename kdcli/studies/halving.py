"""Successive halving: at each rung one trial in so many goes on (Li et al. 2020, arXiv 1810.05934, ASHA).

A pure function of what trials had at a rung, so that a trial that is made again is judged again alike.
"""

from __future__ import annotations

from collections.abc import Sequence


def rungs(steps: int, count: int, factor: int) -> list[int]:
    """Steps of the rungs before the last step: ``steps`` over ``factor`` to the powers of 1, 2, ….

    Rungs below the first step, and all where ``factor`` is 1, are left out.
    """
    found = {round(steps / factor**power) for power in range(count, 0, -1)} if factor > 1 else set()
    return sorted(step for step in found if 0 < step < steps)


def goes_on(value: float, others: Sequence[float], factor: int) -> bool:
    """Whether a trial is among the best ``1 / factor`` of those that have come to its rung, itself included.

    The first to come goes on, and so does whoever ties with the last that does.

    Args:
        value: of the trial; more is better.
        others: of all others that have come there so far.
        factor: 1 for all.
    """
    ranked = sorted([value, *others], reverse=True)
    return value >= ranked[max(len(ranked) // factor, 1) - 1]
