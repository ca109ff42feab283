"""What the linear heads of a probe learn: binary cross-entropy of every label, whose gradient is closed.

They are ranked by mean average precision, then by likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.engine.grid import HeadResult, Objective
from kdcli.metrics.multilabel import average_precision
from kdcli.tasks.linear import fit as fit_linear
from kdcli.tasks.settings import Probing


def fit(probing: Probing, labels: int) -> list[HeadResult]:
    """Results of the whole grid, the same on every process."""
    return fit_linear(probing, binary(labels), answers, column="answers")


def answers(samples: Any) -> Tensor:
    """Those of samples, [N, L]."""
    return torch.from_numpy(samples.targets.answers)


def binary(labels: int) -> Objective:
    """The objective of heads for L labels."""
    return Objective(labels, gradient, loss, scores, rank, fault)


def gradient(logits: Tensor, y: Tensor) -> Tensor:
    """Of the summed :func:`kdcli.losses.multilabel.binary_cross_entropy`, in logits [H, L, B]; y [B, L]."""
    return logits.sigmoid_().sub_(y.nan_to_num(0.0).T).mul_(_shares(y).T)


def loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same, mean over logits [N, L], and N times its gradient in them."""
    shares, wanted = _shares(y), y.nan_to_num(0.0)
    values = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (values * shares).sum(1).mean(), (logits.sigmoid() - wanted) * shares


def scores(batches: Iterable[tuple[Tensor, Tensor]]) -> list[dict[str, float]]:
    """Mean average precision and mean loss of each head, over logits [H, L, B] and answers [B, L]."""
    parts = list(batches)
    y = torch.cat([y for _, y in parts])
    found = []
    for head in torch.cat([logits for logits, _ in parts], dim=2):
        if head.isfinite().all():
            precision = average_precision(head.T, y).nanmean()
            found.append({"mean_ap": float(precision), "nll": float(loss(head.T, y)[0])})
        else:
            found.append({"mean_ap": 0.0, "nll": math.inf})
    return found


def rank(score: dict[str, float]) -> tuple[float, ...]:
    """The smallest is the best."""
    return -score["mean_ap"], score["nll"]


def fault(y: Tensor, training: bool) -> str:
    """What is wrong with answers [N, L], or an empty string."""
    if not (y == 1).any():
        return "has no picture with any label"
    return ""


def _shares(y: Tensor) -> Tensor:
    """[B, L] what each answer weighs in the mean of its picture: nothing where it is not known."""
    known = ~y.isnan()
    return known / known.sum(1, keepdim=True).clamp(min=1)
