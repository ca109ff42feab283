"""ResRep's choice of the rows to reset: Ding et al. 2021, arXiv 2007.03260.

The smallest rows of all compactors are deactivated until the network that is left meets a target of cost. The
number that may be deactivated grows by a granularity at each update; the choice is made anew each time, so
that a row can come back. (Capacity dynamic distillation has no target, and none of its rows comes back.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Cost = Callable[[Sequence[int]], float]
"""Of the widths of all compactors, as floating-point operations or parameters; no less for wider ones."""


def select(
    norms: Sequence[Tensor],
    cost: Cost,
    *,
    target: float,
    granularity: int,
    deactivated: int | None,
    least: int = 1,
) -> list[Tensor]:
    """Masks [p] bool of all compactors, true where a row is active.

    Rows are taken from the smallest norm on, over all compactors; those of equal norm in the order of
    compactors and rows. It stops where the target is met, or ``deactivated + granularity`` rows are taken.

    Args:
        norms: of the rows of each compactor, [p].
        cost: of the network.
        target: largest cost, as a part of that with all rows.
        granularity: rows more than before at an update (4 in the authors' code).
        deactivated: rows that the masks in force deactivate; None where these meet the target, for then
            nothing bounds the number.
        least: rows that each compactor keeps; one that has no more is passed over.
    """
    widths = [len(norm) for norm in norms]
    active = [[True] * width for width in widths]
    goal = target * cost(tuple(widths))
    most = math.inf if deactivated is None else deactivated + granularity
    places = [(layer, row) for layer, width in enumerate(widths) for row in range(width)]
    taken = 0
    for place in torch.cat([norm.detach() for norm in norms]).argsort(stable=True).tolist():
        layer, row = places[place]
        if widths[layer] <= least:
            continue
        if taken >= most or cost(tuple(widths)) <= goal:
            break
        active[layer][row] = False
        widths[layer] -= 1
        taken += 1
    return [torch.tensor(rows, device=norm.device) for rows, norm in zip(active, norms)]


def at_once(scores: Sequence[Tensor], cost: Cost, target: float) -> list[Tensor]:
    """Masks [p] bool of the rows that stay where all others go in one step; see :func:`select`."""
    return select(scores, cost, target=target, granularity=0, deactivated=None)


def updated(
    masks: Sequence[Tensor],
    norms: Sequence[Tensor],
    cost: Cost,
    *,
    target: float,
    granularity: int,
    least: int = 1,
) -> list[Tensor]:
    """The masks after those in force: :func:`select`, bounded as long as these do not meet the target.

    Args:
        masks: in force, [p] bool.
        norms: as in :func:`select`.
        cost: of the network.
        target: largest cost, as a part of that with all rows.
        granularity: rows more than the masks in force deactivate.
        least: rows that each compactor keeps.
    """
    full = [len(mask) for mask in masks]
    widths = [int(mask.sum()) for mask in masks]
    met = cost(tuple(widths)) <= target * cost(tuple(full))
    deactivated = None if met else sum(full) - sum(widths)
    return select(norms, cost, target=target, granularity=granularity, deactivated=deactivated, least=least)


def reachable(widths: Sequence[int], cost: Cost, least: int = 1) -> float:
    """The smallest target that can be met: the cost where each compactor has ``least`` rows, as a part.

    Args:
        widths: of all compactors.
        cost: of the network.
        least: rows that each compactor keeps.
    """
    return cost(tuple(min(width, least) for width in widths)) / cost(tuple(widths))
