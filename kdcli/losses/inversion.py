"""DeepInversion and Adaptive DeepInversion: Yin et al. 2020, arXiv 1912.08795.

    x* = argmin CE(T(x), y) + a_tv·TV(x) + a_l2·R(x) + a_f·Σ_l bn_statistics_l + a_c·(1 − JS)

Written from the equations. Norms are not squared, as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

_norm = torch.linalg.vector_norm


def bn_statistics(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """‖μ(x) − μ̂‖₂ + ‖σ²(x) − σ̂²‖₂ for one batch norm layer. Scope ``batch``.

    Args:
        inputs: of the layer, [B, C] or [B, C, H, W]; statistics are over all but C, the variance biased.
        running_mean: the layer's μ̂ [C].
        running_var: σ̂² [C].
    """
    values = inputs.float().transpose(0, 1).flatten(1)
    mean, variance = values.mean(dim=1), values.var(dim=1, correction=0)
    return _norm(mean - running_mean.float()) + _norm(variance - running_var.float())


def total_variation(images: Tensor, *, norm: Literal["l2", "l1"] = "l2") -> Tensor:
    """Differences of neighbouring pixels: to the right, below, and along both diagonals.

    Args:
        images: [B, C, H, W].
        norm: ``l2`` is the sum of four norms over the whole batch (scope ``batch``); ``l1`` the sum of four
            mean absolute differences.
    """
    x = images.float()
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    sizes = [_norm(d) if norm == "l2" else d.abs().mean() for d in differences]
    return torch.stack(sizes).sum()


def image_norm(images: Tensor, *, over: Literal["batch", "image"] = "image") -> Tensor:
    """L2 prior on pictures [B, C, H, W].

    ``image`` is the mean over pictures of ‖x_n‖₂ (the authors' ImageNet script); ``batch`` is ‖x‖₂ of the
    whole batch (their CIFAR script; scope ``batch``).
    """
    x = images.float().flatten(1)
    return _norm(x) if over == "batch" else _norm(x, dim=1).mean()


def competition(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 3.0,
    reading: Literal["code", "paper"] = "code",
) -> Tensor:
    """1 − JS of student and teacher, so that pictures are sought where they disagree. Scope ``batch``.

    Jensen-Shannon divergence in nats, mean over rows, of P = softmax(s/T) and Q = softmax(t/T), with
    M = (P + Q)/2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T.
        reading: ``code`` clamps P, Q and M to [0.01, 0.99] without scaling them to sum 1 again, takes
            ½·KL(M ‖ P) + ½·KL(M ‖ Q) and clamps the mean to [0, 1]; ``paper`` is the textbook's
            ½·KL(P ‖ M) + ½·KL(Q ‖ M).
    """
    p = (student_logits.float() / temperature).log_softmax(dim=1)
    q = (teacher_logits.float() / temperature).log_softmax(dim=1)
    middle = torch.logaddexp(p, q) - math.log(2)
    if reading == "paper":
        rows = p.exp() * (p - middle) + q.exp() * (q - middle)
        return 1 - 0.5 * rows.sum(dim=1).mean()
    p, q, middle = (x.exp().clamp(0.01, 0.99).log() for x in (p, q, middle))
    rows = middle.exp() * (2 * middle - p - q)
    return 1 - (0.5 * rows.sum(dim=1).mean()).clamp(0.0, 1.0)
