"""Neighbours' votes and the closed-form probe, against loops and normal equations written again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.errors import NotFinite
from kdcli.metrics.representation import neighbour_accuracy, ridge_accuracy


def clusters(count: int, seed: int, noise: float = 0.6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(9))
    return centres[y] + noise * torch.randn(count, 5, generator=draw), y


@pytest.mark.parametrize("k", [1, 7, 200])
def test_neighbours_vote_by_the_exponential_of_their_cosine(k: int) -> None:
    (features, y), (bank, labels) = clusters(20, 0), clusters(31, 1)
    right = 0
    for row, own in zip(features.double(), y.tolist()):
        similar = [
            (float(row @ other / row.norm() / other.norm()), i) for i, other in enumerate(bank.double())
        ]
        votes = dict.fromkeys(range(3), 0.0)
        for cosine, i in sorted(similar, reverse=True)[:k]:
            votes[int(labels[i])] += math.exp(cosine / 0.07)
        right += max(votes, key=lambda c: votes[c]) == own
    assert neighbour_accuracy(features, y, bank, labels, k=k) == right / 20


def test_votes_do_not_overflow() -> None:
    features = torch.ones(2, 3)
    assert (
        neighbour_accuracy(features, torch.zeros(2, dtype=torch.int64), features, torch.tensor([0, 0])) == 1
    )


def test_features_that_are_no_numbers_are_refused() -> None:
    features, y = clusters(6, 0)
    with pytest.raises(NotFinite, match="features of 1 of 6 pictures of the query are not finite"):
        neighbour_accuracy(features.index_fill(0, torch.tensor(2), math.nan), y, *clusters(6, 1))


def test_the_probe_is_ridge_regression_on_the_classes() -> None:
    (features, y), (bank, labels) = clusters(20, 0), clusters(31, 1)
    mean, deviation = bank.double().mean(dim=0), bank.double().std(dim=0, correction=0)
    rows = torch.cat([(bank.double() - mean) / deviation, torch.ones(31, 1, dtype=torch.float64)], dim=1)
    wanted = torch.nn.functional.one_hot(labels, 3).double()
    penalty = 0.01 * 31 * torch.eye(6, dtype=torch.float64)
    penalty[5, 5] = 0  # no penalty on the bias
    weight = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ wanted)
    mine = torch.cat([(features.double() - mean) / deviation, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    right = (mine @ weight).argmax(dim=1) == y
    assert ridge_accuracy(features, y, bank, labels) == float(right.double().mean())
    assert 0.5 < float(right.double().mean()) <= 1


def test_a_constant_feature_and_fewer_pictures_than_features_are_no_fault() -> None:
    bank, labels = clusters(4, 1, noise=0.1)
    bank[:, 0] = 5
    assert ridge_accuracy(bank, labels, bank, labels) == 1
