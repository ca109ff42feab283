"""Losses between logits, labels and a teacher's logits. All compute in fp32, also under autocast."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, target: Tensor, row_weight: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, mean over rows.

    Args:
        logits: [B, C].
        target: [B] class numbers, or [B, C] probabilities (mixup, CutMix).
        row_weight: [B] factor of each row (class balance), or None; the mean still divides by B.
        label_smoothing: mass spread evenly over all C classes (Szegedy et al. 2016, section 7).
    """
    rows = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=label_smoothing)
    return (rows if row_weight is None else rows * row_weight).mean()


def kl_divergence(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, t_squared: bool = True
) -> Tensor:
    """KL(softmax(t/T) ‖ softmax(s/T)), summed over classes, mean over rows (Hinton et al. 2015).

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C]; gradient flows into them unless the caller detaches.
        temperature: T.
        t_squared: multiply by T², which keeps the gradient's scale independent of T (section 2 of the paper).
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2 if t_squared else divergence
