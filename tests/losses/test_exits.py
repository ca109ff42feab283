"""Exits against naive loops, and where a row leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, soften

from kdcli.losses.exits import early_exit, exit_features, exit_logits


def naive_logits(s: Any, t: Any, *, temperature: float, reading: str) -> float:
    total = 0.0
    for student, teacher in zip(s, t):
        for p, q in zip(soften(student, temperature), soften(teacher, temperature)):
            total -= q * math.log(p) if reading == "code" else temperature**2 * q * math.log(p / q)
    return total / len(s)


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_exit_logits_are_the_printed_sum(reading: str) -> None:
    arguments = draw(5, 6), draw(5, 6, seed=1)
    agree(exit_logits, naive_logits, *arguments, temperature=3.0, reading=reading, rel=1e-4)


def naive_features(s: Any, t: Any, *, reading: str) -> float:
    squares = [sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(s, t)]
    return math.sqrt(sum(squares)) if reading == "code" else sum(squares) / len(squares)


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_exit_features_are_the_printed_norm(reading: str) -> None:
    agree(exit_features, naive_features, draw(5, 6), draw(5, 6, seed=1), reading=reading)


@pytest.mark.parametrize(("reading", "factor"), [("code", 2.0), ("paper", 1.0)])
def test_the_codes_norm_grows_with_the_root_of_the_batch(reading: Any, factor: float) -> None:
    s, t = draw(5, 6), draw(5, 6, seed=1)
    four = exit_features(s.repeat(4, 1), t.repeat(4, 1), reading=reading)
    torch.testing.assert_close(four, factor * exit_features(s, t, reading=reading))


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_equal_features_have_zero_gradient(reading: Any) -> None:
    s = draw(5, 6).requires_grad_()
    value = exit_features(s, s.detach(), reading=reading)
    assert value.item() == 0
    assert gradients(value, s)[0].abs().max() == 0


def naive_exit(z: Any, thresholds: Any, *, measure: str) -> list[int]:
    found = []
    for row in range(len(z[0])):
        for i, limit in enumerate(thresholds):
            p = soften(z[i][row])
            entropy = -sum(v * math.log(v) for v in p)
            if i == len(z) - 1 or (max(p) >= limit if measure == "max_prob" else entropy <= limit):
                found.append(i)
                break
    return found


@pytest.mark.parametrize(
    ("measure", "limits"), [("max_prob", [0.7, 0.6, 0.5, 0]), ("entropy", [0.7, 0.8, 1, 0])]
)
def test_early_exit_is_the_first_that_is_sure(measure: str, limits: list[float]) -> None:
    logits, thresholds = 2 * draw(4, 40, 5), torch.tensor(limits)
    agree(early_exit, naive_exit, logits, thresholds, measure=measure)
    assert set(early_exit(logits, thresholds, measure=measure).tolist()) == {0, 1, 2, 3}  # type: ignore[arg-type]


def test_thresholds_at_their_ends() -> None:
    logits = draw(3, 10, 5)
    assert early_exit(logits, [0.0] * 3).tolist() == [0] * 10
    assert early_exit(logits, [1.0] * 3).tolist() == [2] * 10
    assert early_exit(logits, [math.log(5) + 1e-5] * 3, measure="entropy").tolist() == [0] * 10
    assert early_exit(logits, [0.0] * 3, measure="entropy").tolist() == [2] * 10
    assert early_exit(logits[:1], [1.0]).tolist() == [0] * 10
    assert early_exit(torch.zeros(2, 1, 2), [0.5, 1.0]).tolist() == [0]  # sure enough is at least the limit


def test_every_exit_needs_a_threshold() -> None:
    with pytest.raises(ValueError, match="4 exits need as many thresholds, got 3"):
        early_exit(draw(4, 2, 5), [0.5] * 3)
