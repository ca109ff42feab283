"""Optimisers and schedules from timm; the learning rate of a step is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from kdcli.errors import UsageError, nearest
from kdcli.models.timm import Network
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
    """Parameters by weight decay and, with ``layer_decay``, by the block of the network that they are in.

    timm knows what its models decay and where their blocks are, and not those of a module that holds one. A
    head of ours stands above the last block; what is in no network learns at the full rate.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    decay = section.weight_decay
    networks = {name: part for name, part in module.named_modules() if isinstance(part, Network)}
    spared = {f"{name}.body.{own}".lstrip(".") for name, net in networks.items() for own in _undecayed(net)}
    groups = param_groups_weight_decay(module, decay, no_weight_decay_list=spared)
    if section.layer_decay is None:
        return groups
    found: list[dict[str, Any]] = []
    for network in networks.values():
        blocks = param_groups_layer_decay(
            network.body,
            decay,
            no_weight_decay_list=_undecayed(network),
            layer_decay=section.layer_decay,
        )
        scale = 1.0 if network.head is None else section.layer_decay
        found += [{**group, "lr_scale": group["lr_scale"] * scale} for group in blocks]
    seen = {parameter for group in found for parameter in group["params"]}
    rest = [{**group, "params": [p for p in group["params"] if p not in seen]} for group in groups]
    return [*found, *(group for group in rest if group["params"])]


def _undecayed(network: Network) -> set[str]:
    """What timm's model never decays beside biases and norms: position embeddings, class tokens."""
    return set(getattr(network.body, "no_weight_decay", set)())


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


class Rates:
    """A schedule that is a function: of step k of a phase, and of the phase's length."""

    def __init__(self, optimizer: Any, rate: Callable[[int, int], float], length: int) -> None:
        self._optimizer, self._rate, self._length = optimizer, rate, length

    def step(self, step: int) -> None:
        """Set the learning rate of a step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step, self._length)
