"""Losses of class maps over space: golden values of G2SD's modules, the naive loop, grids, division."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.channels import channel_cross_entropy, channel_kl_divergence
from kdcli.losses.pixels import pixel_kl_divergence


def g(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


S, T = g(2, 150, 16, 16, seed=30), 2 * g(2, 150, 16, 16, seed=31)
MASK = torch.zeros(2, 64, 64, dtype=torch.uint8)


def test_values_of_the_authors_code() -> None:
    """ChannelWiseDivergence of G2SD's segmentation, imported and run."""
    found = float(channel_cross_entropy(S, T, MASK))
    assert found == pytest.approx(6.0748501, rel=1e-6)
    assert 3 * found == pytest.approx(18.2245483, rel=1e-6)
    assert float(channel_cross_entropy(T, T, MASK)) == pytest.approx(3.7684333, rel=1e-6)  # its floor
    assert float(channel_kl_divergence(S, T, MASK)) == pytest.approx(6.0748501 - 3.7684333, rel=1e-6)
    assert float(channel_kl_divergence(T, T, MASK)) == pytest.approx(0, abs=1e-6)


def test_it_is_not_the_divergence_of_each_pixel() -> None:
    """A softmax over channels; by its code's ``mean`` that is divided by the number of classes too."""
    of_pixels = float(pixel_kl_divergence(S, T, torch.zeros(2, 16, 16, dtype=torch.uint8)))
    assert of_pixels == pytest.approx(2.2264686, rel=1e-6)
    assert of_pixels / 150 == pytest.approx(0.0148431, rel=1e-5)
    for loss in (channel_cross_entropy, channel_kl_divergence):
        assert abs(float(loss(S, T, MASK)) - of_pixels) > 0.05


def looped(s: Tensor, t: Tensor, temperature: float, *, floor: bool) -> Tensor:
    """Map by map and position by position, of nested lists of scalars."""
    total = s.new_zeros(())
    for picture in range(s.shape[0]):
        for channel in range(s.shape[1]):
            mine, its = ([v / temperature for v in z[picture, channel].flatten()] for z in (s, t))
            of_mine, of_its = (sum(v.exp() for v in values) for values in (mine, its))
            for a, b in zip(mine, its):
                p, q = b.exp() / of_its, a.exp() / of_mine
                total = total - p * q.log() + (0 if floor else p * p.log())
    return temperature**2 * total / (s.shape[0] * s.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("loss", [channel_cross_entropy, channel_kl_divergence])
def test_value_and_gradient_of_the_naive_loop(loss, temperature: float) -> None:
    s, t = (k * g(2, 3, 2, 4, seed=k, dtype=torch.float64) for k in (1, 2))
    s.requires_grad_()
    expected = looped(s, t, temperature, floor=loss is channel_cross_entropy)
    found = loss(s, t, MASK, temperature=temperature)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    slopes = [torch.autograd.grad(value, s)[0] for value in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-7)
    probabilities = [(z.detach().flatten(2) / temperature).softmax(2).view_as(z) for z in (s, t)]
    by_hand = temperature * (probabilities[0] - probabilities[1]) / 6
    torch.testing.assert_close(slopes[0], by_hand, rtol=1e-4, atol=1e-7)


def test_the_teachers_entropy_is_what_lies_between_the_two() -> None:
    flat = torch.zeros_like(T)
    between = channel_cross_entropy(S, flat, MASK) - channel_kl_divergence(S, flat, MASK)
    assert float(between) == pytest.approx(math.log(16 * 16), rel=1e-6)
    shifted = T + g(2, 150, 1, 1, seed=3)  # a constant for each map
    assert float(channel_kl_divergence(shifted, T, MASK)) == pytest.approx(0, abs=1e-5)


def test_maps_of_one_grid_stay_as_they_are_and_others_meet_at_the_pixels_of_the_view() -> None:
    student, teacher = g(2, 3, 4, 4, seed=1), g(2, 3, 7, 7, seed=2)
    mask = torch.zeros(2, 28, 28, dtype=torch.uint8)
    grown = [F.interpolate(z, (28, 28), mode="bilinear", align_corners=False) for z in (student, teacher)]
    for loss in (channel_cross_entropy, channel_kl_divergence):
        torch.testing.assert_close(loss(student, teacher, mask), loss(*grown, mask))
        torch.testing.assert_close(loss(S, T, MASK), loss(S, T, torch.full_like(MASK[:, ::4, ::4], 255)))


def test_it_is_a_mean_over_pictures() -> None:
    parts = [channel_cross_entropy(S[i : i + 1], T[i : i + 1], MASK[i : i + 1]) for i in range(2)]
    assert float(channel_cross_entropy(S, T, MASK)) == pytest.approx(float(sum(parts)) / 2)


def test_half_precision_is_computed_in_single() -> None:
    s, t = S.bfloat16(), T.bfloat16()
    for loss in (channel_cross_entropy, channel_kl_divergence):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(s, t, MASK)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(s.float(), t.float(), MASK))
