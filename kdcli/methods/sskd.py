"""Self-supervision as an auxiliary task: Xu et al. 2020, arXiv 2006.07114 (SSKD).

Phase 1: a head on the frozen teacher learns which picture a turned view comes from.
Phase 2: L = ce·CE(z_0, y) + kd·T²·KL(z_0) + tf·T²·KL(z_turned, kept rows) + ss·T_s²·KL(table of cosines, kept
rows), T 4 and T_s 0.5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcli.errors import UsageError
from kdcli.losses import contrastive
from kdcli.losses.logits import kl_divergence
from kdcli.methods.parts import STUDENT, TEACHER, Fraction, Positive, Share
from kdcli.methods.trainings import PADDED, SMALL_PICTURES, SMALL_STUDENTS, keys, published, sgd
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, Term, Turn

VIEWS = 4

Drop = Annotated[float, Field(gt=0, lt=1)]


def projection_head(features: tuple[int, ...]) -> nn.Module:
    """Linear, ReLU, linear, all as wide as the features [D]."""
    width = features[0]
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def turned(x: Tensor) -> Tensor:
    """Pictures [B, C, H, W] by 0, 90, 180 and 270 degrees anticlockwise: [4·B, C, H, W], item by item."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(VIEWS)], dim=1).flatten(0, 1)


def by_item(rows: Tensor) -> Tensor:
    """[B, 4, …] of [4·B, …]."""
    return rows.unflatten(0, (-1, VIEWS))


def upright(rows: Tensor) -> Tensor:
    """[B, …], the first of [B, 4, …]."""
    return rows[:, 0]


_TURNED = Derive("turned", turned, ("x",))
_ITS_CALLS = (Call("t", "teacher", ("turned",)), Call("ht", "teacher_head", ("~t.pooled",)))


def head(
    *,
    head_share: Share = 0.2,
    head_opt: str = "momentum",
    head_lr: float = 0.05,
    head_drops: tuple[Drop, ...] = (30 / 60, 45 / 60),
) -> Phase:
    """Phase 1: the teacher's head learns which item a turned view comes from.

    As in the released code: plain momentum of 0.9 (timm's ``sgd`` is Nesterov's), a decay of 5e-4 of biases
    too, no warm-up, and a tenth of the rate after each of ``head_drops``, parts of the phase.
    """
    turn = Turn(
        "head",
        trains=("teacher_head",),
        calls=_ITS_CALLS,
        terms=(Term("contrast", contrastive.view_contrast, ("its_heads",), scope="batch"),),
        derives=(_TURNED, Derive("its_heads", by_item, ("ht.out",))),
        optim={
            "opt": head_opt,
            "lr": head_lr,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "decay_all": True,
            "schedule": "multistep",
            "warmup": 0.0,
            "milestones": [],
            "drops": list(head_drops),
            "decay_rate": 0.1,
        },
    )
    return Phase((turn,), "head", head_share)


def turned_views(*, tf: float = 2.7, tf_temperature: Positive = 4.0, ratio_tf: Fraction = 1.0) -> Term:
    """What the teacher says of turned views."""
    keywords = {"ratio": ratio_tf, "temperature": tf_temperature}
    return Term("transfer", transfer, ("mine", "~its", "y"), tf, keywords, scope="batch")


def tables(*, ss: float = 10.0, ss_temperature: Positive = 0.5, ratio_ss: Fraction = 0.75) -> Term:
    """How alike the teacher's head finds turned and upright views."""
    keywords = {"ratio": ratio_ss, "temperature": ss_temperature}
    return Term("table", table_transfer, ("my_heads", "~its_heads"), ss, keywords, scope="batch")


def transfer(
    logits: Tensor, teacher_logits: Tensor, y: Tensor, *, ratio: float, temperature: float
) -> Tensor:
    """KL of turned views where the teacher is right or least wrong: logits [B, 4, C] of both, y [B]."""
    its = teacher_logits[:, 1:].flatten(0, 1)
    kept = contrastive.least_wrong(its, y.repeat_interleave(VIEWS - 1), ratio=ratio)
    return _of_kept(logits[:, 1:].flatten(0, 1), its, kept, temperature)


def table_transfer(heads: Tensor, teacher_heads: Tensor, *, ratio: float, temperature: float) -> Tensor:
    """KL of the tables of cosines where the teacher's head is right or least wrong: [B, 4, D] of both."""
    its = contrastive.view_table(teacher_heads)
    sources = contrastive.view_sources(len(teacher_heads), VIEWS, its.device)
    kept = contrastive.least_wrong(its, sources, ratio=ratio)
    return _of_kept(contrastive.view_table(heads), its, kept, temperature)


def _of_kept(rows: Tensor, teacher_rows: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """KL, mean over the kept rows; 0, with a zero gradient, where none is kept."""
    if not kept.any():
        return rows.sum() * 0.0
    return kl_divergence(rows[kept], teacher_rows[kept], temperature=temperature)


def sskd(
    task: Task,
    head: Phase,
    turned_views: Term,
    tables: Term,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
) -> Method:
    """Labels, teacher, and what the teacher knows of turned views, where it is right or least wrong.

    Weights, ratios and the head's 60 of 300 epochs (momentum at 0.05, a tenth of it after 30 and 45, no
    temperature) are those of the released student.py. That code turns pictures by quarters only, where the
    paper lists more transformations, and crops each of the four views anew, where here one crop is turned.
    Each picture is four, so a step costs four. All pictures need labels. Ties between rows go to the lower
    index. The published table's kd row is that of CRD, with other teachers.
    """
    if tables.weight and not head.share:
        raise UsageError("method.head_share=0 leaves the teacher's head untrained, and method.ss copies it.")
    (hard,) = task.supervised("s")
    student = Turn(
        "student",
        trains=("student", "student_head"),
        calls=(
            Call("s", "student", ("turned",)),
            Call("hs", "student_head", ("s.pooled",)),
            *_ITS_CALLS,
        ),
        terms=(
            replace(hard, args=("upright", *hard.args[1:]), weight=ce),
            Term("kl", kl_divergence, ("upright", "~its_upright"), kd, {"temperature": temperature}),
            turned_views,
            tables,
        ),
        derives=(
            _TURNED,
            Derive("its_heads", by_item, ("~ht.out",)),
            Derive("mine", by_item, ("s.logits",)),
            Derive("its", by_item, ("~t.logits",)),
            Derive("my_heads", by_item, ("hs.out",)),
            Derive("upright", upright, ("mine",)),
            Derive("its_upright", upright, ("its",)),
        ),
    )
    heads = (
        Party("teacher_head", "trained", build=projection_head, reads=("t.pooled",)),
        Party("student_head", "trained", build=projection_head, reads=("s.pooled",)),
    )
    phases = (head, Phase((student,), "distill", 1 - head.share))
    return Method("sskd", (STUDENT, TEACHER, *heads), phases, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The training of the released code: 60 epochs of the head, 240 of the student."""
    training = sgd(lr=0.05, weight_decay=5e-4, epochs=300, batch=64, drops=(150, 180, 210))
    weights = keys("method", ce=0.1, kd=0.9, tf=2.7, ss=10.0, ratio_tf=1.0, ratio_ss=0.75)
    soft = keys("method", temperature=4.0, tf_temperature=4.0, ss_temperature=0.5)
    head = keys("method", head_share=60 / 300, head_opt="momentum", head_lr=0.05, head_drops=[0.5, 0.75])
    return published(
        "cifar-100",
        {**training, **SMALL_PICTURES, "views.hflip": 0.0, **weights, **soft, **head},
        "the released student.py",
        {
            **SMALL_STUDENTS,
            "optim.epochs": "60 of the head, then 240 of the student",
            "optim.milestones": "of the student's epochs",
            "method.head_drops": "after 30 and 45 of its 60 epochs",
            "views.hflip": "pictures are turned, not flipped",
        },
        (PADDED, "a crop for each of the four views"),
    )
