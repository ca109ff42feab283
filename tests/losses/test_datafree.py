"""Losses that need a teacher alone, against naive loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, soften

from kdcli.losses.datafree import (
    activation,
    information_entropy,
    label_entropy,
    one_hot,
    sampled_activations,
    top_layer,
)


def test_one_hot_is_the_surprise_at_the_own_answer() -> None:
    def naive(z: Any) -> float:
        return -sum(math.log(max(soften(row))) for row in z) / len(z)

    agree(one_hot, naive, draw(6, 5))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_activation_is_the_negative_l1_norm(reduction: str) -> None:
    def naive(f: Any, *, reduction: str) -> float:
        total = -sum(abs(v) for row in f for v in row) / len(f)
        return total / len(f[0]) if reduction == "mean" else total

    agree(activation, naive, draw(6, 5), reduction=reduction)


@pytest.mark.parametrize("base", [10.0, math.e, 2.0])
def test_information_entropy_is_the_printed_sum(base: float) -> None:
    def naive(z: Any, *, base: float) -> float:
        columns = zip(*[soften(row) for row in z])
        mean = [sum(column) / len(z) for column in columns]
        return sum(p * math.log(p, base) for p in mean)

    agree(information_entropy, naive, draw(6, 5), base=base)


def test_information_entropy_is_least_for_balanced_classes() -> None:
    balanced, collapsed = 50 * torch.eye(4), 300 * torch.eye(4)[:1].repeat(4, 1)
    assert information_entropy(balanced).item() == pytest.approx(-math.log10(4))
    collapsed.requires_grad_()
    value = information_entropy(collapsed)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert gradients(value, collapsed)[0].isfinite().all()


def test_label_entropy_is_that_of_the_histogram() -> None:
    even, one = torch.eye(4), torch.eye(4)[[0, 0, 0, 0]]
    assert label_entropy(even).item() == pytest.approx(math.log(4))
    assert label_entropy(one).item() == 0
    assert label_entropy(torch.eye(4)[[0, 0, 1, 1]]).item() == pytest.approx(math.log(2))


def naive_top(a: Any, b: Any) -> float:
    squares = [(max(x, 0) - max(y, 0)) ** 2 for r, s in zip(a, b) for x, y in zip(r, s)]
    return sum(squares) / len(squares)


def test_top_layer_is_the_printed_mean() -> None:
    agree(top_layer, naive_top, draw(4, 6), draw(4, 6, seed=1))


def test_samples_have_the_recorded_covariance_and_not_its_square() -> None:
    root = draw(3, 3)
    covariance, mean = root.T @ root, draw(3, seed=1)
    found = sampled_activations(draw(20000, 3, seed=2), mean, covariance)
    torch.testing.assert_close(found.mean(dim=0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(found.T.cov(), covariance, atol=0.05 * float(covariance.max()), rtol=0)
    identity = sampled_activations(torch.eye(3), torch.zeros(3), covariance)
    torch.testing.assert_close(identity @ identity, covariance, atol=1e-5, rtol=1e-4)


def test_samples_under_autocast_are_those_in_fp32() -> None:
    root = draw(6, 6)
    arguments = draw(8, 6, seed=2), draw(6, seed=1), root.T @ root
    with torch.autocast("cpu", torch.bfloat16):
        inside = sampled_activations(*arguments)
    assert torch.equal(inside, sampled_activations(*arguments))


def test_samples_of_a_singular_covariance_and_of_a_deviation() -> None:
    row = draw(1, 4)
    found = sampled_activations(draw(8, 4, seed=2), torch.zeros(4), row.T @ row)
    assert found.isfinite().all()
    assert torch.linalg.matrix_rank(found, atol=1e-2) == 1  # roots of rounding, 1e-4
    plain = sampled_activations(torch.ones(2, 3), torch.tensor([1.0, 2, 3]), torch.tensor([0.5, 1, 0]))
    assert plain.tolist() == [[1.5, 3, 3]] * 2
