"""Metrics of semantic segmentation: pure functions of one confusion matrix of pixels over the whole data set.

Void pixels are in no matrix. A class that occurs neither in the truth nor among the predictions of the whole
data set has no IoU, and does not count in a mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOLLOWS = ("agreement", "kl", "both_right", "only_student", "only_teacher", "neither_right")


def pixel_confusion(prediction: Tensor, mask: Tensor, classes: int, void: int = 255) -> Tensor:
    """Pixels by (true class, predicted class): [C, C] int64, rows truth.

    Args:
        prediction: class numbers of any shape.
        mask: class numbers of the same shape, ``void`` where there is none.
        classes: C.
        void: value of the pixels that do not count.

    Raises:
        ValueError: other shapes, or a class outside [0, C).
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"a prediction {list(prediction.shape)} of a mask {list(mask.shape)}")
    keep = mask != void
    truth, found = mask[keep].long(), prediction[keep].long()
    for what, values in (("mask", truth), ("prediction", found)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise ValueError(f"the {what} has the class {int(values.max())}, outside the {classes} classes")
    return torch.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class: [C] float64, NaN for a class that occurs nowhere."""
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def segmentation_metrics(confusion: Tensor, classes: int | None = None) -> dict[str, float]:
    """All numbers by which a segmentation is reported.

    Args:
        confusion: [C, C] of the whole data set, rows truth.
        classes: how many, the first ones, the data have; the mean IoU is over them. None for all.

    Returns:
        ``miou``: mean of the classes' IoU; ``pixel_accuracy``; ``mean_accuracy``: mean over the classes that
        occur in the truth of the share of their pixels that was found. Fractions.

    Raises:
        ValueError: no pixel.
    """
    counts = confusion.double()
    if not counts.sum():
        raise ValueError("a metric of no pixel is undefined")
    hits, truth = counts.diagonal(), counts.sum(1)
    return {
        "miou": float(class_iou(confusion)[:classes].nanmean()),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
        "mean_accuracy": float((hits / truth)[truth > 0].mean()),
    }


def pixel_agreement(logits: Tensor, teacher_logits: Tensor, mask: Tensor, void: int = 255) -> Tensor:
    """Sums over the non-void pixels of one picture: [6] float64, in the order of ``FOLLOWS``.

    Pixels of the same top class, KL(teacher ‖ student) at temperature 1 in nats, and pixels by who is right;
    over the number of pixels they are means.

    Args:
        logits: [C, H, W].
        teacher_logits: [C, H, W].
        mask: [H, W].
        void: value of the pixels that do not count.
    """
    keep = mask != void
    student, teacher, truth = logits[:, keep].float(), teacher_logits[:, keep].float(), mask[keep].long()
    divergence = F.kl_div(student.log_softmax(0), teacher.log_softmax(0), reduction="none", log_target=True)
    first, second = student.argmax(0), teacher.argmax(0)
    right, taught = first == truth, second == truth
    sums = [
        first == second,
        divergence.sum(0),
        right & taught,
        right & ~taught,
        ~right & taught,
        ~right & ~taught,
    ]
    return torch.stack([part.sum().cpu().double() for part in sums])
