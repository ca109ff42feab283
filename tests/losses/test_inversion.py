"""DeepInversion's terms against naive loops and torch's own batch norm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients
from torch import nn

from kdcli.losses.inversion import bn_statistics, competition, image_norm, total_variation


def flat(x: Any) -> list[float]:
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def naive_statistics(x: Any, running_mean: Any, running_var: Any) -> float:
    means, variances = [], []
    for channel in zip(*x):
        values = flat(list(channel))
        means.append(sum(values) / len(values))
        variances.append(sum((v - means[-1]) ** 2 for v in values) / len(values))
    return math.dist(means, running_mean) + math.dist(variances, running_var)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 3)])
def test_bn_statistics_are_the_unsquared_norms(shape: tuple[int, ...]) -> None:
    agree(bn_statistics, naive_statistics, draw(*shape), draw(3, seed=1), draw(3, seed=2).abs())


def test_a_layer_that_has_seen_these_inputs_costs_nothing() -> None:
    x = draw(8, 3, 4, 4).requires_grad_()
    layer = nn.BatchNorm2d(3, momentum=1.0)
    layer(x)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    biased = layer.running_var * (127 / 128)  # torch records the unbiased variance
    value = bn_statistics(x, layer.running_mean, biased)
    assert value.item() == pytest.approx(0, abs=1e-6)
    at_zero = torch.zeros(4, 3).requires_grad_()
    (gradient,) = gradients(bn_statistics(at_zero, torch.zeros(3), torch.zeros(3)), at_zero)
    assert gradient.abs().max() == 0


def naive_variation(x: Any, *, norm: str) -> float:
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        values = []
        for plane in (p for image in x for p in image):
            height, width = len(plane), len(plane[0])
            for i in range(height - down):
                for j in range(max(0, -right), width - max(0, right)):
                    values.append(plane[i + down][j + right] - plane[i][j])
        total += math.hypot(*values) if norm == "l2" else sum(map(abs, values)) / len(values)
    return total


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_total_variation_is_the_printed_sum(norm: str) -> None:
    agree(total_variation, naive_variation, draw(2, 3, 4, 5), norm=norm)


def test_total_variation_of_a_flat_picture_is_zero_with_zero_gradient() -> None:
    x = torch.ones(2, 3, 4, 4).requires_grad_()
    for norm in ("l2", "l1"):
        value = total_variation(x, norm=norm)
        assert value.item() == 0
        assert gradients(value, x)[0].abs().max() == 0


@pytest.mark.parametrize("over", ["batch", "image"])
def test_image_norm_is_the_printed_one(over: str) -> None:
    def naive(x: Any, *, over: str) -> float:
        return math.hypot(*flat(x)) if over == "batch" else sum(math.hypot(*flat(i)) for i in x) / len(x)

    agree(image_norm, naive, draw(3, 2, 4, 4), over=over)


def naive_competition(s: Any, t: Any, *, temperature: float, reading: str) -> float:
    total = 0.0
    for student, teacher in zip(s, t):
        p, q = ([math.exp(v / temperature) for v in row] for row in (student, teacher))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        m = [(a + b) / 2 for a, b in zip(p, q)]
        if reading == "code":
            p, q, m = ([min(max(v, 0.01), 0.99) for v in row] for row in (p, q, m))
            total += sum(c * math.log(c / a) + c * math.log(c / b) for a, b, c in zip(p, q, m)) / 2
        else:
            total += sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(p, q, m)) / 2
    value = total / len(s)
    return 1 - (min(max(value, 0.0), 1.0) if reading == "code" else value)


@pytest.mark.parametrize("reading", ["code", "paper"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_competition_is_the_printed_sum(reading: str, scale: float) -> None:
    arguments = scale * draw(5, 6), scale * draw(5, 6, seed=1)
    agree(competition, naive_competition, *arguments, temperature=3.0, reading=reading)


def test_the_codes_divergence_of_many_classes_is_clamped() -> None:
    """Without scaling to sum 1 again, disjoint halves of 100 classes come out below 0, which counts as 0."""
    s = torch.cat([torch.full((1, 50), 20.0), torch.zeros(1, 50)], dim=1)
    agree(competition, naive_competition, s, s.flip(1), temperature=3.0, reading="code")
    assert competition(s, s.flip(1)).item() == 1
    assert competition(s, s.flip(1), reading="paper").item() < 0.4


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_competition_lies_between_agreement_and_its_end(reading: Any) -> None:
    s = draw(4, 6)
    assert competition(s, s, reading=reading).item() == pytest.approx(1, abs=1e-6)
    sure = torch.tensor([[400.0, 0, 0]]).requires_grad_()
    value = competition(sure, torch.tensor([[0.0, 400, 0]]), reading=reading)
    assert value.item() < 0.5
    assert gradients(value, sure)[0].isfinite().all()
    assert competition(s, -s, reading=reading) < competition(s, s, reading=reading)
