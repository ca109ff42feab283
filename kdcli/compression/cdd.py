"""Capacity dynamic distillation: Xie et al. 2023, arXiv 2303.09230.

L = labels + kd·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) + layers·Σ_l mean_b ‖pooled(t_l) − pooled(s_l)‖
∂L/∂W_l[i] ← m_l[i]·∂L/∂W_l[i] + λ·W_l[i]/‖W_l[i]‖ for row i of the compactor of layer l

m_l[i] is 1 at first, and 0 for good once channel i contributes little to every retrieval of a batch (RGGR,
:mod:`kdcli.compression.rggr`). What is reset shrinks to zero, and is removed after the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcli.compression import rggr
from kdcli.compression.rows import reset_edit
from kdcli.compression.shrinking import Compaction, answers, layers, pooled_taps, watched
from kdcli.errors import UsageError
from kdcli.methods.parts import STUDENT, TEACHER, Fraction, Positive, S, T
from kdcli.methods.trainings import keys, published
from kdcli.tasks import Task
from kdcli.words import Derive, Edit, Method, Phase, Recipe, State, Term, Turn

Rows = Annotated[int, Field(ge=1, le=1_000_000)]
Few = Annotated[int, Field(ge=1, le=1000)]


def cdd(
    task: Task,
    of: Compaction,
    *,
    strength: Positive = 0.004,
    ratio: Fraction = 0.5,
    neighbours: Few = 2,
    queue: Rows = 24_000,
    distance: Literal["cosine", "l2"] = "cosine",
    warmup: Fraction = 20 / 120,
    kd: float = 1.0,
    temperature: Positive = 2.0,
    hint: float = 0.5,
    target: Annotated[float, Field(gt=0, lt=1)] | None = None,
) -> Method:
    """Compactors between the layers of a student that begins as large as its teacher.

    ``strength`` is λ of the group lasso, ``ratio`` the share of channels that a picture lets go, of which
    those go that all pictures of a batch and their ``neighbours`` agree on. ``queue`` rows of the teacher's
    features are kept for each layer (as many whole batches as there are, no more than there are pictures).
    Until ``warmup`` of the training nothing is reset. The teacher has the student's layers: it is the same
    architecture. The paper has no target of cost: λ, ``ratio`` and the length of the training decide the
    size. With a ``target``, which is ours, no more rows are reset once those that are meet it, and what is
    missing at the end goes by the least norm. A masked row shrinks by about lr·λ/(1 − momentum) a step, so a
    short training prunes nothing unless λ is larger; the plan says by how much.
    """
    if not of.taught:
        raise UsageError("method cdd needs --teacher.")
    if not of.alike:
        raise UsageError(
            "method cdd compares layers of teacher and student channel by channel, and these differ: begin "
            "with the teacher itself (--student same), or take --method resrep."
        )
    size = max(min(queue, of.pictures) // of.batch, 1) * of.batch
    its = tuple(f"its{number}" for number in range(1, len(of.sites) + 1))
    state = State("rggr", partial(_empty, size=size, each=of.each), its)
    seen = tuple(name for pair in zip((f"own{i}" for i in range(1, len(its) + 1)), its) for name in pair)
    keywords = {
        "neighbours": neighbours,
        "ratio": ratio,
        "distance": distance,
        "each": of.each,
        "warmup": round(warmup * of.steps) * of.accumulate,
        "enough": None if target is None else partial(_enough, of.cost, of.widths, target),
    }
    turn = Turn(
        "student",
        ("student",),
        (S, T),
        (
            *task.supervised("s"),
            *answers(task, of, kd, temperature),
            *layers(of, hint),
            Term("reset rows", _count, ("~reset",), 0.0, watched=True),
            *watched(of),
        ),
        (
            *pooled_taps(of),
            Derive("reset", observed, seen, keywords, scope="batch", state=state),
        ),
        edits=(
            Edit(
                "gradient resetting",
                "gradient",
                "student",
                ("*.compactor.weight",),
                reset_edit,
                {
                    "strength": strength,
                    "masks": {name: f"mask{i}" for i, name in enumerate(of.parameters, 1)},
                },
                state,
            ),
        ),
    )
    return Method("cdd", (STUDENT, TEACHER), (Phase((turn,)),), recipes=recipes())


def observed(
    state: Mapping[str, Tensor],
    *pooled: Tensor,
    warmup: int,
    enough: Callable[[Sequence[int]], bool] | None = None,
    **keywords: object,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`kdcli.compression.rggr.observe`, whose masks stay as they are for the first ``warmup`` batches.

    Queues fill from the first batch on. Masks stay too once ``enough`` holds of the widths that they leave.
    """
    value, changes = rggr.observe(state, *pooled, **keywords)  # type: ignore[arg-type]
    changes["seen"] = state["seen"] + 1
    masks = [tensor for name, tensor in state.items() if name.startswith("mask")]
    left = [max(int(mask.sum()), 1) for mask in masks]
    if int(state["seen"]) < warmup or (enough is not None and enough(left)):
        changes = {name: tensor for name, tensor in changes.items() if not name.startswith("mask")}
        value = torch.stack([(~mask).sum() for mask in masks]).sum().to(value)
    return value, changes


def _enough(
    cost: Callable[[Sequence[int]], float], full: Sequence[int], target: float, left: Sequence[int]
) -> bool:
    return cost(left) <= target * cost(full)


def _empty(*rows: tuple[int, ...], size: int, each: Sequence[int]) -> dict[str, Tensor]:
    return {**rggr.empty(*rows, size=size, each=each), "seen": torch.zeros((), dtype=torch.int64)}


def _count(rows: Tensor) -> Tensor:
    """How many rows are reset, for the log."""
    return rows.float()


def recipes() -> tuple[Recipe, ...]:
    """The training of the authors' configuration for MSMT17."""
    optimiser = keys(
        "optim",
        opt="momentum",
        momentum=0.9,
        lr=0.01,
        weight_decay=5e-4,
        decay_all=True,
        schedule="cosine",
        warmup=10 / 120,
        warmup_from=0.1,
        hold=40 / 120,
        min_lr=1e-7,
        epochs=120,
        batch_size=96,
        clip_grad=None,
        label_smoothing=0.1,
    )
    views = {
        "views.count": "live",
        "views.scale": [1.0, 1.0],
        "views.hflip": 0.5,
        "views.erase": 0.5,
        "data.per_identity": 6,
    }
    parameters = keys(
        "method", strength=0.004, ratio=0.5, neighbours=2, queue=24_000, kd=1.0, temperature=2.0, hint=0.5
    )
    return (
        published(
            "msmt17",
            {**optimiser, **views, **parameters},
            "the authors' configuration for MSMT17",
            {
                "optim.hold": "flat to epoch 40 of 120",
                "optim.warmup": "10 of 120 epochs",
                "method.strength": "0.009 in the first version of the code",
                "data.per_identity": "16 identities of 6 pictures",
            },
            (
                "pictures of 320 by 160 pixels",
                "random crops after padding by 10 pixels",
                "a rate 1.5 times as high for the classifier",
                "mixed precision (--precision bf16)",
            ),
        ),
    )
