"""Whether a training is long enough for rows to shrink, predicted from its schedule before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdcli.compression import budget
from kdcli.compression.shrink import final_norm, steps_to_shrink
from kdcli.compression.shrinking import Compaction
from kdcli.engine.optim import build_optimizer, build_schedule
from kdcli.errors import UsageError
from kdcli.runs.material import Material
from kdcli.sections import OptimSection

_PLAIN = ("momentum", "sgd")
_STRONGEST = 1e4


def rates(optim: OptimSection, steps: int, schedule_steps: int, steps_per_epoch: float) -> list[float]:
    """Learning rate of each step.

    Args:
        optim: of the run.
        steps: that it takes.
        schedule_steps: that its schedule is made for.
        steps_per_epoch: of the data.
    """
    optimizer = build_optimizer(nn.Linear(1, 1), optim)
    schedule, found = build_schedule(optimizer, optim, schedule_steps, steps_per_epoch), []
    for step in range(steps):
        schedule.step(step)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def refuse_short(config: Any, arguments: Mapping[str, Any], material: Material, of: Compaction) -> None:
    """Refuse a training in which no row would get below the threshold, or too few for the target.

    Args:
        config: of ``compress``.
        arguments: of its method.
        material: says how many steps there are.
        of: what the method works on.

    Raises:
        UsageError: an optimiser whose steps are not known in advance, or a course that removes nothing.
    """
    optim = config.optim
    if optim.opt.lower() not in _PLAIN:
        raise UsageError(
            f"--opt {optim.opt}: rows shrink by steps of SGD, so many times the learning rate; take momentum "
            "or sgd."
        )
    steps = material.steps
    every = rates(optim, steps, material.schedule_steps, material.order.steps_per_epoch)
    momentum = arguments.get("momentum", optim.momentum)
    decay = 0.0 if "momentum" in arguments else optim.weight_decay  # of compactors
    course = {"momentum": momentum, "weight_decay": decay}
    last = round(arguments["warmup"] * steps)
    if "target" in arguments:
        last = _last_choice(arguments, of, last, steps)
    if last >= steps:
        raise UsageError(
            f"nothing is reset in the {steps:,} steps of this training: that begins after {last:,}. Train "
            "longer."
        )
    left = every[last:]
    if (
        steps_to_shrink(left, strength=arguments["strength"], threshold=config.threshold, **course)
        is not None
    ):
        return
    norm = final_norm(left, strength=arguments["strength"], **course)
    advice = _stronger(left, arguments["strength"], config.threshold, course)
    raise UsageError(
        f"no row would be removed: after the {len(left):,} steps in which it is reset, a row of norm 1 has "
        f"the norm {norm:.2g}, and rows below threshold={config.threshold:g} are removed. Train longer, or "
        f"{advice}."
    )


def _last_choice(arguments: Mapping[str, Any], of: Compaction, warmup: int, steps: int) -> int:
    """The step after which a target's rows are all chosen.

    Raises:
        UsageError: that is beyond the training.
    """
    draw = torch.Generator().manual_seed(0)
    norms = [torch.rand(width, generator=draw) for width in of.widths]  # any order of rows
    chosen = budget.select(norms, of.cost, target=arguments["target"], granularity=0, deactivated=None)
    rows = sum(int((~mask).sum()) for mask in chosen)
    choices = math.ceil(rows / arguments["granularity"])
    last = warmup + max(choices - 1, 0) * arguments["interval"]
    if last < steps:
        return last
    every = max(1, (steps // 2 - warmup) // arguments["interval"])
    raise UsageError(
        f"the target takes about {rows:,} rows of {sum(of.widths):,}, and {arguments['granularity']} more "
        f"are chosen every {arguments['interval']} steps: {last:,} steps until all are, and the training has "
        f"{steps:,}. Train longer, or say --set method.granularity={math.ceil(rows / every)}."
    )


def _stronger(left: Sequence[float], strength: float, threshold: float, course: Mapping[str, float]) -> str:
    """What to advise: the weakest strength, of a few, by which a row gets there."""
    wanted = strength
    while wanted < _STRONGEST:
        wanted *= 2
        if steps_to_shrink(left, strength=wanted, threshold=threshold, **course) is not None:
            return f"say --set method.strength={float(f'{wanted:.1g}'):g}"
    return "let the rate fall to zero (optim.schedule=cosine), or raise threshold"
