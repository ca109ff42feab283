"""Losses of detectors: per object, of feature maps where the teacher sees objects, of matched queries.

What is summed over objects (or places) is divided by how many there are in the whole batch. As a mean over
rows it is

    L = mean over rows of (the row's sum) / (mean over rows of the row's count)

so the divisor, a number without rows, is made of the rows of all processes, and what is left is a mean that
does not depend on how the batch is divided among them. Micro-batches have a divisor each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.boxes import generalized_iou
from kdcli.losses.multilabel import bernoulli_divergence

_LEAST = 1e-6  # of a mean over places: a teacher that is sure of an empty picture divides nothing by zero


def per_object(rows: Tensor, objects_a_row: Tensor) -> Tensor:
    """The mean of losses summed over the objects of each row [B], over the objects of a row on average."""
    return rows.float().mean() / objects_a_row


def mean_count(count: Tensor, labelled: Tensor | None = None) -> Tensor:
    """Objects of a row on average: of all together, 1 at least, over the rows that have labels.

    DETR and RT-DETR take the number of boxes in a batch for 1 where there are none.

    Args:
        count: [B] of all processes; how many, or how many are to be expected.
        labelled: [B] bool, the rows that count; all where it is None.
    """
    kept = torch.ones_like(count, dtype=torch.bool) if labelled is None else labelled
    total = torch.where(kept, count.float(), 0.0).sum().clamp(min=1)
    return total / kept.sum().clamp(min=1)


# -- feature maps where the teacher sees objects -------------------------------------------------------------


def imitated_features(
    features: Tensor, teacher_features: Tensor, objectness: Tensor, places_a_row: Tensor
) -> Tensor:
    """Σ m·(F_t − F_s)² / Σ m over places and channels, m = max_a p_a: G2SD for detection.

    Huang et al. 2023, arXiv 2302.14771, equation of the detectors' specific stage and its code.

    Args:
        features: student's [B, D, h, w], brought to the teacher's width.
        teacher_features: [B, D, h, w]; gradient flows into them unless the caller detaches.
        objectness: the teacher's probabilities p [B, A, h, w] of A anchors (1 for a network without any).
        places_a_row: mean over all rows of :func:`places`.
    """
    squares = (teacher_features.float() - features.float()).square().sum(dim=1)
    return per_object((_seen(objectness) * squares).sum((1, 2)), places_a_row)


def imitated_objectness(logits: Tensor, objectness: Tensor, places_a_row: Tensor) -> Tensor:
    """Σ m·BCE(σ(o_s), p) / Σ m over places and anchors, m = max_a p_a: G2SD for detection.

    A cross-entropy: it ends at the entropy of the teacher's probabilities, not at 0.

    Args:
        logits: student's [B, A, h, w], or [B, h, w] where there is one a place.
        objectness: the teacher's probabilities p [B, A, h, w].
        places_a_row: mean over all rows of :func:`places`.
    """
    own = logits.float().view_as(objectness)
    values = F.binary_cross_entropy_with_logits(own, objectness, reduction="none").sum(dim=1)
    return per_object((_seen(objectness) * values).sum((1, 2)), places_a_row)


def places(objectness: Tensor) -> Tensor:
    """Places with an object [B], as the teacher has them: Σ m of its probabilities [B, A, h, w]."""
    return _seen(objectness).sum((1, 2))


def mean_places(count: Tensor) -> Tensor:
    """Places of a row on average, of :func:`places` [B] of all processes."""
    return count.mean().clamp(min=_LEAST)


def _seen(objectness: Tensor) -> Tensor:
    return objectness.float().amax(dim=1)


# -- matched queries -----------------------------------------------------------------------------------------


def query_distillation(
    logits: Tensor,
    boxes: Tensor,
    teacher_logits: Tensor,
    teacher_boxes: Tensor,
    pairs: Tensor,
    objects_a_row: Tensor,
    *,
    l1: float = 5.0,
    giou: float = 2.0,
    temperature: float = 1.0,
    t_squared: bool = True,
) -> Tensor:
    """Classes and boxes of the teacher's queries, each taught to the student's query that it is matched to.

    With c = max_c σ(z), the confidence of a query, over the pairs (t, s) of a picture

        Σ max(c_t, c_s)·T²·Σ_c KL(σ(t_c/T) ‖ σ(s_c/T)) + c_t·(l1·|b_t − b_s|₁ + giou·(1 − GIoU(b_t, b_s)))

    over Σ c_t of the batch, the objects that the teacher expects. The one-to-one matching is that of
    DETRDistill's logits distillation (Chang et al. 2022, arXiv 2211.10156), and so are the weights 1, 5 and 2
    of classes, L1 and GIoU; the teacher's confidence as weight, in sum and divisor, is that of KD-DETR (Wang
    et al. 2022, arXiv 2211.08071), without its special queries. Their codes compare each decoder layer; this
    has the last. Classes are questions of their own, as detectors of sigmoids have them.

    The larger of both confidences in the classes' part is ours, for the many queries on background: hundreds
    of pairs that are 0.02 here and 0.01 there would outweigh the objects by their number, and with c_t alone
    nothing would tell the student of its false alarms. So what both take for background weighs next to
    nothing, and a false alarm as much as the student believes it. No gradient goes through weights.

    Args:
        logits: student's [B, Q, C].
        boxes: student's [B, Q, 4] (cx, cy, w, h), fractions of the view.
        teacher_logits: [B, P, C]; gradient flows into them, and into its boxes, unless the caller detaches.
        teacher_boxes: [B, P, 4].
        pairs: int64 [B, K, 2]: the teacher's query, the student's query.
        objects_a_row: mean over all rows of :func:`expected_objects`, as :func:`mean_count` has it.
        l1: weight of the L1 distance.
        giou: weight of 1 − GIoU.
        temperature: T.
        t_squared: multiply the classes' part by T².
    """
    theirs, mine = pairs.unbind(dim=-1)
    student, teacher = _at(logits, mine), _at(teacher_logits, theirs)
    sure, believed = confidence(teacher).detach(), confidence(student).detach()
    classes = bernoulli_divergence(student / temperature, teacher / temperature).sum(dim=-1)
    classes = torch.maximum(sure, believed) * classes * (temperature**2 if t_squared else 1.0)
    own, wanted = _at(boxes, mine), _at(teacher_boxes, theirs)
    distance = l1 * (own - wanted).abs().sum(dim=-1) + giou * (1 - generalized_iou(own, wanted))
    return per_object((classes + sure * distance).sum(dim=1), objects_a_row)


def confidence(logits: Tensor) -> Tensor:
    """The largest class probability [B, Q] of each query of logits [B, Q, C]."""
    return logits.float().sigmoid().amax(dim=-1)


def expected_objects(teacher_logits: Tensor, pairs: Tensor) -> Tensor:
    """Objects [B] that the teacher expects: its confidence in the queries that are matched, summed."""
    return confidence(_at(teacher_logits, pairs[..., 0])).sum(dim=1)


def _at(values: Tensor, queries: Tensor) -> Tensor:
    """Values [B, Q, D] of queries [B, K], in fp32: [B, K, D]."""
    return values.float().gather(1, queries[..., None].expand(-1, -1, values.shape[-1]))
