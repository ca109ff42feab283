"""Likeness between rows against a naive loop; what it does not depend on; too few rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.losses.similarities import similarity_kl


def naive(s: list[list[float]], t: list[list[float]], temperature: float, t_squared: bool) -> float:
    def distribution(rows: list[list[float]], i: int) -> list[float]:
        def cosine(a: list[float], b: list[float]) -> float:
            size = math.hypot(*a) * math.hypot(*b)
            return sum(x * y for x, y in zip(a, b)) / size if size else 0.0

        scores = [math.exp(20 * cosine(rows[i], r) / temperature) for j, r in enumerate(rows) if j != i]
        return [score / sum(scores) for score in scores]

    total = 0.0
    for i in range(len(s)):
        pairs = zip(distribution(t, i), distribution(s, i))
        total += sum(p * math.log(p / q) for p, q in pairs)
    return total / len(s) * (temperature**2 if t_squared else 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("t_squared", [True, False])
def test_it_is_what_a_loop_says(temperature: float, t_squared: bool) -> None:
    s, t = drawn(0, 6, 5), drawn(1, 6, 9)
    found = similarity_kl(s, t, temperature=temperature, t_squared=t_squared)
    assert float(found) == pytest.approx(naive(s.tolist(), t.tolist(), temperature, t_squared), rel=1e-4)


def test_what_it_does_not_depend_on() -> None:
    s = drawn(0, 8, 5)
    assert float(similarity_kl(s, 3 * s)) == pytest.approx(0, abs=1e-6)
    turn, _ = torch.linalg.qr(drawn(2, 5, 5))
    assert float(similarity_kl(s @ turn, s)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_kl(s, drawn(3, 8, 5))) > 0.1


def test_gradients_reach_the_student_and_are_finite_at_zero_rows() -> None:
    s = drawn(0, 4, 5)
    s[1] = 0
    s.requires_grad_()
    similarity_kl(s, drawn(1, 4, 3)).backward()
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())
    assert float(s.grad.abs().sum()) > 0


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match="needs at least 3 rows, got 2"):
        similarity_kl(drawn(0, 2, 5), drawn(1, 2, 5))
