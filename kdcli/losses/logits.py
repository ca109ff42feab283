"""Losses between logits, labels and a teacher's logits. All compute in fp32, also under autocast."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.targets import smoothed, split


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


def soft_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, t_squared: bool = False
) -> Tensor:
    """Cross-entropy H(softmax(t/T), softmax(s/T)), mean over rows.

    Its gradient is :func:`kl_divergence`'s, its value is larger by the teacher's entropy. FitNets' second
    phase (Romero et al. 2015, arXiv 1412.6550, equation 2) and BYOT's code take it at T = 3 without T².

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C].
        temperature: T.
        t_squared: multiply by T².
    """
    teacher = (teacher_logits.float() / temperature).softmax(dim=1)
    value = cross_entropy(logits.float() / temperature, teacher)
    return value * temperature**2 if t_squared else value


def dkd(
    logits: Tensor,
    teacher_logits: Tensor,
    y: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679.

    α·TCKD + β·NCKD, each T²·KL, mean over rows: TCKD between the binary distributions (p_y, 1 − p_y), NCKD
    between the distributions over the other classes. The authors' code shifts the true class by −1000
    where this leaves it out; the values are equal.

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C].
        y: [B] class numbers.
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors choose it per pair (8 for ResNet32x4 to ResNet8x4).
        temperature: T.

    Raises:
        ValueError: fewer than three classes, where no distribution over the others is left.
    """
    _refuse_two(logits, "DKD")
    true, others = split(logits.float() / temperature, y)
    teacher_true, teacher_others = split(teacher_logits.float() / temperature, y)
    target = kl_divergence(_binary(true, others), _binary(teacher_true, teacher_others))
    return temperature**2 * (alpha * target + beta * kl_divergence(others, teacher_others))


def nkd(
    logits: Tensor, teacher_logits: Tensor, y: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalised knowledge distillation: Yang et al. 2023, arXiv 2303.13005, equation 7.

    −t_y·log s_y, of the true class at T 1, and γ·T² times the cross-entropy between the distributions over
    the other classes at T, each of sum 1; mean over rows. Both are cross-entropies, as in the authors' code:
    a student that is its teacher has a loss above zero, and the second no gradient.

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C].
        y: [B] class numbers.
        gamma: γ.
        temperature: T.

    Raises:
        ValueError: fewer than three classes, where no distribution over the others is left.
    """
    _refuse_two(logits, "NKD")
    true = teacher_logits.float().softmax(dim=1).gather(1, y[:, None])
    target = -(true * logits.float().log_softmax(dim=1).gather(1, y[:, None])).mean()
    _, others = split(logits.float() / temperature, y)
    _, teacher_others = split(teacher_logits.float() / temperature, y)
    return target + gamma * temperature**2 * cross_entropy(others, teacher_others.softmax(dim=1))


def hard_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher holds for the likeliest: Touvron et al. 2021, arXiv
    2012.12877 (DeiT), equation 3; mean over rows. Of classes that tie it is the first.

    Args:
        logits: student's [B, C].
        teacher_logits: [B, C].
    """
    return cross_entropy(logits, teacher_logits.argmax(dim=1))


def _refuse_two(logits: Tensor, what: str) -> None:
    """Raise ValueError for fewer than three classes."""
    if logits.shape[1] < 3:
        raise ValueError(
            f"{what} needs at least 3 classes, got {logits.shape[1]}: beside the true class there must be a "
            "distribution left to match"
        )


def _binary(true: Tensor, others: Tensor) -> Tensor:
    """Logits [B, 2] of "the true class" against "any other"."""
    return torch.stack([true, others.logsumexp(dim=1)], dim=1)


def lsr(
    logits: Tensor, y: Tensor, *, smoothing: float = 0.1, reading: Literal["code", "paper"] = "code"
) -> Tensor:
    """Label smoothing regularisation as the baseline of Tf-KD: Yuan et al. 2020, arXiv 1909.11723.

    Args:
        logits: [B, C].
        y: [B] class numbers.
        smoothing: a.
        reading: ``code`` gives 1 − a to the true class and a/(C − 1) to each other; ``paper`` (and torch's
            ``label_smoothing``) mixes (1 − a)·onehot + a/C.
    """
    if reading == "paper":
        return cross_entropy(logits, y, label_smoothing=smoothing)
    return cross_entropy(logits, smoothed(y, logits.shape[1], smoothing))


def kl_elements(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 20.0) -> Tensor:
    """:func:`kl_divergence` divided by C, the number of classes: KD and Tf-KD_self in the code of Tf-KD.

    That code takes torch's default reduction, a mean over all B·C elements, and its published weights (for
    instance 0.95 at T = 20) belong to it; elsewhere this is the known slip of a factor C.
    """
    return kl_divergence(logits, teacher_logits, temperature=temperature) / logits.shape[1]


def tf_kd_regularisation(
    logits: Tensor,
    y: Tensor,
    *,
    correct: float = 0.99,
    temperature: float = 20.0,
    reading: Literal["code", "paper"] = "code",
) -> Tensor:
    """Tf-KD_reg, a teacher made by hand: Yuan et al. 2020, arXiv 1909.11723.

    The teacher u gives ``correct`` to the true class and spreads the rest evenly over the others.

    Args:
        logits: student's [B, C].
        y: [B] class numbers.
        correct: probability of the true class, between 0 and 1 and neither of them.
        temperature: T (the authors take 10 to 40).
        reading: ``code`` is KL(softmax(u/T) ‖ softmax(z)) / C: probabilities are softened as if they were
            logits (at C = 100, T = 20 the true class keeps 1.05 times the uniform probability), the student
            is not softened, there is no T². ``paper`` is T²·KL(softmax(log u / T) ‖ softmax(z/T)).
    """
    teacher = smoothed(y, logits.shape[1], 1 - correct)
    if reading == "code":
        return kl_elements(logits, teacher / temperature, temperature=1.0)
    return kl_divergence(logits, teacher.log(), temperature=temperature)
