"""Optimisers and schedules from timm; the learning rate of a step is a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from kdcli.errors import UsageError, nearest
from kdcli.models.protocol import Model
from kdcli.sections import OptimSection


def known_optimizer(name: str) -> None:
    """Raise UsageError for an optimiser that timm has not."""
    from timm.optim import list_optimizers

    if name.lower() not in list_optimizers():
        raise UsageError(f"timm has no optimiser '{name}'.{nearest(name, list_optimizers())}")


def build_optimizer(module: nn.Module, section: OptimSection) -> Any:
    """timm's optimiser over the parameters that need a gradient. Raises UsageError for an unknown name."""
    from timm.optim import create_optimizer_v2

    known_optimizer(section.opt)
    extra = {"betas": section.betas} if section.betas else {}
    return create_optimizer_v2(
        _groups(module, section),
        opt=section.opt,
        lr=section.lr,
        weight_decay=0.0,  # the groups have their own
        momentum=section.momentum,
        **extra,
    )


def _groups(module: nn.Module, section: OptimSection) -> list[dict[str, Any]]:
    """Parameters by weight decay and, with ``layer_decay``, by the layer of the model that they are in.

    A model knows what it decays and where its layers are. What is in no model learns at the full rate.
    """
    from timm.optim import param_groups_weight_decay

    decay = section.weight_decay
    models = {name: part for name, part in module.named_modules() if isinstance(part, Model)}
    spared = {f"{name}.{own}".lstrip(".") for name, model in models.items() for own in model.undecayed()}
    groups = param_groups_weight_decay(module, decay, no_weight_decay_list=spared)
    if section.layer_decay is None:
        return groups
    found = [g for model in models.values() for g in model.layer_groups(decay, section.layer_decay)]
    seen = {parameter for group in found for parameter in group["params"]}
    rest = [{**group, "params": [p for p in group["params"] if p not in seen]} for group in groups]
    return [*found, *(group for group in rest if group["params"])]


def build_schedule(optimizer: Any, section: OptimSection, steps: int, steps_per_epoch: float) -> Any:
    """timm's schedule over ``steps``; ``schedule.step(k)`` sets the learning rate of step k from k alone."""
    from timm.scheduler import create_scheduler_v2

    warmup = math.floor(section.warmup * steps)
    constant = section.schedule == "constant"
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="step" if constant else section.schedule,
        num_epochs=max(steps, 1),
        decay_epochs=steps + 1 if constant else max(1, round(section.decay_epochs * steps_per_epoch)),
        decay_milestones=[round(e * steps_per_epoch) for e in section.milestones],
        decay_rate=section.decay_rate,
        min_lr=section.min_lr,
        warmup_epochs=warmup,
        warmup_lr=section.lr / (10 * max(warmup, 1)),
        warmup_prefix=False,
        cooldown_epochs=0,
    )
    return schedule
