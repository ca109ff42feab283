"""Contrast with a memory bank of all samples: CRD, Tian, Krishnan & Isola 2020, arXiv 1910.10699.

The bank holds an embedding of every sample by the student and one by the teacher, [2, N, D] in this order. An
embedding v of one network meets rows w of the *other* network's half, one of its own sample and K negatives:

    P(w) = exp(<v, w> / T) / Z
    L    = −log P(w₊)/(P(w₊) + K/N + ε) − Σ log (K/N)/(P(w₋) + K/N + ε)

summed over both networks, mean over samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcli.losses.products import product

EPS = 1e-7  # ε, of RepDistiller


def crd(
    embedded: Tensor,
    teacher_embedded: Tensor,
    index: Tensor,
    negatives: Tensor,
    bank: Tensor,
    z: Tensor,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """The contrastive loss of both networks, as RepDistiller has it: equation 18, with sums over negatives.

    Args:
        embedded: the student's, [B, D], of length 1.
        teacher_embedded: [B, D], of length 1; its embedding is trained too.
        index: [B] numbers of the samples.
        negatives: [B, K] numbers of others.
        bank: [2, N, D].
        z: [2] constants, of the student's and of the teacher's anchors.
        temperature: T.
    """
    both = zip((embedded, teacher_embedded), reversed(bank), z)
    return sum(
        (
            _nce(similarities(own, other, index, negatives) / temperature, of, len(other))
            for own, other, of in both
        ),
        start=embedded.new_zeros((), dtype=torch.float32),
    )


def similarities(embedded: Tensor, bank: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
    """Products of embeddings [B, D] with rows of half a bank [N, D]: [B, 1 + K], the positive first.

    All rows are multiplied, then some are picked: K of a bank are most of it, and no copy of them is made.
    """
    wanted = torch.cat([index[:, None], negatives], dim=1)
    return product(embedded, bank.mT).gather(1, wanted)


def partition(
    embedded: Tensor,
    teacher_embedded: Tensor,
    index: Tensor,
    negatives: Tensor,
    bank: Tensor,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """Z [2], as RepDistiller estimates it from one batch: N times the mean of exp(<v, w> / T).

    Args are those of :func:`crd`.
    """
    both = zip((embedded, teacher_embedded), reversed(bank))
    return torch.stack(
        [
            len(other) * (similarities(own, other, index, negatives) / temperature).exp().mean()
            for own, other in both
        ]
    )


def _nce(exponents: Tensor, z: Tensor, samples: int) -> Tensor:
    """−log P(positive is one) − Σ log P(negative is none) of exponents [B, 1 + K], mean over rows."""
    noise = (exponents.shape[1] - 1) / samples
    log_p = exponents - z.float().log()
    against = (log_p.exp() + (noise + EPS)).log()
    positive = log_p[:, 0] - against[:, 0]
    negative = math.log(noise) - against[:, 1:]
    return -(positive + negative.sum(dim=1)).mean()
