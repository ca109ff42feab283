"""Losses between features against naive loops; grids, dead channels, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.features import at, fitnets_hint, ft, hint, nst, same_grid

MAP_LOSSES = [at, ft, nst]


def flat(x: Any) -> list[float]:
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def naive_hint(s: Any, t: Any) -> float:
    squares = [(a - b) ** 2 for a, b in zip(flat(s), flat(t))]
    return sum(squares) / len(squares)


def naive_fitnets(s: Any, t: Any) -> float:
    """½ Σ_c (s − t)², mean over rows and positions."""
    total, count = 0.0, 0
    for n in range(len(s)):
        for i in range(len(s[n][0])):
            for j in range(len(s[n][0][0])):
                total += 0.5 * sum((s[n][c][i][j] - t[n][c][i][j]) ** 2 for c in range(len(s[n])))
                count += 1
    return total / count


def attention(maps: Any) -> list[float]:
    """One picture: mean over channels of A², at length 1 over positions."""
    channels = [flat(c) for c in maps]
    energy = [sum(v * v for v in position) / len(channels) for position in zip(*channels)]
    return [e / math.hypot(*energy) for e in energy]


def naive_at(s: Any, t: Any) -> float:
    differences = [a - b for x, y in zip(s, t) for a, b in zip(attention(x), attention(y))]
    return sum(d * d for d in differences) / len(differences)


def naive_ft(s: Any, t: Any) -> float:
    differences = [a - b for x, y in zip(s, t) for a, b in zip(attention(x), attention(y))]
    return sum(abs(d) for d in differences) / len(differences)


def naive_nst(s: Any, t: Any) -> float:
    def kernel(a: Any, b: Any) -> float:
        total = 0.0
        for x in a:
            for y in b:
                u, v = flat(x), flat(y)
                total += (sum(p * q for p, q in zip(u, v)) / math.hypot(*u) / math.hypot(*v)) ** 2
        return total / (len(a) * len(b))

    rows = [kernel(y, y) + kernel(x, x) - 2 * kernel(x, y) for x, y in zip(s, t)]
    return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("loss", "naive"),
    [(hint, naive_hint), (fitnets_hint, naive_fitnets), (at, naive_at), (ft, naive_ft), (nst, naive_nst)],
)
def test_loss_is_its_equation(loss: Callable[..., Tensor], naive: Callable[..., float]) -> None:
    agree(loss, naive, draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1))


@pytest.mark.parametrize("loss", MAP_LOSSES)
@pytest.mark.parametrize(
    ("grid", "other"), [((8, 8), (4, 4)), ((3, 3), (6, 3)), ((7, 5), (3, 5)), ((4, 6), (6, 4))]
)
def test_the_larger_grid_is_averaged_to_the_smaller(
    loss: Callable[..., Tensor], grid: tuple[int, int], other: tuple[int, int]
) -> None:
    """Also where one map is taller and the other wider; widths may differ."""
    s, t = draw(2, 3, *grid), draw(2, 5, *other, seed=1)
    smaller = (min(grid[0], other[0]), min(grid[1], other[1]))
    expected = loss(F.adaptive_avg_pool2d(s, smaller), F.adaptive_avg_pool2d(t, smaller))
    torch.testing.assert_close(loss(s, t), expected)


def test_same_grid_averages_windows() -> None:
    s, t = same_grid(torch.arange(16.0).reshape(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    assert s.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert t.shape == (1, 1, 2, 2)


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_maps_are_needed(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"maps \[B, C, H, W\] are needed, got \[4, 9, 6\]"):
        loss(draw(4, 9, 6), draw(4, 6, 3, 3))


@pytest.mark.parametrize("loss", [hint, fitnets_hint])
def test_hints_need_one_shape(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must have one shape; a regressor"):
        loss(draw(4, 1, 3, 3), draw(4, 6, 3, 3))


@pytest.mark.parametrize("loss", [hint, fitnets_hint, *MAP_LOSSES])
def test_the_same_features_cost_nothing(loss: Callable[..., Tensor]) -> None:
    x = draw(3, 4, 3, 3).requires_grad_()
    value = loss(x, x.detach())
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert gradients(value, x)[0].abs().max() < 1e-6


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_a_dead_channel_and_a_dead_picture_have_finite_gradients(loss: Callable[..., Tensor]) -> None:
    s, t = draw(3, 4, 3, 3).relu(), draw(3, 4, 3, 3, seed=1).relu()
    s[0, 1], s[1], t[2] = 0, 0, 0
    s.requires_grad_()
    value = loss(s, t)
    (gradient,) = gradients(value, s)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 10


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_scale_does_not_matter(loss: Callable[..., Tensor]) -> None:
    s, t = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1)
    torch.testing.assert_close(loss(7 * s, 0.1 * t), loss(s, t))


def test_nst_takes_gradient_to_the_teacher_through_the_cross_term_alone() -> None:
    s, t = draw(2, 3, 2, 2).requires_grad_(), draw(2, 3, 2, 2, seed=1).requires_grad_()
    a, b = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
    cross = -2 * (a @ b.mT).square().mean()
    torch.testing.assert_close(gradients(nst(s, t), t)[0], gradients(cross, t)[0])
    assert not nst(s.detach(), t.detach()).requires_grad
