"""Optimisers and schedules from timm; the learning rate of a step is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from kdcli.errors import Diverged, UsageError, nearest
from kdcli.models.protocol import Model
from kdcli.sections import OptimSection
from kdcli.words import Turn

# Beginnings of names that timm has and a run cannot take, each with the reason.
REFUSED = {
    "adahessian": "it needs second derivatives, which no step here makes",
    "bnb": "it needs bitsandbytes on CUDA, whose packed state a stopped run could not put back",
    "fused": "it needs NVIDIA's apex, which kdcli does not install",
    "kron": "it draws from a generator of its own, which a stopped run could not put back, and compiles for "
    "half a minute at every start",
    "lookahead": "its slow weights stand in no state that a stopped run could put back",
}


def known_optimizer(name: str) -> None:
    """Raise UsageError for an optimiser that timm has not, or that a run cannot take."""
    from timm.optim import list_optimizers

    for start, why in REFUSED.items():
        if name.lower().startswith(start):
            raise UsageError(f"optimiser {name}: {why}. Take another, for example adamw.")
    known = [other for other in list_optimizers() if not other.startswith(tuple(REFUSED))]
    if name.lower() not in known:
        raise UsageError(f"timm has no optimiser '{name}'.{nearest(name, known)}")


# Fields of the optimiser section that one turn, and one party within it, can have of its own. The others are
# of the run: batches, length, averaging, mixing.
TURN = (
    *("opt", "lr", "weight_decay", "decay_all", "momentum", "betas", "layer_decay", "clip_grad"),
    *("schedule", "warmup", "warmup_from", "hold", "min_lr"),
    *("milestones", "drops", "decay_epochs", "decay_rate"),
)
PARTY = ("lr", "weight_decay", "momentum", "layer_decay")


def section_of(turn: Turn, section: OptimSection) -> OptimSection:
    """The optimiser section as a turn has it.

    Raises:
        UsageError: a field that a turn, or a party's group in it, cannot have, or a value out of range.
    """
    from timm.optim import get_optimizer_info

    found = _with(section, turn.optim, TURN, f"turn {turn.name}")
    refuse_settings(found, f"turn {turn.name}")
    for party, fields in turn.groups.items():
        where = f"turn {turn.name}, group of {party}"
        _with(found, fields, PARTY, where)
        if "momentum" in fields and not get_optimizer_info(found.opt).has_momentum:
            raise UsageError(f"{where}: optimiser {found.opt} has no momentum.")
    return found


def refuse_settings(section: OptimSection, where: str) -> None:
    """Raise UsageError for an optimiser that a run cannot take, or settings that this one cannot.

    Args:
        section: its settings.
        where: names them in messages.
    """
    from timm.optim import get_optimizer_info

    known_optimizer(section.opt)
    if 0 < section.hold < section.warmup:
        raise UsageError(
            f"{where}: optim.hold={section.hold:g} ends before the warm-up does ({section.warmup:g}): it "
            "holds nothing."
        )
    info = get_optimizer_info(section.opt)
    wanted = info.num_betas if info.has_betas else 0
    if section.betas and wanted != len(section.betas):
        takes = (
            f"takes {wanted} betas, and optim.betas are {len(section.betas)}" if wanted else "has no betas"
        )
        raise UsageError(f"{where}: optimiser {section.opt} {takes}. Set optim.betas=null.")
    try:
        _made([{"params": [nn.Parameter(torch.zeros(1))]}], section)
    except ValueError as error:
        raise UsageError(f"{where}: optimiser {section.opt}: {error}.") from error


def _made(groups: list[dict[str, Any]], section: OptimSection) -> Any:
    """timm's optimiser over groups, which have their own weight decay."""
    from timm.optim import create_optimizer_v2, get_optimizer_info

    info = get_optimizer_info(section.opt)
    extra: dict[str, Any] = {"betas": section.betas} if section.betas else {}
    if info.has_momentum and not section.momentum and (info.defaults or {}).get("nesterov"):
        extra["nesterov"] = False  # it looks ahead along the momentum, and there is none
    return create_optimizer_v2(
        groups, opt=section.opt, lr=section.lr, weight_decay=0.0, momentum=section.momentum, **extra
    )


def _with(section: OptimSection, fields: Mapping[str, Any], known: Sequence[str], where: str) -> OptimSection:
    for name in fields:
        if name in known:
            continue
        if name in OptimSection.model_fields:
            raise UsageError(
                f"{where}: it has no {name} of its own, the run has. Its own can be: {', '.join(known)}."
            )
        raise UsageError(f"{where}: no field '{name}' of the optimiser.{nearest(name, known)}")
    try:
        return OptimSection.model_validate({**section.model_dump(), **fields})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{where}: optim.{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def build_optimizer(
    module: nn.Module, section: OptimSection, groups: Mapping[str, Mapping[str, Any]] | None = None
) -> Any:
    """timm's optimiser over the parameters that need a gradient.

    Args:
        module: what is trained.
        section: how.
        groups: by name of a child of the module, or by ``NAME:PATTERN`` for those of its parameters that the
            pattern fits, the fields of ``PARTY`` that it has of its own.

    Raises:
        UsageError: an unknown name.
    """
    known_optimizer(section.opt)
    return _made(_groups_by_role(module, section, groups) if groups else _groups(module, section), section)


def _groups_by_role(
    module: nn.Module, section: OptimSection, own: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Groups of the children that have nothing of their own, then of those that have, then of patterns.

    The schedule sets every rate, times the group's ``lr_scale``: so one of its own keeps its ratio. A group
    of a pattern decays as it says, biases and norms too.
    """
    rest = nn.ModuleDict({name: child for name, child in module.named_children() if name not in own})
    found = _groups(rest, section) if len(rest) else []
    for name in (name for name in own if ":" not in name):
        ours = section.model_copy(update=dict(own[name]))
        part = _groups(nn.ModuleDict({name: module.get_submodule(name)}), ours)
        found += [_as_own(group, own[name], section) for group in part]
    for key in (name for name in own if ":" in name):
        chosen = set(_matching(module, key))
        found = [{**group, "params": [p for p in group["params"] if p not in chosen]} for group in found]
        parameters = [p for p in module.parameters() if p in chosen]
        decay = own[key].get("weight_decay", section.weight_decay)
        found.append(_as_own({"params": parameters, "weight_decay": decay}, own[key], section))
    return [group for group in found if group["params"]]


def _as_own(group: dict[str, Any], fields: Mapping[str, Any], section: OptimSection) -> dict[str, Any]:
    """A group with the rate, as a ratio, and the momentum that it has of its own."""
    scale = group.get("lr_scale", 1.0) * fields.get("lr", section.lr) / section.lr
    momentum = {"momentum": fields["momentum"]} if "momentum" in fields else {}
    return {**group, "lr_scale": scale, **momentum}


def _matching(module: nn.Module, key: str) -> list[nn.Parameter]:
    """The trained parameters that ``NAME:PATTERN`` names. Raises UsageError if there is none."""
    name, _, pattern = key.partition(":")
    trained = {n: p for n, p in module.get_submodule(name).named_parameters() if p.requires_grad}
    found = [p for n, p in trained.items() if fnmatchcase(n, pattern)]
    if not found:
        raise UsageError(f"no trained parameter of {name} is called '{pattern}'.{nearest(pattern, trained)}")
    return found


def _groups(module: nn.Module, section: OptimSection) -> list[dict[str, Any]]:
    """Parameters by weight decay and, with ``layer_decay``, by the layer of the model that they are in.

    A model knows what it decays and where its layers are. What is in no model learns at the full rate. With
    ``decay_all`` nothing is spared.
    """
    groups = _spared_groups(module, section)
    if section.decay_all:
        return [{**group, "weight_decay": section.weight_decay} for group in groups]
    return groups


def _spared_groups(module: nn.Module, section: OptimSection) -> list[dict[str, Any]]:
    """The groups, without weight decay for biases, norms and what a model spares."""
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


def make_step(optimizer: Any) -> None:
    """One step of an optimiser. Raises Diverged where a number outgrows the type of the weights."""
    try:
        optimizer.step()
    except (RuntimeError, OverflowError) as error:  # torch's of a scalar (lr 1e39), Python's of a power
        if isinstance(error, RuntimeError) and "without overflow" not in str(error):
            raise
        raise Diverged(f"the optimiser's step is too large for its numbers ({error})") from error


def build_schedule(optimizer: Any, section: OptimSection, steps: int, steps_per_epoch: float) -> Any:
    """timm's schedule over ``steps``; ``schedule.step(k)`` sets the learning rate of step k from k alone."""
    if section.hold:
        return _Held(optimizer, section, steps, steps_per_epoch)
    from timm.scheduler import create_scheduler_v2

    warmup = math.floor(section.warmup * steps)
    first = section.warmup_from or 1 / (10 * max(warmup, 1))
    drops = [e * steps_per_epoch for e in section.milestones] + [part * steps for part in section.drops]
    drops = [1 + round(drop) for drop in sorted(drops)]  # its multistep looks a step ahead
    constant = section.schedule == "constant"
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="step" if constant else section.schedule,
        num_epochs=max(steps, 1),
        decay_epochs=steps + 1 if constant else max(1, round(section.decay_epochs * steps_per_epoch)),
        decay_milestones=drops,
        decay_rate=section.decay_rate,
        min_lr=section.min_lr,
        warmup_epochs=warmup,
        warmup_lr=section.lr * first,
        warmup_prefix=False,
        cooldown_epochs=0,
    )
    return schedule


class _Held:
    """A schedule that stays at the full rate, after its warm-up, before it falls."""

    def __init__(self, optimizer: Any, section: OptimSection, steps: int, steps_per_epoch: float) -> None:
        self._held = math.floor(section.hold * steps)
        self._warmup = math.floor(section.warmup * steps)
        falling = section.model_copy(update={"hold": 0.0, "warmup": 0.0})
        rising = section.model_copy(update={"hold": 0.0})
        self._tail = build_schedule(optimizer, falling, steps - self._held, steps_per_epoch)
        self._head = build_schedule(optimizer, rising, steps, steps_per_epoch)

    def step(self, step: int) -> None:
        """Set the learning rate of a step."""
        if step < self._warmup:
            self._head.step(step)
        else:
            self._tail.step(max(step - self._held, 0))


class Rates:
    """A schedule that is a function: of step k of a phase, and of the phase's length."""

    def __init__(self, optimizer: Any, rate: Callable[[int, int], float], length: int) -> None:
        self._optimizer, self._rate, self._length = optimizer, rate, length

    def step(self, step: int) -> None:
        """Set the learning rate of a step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step, self._length)
