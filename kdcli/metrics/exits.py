"""A network with exits: accuracy of each, of all together, and of stopping at the first that is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.losses.exits import early_exit
from kdcli.losses.targets import ensemble_logits
from kdcli.metrics.classification import check_labels, classification_metrics

# 0 stops every sample at the first exit; no probability reaches the last one, so that all go to the end.
THRESHOLDS = (
    *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
    *(0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.01),
)


def exit_metrics(logits: Tensor, y: Tensor) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Figures of each exit, and of the mean of their probabilities.

    Args:
        logits: [N, E, C], the shallowest exit first.
        y: [N], integers in [0, C).

    Returns:
        :func:`kdcli.metrics.classification.classification_metrics` by exit, and of all together.

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    together = ensemble_logits(logits, mean="probabilities")
    return [classification_metrics(own, y) for own in logits.unbind(1)], classification_metrics(together, y)


def early_exit_curve(
    logits: Tensor, y: Tensor, flops: Sequence[float], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, Any]]:
    """What one threshold of confidence for all exits gives: each sample stops where max softmax ≥ threshold.

    Args:
        logits: [N, E, C], the shallowest exit first.
        y: [N], integers in [0, C).
        flops: E costs of reaching each exit, those before it included.
        thresholds: any numbers; 0 is the first exit, more than 1 the last.

    Returns:
        By threshold: ``threshold``, ``top1``, ``flops`` (mean over samples) and ``exits`` (fractions of the
        samples that stop there, E of them).

    Raises:
        ValueError: not one cost for each exit, or labels that do not fit the logits.
    """
    samples, exits, classes = logits.shape
    check_labels(y, samples, classes)
    if len(flops) != exits:
        raise ValueError(f"{exits} exits need as many costs, got {len(flops)}")
    right = (logits.argmax(dim=2) == y[:, None]).double()
    costs = torch.tensor(flops, dtype=torch.float64)
    rows = []
    for threshold in thresholds:
        stops = early_exit(logits.transpose(0, 1), [threshold] * exits)
        rows.append(
            {
                "threshold": float(threshold),
                "top1": float(right.gather(1, stops[:, None]).mean()),
                "flops": float(costs[stops].mean()),
                "exits": (torch.bincount(stops, minlength=exits) / samples).tolist(),
            }
        )
    return rows


def choose(curve: Sequence[dict[str, Any]], slack: float) -> dict[str, Any]:
    """The cheapest row of a curve whose accuracy is at most ``slack`` below that of its last one.

    Args:
        curve: of :func:`early_exit_curve`, measured on validation, its last threshold above 1.
        slack: as a fraction.
    """
    enough = [row for row in curve if row["top1"] >= curve[-1]["top1"] - slack - 1e-12]
    return min(enough, key=lambda row: (row["flops"], -row["top1"]))
