"""Metrics of single-label classification: pure functions of logits ``[N, C]`` and labels ``[N]``.

They are written out because importing torchmetrics takes seconds and several definitions differ: its macro
accuracy counts a class that is predicted but absent from the labels as 0, its calibration error takes logits
that happen to lie in [0, 1] for probabilities, and its top-k leaves the order of ties open. The tests compare
the two where they agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.errors import NotFinite


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Refuse what no metric can be computed from.

    Args:
        logits: ``[N, C]``.
        name: what to call them in the message.

    Raises:
        ValueError: not two-dimensional, no samples, no classes.
        NotFinite: (a ValueError) NaN or Inf in them.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must have the shape [samples, classes], not {list(logits.shape)}")
    if logits.shape[0] == 0:
        raise ValueError(f"{name} hold no samples: a metric of an empty set is undefined")
    bad = int((~torch.isfinite(logits).all(dim=1)).sum())
    if bad:
        raise NotFinite(f"{name} of {bad} of {logits.shape[0]} samples are not finite (NaN or Inf)")


def check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits of a student and a teacher, ``[N, C]`` each, that cannot be compared.

    Raises:
        ValueError: what :func:`check_logits` refuses, or two shapes.
    """
    check_logits(student_logits, "student logits")
    check_logits(teacher_logits, "teacher logits")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)} "
            "must have one shape: the same samples and the same classes"
        )


def check_labels(y: Tensor, samples: int, classes: int) -> None:
    """Refuse labels that do not fit the logits.

    Args:
        y: ``[N]``, integers.
        samples: N of the logits.
        classes: C of the logits.

    Raises:
        ValueError: another length or dtype, or a label outside [0, C) (such as -1 for unlabelled).
    """
    if y.shape != (samples,):
        raise ValueError(f"labels must have the shape [{samples}] of the logits, not {list(y.shape)}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {y.dtype}")
    outside = (y < 0) | (y >= classes)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} labels lie outside [0, {classes}), the first is {int(y[outside][0])}: "
            "drop unlabelled samples before measuring"
        )


def _checked(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check and return logits in fp32 or fp64 and int64 labels, both without gradient."""
    check_logits(logits)
    check_labels(y, *logits.shape)
    logits = logits.detach()
    return (logits if logits.dtype == torch.float64 else logits.float()), y.to(logits.device, torch.int64)


def _mean(values: Tensor) -> float:
    return float(values.cpu().double().mean())


def _rank(logits: Tensor, y: Tensor) -> Tensor:
    """Position of the true class ``[N]``, 0 for the best; among equal logits the lower class comes first.

    This is argmax's rule, so that top-1, the confusion matrix and the agreement say the same even of a
    collapsed network whose logits are all equal.
    """
    own = logits.gather(1, y[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < y[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(dim=1)


def top_k_accuracy(logits: Tensor, y: Tensor, k: int) -> float:
    """Fraction of samples whose true class is among the k largest logits.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).
        k: at least 1; k >= C gives 1.0.

    Raises:
        ValueError: k < 1, N = 0, logits that are not finite, or labels that do not fit them.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    logits, y = _checked(logits, y)
    return _mean(_rank(logits, y) < k)


def mean_per_class_accuracy(logits: Tensor, y: Tensor) -> float:
    """Mean over the classes that occur in ``y`` of the top-1 accuracy among the class's samples.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    logits, y = _checked(logits, y)
    right = torch.bincount(y[logits.argmax(dim=1) == y], minlength=logits.shape[1])
    samples = torch.bincount(y, minlength=logits.shape[1])
    present = samples > 0
    return _mean(right[present] / samples[present])


def negative_log_likelihood(logits: Tensor, y: Tensor) -> float:
    """Mean over samples of ``-log softmax(logits)[y]``, in nats, computed in at least fp32.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    logits, y = _checked(logits, y)
    return _mean(F.cross_entropy(logits, y, reduction="none"))


def reliability(logits: Tensor, y: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """The points of a reliability diagram: equal-width bins ((m-1)/M, m/M] of the top-1 confidence.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).
        bins: M, the number of bins.

    Returns:
        ``confidence`` (mean top-1 probability), ``accuracy`` and ``count`` of each bin; 0 in an empty bin.

    Raises:
        ValueError: bins < 1, N = 0, logits that are not finite, or labels that do not fit them.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    logits, y = _checked(logits, y)
    confidence, predicted = (t.cpu() for t in F.softmax(logits, dim=1).max(dim=1))
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    index = torch.bucketize(confidence.double(), edges)  # edges[i-1] < confidence <= edges[i]
    count = torch.bincount(index, minlength=bins).double()
    filled = count.clamp(min=1)
    return {
        "confidence": (torch.bincount(index, confidence.double(), bins) / filled).tolist(),
        "accuracy": (torch.bincount(index, (predicted == y.cpu()).double(), bins) / filled).tolist(),
        "count": count.tolist(),
    }


def expected_calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Mean over samples of ``|accuracy - confidence|`` of the sample's bin: ECE in [0, 1].

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).
        bins: number of equal-width bins of confidence.

    Raises:
        ValueError: bins < 1, N = 0, logits that are not finite, or labels that do not fit them.
    """
    curve = reliability(logits, y, bins)
    gaps = (n * abs(a - c) for c, a, n in zip(curve["confidence"], curve["accuracy"], curve["count"]))
    return sum(gaps) / len(y)


def confusion(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Counts of (true class, predicted class): ``[C, C]`` int64 on the CPU, rows truth, columns prediction.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).
        classes: C.

    Raises:
        ValueError: logits of another number of classes, N = 0, logits that are not finite, or labels that do
            not fit them.
    """
    logits, y = _checked(logits, y)
    if logits.shape[1] != classes:
        raise ValueError(f"logits have {logits.shape[1]} classes where {classes} are expected")
    pairs = (y * classes + logits.argmax(dim=1)).cpu()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def confused(logits: Tensor, y: Tensor, most: int) -> list[tuple[int, int, int]]:
    """The largest cells off the diagonal of :func:`confusion`, without making the matrix.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).
        most: at most so many.

    Returns:
        (true class, predicted class, samples), the most frequent first, ties by class.

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    logits, y = _checked(logits, y)
    predicted = logits.argmax(dim=1)
    pairs = torch.stack([y, predicted], dim=1)[predicted != y].cpu()
    cells, counts = pairs.unique(dim=0, return_counts=True)  # sorted
    order = counts.argsort(descending=True, stable=True)[:most]
    return [(*cell, count) for cell, count in zip(cells[order].tolist(), counts[order].tolist())]


def per_class(logits: Tensor, y: Tensor) -> dict[str, list[int]]:
    """Of each of C classes its ``samples``, and how many of them are ``right``.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    logits, y = _checked(logits, y)
    right, classes = y[logits.argmax(dim=1) == y], logits.shape[1]
    return {
        "samples": torch.bincount(y, minlength=classes).tolist(),
        "right": torch.bincount(right, minlength=classes).tolist(),
    }


def classification_metrics(logits: Tensor, y: Tensor) -> dict[str, float]:
    """All numbers by which a classifier is reported.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).

    Returns:
        ``top1``, ``top5`` (only for C > 5), ``mean_per_class`` and ``ece`` as fractions, ``nll`` in nats.

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    metrics = {"top1": top_k_accuracy(logits, y, 1)}
    if logits.shape[1] > 5:
        metrics["top5"] = top_k_accuracy(logits, y, 5)
    return metrics | {
        "mean_per_class": mean_per_class_accuracy(logits, y),
        "nll": negative_log_likelihood(logits, y),
        "ece": expected_calibration_error(logits, y),
    }
