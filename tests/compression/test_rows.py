"""The gradient of compactors against naive loops and golden values; which rows are kept; both edits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.compression.rows import EPS, kept, reset_edit, row_norms, with_lasso
from kdcli.compression.shrink import norms
from kdcli.engine.edits import made_by
from kdcli.losses.compaction import group_lasso
from kdcli.words import Edit, State

SHAPES = [(5, 5), (5, 5, 1, 1), (5,)]
MASK = torch.tensor([True, False, True, True, False])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive(gradient: Any, weight: Any, strength: float, mask: list[bool]) -> list[list[float]]:
    found = []
    for g, w, active in zip(gradient, weight, mask):
        size = max(math.hypot(*w), EPS)
        found.append([(x if active else 0.0) + strength * y / size for x, y in zip(g, w)])
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", [MASK, None])
def test_gradient_is_its_equation(shape: tuple[int, ...], mask: Tensor | None) -> None:
    gradient, weight = draw(*shape), draw(*shape, seed=1)
    weight[1], weight[2] = 0, weight[2] * 1e-13  # shorter than the least divisor
    found = with_lasso(gradient, weight, strength=0.3, mask=mask)
    rows = [x.reshape(5, -1).tolist() for x in (gradient, weight)]
    expected = naive(*rows, 0.3, MASK.tolist() if mask is not None else [True] * 5)
    assert found.shape == gradient.shape
    torch.testing.assert_close(found.reshape(5, -1), torch.tensor(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_gradient_of_the_group_lasso(shape: tuple[int, ...]) -> None:
    weight = draw(*shape)
    weight[1] = 0
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(0.004 * group_lasso(weight), weight)
    found = with_lasso(torch.zeros(shape), weight.detach(), strength=0.004)
    torch.testing.assert_close(found, expected)


def test_golden_norms_of_resrep() -> None:
    """Diagonal compactors of 8 and 12 rows, reset where ResRep's choice had deactivated rows."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(p, generator=generator) for p in (8, 12)]
    drawn = [torch.randn(p, p, generator=generator) for p in (8, 12)]
    for scale, gradient, off, golden in zip(
        scales, drawn, ([2, 3, 4], [4, 5, 6, 10, 11]), (7.834487438, 8.478687286)
    ):
        mask = torch.ones(len(scale), dtype=torch.bool)
        mask[off] = False
        found = with_lasso(gradient, scale.diag(), strength=1e-4, mask=mask)
        assert found.norm().item() == pytest.approx(golden, rel=1e-6)


def test_rows_at_or_above_the_threshold_are_kept() -> None:
    weight = torch.tensor([[0.5, 0.0], [0.0, 0.25]])
    assert kept(weight, 0.25).tolist() == [True, True]
    assert kept(weight, 0.26).tolist() == [True, False]
    assert kept(weight[:, :, None, None], 0.26).tolist() == [True, False]
    assert kept(torch.tensor([-0.3, 0.1, 0.25]), 0.25).tolist() == [True, False, True]


def test_of_a_layer_below_the_threshold_the_largest_row_stays() -> None:
    assert kept(torch.tensor([1e-9, 3e-9, 2e-9]), 1e-5).tolist() == [False, True, False]
    assert kept(torch.zeros(3, 3), 1e-5).tolist() == [True, False, False]


def test_edits_change_nothing_themselves() -> None:
    gradients = {"a": draw(5, 5), "b": draw(5, seed=1)}
    weights = {"a": draw(5, 5, seed=2), "b": draw(5, seed=3)}
    state = {"mask1": MASK, "mask2": ~MASK, "queue1": draw(4, 5)}
    before = [x.clone() for part in (gradients, weights, state) for x in part.values()]
    masks = {"a": "mask1", "b": "mask2"}
    found, changes = reset_edit(state, gradients, weights, strength=0.3, masks=masks)
    assert changes == {}
    for name in ("a", "b"):
        mask = state[masks[name]]
        expected = with_lasso(gradients[name], weights[name], strength=0.3, mask=mask)
        torch.testing.assert_close(found[name], expected)
    after = [x for part in (gradients, weights, state) for x in part.values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after))


def test_masks_may_have_the_names_of_parameters_and_one_without_is_refused() -> None:
    gradients, weights = {"a": draw(5, 5)}, {"a": draw(5, 5, seed=1)}
    found, _ = reset_edit({"a": MASK}, gradients, weights, strength=0.1)
    expected = with_lasso(gradients["a"], weights["a"], strength=0.1, mask=MASK)
    torch.testing.assert_close(found["a"], expected)
    with pytest.raises(ValueError, match="'a' has no mask among mask1, filled"):
        reset_edit({"mask1": MASK, "filled": MASK}, gradients, weights, strength=0.1)
    with pytest.raises(ValueError, match="'a' has no mask among mask1"):
        reset_edit({"mask1": MASK}, gradients, weights, strength=0.1, masks={"b": "mask1"})


def test_the_least_divisor_is_that_of_the_edit() -> None:
    weights = {"a": torch.tensor([0.5, -0.25, 4.0])}
    zero = {"a": torch.zeros(3)}
    found, _ = reset_edit({"a": torch.ones(3, dtype=torch.bool)}, zero, weights, strength=1.0, eps=1.0)
    assert found["a"].tolist() == [0.5, -0.25, 1.0]


def test_the_engine_takes_the_edit() -> None:
    gradients, weights = {"a": draw(5, 5)}, {"a": draw(5, 5, seed=1)}
    own = {"masks": {"a": MASK}}
    reset = Edit("reset", "gradient", "student", ("a",), reset_edit, {"strength": 0.1}, State("masks", dict))
    new, changes = made_by(reset, own, gradients, weights)
    assert changes == {}
    torch.testing.assert_close(new["a"], with_lasso(gradients["a"], weights["a"], strength=0.1, mask=MASK))


def test_a_reset_row_shrinks_as_predicted_whatever_the_objective_asks() -> None:
    """Under torch's SGD with momentum and decay; other rows go where the objective pulls them."""
    weight = torch.nn.Parameter(torch.eye(5) + 0.3 * draw(5, 5))
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=0.01)
    start = row_norms(weight.detach())
    for step in range(300):
        weight.grad = with_lasso(
            draw(5, 5, seed=step) - 1.0, weight.detach(), strength=0.1, mask=MASK, eps=1e-12
        )
        optimizer.step()
    found = row_norms(weight.detach())
    for row, first in enumerate(start.tolist()):
        expected = norms([0.01] * 300, strength=0.1, momentum=0.9, start=first, weight_decay=0.01)[-1]
        if not MASK[row]:
            assert found[row].item() == pytest.approx(expected, abs=2e-4)
    assert found[~MASK].max() < 0.01
    assert found[MASK].min() > 3  # gradients of -1 on average
