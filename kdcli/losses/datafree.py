"""Losses that make pictures, or a generator of pictures, from a teacher alone.

DAFL: Chen et al. 2019, arXiv 1904.01186. Activation records: Lopes, Fenu & Starner 2017, arXiv 1710.07535.
DeepInversion is in :mod:`kdcli.losses.inversion`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.logits import cross_entropy
from kdcli.losses.products import product


def one_hot(teacher_logits: Tensor) -> Tensor:
    """DAFL's L_oh: cross-entropy of the teacher's logits [B, C] with their own argmax, a constant."""
    return cross_entropy(teacher_logits, teacher_logits.argmax(dim=1))


def activation(features: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """DAFL's L_a = −|f|, mean over rows.

    Args:
        features: the teacher's last features, [B, D].
        reduction: over D: ``mean`` as in the code, whose weights belong to it, or ``sum``, the L1 norm that
            the paper prints.
    """
    rows = features.float().abs().flatten(1)
    return -(rows.mean(dim=1) if reduction == "mean" else rows.sum(dim=1)).mean()


def information_entropy(teacher_logits: Tensor, *, base: float = 10.0) -> Tensor:
    """DAFL's L_ie = Σ_k p̄_k·log p̄_k with p̄ the batch's mean probabilities: least when classes are balanced.

    Scope ``batch``.

    Args:
        teacher_logits: [B, C].
        base: of the logarithm: 10 in the code, whose weights belong to it; ``math.e`` as printed, 2.303 times
            that.
    """
    log_mean = teacher_logits.float().log_softmax(dim=1).logsumexp(dim=0) - math.log(len(teacher_logits))
    return (log_mean.exp() * log_mean).sum() / math.log(base)


def label_entropy(teacher_logits: Tensor) -> Tensor:
    """Entropy, in nats, of the histogram of pseudo-labels in a batch; low where few classes are generated.

    It has no gradient, and is there to be watched. Scope ``batch``.

    Args:
        teacher_logits: [B, C].
    """
    labels = F.one_hot(teacher_logits.argmax(dim=1), teacher_logits.shape[1])
    return torch.special.entr(labels.float().mean(dim=0)).sum()


def sampled_activations(noise: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Activations drawn from a class's record, [B, D]: μ + g·Σ^½, or μ + g·σ where there is no covariance.

    Σ^½ is the symmetric square root, so the samples have the covariance Σ; the authors' code multiplies by Σ
    itself, which gives ΣᵀΣ. Eigenvalues that rounding left below 0 count as 0.

    Args:
        noise: g, standard normal, [B, D].
        mean: μ [D].
        spread: covariance Σ [D, D], or standard deviation σ [D].
    """
    if spread.ndim == 1:
        return mean.float() + noise.float() * spread.float()
    values, vectors = torch.linalg.eigh(spread.float())
    root = product(vectors * values.clamp(min=0).sqrt(), vectors.mT)
    return mean.float() + product(noise, root)


def top_layer(activations: Tensor, samples: Tensor) -> Tensor:
    """Lopes' top-layer objective: mean over rows and units of (relu(a*) − relu(a))².

    Args:
        activations: of the pictures, before the nonlinearity, [B, ...].
        samples: a*, :func:`sampled_activations` in the same shape.
    """
    return F.mse_loss(activations.float().relu(), samples.float().relu())
