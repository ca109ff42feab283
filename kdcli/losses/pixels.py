"""Losses of every pixel's class: cross-entropy and Kullback–Leibler divergence, without void pixels.

Logits of any grid are brought to the mask's size bilinearly (``align_corners=False``), the student's and the
teacher's alike, so that networks of different grids meet at the pixels of the view.

Each loss is the mean over a picture's non-void pixels, then over pictures: every picture counts the same
however much of it is void, and, as a mean over rows, it does not depend on how a batch is divided into
micro-batches or processes. A picture that is void throughout counts as one with loss 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pixel_cross_entropy(
    logits: Tensor, mask: Tensor, *, void: int = 255, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each pixel, mean over non-void pixels of a picture, then over pictures.

    Args:
        logits: [B, C, h, w].
        mask: [B, H, W] class numbers (any integer type).
        void: value of the pixels that do not count.
        label_smoothing: mass spread evenly over all C classes.
    """
    values = F.cross_entropy(
        at_size(logits, mask),
        mask.long(),
        reduction="none",
        ignore_index=void,
        label_smoothing=label_smoothing,
    )
    return _mean(values, mask != void)


def pixel_kl_divergence(
    logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    void: int = 255,
    temperature: float = 1.0,
    t_squared: bool = True,
) -> Tensor:
    """KL(softmax(t/T) ‖ softmax(s/T)) of each pixel, summed over classes, meant as the cross-entropy.

    Args:
        logits: student's [B, C, h, w].
        teacher_logits: [B, C, h', w']; gradient flows into them unless the caller detaches.
        mask: [B, H, W]; only whether a pixel is void matters.
        void: value of the pixels that do not count.
        temperature: T.
        t_squared: multiply by T².
    """
    student = F.log_softmax(at_size(logits, mask) / temperature, dim=1)
    teacher = F.log_softmax(at_size(teacher_logits, mask) / temperature, dim=1)
    divergence = _mean(F.kl_div(student, teacher, reduction="none", log_target=True).sum(1), mask != void)
    return divergence * temperature**2 if t_squared else divergence


def at_size(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, C, h, w] in fp32 at the size of the mask [B, H, W]."""
    logits = logits.float()
    if logits.shape[-2:] == mask.shape[-2:]:
        return logits
    return F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False)


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over the kept pixels of each picture, then over pictures; both [B, H, W]."""
    return ((values * keep).sum((1, 2)) / keep.sum((1, 2)).clamp(min=1)).mean()
