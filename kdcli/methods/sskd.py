"""Self-supervision as an auxiliary task: Xu et al. 2020, arXiv 2006.07114 (SSKD).

Phase 1: a head on the frozen teacher learns which picture a turned view comes from.
Phase 2: L = ce·CE(z_0, y) + kd·T²·KL(z_0) + tf·T²·KL(z_turned, kept rows) + ss·T_s²·KL(table of cosines, kept
rows), T 4 and T_s 0.5
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.losses import contrastive
from kdcli.losses.logits import kl_divergence
from kdcli.methods.parts import STUDENT, TEACHER, Fraction, Positive, Share
from kdcli.models.adapters import projection_head
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Term, Turn

VIEWS = 4
_HEAD_DECAY = 5e-4  # the released code's; the run's is made for another optimiser


def turned(x: Tensor) -> Tensor:
    """Pictures [B, C, H, W] by 0, 90, 180 and 270 degrees anticlockwise: [4·B, C, H, W], item by item."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(VIEWS)], dim=1).flatten(0, 1)


def by_item(rows: Tensor) -> Tensor:
    """[B, 4, …] of [4·B, …]."""
    return rows.unflatten(0, (-1, VIEWS))


def upright(rows: Tensor) -> Tensor:
    """[B, …], the first of [B, 4, …]."""
    return rows[:, 0]


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
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    tf: float = 2.7,
    ss: float = 10.0,
    temperature: float = 4.0,
    tf_temperature: Positive = 4.0,
    ss_temperature: Positive = 0.5,
    ratio_tf: Fraction = 1.0,
    ratio_ss: Fraction = 0.75,
    head_share: Share = 0.2,
    head_opt: str = "sgd",
    head_lr: float = 0.05,
) -> Method:
    """Labels, teacher, and what the teacher knows of turned views, where it is right or least wrong.

    Weights, ratios and the head's 60 of 300 epochs (SGD at 0.05, weight decay 5e-4, no temperature) are the
    released code's. That code turns pictures by quarters only, where the paper lists more transformations,
    and crops each of the four views anew, where here one crop is turned. Each picture is four, so a step
    costs four. All pictures need labels. Ties between rows go to the lower index. The published table's kd
    row is that of CRD, with other teachers.
    """
    if ss and not head_share:
        raise UsageError("method.head_share=0 leaves the teacher's head untrained, and method.ss copies it.")
    on_teacher = (
        Call("t", "teacher", ("turned",)),
        Call("ht", "teacher_head", ("~t.pooled",)),
    )
    views = Derive("turned", turned, ("x",))
    its_heads = Derive("its_heads", by_item, ("ht.out",))
    contrast = Term("contrast", contrastive.view_contrast, ("its_heads",), scope="batch")
    first = Turn(
        "head",
        trains=("teacher_head",),
        calls=on_teacher,
        terms=(contrast,),
        derives=(views, its_heads),
        optim={"opt": head_opt, "lr": head_lr, "weight_decay": _HEAD_DECAY},
    )
    labels = task.supervised("s")
    soft = {"temperature": temperature}
    second = Turn(
        "student",
        trains=("student", "student_head"),
        calls=(
            Call("s", "student", ("turned",)),
            Call("hs", "student_head", ("s.pooled",)),
            *on_teacher,
        ),
        terms=(
            Term("ce", labels.loss, ("upright", *labels.args[1:]), ce, labels.keywords, rows=labels.rows),
            Term("kl", kl_divergence, ("upright", "~its_upright"), kd, soft),
            Term(
                "transfer",
                transfer,
                ("mine", "~its", "y"),
                tf,
                {"ratio": ratio_tf, "temperature": tf_temperature},
                scope="batch",
            ),
            Term(
                "table",
                table_transfer,
                ("my_heads", "~its_heads"),
                ss,
                {"ratio": ratio_ss, "temperature": ss_temperature},
                scope="batch",
            ),
        ),
        derives=(
            views,
            replace(its_heads, args=("~ht.out",)),
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
    phases = (Phase((first,), "head", head_share), Phase((second,), "distill", 1 - head_share))
    return Method("sskd", (STUDENT, TEACHER, *heads), phases)
