"""Whether a training is long enough for rows to shrink, predicted from its schedule before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Raise UsageError for steps that nobody knows in advance: of other optimisers, or clipped."""
    if optim.clip_grad is not None:
        raise UsageError(
            "optim.clip_grad scales down what makes rows shrink, by as much as nobody knows in advance: "
            "leave it out."
        )
    if optim.opt.lower() not in _PLAIN:
        raise UsageError(
            f"--opt {optim.opt}: rows shrink by steps of SGD, so many times the learning rate; take momentum "
            "or sgd."
        )


@dataclass(frozen=True)
class Course:
    """How a row goes that is reset.

    Attributes:
        last: step after which nothing more is chosen.
        left: learning rates of the steps from there on.
        strength: λ.
        settings: momentum and weight decay of compactors.
    """

    last: int
    left: Sequence[float]
    strength: float
    settings: Mapping[str, float]


def course_of(config: Any, arguments: Mapping[str, Any], material: Material, of: Compaction) -> Course:
    """The course of a row that is chosen last.

    Args:
        config: of ``compress``.
        arguments: of its method.
        material: says how many steps there are.
        of: what the method works on.

    Raises:
        UsageError: it would be chosen after the end.
    """
    optim, steps = config.optim, material.steps
    every = rates(optim, steps, material.schedule_steps, material.order.steps_per_epoch)
    own = "momentum" in arguments  # of compactors, which then have no decay
    settings = {
        "momentum": arguments.get("momentum", optim.momentum),
        "weight_decay": 0.0 if own else optim.weight_decay,
    }
    last = round(arguments["warmup"] * of.steps)
    if "granularity" in arguments:  # rows are chosen a few at a time, until a target is met
        last = _last_choice(arguments, of, last, steps)
    if last >= steps:
        raise UsageError(
            f"nothing is reset in the {steps:,} steps of this training: that begins after {last:,}. Train "
            "longer."
        )
    return Course(last, every[last:], arguments["strength"], settings)


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
    course = course_of(config, arguments, material, of)
    norm = final_norm(course.left, strength=course.strength, **course.settings)
    if norm < config.threshold:
        return
    raise UsageError(
        f"no row would be removed: after the {len(course.left):,} steps in which it is reset, a row of norm "
        f"1 has the norm {norm:.2g}, and rows below threshold={config.threshold:g} are removed. Train longer"
        f"{_remedy(course, config.threshold)}."
    )


def said(config: Any, arguments: Mapping[str, Any], material: Material, of: Compaction) -> str:
    """What a plan says of the course, which removes something."""
    course = course_of(config, arguments, material, of)
    steps = steps_to_shrink(
        course.left, strength=course.strength, threshold=config.threshold, **course.settings
    )
    return (
        f"a row of norm 1 below {config.threshold:g} in {steps or 0:,} steps of resetting; the last rows are "
        f"chosen after step {course.last:,} of {material.steps:,}"
    )


def _last_choice(arguments: Mapping[str, Any], of: Compaction, warmup: int, steps: int) -> int:
    """The step after which a target's rows are all chosen.

    Raises:
        UsageError: that is beyond the training.
    """
    draw = torch.Generator().manual_seed(0)
    norms = [torch.rand(width, generator=draw) for width in of.widths]  # any order of rows
    chosen = budget.at_once(norms, of.cost, arguments["target"])
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


def _remedy(course: Course, threshold: float) -> str:
    """What else to advise: the weakest strength that does, or one with a threshold above what it leaves.

    Close to zero a row swings as widely as the last rates let it, so that in a short training no strength
    takes it below a small threshold.
    """
    grid = [course.strength * _STEP**power for power in range(1, _POWERS)]
    norms = {wanted: final_norm(course.left, strength=wanted, **course.settings) for wanted in grid}
    if enough := next((wanted for wanted, norm in norms.items() if norm < threshold), None):
        return f", or say --set method.strength={enough:.2g}"
    near = next((wanted for wanted, norm in norms.items() if norm < _NEAR), None)
    if near is None:
        return ""
    above = 10.0 ** math.ceil(math.log10(2 * norms[near]))
    return f", or say --set method.strength={near:.2g} --set threshold={above:g}"
