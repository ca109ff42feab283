"""What a student is taught where no network answers, or where only a part of the answer is kept: smoothed
labels, the three synthetic teachers that take the effects of distillation apart, means of several teachers.

Probabilities [B, C], in fp32, are taught by ``cross_entropy(logits, probabilities)``.

Source of the effects: Tang et al. 2020, "Understanding and Improving Knowledge Distillation", arXiv
2002.03532. Its abstract names them: label smoothing, class relationships, and per-example rescaling of the
gradient. The formulas follow that reading; no code of the authors was compared.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.products import cosines

_LARGEST = 80.0  # logarithm of a factor; the sum of any number of such factors is finite in fp64


def split(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of each row [B, C] apart: the true class [B] and the others [B, C - 1], in no fixed order."""
    classes = logits.shape[1]
    others = (y[:, None] + torch.arange(1, classes, device=y.device)) % classes
    return logits.gather(1, y[:, None])[:, 0], logits.gather(1, others)


def smoothed(y: Tensor, classes: int, smoothing: float | Tensor) -> Tensor:
    """Labels with 1 − a for the true class and a/(C − 1) for each other, [B, C].

    The usual label smoothing, (1 − a)·onehot + a/C, is ``cross_entropy``'s own argument.

    Args:
        y: [B] class numbers.
        classes: C.
        smoothing: a, a number or [B].
    """
    one_hot = F.one_hot(y, classes).float()
    part = torch.as_tensor(smoothing, dtype=torch.float32, device=y.device).reshape(-1, 1)
    return (1 - part) * one_hot + part / (classes - 1) * (1 - one_hot)


def kd_pt(teacher_logits: Tensor, y: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KD-pt: the teacher's probability of the true class, the rest spread evenly over the others.

    Keeps how sure the teacher is of each example, and no relation between classes.
    """
    true, others = split(teacher_logits.float() / temperature, y)
    log_rest = others.logsumexp(dim=1)
    rest = (log_rest - torch.logaddexp(true, log_rest)).exp()
    return smoothed(y, teacher_logits.shape[1], rest)


def kd_sim(weight: Tensor, y: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KD-sim: softmax over k of cos(w_y, w_k)/τ, the same for all examples of a class.

    Keeps relations between classes, and nothing about the example.

    Args:
        weight: rows [C, D] of the teacher's last layer.
        y: [B] class numbers.
        temperature: τ; raising the distribution to a power n instead is τ/n.
    """
    return (cosines(weight, weight) / temperature).softmax(dim=1)[y]


def kd_topk(teacher_logits: Tensor, y: Tensor | None = None, *, k: int, temperature: float = 1.0) -> Tensor:
    """KD-topk: the k largest probabilities of the teacher, the rest spread evenly over the other classes.

    Args:
        teacher_logits: [B, C].
        y: [B] class numbers to keep always, in place of the least of the k; None keeps the k largest.
        k: 1 to C; the paper's sweep is 5, 10, 25 and 50 % of C.
        temperature: T of the teacher.

    Raises:
        ValueError: k outside 1 to C.
    """
    classes = teacher_logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be 1 to {classes}, the number of classes, got {k}")
    probabilities = (teacher_logits.float() / temperature).softmax(dim=1)
    order = probabilities.detach()
    if y is not None:
        order = order.scatter(1, y[:, None], torch.inf)
    first = order.argsort(dim=1, descending=True, stable=True)[:, :k]
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, first, True)
    rest = probabilities.masked_fill(kept, 0.0).sum(dim=1, keepdim=True) / max(classes - k, 1)
    return torch.where(kept, probabilities, rest)


def rescaling_weight(
    logits: Tensor, teacher_logits: Tensor, y: Tensor, *, mix: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """How distillation rescales each example's gradient, [B].

    ∂L/∂z_y over ∂CE/∂z_y with L = (1 − λ)·CE + λ·T²·KL: (1 − λ) + λ·T·(q_y − p_y)/(1 − p_y), where q and p
    of the numerator are softened by T and p of the denominator is not. It is computed in fp64 from
    the logarithms of 1 − q_y and 1 − p_y, so that a student without doubt gives no 0/0; a quotient is at most
    exp(80).

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C].
        y: [B] class numbers.
        mix: λ.
        temperature: T.
    """
    student, teacher = logits.double(), teacher_logits.double()
    doubt = _log_rest(student, y)
    own, its = (_log_rest(z / temperature, y) - doubt for z in (student, teacher))
    size = torch.maximum(own, its).clamp(max=_LARGEST).exp() * -torch.expm1(-(own - its).abs())
    return ((1 - mix) + mix * temperature * size.copysign(own - its)).float()


def _log_rest(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 − softmax(z)_y), [B]."""
    return split(logits.log_softmax(dim=1), y)[1].logsumexp(dim=1)


def ensemble_logits(
    teacher_logits: Tensor, *, mean: Literal["logits", "probabilities"] = "logits", temperature: float = 1.0
) -> Tensor:
    """Several teachers as one, [B, C, …], to be taught by ``kl_divergence`` at the same temperature.

    Args:
        teacher_logits: [B, M, C, …].
        mean: of the ``logits`` (Allen-Zhu & Li 2020, arXiv 2012.09816, average the networks' outputs), or of
            the softened ``probabilities`` (Hinton et al. 2015): T·log mean_m softmax(z_m/T).
        temperature: T, for probabilities.
    """
    logits = teacher_logits.float()
    if mean == "logits":
        return logits.mean(dim=1)
    log_sum = (logits / temperature).log_softmax(dim=2).logsumexp(dim=1)
    return temperature * (log_sum - math.log(logits.shape[1]))
