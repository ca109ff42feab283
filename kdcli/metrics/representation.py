"""How well features tell classes apart that they were not trained on: neighbours, a quick linear probe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.metrics.neighbours import nearest

NEIGHBOURS, TEMPERATURE = 20, 0.07
RIDGE = 1e-2


def neighbour_accuracy(
    features: Tensor, y: Tensor, bank: Tensor, labels: Tensor, *, k: int = NEIGHBOURS
) -> float:
    """Part of pictures whose nearest neighbours in a bank vote for their class.

    Votes weigh exp(cosine / 0.07), as in Wu et al. 2018 (arXiv 1805.01978) and in DINO's evaluation (arXiv
    2104.14294), which has k = 20 for its best. A tie goes to the lower class number.

    Args:
        features: [N, D].
        y: class numbers [N].
        bank: [M, D].
        labels: class numbers [M] of the bank.
        k: neighbours that vote; at most M do.

    Raises:
        ValueError: no features, or features that are not finite.
    """
    similar, rows = nearest(features, bank, k)
    classes = int(max(y.max(), labels.max())) + 1
    weights = ((similar - similar[:, :1]) / TEMPERATURE).exp()  # the largest is 1: nothing overflows
    votes = torch.zeros(len(features), classes).scatter_add_(1, labels[rows], weights)
    return float((votes.argmax(dim=1) == y).double().mean())


def ridge_accuracy(
    features: Tensor, y: Tensor, bank: Tensor, labels: Tensor, *, ridge: float = RIDGE
) -> float:
    """Part of pictures that a linear classifier of least squares, in closed form, gives their class.

    Features are standardised over the bank; the penalty is ``ridge`` times the number of pictures, as that of
    a mean. It is quick and chooses nothing, and so is no measure of a probe's best.

    Args:
        features: [N, D].
        y: class numbers [N].
        bank: [M, D] to fit on.
        labels: class numbers [M].
        ridge: penalty on the weights of standardised features.
    """
    classes = int(max(y.max(), labels.max())) + 1
    rows = bank.double()
    deviation, mean = torch.std_mean(rows, dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * mean.abs().clamp(min=1e-12), deviation, torch.ones_like(deviation))
    rows = (rows - mean) / scale
    wanted = F.one_hot(labels, classes).double()
    offset = wanted.mean(dim=0)
    table = rows.T @ rows + ridge * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    weight = torch.linalg.solve(table, rows.T @ (wanted - offset))
    answers = (features.double() - mean) / scale @ weight + offset
    return float((answers.argmax(dim=1) == y).double().mean())
