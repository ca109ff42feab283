"""How far a student follows its teacher: pure functions of the logits of both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.metrics.classification import check_labels, check_pair

_ENTRIES = 2**24  # of logits that are looked at together: 128 MB in fp64, and copies


def agreement(student_logits: Tensor, teacher_logits: Tensor, y: Tensor | None = None) -> dict[str, float]:
    """Fidelity of a student to its teacher on the same samples, and who of them is right.

    Source: Stanton et al. 2021, "Does Knowledge Distillation Really Work?": average top-1 agreement
    and average predictive KL.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, the same samples and classes.
        y: ``[N]``, integers in [0, C), or None where there are no labels.

    Returns:
        ``agreement`` (fraction of samples with the same top-1 class) and ``kl`` (mean over samples of
        KL(teacher || student) at temperature 1, in nats); with labels also the fractions ``both_right``,
        ``only_student``, ``only_teacher`` and ``neither_right``, which sum to 1.

    Raises:
        ValueError: shapes that differ, N = 0, logits that are not finite, or labels that do not fit them.
    """
    check_pair(student_logits, teacher_logits)
    student, teacher = student_logits.detach().cpu(), teacher_logits.detach().cpu()
    student_top, teacher_top = student.argmax(dim=1), teacher.argmax(dim=1)
    result = {
        "agreement": float((student_top == teacher_top).double().mean()),
        "kl": max(0.0, _divergence(student, teacher)),  # rounding may leave it a hair below 0
    }
    if y is None:
        return result
    check_labels(y, *student.shape)
    right, teacher_right = student_top == y.cpu(), teacher_top == y.cpu()
    fractions = {
        "both_right": right & teacher_right,
        "only_student": right & ~teacher_right,
        "only_teacher": ~right & teacher_right,
        "neither_right": ~right & ~teacher_right,
    }
    return result | {name: float(rows.double().mean()) for name, rows in fractions.items()}


def _divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student), in fp64: a small divergence is a difference of near-equal numbers."""
    rows = max(1, _ENTRIES // student.shape[1])
    total = torch.zeros((), dtype=torch.float64)
    for parts in zip(student.split(rows), teacher.split(rows)):
        ours, theirs = (F.log_softmax(part.double(), dim=1) for part in parts)
        total = total + F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return float(total / len(student))
