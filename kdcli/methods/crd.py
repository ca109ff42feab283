"""Contrastive representation distillation: Tian, Krishnan & Isola 2020, arXiv 1910.10699.

L = ce·CE(z_s, y) + kd·T²·KL + weight·(NCE of g_s(f_s) among the teacher's embeddings + NCE of g_t(f_t) among
the student's)
NCE: the other network's embedding of the same sample against those of K samples of other classes, from a
memory bank of all
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses import bank
from kdcli.losses.products import unit
from kdcli.methods.parts import Count, Fraction, Part, Positive, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import embedding
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, State, Term

Negatives = Annotated[int, Field(ge=1, le=1_000_000)]


def part(
    weight: float = 0.8,
    *,
    student: str = "pooled",
    teacher: str = "pooled",
    width: Count = 128,
    negatives: Negatives = 16_384,
    nce_temperature: Positive = 0.07,
    momentum: Fraction = 0.5,
) -> Part:
    """Contrast between embeddings of both networks, with a memory bank of each."""
    mine, its = f"s.{student}", f"t.{teacher}"
    a, b = "crd-student", "crd-teacher"
    build, soft = partial(embedding, width=width), {"temperature": nce_temperature}
    state = State("crd-bank", partial(first_bank, width=width), of_samples=True)
    derives = (
        Derive("own", unit, (f"{a}.out",)),
        Derive("other", unit, (f"{b}.out",)),
        Derive("classes", classes_of, (), state=state),
        Derive("negatives", drawn, ("y", "classes"), {"count": negatives}),
        Derive(
            "bank",
            remembered,
            ("~own", "~other", "index"),
            {"momentum": momentum},
            scope="batch",
            state=state,
        ),
        Derive("z", normalised, ("~own", "~other", "index", "negatives"), soft, scope="batch", state=state),
    )
    read = ("own", "other", "index", "negatives", "~bank", "~z")
    return Part(
        (Term("crd", bank.crd, read, weight, soft),),
        (
            Party(a, "trained", build=build, reads=(mine,)),
            Party(b, "trained", build=build, reads=(its,)),
        ),
        (Call(a, a, (mine,)), Call(b, b, (f"~{its}",))),
        derives,
    )


def first_bank(labels: Tensor, *, width: int) -> dict[str, Tensor]:
    """Rows [2, N, D] drawn from ±1/√(D/3), the class of each sample, and no Z yet."""
    most = 1 / math.sqrt(width / 3)
    rows = torch.empty(2, len(labels), width).uniform_(-most, most)
    return {"bank": rows, "classes": labels.clone(), "z": torch.zeros(2)}


def classes_of(state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """[N], which never change."""
    return state["classes"], {}


def drawn(y: Tensor, classes: Tensor, *, count: int) -> Tensor:
    """Numbers [B, K] of samples of other classes than ``y`` [B], drawn alike from ``classes`` [N].

    None twice, unless they are fewer than K.

    Raises:
        ValueError: a row without any sample of another class.
    """
    others = (classes != y[:, None]).float()
    there = others.sum(dim=1)
    if (there == 0).any():
        raise ValueError("all samples are of one class, which leaves none to contrast with")
    found = torch.empty(len(y), count, dtype=torch.long, device=y.device)
    for again in (False, True):
        rows = (there < count) == again
        if rows.any():
            found[rows] = torch.multinomial(others[rows], count, replacement=again)
    return found


def remembered(
    state: dict[str, Tensor], own: Tensor, other: Tensor, index: Tensor, *, momentum: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The bank as it was; then rows move towards the embeddings [B, D] of both, and back to length 1.

    Of a sample that is there several times, the last one counts, on every device.
    """
    last = (index == index[:, None]).mul(torch.arange(1, len(index) + 1, device=index.device)).argmax(dim=1)
    new = torch.stack([own, other])[:, last]
    moved = unit(momentum * state["bank"][:, index] + (1 - momentum) * new)
    return state["bank"], {"bank": state["bank"].index_copy(1, index, moved)}


def normalised(
    state: dict[str, Tensor],
    own: Tensor,
    other: Tensor,
    index: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Z, estimated from the first batch and kept from then on."""
    if (state["z"] > 0).all():
        return state["z"], {}
    z = bank.partition(own, other, index, negatives, state["bank"], temperature=temperature)
    return z, {"z": z}


def crd(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Which of many pictures is the one that the other network sees.

    RepDistiller's run: weight 0.8, embeddings of 128 numbers, 16,384 negatives of other classes for each
    picture, ``nce_temperature`` 0.07, half of a row of the memory bank kept at each update, Z from the first
    batch; ``kd=1`` is its CRD+KD. All pictures need labels, those of negatives too. The bank has 1 kB for
    each picture (of either network, half of it), and a step makes B·N products with it.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = keys("method", weight=0.8, ce=1.0, kd=0.0, width=128)
    contrast = keys("method", negatives=16_384, nce_temperature=0.07, momentum=0.5)
    recipe = tables_cifar_100({**weights, **contrast}, {"method.negatives": "of other classes, mode 'exact'"})
    return one_turn("crd", Part(labels), taught, recipes=(recipe,))
