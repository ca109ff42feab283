"""How far a student follows its teacher: pure functions of the logits of both."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcli.metrics.classification import check_labels, check_pair


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
    # Off the accelerator and in fp64: a small divergence is a difference of near-equal numbers.
    student, teacher = student_logits.detach().cpu().double(), teacher_logits.detach().cpu().double()
    student_top, teacher_top = student.argmax(dim=1), teacher.argmax(dim=1)
    divergence = F.kl_div(
        F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1), reduction="batchmean", log_target=True
    )
    result = {
        "agreement": float((student_top == teacher_top).double().mean()),
        "kl": max(0.0, float(divergence)),  # rounding may leave it a hair below 0
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
