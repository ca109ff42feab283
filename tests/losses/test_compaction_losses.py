"""Losses of a shrinking network against naive loops and golden values; dead rows, shapes that do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients
from torch import Tensor

from kdcli.losses.compaction import group_lasso, pooled, pooled_distance, row_norms


def golden_draws() -> dict[str, Any]:
    """The tensors behind the golden values, in the order in which they were drawn."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    logits = normal(8, 10), normal(8, 10)
    student, teacher = [normal(8, 16), normal(8, 32)], [normal(8, 16), normal(8, 32)]
    features, weight = normal(8, 32), normal(6, 6, 1, 1)
    return {
        "logits": logits,
        "student": student,
        "teacher": teacher,
        "features": features,
        "weight": weight,
    }


def test_golden_distance() -> None:
    drawn = golden_draws()
    assert pooled_distance(drawn["student"], drawn["teacher"]).item() == pytest.approx(13.81684875, rel=1e-6)


def test_golden_lasso_and_its_gradient() -> None:
    weight = golden_draws()["weight"].requires_grad_()
    value = group_lasso(weight)
    assert value.item() == pytest.approx(14.21462727, rel=1e-6)
    (gradient,) = gradients(value, weight)
    assert gradient.norm().item() == pytest.approx(math.sqrt(6), rel=1e-6)


def flat(x: Any) -> list[float]:
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def naive_lasso(*weights: Any) -> float:
    return sum(math.hypot(*flat(row)) for weight in weights for row in weight)


@pytest.mark.parametrize("shapes", [[(5, 5)], [(5, 5, 1, 1)], [(7,)], [(3, 3), (4, 4, 1, 1), (6,)]])
def test_lasso_is_its_equation(shapes: list[tuple[int, ...]]) -> None:
    agree(group_lasso, naive_lasso, *(draw(*shape, seed=i) for i, shape in enumerate(shapes)))


def test_norms_of_rows() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert row_norms(weight).tolist() == [5.0, 2.0]
    assert row_norms(weight[:, :, None, None]).tolist() == [5.0, 2.0]
    assert row_norms(torch.tensor([-3.0, 0.5])).tolist() == [3.0, 0.5]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1, 1), (4,)])
def test_a_row_of_zeros_takes_no_gradient_and_a_tiny_one_takes_it_all(shape: tuple[int, ...]) -> None:
    weight = draw(*shape)
    weight[1] = 0
    weight[2] *= 1e-9
    weight.requires_grad_()
    (gradient,) = gradients(group_lasso(weight), weight)
    sizes = gradient.reshape(4, -1).norm(dim=1).tolist()
    assert sizes == pytest.approx([1, 0, 1, 1], abs=1e-5)


def test_a_lasso_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a group lasso needs at least one compactor"):
        group_lasso()


def mean_of(sample: Any) -> list[float]:
    """One sample of maps [D, H, W]: the mean of each channel."""
    return [sum(flat(channel)) / len(flat(channel)) for channel in sample]


def naive_distance(*maps: Any) -> float:
    total = 0.0
    for s, t in zip(maps[::2], maps[1::2]):
        total += sum(math.dist(mean_of(a), mean_of(b)) for a, b in zip(s, t)) / len(s)
    return total


def test_distance_is_its_equation() -> None:
    """Also where student and teacher have other grids."""
    maps = draw(3, 4, 2, 3), draw(3, 4, 4, 6, seed=1), draw(3, 7, 2, 2, seed=2), draw(3, 7, 1, 1, seed=3)
    agree(lambda *x: pooled_distance(x[::2], x[1::2]), naive_distance, *maps)


def test_maps_tokens_and_rows_are_the_same_features() -> None:
    maps, other = draw(3, 5, 2, 4), draw(3, 5, 2, 4, seed=1)
    expected = pooled_distance([maps], [other])
    tokens = [x.flatten(2).mT for x in (maps, other)]
    torch.testing.assert_close(pooled_distance(tokens[:1], tokens[1:]), expected)
    torch.testing.assert_close(pooled_distance([maps.mean((2, 3))], [other]), expected)
    assert pooled(maps.half()).dtype == torch.float32


def test_equal_rows_take_no_gradient() -> None:
    s, t = draw(3, 5, 2, 2), draw(3, 5, 2, 2, seed=1)
    s[1] = t[1]
    s.requires_grad_()
    (gradient,) = gradients(pooled_distance([s], [t]), s)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0
    # a row's pooled gradient has length 1/B, spread over the positions
    assert gradient[0].sum((1, 2)).norm().item() == pytest.approx(1 / 3, rel=1e-5)


def test_layers_that_do_not_fit_are_named() -> None:
    a, b = draw(3, 5), draw(3, 6)
    with pytest.raises(
        ValueError, match=r"layer 2: rows \[3, 6\] of the student and \[3, 5\] of the teacher"
    ):
        pooled_distance([a, b], [a, a])
    with pytest.raises(ValueError, match=r"layer 1: rows \[3, 5\] of the student and \[2, 5\] of the"):
        pooled_distance([a], [a[:2]])
    with pytest.raises(ValueError, match="2 layers of the student, and 1 of the teacher"):
        pooled_distance([a, a], [a])
    with pytest.raises(ValueError, match="0 layers of the student, and 0 of the teacher"):
        pooled_distance([], [])
    with pytest.raises(ValueError, match=r"or rows \[B, D\] are needed, got \[5\]"):
        pooled_distance([a[0]], [a[0]])
