"""ResRep: Ding et al. 2021, arXiv 2007.03260. Remembering and forgetting, to a target of cost.

∂L/∂W_l[i] ← m_l[i]·∂L/∂W_l[i] + λ·W_l[i]/‖W_l[i]‖ for row i of the compactor of layer l

Every ``interval`` steps the rows of least norm over all compactors are chosen anew, a few more each time,
until the network that is left meets the target (:mod:`kdcli.compression.budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcli.compression import budget
from kdcli.compression.rows import reset_edit, row_norms
from kdcli.compression.shrinking import Compaction, answers, layers, watched
from kdcli.methods.parts import STUDENT, TEACHER, Fraction, Positive, S, T
from kdcli.methods.trainings import IMAGENET, keys, published
from kdcli.tasks import Task
from kdcli.words import Edit, Method, Phase, Recipe, State, Turn

Count = Annotated[int, Field(ge=1, le=1_000_000)]


def resrep(
    task: Task,
    of: Compaction,
    *,
    target: Annotated[float, Field(gt=0, lt=1)] = 0.455,
    strength: Positive = 1e-4,
    warmup: Fraction = 5 / 180,
    interval: Count = 200,
    granularity: Count = 4,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    kd: float = 1.0,
    temperature: Positive = 4.0,
    hint: float = 0.0,
) -> Method:
    """Compactors, and a target of FLOPs (``--target flops=0.455``) that a run is made to meet.

    ``strength`` is λ, ``warmup`` the part of the training before the first rows are chosen, ``granularity``
    how many more of them every ``interval`` steps. Compactors have a momentum of their own and no weight
    decay, as in the authors' code. A teacher, which the paper has not, teaches by its answers (``kd``), and
    by its layers where it has the same (``hint``).
    """
    state = State("resrep", partial(_ones, of.widths))
    keywords: dict[str, Any] = {
        "strength": strength,
        "masks": {name: f"mask{i}" for i, name in enumerate(of.parameters, 1)},
        "cost": of.cost,
        "target": target,
        "granularity": granularity,
        "interval": interval,
        "warmup": round(warmup * of.steps),
    }
    edit = Edit(
        "gradient resetting", "gradient", "student", ("*.compactor.weight",), chosen_anew, keywords, state
    )
    turn = Turn(
        "student",
        ("student",),
        (S, T) if of.taught else (S,),
        (*task.supervised("s"), *answers(task, of, kd, temperature), *layers(of, hint), *watched(of)),
        edits=(edit,),
        groups={"student:*.compactor.weight": {"momentum": momentum, "weight_decay": 0.0}},
    )
    parties = (STUDENT, TEACHER) if of.taught else (STUDENT,)
    return Method("resrep", parties, (Phase((turn,)),), recipes=recipes())


def chosen_anew(
    state: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    strength: float,
    masks: Mapping[str, str],
    cost: Callable[[Sequence[int]], float],
    target: float,
    granularity: int,
    interval: int,
    warmup: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An edit of gradients that resets rows, and chooses them every ``interval`` steps after ``warmup``.

    Args:
        state: ``seen`` steps, and a mask [p] bool for each compactor, true where a row is active.
        gradients: of compactors, by the parameter's name.
        weights: the parameters.
        strength: λ.
        masks: the name in the state of each parameter's mask, in the order of the sites.
        cost: of the network at widths of the sites.
        target: as a part of the full cost.
        granularity: rows more at each choice.
        interval: steps between choices.
        warmup: steps before the first.
    """
    seen = int(state["seen"])
    changes: dict[str, Tensor] = {"seen": state["seen"] + 1}
    now = dict(state)
    if seen >= warmup and (seen - warmup) % interval == 0:
        norms = [row_norms(weights[name]) for name in masks]
        found = budget.updated(
            [state[mask] for mask in masks.values()], norms, cost, target=target, granularity=granularity
        )
        chosen = {mask: rows.to(state[mask].device) for mask, rows in zip(masks.values(), found)}
        changes |= chosen
        now |= chosen
    edited, _ = reset_edit(now, gradients, weights, strength=strength, masks=masks)
    return edited, changes


def _ones(widths: Sequence[int]) -> dict[str, Tensor]:
    found = {f"mask{i}": torch.ones(width, dtype=torch.bool) for i, width in enumerate(widths, 1)}
    return {**found, "seen": torch.zeros((), dtype=torch.int64)}


def recipes() -> tuple[Recipe, ...]:
    """The authors' training of ResNet-50 on ImageNet, and of ResNet-56 on CIFAR-10."""
    common = keys(
        "optim", opt="momentum", momentum=0.9, lr=0.01, weight_decay=1e-4, schedule="cosine", warmup=0.0,
        min_lr=0.0, clip_grad=None,
    )  # fmt: skip
    parameters = keys("method", strength=1e-4, interval=200, granularity=4, momentum=0.99)
    large = {**keys("optim", epochs=180, batch_size=256), **keys("method", target=0.455, warmup=5 / 180)}
    small = {**keys("optim", epochs=480, batch_size=64), **keys("method", target=0.471, warmup=5 / 480)}
    left = ("a rate twice as high for biases",)
    return (
        published(
            "imagenet-resnet50",
            {**common, **IMAGENET, **parameters, **large},
            "the authors' code",
            {"method.warmup": "5 epochs"},
            left,
            taught=False,
        ),
        published(
            "cifar-10-resnet56",
            {**common, **parameters, **small, "views.count": "live", "views.scale": [1.0, 1.0]},
            "the authors' code",
            {"method.warmup": "5 epochs"},
            (*left, "random crops after padding by 4 pixels"),
            taught=False,
        ),
    )
