"""Losses of several labels: the naive loop, labels without an answer, extreme logits, division of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.losses.multilabel import binary_cross_entropy, binary_kl_divergence


def g(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


S, T = g(6, 4, seed=1), 2 * g(6, 4, seed=2)
Y = (g(6, 4, seed=3) > 0).float()
PARTLY = torch.where(g(6, 4, seed=4) > 0.8, math.nan, Y)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("answers", [Y, PARTLY], ids=["all", "some"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_the_naive_loop(smoothing: float, answers: Tensor, weighted: bool) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    rows = []
    for s, y in zip(S.tolist(), answers.tolist()):
        values = []
        for k, (z, answer) in enumerate(zip(s, y)):
            if not math.isnan(answer):
                wanted = answer * (1 - smoothing) + smoothing / 2
                yes = weight[k].item() if weight is not None else 1.0
                p = sigmoid(z)
                values.append(-(yes * wanted * math.log(p) + (1 - wanted) * math.log(1 - p)))
        rows.append(sum(values) / max(len(values), 1))
    found = binary_cross_entropy(S, answers, weight, label_smoothing=smoothing)
    assert float(found) == pytest.approx(sum(rows) / 6, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("t_squared", [False, True])
def test_divergence_is_that_of_the_naive_loop(temperature: float, t_squared: bool) -> None:
    rows = []
    for s, t in zip(S.tolist(), T.tolist()):
        values = []
        for z, its in zip(s, t):
            p, q = sigmoid(its / temperature), sigmoid(z / temperature)
            values.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        rows.append(sum(values) / len(values))
    expected = sum(rows) / 6 * (temperature**2 if t_squared else 1)
    found = binary_kl_divergence(S, T, temperature=temperature, t_squared=t_squared)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_one_label_is_hintons_divergence_of_two_classes() -> None:
    from kdcli.losses.logits import kl_divergence

    pair = [torch.stack([torch.zeros(6), z[:, 0]], dim=1) for z in (S, T)]
    one = binary_kl_divergence(S[:, :1], T[:, :1], temperature=2.0)
    torch.testing.assert_close(one, kl_divergence(*pair, temperature=2.0))


def test_equal_logits_diverge_by_nothing_and_large_ones_by_a_finite_number() -> None:
    assert float(binary_kl_divergence(S, S)) == pytest.approx(0, abs=1e-7)
    far = torch.full((1, 1), 400.0, requires_grad=True)
    value = binary_kl_divergence(far, torch.full((1, 1), -400.0))
    value.backward()
    assert float(value.detach()) == pytest.approx(400.0)
    assert far.grad is not None
    assert float(far.grad) == pytest.approx(1.0)


def test_an_unanswered_label_has_no_gradient_and_an_unanswered_picture_no_loss() -> None:
    logits = S.clone().requires_grad_(True)
    answers = PARTLY.clone()
    answers[2] = math.nan
    binary_cross_entropy(logits, answers).backward()
    assert logits.grad is not None
    assert bool((logits.grad[answers.isnan()] == 0).all())
    assert bool((logits.grad[~answers.isnan()] != 0).all())
    assert float(binary_cross_entropy(S, torch.full_like(S, math.nan))) == 0


@pytest.mark.parametrize("loss", ["labels", "teacher"])
def test_a_batch_may_be_divided(loss: str) -> None:
    def value(rows: slice) -> Tensor:
        if loss == "labels":
            return binary_cross_entropy(S[rows], PARTLY[rows])
        return binary_kl_divergence(S[rows], T[rows])

    whole, halves = value(slice(None)), (value(slice(0, 3)) + value(slice(3, 6))) / 2
    torch.testing.assert_close(whole, halves)


def test_half_precision_is_computed_in_single() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert binary_cross_entropy(S.bfloat16(), Y).dtype == torch.float32
        assert binary_kl_divergence(S.bfloat16(), T.bfloat16()).dtype == torch.float32
