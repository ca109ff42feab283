"""Which head is taken: within the noise of the best by the paired standard error, the likeliest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.engine.grid import HeadResult, HeadSpec, best, within_noise
from kdcli.tasks.classification.probe import rank, right, scores, settled


def naive(right: Tensor, best: Tensor) -> bool:
    """The definition: a mean paired difference and its standard error."""
    difference = best.double() - right.double()
    return float(difference.mean()) <= float(difference.std(correction=1)) / math.sqrt(len(right)) + 1e-12


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_the_paired_standard_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    top = torch.rand(60, generator=generator) < 0.8
    flipped = torch.rand(60, generator=generator) < 0.02 * (1 + seed % 10)
    other = top & ~flipped
    assert within_noise(other, top) == naive(other, top)
    mixed = top ^ flipped
    assert within_noise(mixed, top) == naive(mixed, top)


def test_one_picture_is_noise_and_two_are_not() -> None:
    top = torch.ones(100, dtype=torch.bool)
    for wrong, expected in ((0, True), (1, True), (2, False)):
        other = top.clone()
        other[:wrong] = False
        assert within_noise(other, top) is expected


def result(name: str, logits: Tensor, y: Tensor) -> HeadResult:
    [score] = scores([(logits.t()[None], y)])
    return HeadResult(HeadSpec(name, 0.1, 0), {}, score, rank(score), 1, 1)


def made(wrong: int, scale: float, count: int = 100) -> tuple[Tensor, Tensor]:
    """Logits that are wrong on the first ``wrong`` of ``count`` pictures, and as sure of these as of all."""
    y = torch.arange(count) % 3
    logits = torch.eye(3)[y] * scale
    logits[:wrong] = logits[:wrong].roll(1, 1)
    return logits, y


def test_the_likeliest_within_the_noise_is_taken_and_calibrated() -> None:
    logits = {"sure": made(10, 20.0)[0], "likely": made(11, 2.5)[0], "worse": made(13, 2.4)[0]}
    y = made(0, 1.0)[1]
    results = [result(name, z, y) for name, z in logits.items()]
    assert best(results).spec.feature == "sure"  # by top-1 alone
    asked: list[str] = []

    def answers(found: HeadResult) -> Tensor:
        asked.append(found.spec.feature)
        return logits[found.spec.feature]

    after = settled(results, answers, y)
    chosen = best(after)
    assert chosen.spec.feature == "likely"
    assert [r.spec for r in after] == [r.spec for r in results]
    assert chosen.metrics == results[1].metrics
    assert chosen.calibration is not None
    assert chosen.calibration.before["nll"] == pytest.approx(chosen.metrics["nll"], rel=1e-5)
    assert [r.calibration is None for r in after] == [True, False, True]


def test_a_tie_goes_to_the_likeliest_and_a_diverged_head_is_no_candidate() -> None:
    y = made(0, 1.0)[1]
    logits = {"a": made(10, 20.0)[0], "b": made(10, 3.0)[0], "c": torch.full((100, 3), torch.nan)}
    results = [result(name, z, y) for name, z in logits.items()]
    after = settled(results, lambda found: logits[found.spec.feature], y)
    assert best(after).spec.feature == "b"
    assert best(after).calibration is not None


def test_right_is_what_top1_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(4, 3, 50, generator=generator), torch.arange(50) % 3
    logits[0, :, :9] = 0.0  # ties are misses
    found = right(logits, y)
    assert found.double().mean(1).tolist() == pytest.approx([s["top1"] for s in scores([(logits, y)])])
