"""Texts and a few pictures of each class as a memory: a baseline without training, after Tip-Adapter.

Zhang et al. 2022, arXiv 2111.03930, without its training, as Li et al. 2023 (arXiv 2307.03135) have it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.products import unit

ALPHA, BETA = 1.0, 5.5  # of the authors' code
_ENTRIES = 2**24  # of affinities that are held at a time


def supported_logits(
    embedding: Tensor,
    bank: Tensor,
    support: Tensor,
    labels: Tensor,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Tensor:
    """[N, C]: cos(s, x_c) + α·Σ_m exp(−β·(1 − cos(s, f_cm))) over the pictures m of class c in the memory.

    The cosine with the text is not divided by a temperature, as in the authors' code. A class without a
    picture is told by its text alone.

    Args:
        embedding: [N, D] of pictures.
        bank: [C, D] one text for each class.
        support: [M, D] of the pictures in the memory, views of one picture each by itself.
        labels: int64 [M] their class numbers.
        alpha: weight of the memory.
        beta: sharpness of likeness.

    Raises:
        ValueError: an empty memory, other numbers of rows, or labels beyond the bank.
    """
    if not len(support) or len(support) != len(labels):
        raise ValueError(f"a memory of {len(support)} pictures with {len(labels)} labels holds nothing")
    if int(labels.min()) < 0 or int(labels.max()) >= len(bank):
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} for {len(bank)} classes")
    s, x, f = unit(embedding), unit(bank), unit(support)
    member = torch.nn.functional.one_hot(labels.to(s.device), len(bank)).to(s.dtype)
    parts = []
    for rows in s.split(max(1, _ENTRIES // len(f))):
        affinity = torch.exp(-beta * (1 - rows @ f.mT))
        parts.append(rows @ x.mT + alpha * affinity @ member)
    return torch.cat(parts)
