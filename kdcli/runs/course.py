"""Whether a training is long enough for rows to shrink, predicted from its schedule before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdcli.compression import budget
from kdcli.compression.shrink import final_norm
from kdcli.compression.shrinking import Compaction
from kdcli.engine.optim import build_optimizer, build_schedule
from kdcli.errors import UsageError
from kdcli.runs.material import Material
from kdcli.sections import OptimSection

_PLAIN = ("momentum", "sgd")
_STEP, _POWERS = 1.5, 40  # of the strengths that are tried
_NEAR = 0.05  # norm of a row, of 1 at first, that is as good as gone


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


def refuse_optimiser(optim: OptimSection) -> None:
    """Raise UsageError for an optimiser whose steps are not known in advance."""
    if optim.opt.lower() not in _PLAIN:
        raise UsageError(
            f"--opt {optim.opt}: rows shrink by steps of SGD, so many times the learning rate; take momentum "
            "or sgd."
        )


def refuse_short(config: Any, arguments: Mapping[str, Any], material: Material, of: Compaction) -> None:
    """Refuse a training in which no row would get below the threshold, or too few for the target.

    Args:
        config: of ``compress``.
        arguments: of its method.
        material: says how many steps there are.
        of: what the method works on.

    Raises:
        UsageError: a course that removes nothing.
    """
    optim = config.optim
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
    norm = final_norm(left, strength=arguments["strength"], **course)
    if norm < config.threshold:
        return
    raise UsageError(
        f"no row would be removed: after the {len(left):,} steps in which it is reset, a row of norm 1 has "
        f"the norm {norm:.2g}, and rows below threshold={config.threshold:g} are removed. Train longer"
        f"{_remedy(left, arguments['strength'], config.threshold, course)}."
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


def _remedy(left: Sequence[float], strength: float, threshold: float, course: Mapping[str, float]) -> str:
    """What else to advise: the weakest strength that does, or one with a threshold above what it leaves.

    Close to zero a row swings as widely as the last rates let it, so that in a short training no strength
    takes it below a small threshold.
    """
    grid = [strength * _STEP**power for power in range(1, _POWERS)]
    norms = {wanted: final_norm(left, strength=wanted, **course) for wanted in grid}
    if enough := next((wanted for wanted, norm in norms.items() if norm < threshold), None):
        return f", or say --set method.strength={enough:.2g}"
    near = next((wanted for wanted, norm in norms.items() if norm < _NEAR), None)
    if near is None:
        return ""
    above = 10.0 ** math.ceil(math.log10(2 * norms[near]))
    return f", or say --set method.strength={near:.2g} --set threshold={above:g}"
