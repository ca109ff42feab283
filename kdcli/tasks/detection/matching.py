"""Which query of the student learns from which of the teacher's, and the term that teaches by it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdcli.errors import refuse_missing
from kdcli.losses.boxes import generalized_iou
from kdcli.losses.detection import confidence, expected_objects, mean_count, query_distillation
from kdcli.words import Derive, Term

_CHEAPEST = -1e6  # of what is no number: it is matched, so that the loss shows it


def matched_queries(
    student_logits: Tensor,
    student_boxes: Tensor,
    teacher_logits: Tensor,
    teacher_boxes: Tensor,
    *,
    class_cost: float = 2.0,
    l1: float = 5.0,
    giou: float = 2.0,
) -> Tensor:
    """The one-to-one matching of least cost between the teacher's most confident queries and the student's.

    As DETRDistill has it (Chang et al. 2022, arXiv 2211.10156), the truth in DETR's matching is replaced by
    what the teacher says. The cost of a pair (t, s), of which the teacher is confident by c_t = max_c σ(t_c),
    is

        class_cost·Σ_c |σ(t_c) − σ(s_c)| + c_t·(l1·|b_t − b_s|₁ − giou·GIoU(b_t, b_s))

    Costs are linear in probabilities, as DETR's, to be commensurable with those of boxes; for a teacher that
    is certain of one class it is 1 − σ(s_c) and what the student says of others. Boxes count by the
    confidence, as in the loss: where a query on background stands is noise, and there are hundreds of them.

    Args:
        student_logits: [B, Q, C].
        student_boxes: [B, Q, 4] (cx, cy, w, h), fractions of the view.
        teacher_logits: [B, P, C].
        teacher_boxes: [B, P, 4].
        class_cost: weight of the classes.
        l1: weight of the L1 distance.
        giou: weight of the GIoU.

    Returns:
        int64 [B, K, 2], K = min(P, Q): the teacher's query and the student's, the most confident first.
        Where something is no number the pairs are still a matching, and what is none is part of it.

    Raises:
        EnvironmentFault: no scipy.
    """
    refuse_missing(("scipy",), "detection", "queries of student and teacher are matched with scipy")
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        student, teacher = student_logits.float().sigmoid(), teacher_logits.float().sigmoid()
        count = min(teacher.shape[1], student.shape[1])
        order = confidence(teacher_logits).argsort(dim=1, descending=True, stable=True)[:, :count]
        at = order[..., None]
        teacher = teacher.gather(1, at.expand(-1, -1, teacher.shape[2]))
        boxes, own = teacher_boxes.float().gather(1, at.expand(-1, -1, 4)), student_boxes.float()
        apart = l1 * torch.cdist(boxes, own, p=1) - giou * generalized_iou(boxes[:, :, None], own[:, None])
        cost = class_cost * torch.cdist(teacher, student, p=1) + teacher.amax(2, keepdim=True) * apart
        cost = torch.where(cost.isfinite(), cost, _CHEAPEST)
        chosen = np.stack([linear_sum_assignment(rows)[1] for rows in cost.double().cpu().numpy()])
        return torch.stack([order, torch.from_numpy(chosen).to(order)], dim=-1)


def query_terms(
    student: str,
    teacher: str,
    *,
    temperature: float = 1.0,
    t_squared: bool = True,
    l1: float = 5.0,
    giou: float = 2.0,
) -> Term:
    """The term ``queries`` that teaches the call ``student`` by the call ``teacher``, with its derives.

    Those are the matching, whose costs are its own, the objects that the teacher expects of each row, and
    their mean over the rows of all processes. All rows count, unlabelled ones too.

    Args:
        student: name of a call with the taps ``logits`` and ``boxes``.
        teacher: the other.
        temperature: that softens the classes.
        t_squared: whether their part is multiplied by its square.
        l1: weight of the boxes' L1 distance.
        giou: weight of 1 − GIoU.
    """
    name = f"{student}-{teacher}"
    pairs, expected, mean = f"{name}-pairs", f"{name}-expected", f"{name}-objects"
    both = (f"{student}.logits", f"{student}.boxes", f"~{teacher}.logits", f"~{teacher}.boxes")
    detached = (f"~{student}.logits", f"~{student}.boxes", *both[2:])
    return Term(
        "queries",
        query_distillation,
        (*both, pairs, f"~{mean}"),
        keywords={"l1": l1, "giou": giou, "temperature": temperature, "t_squared": t_squared},
        derives=(
            Derive(pairs, matched_queries, detached),
            Derive(expected, expected_objects, (f"~{teacher}.logits", pairs)),
            Derive(mean, mean_count, (f"~{expected}",), scope="batch"),
        ),
    )
