"""Several classifiers on the same samples: how far they differ, and what they know together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from kdcli.losses.peers import diversity
from kdcli.losses.targets import ensemble_logits
from kdcli.metrics.agreement import agreement
from kdcli.metrics.classification import check_labels, classification_metrics


def peers(logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Any]:
    """Disagreement, diversity, what each alone gets right, and the ensemble of all.

    Sources: Allen-Zhu & Li 2020, arXiv 2012.09816 (samples that one network gets right and others miss;
    the ensemble is the mean of their outputs); Chen et al. 2020, arXiv 1912.00350 (diversity).

    Args:
        logits: [N, C] of each of at least two networks.
        y: [N], integers in [0, C).

    Returns:
        ``pairs``: of each two networks ``first``, ``second``, ``disagreement`` (fraction of samples with
        another top-1 class), ``kl`` (mean KL(first || second), nats) and ``kl_back`` (the other way).
        ``diversity``: ‖softmax z_i − softmax z_j‖₂, mean over pairs and samples.
        ``only``: by network, the fraction of samples that it alone gets right; ``all_right`` and
        ``none_right`` are fractions too.
        ``ensemble``: :func:`kdcli.metrics.classification.classification_metrics` of the mean of ``logits``
        and of the mean of ``probabilities``.

    Raises:
        ValueError: fewer than two networks, or logits and labels that do not fit one another.
    """
    pairs = []
    for (first, a), (second, b) in combinations(logits.items(), 2):
        there, back = agreement(b, a), agreement(a, b)
        pairs.append(
            {
                "first": first,
                "second": second,
                "disagreement": 1 - there["agreement"],
                "kl": there["kl"],
                "kl_back": back["kl"],
            }
        )
    stack = torch.stack(list(logits.values()), dim=1)
    check_labels(y, len(stack), stack.shape[2])
    right = stack.argmax(dim=2) == y[:, None]
    count = right.sum(dim=1)
    alone = (right & (count == 1)[:, None]).double().mean(dim=0).tolist()
    return {
        "pairs": pairs,
        "diversity": float(diversity(stack)),
        "only": dict(zip(logits, alone)),
        "all_right": float((count == len(logits)).double().mean()),
        "none_right": float((count == 0).double().mean()),
        "ensemble": {
            "logits": classification_metrics(ensemble_logits(stack), y),
            "probabilities": classification_metrics(ensemble_logits(stack, mean="probabilities"), y),
        },
    }
