"""Losses that teach distances by labels, without a teacher. Scope ``batch``: of the rows that are given.

As those of :mod:`kdcli.losses.relations` they compute in fp32, also under autocast, and on distances that are
lengths of differences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def batch_hard_triplet(features: Tensor, labels: Tensor, *, margin: float | None = 0.35) -> Tensor:
    """Triplet loss with the hardest pairs of a batch: Hermans et al. 2017, arXiv 1703.07737, equation 5.

    For each row, d_p is the distance to the farthest other row of its label and d_n that to the nearest row
    of another: the mean of max(0, d_p − d_n + m), or of log(1 + exp(d_p − d_n)), the paper's soft margin.
    Distances are Euclidean between rows as they are, not brought to length 1. A row without another of its
    label, or without one of another label, does not count; a batch without any that does costs 0. Rows that
    coincide have no direction to part in: between them the gradient is 0.

    Args:
        features: [B, D]; more dimensions are flattened.
        labels: [B] integers.
        margin: m, or None for the soft margin; 0.35 is CDD's (arXiv 2303.09230).

    Raises:
        ValueError: not one label for each row.
    """
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} rows need as many labels, got the shape {list(labels.shape)}")
    rows = features.float().flatten(1)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    other = labels[:, None] != labels
    same = ~other & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(~other, torch.inf).amin(dim=1)
    counted = same.any(dim=1) & other.any(dim=1)
    gaps = farthest[counted] - nearest[counted]
    costs = F.softplus(gaps) if margin is None else F.relu(gaps + margin)
    return costs.sum() / counted.sum().clamp(min=1)
