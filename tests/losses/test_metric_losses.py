"""The batch-hard triplet loss against a naive loop and golden values; rows that do not count; autocast."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, labels
from torch import Tensor

from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.losses.metric import batch_hard_triplet


@pytest.fixture(scope="module", name="cdd")
def cdd_inputs() -> dict[str, Tensor]:
    """The tensors behind CDD's golden values, in the order of their draws."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        **{"student": (8, 10), "teacher": (8, 10), "s16": (8, 16), "s32": (8, 32)},
        **{"t16": (8, 16), "t32": (8, 32), "features": (8, 32)},
    }
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"labels": torch.arange(8) // 2}


def naive(rows: Any, classes: Any, *, margin: float | None) -> float:
    costs, numbers = [], range(len(rows))
    for i in numbers:
        own = [math.dist(rows[i], rows[j]) for j in numbers if j != i and classes[j] == classes[i]]
        others = [math.dist(rows[i], rows[j]) for j in numbers if classes[j] != classes[i]]
        if own and others:
            gap = max(own) - min(others)
            costs.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(costs) / len(costs)


def test_golden_values_of_cdd(cdd: dict[str, Tensor]) -> None:
    value = batch_hard_triplet(cdd["features"], cdd["labels"])
    assert float(value) == pytest.approx(1.56838024, abs=1e-6)
    smooth = cross_entropy(cdd["student"], cdd["labels"], label_smoothing=0.1)
    assert float(smooth) == pytest.approx(3.42638135, abs=1e-6)
    divergence = kl_divergence(cdd["student"], cdd["teacher"], temperature=2.0)
    assert float(divergence) == pytest.approx(0.90155971, abs=1e-6)


@pytest.mark.parametrize("margin", [0.35, 0.0, 2.0, None])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_loss_is_its_equation(margin: float | None, classes: int) -> None:
    """With 6 classes among 9 rows some row stands alone in its class."""
    agree(batch_hard_triplet, naive, draw(9, 5), labels(9, classes), margin=margin)


def test_a_row_without_a_pair_does_not_count() -> None:
    x, y = draw(7, 4), torch.tensor([0, 0, 1, 1, 2, 2, 9])
    alone = naive(x.tolist(), y.tolist(), margin=0.35) * 6 / 7
    value = float(batch_hard_triplet(x, y))
    assert value == pytest.approx(naive(x.tolist(), y.tolist(), margin=0.35), rel=1e-5)
    assert value != pytest.approx(alone, rel=1e-3)
    # As another's negative it is felt all the same.
    x[6] = x[0] + 0.01
    assert float(batch_hard_triplet(x, y)) > value


@pytest.mark.parametrize("margin", [0.35, None])
@pytest.mark.parametrize("classes", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_a_batch_without_triplets_costs_nothing(margin: float | None, classes: list[int]) -> None:
    x = draw(len(classes), 5).requires_grad_()
    value = batch_hard_triplet(x, torch.tensor(classes), margin=margin)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.count_nonzero(gradient) == 0


def test_only_the_hardest_pairs_are_moved() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.0], [0.0, 0.7], [0.0, 9.0]], requires_grad=True)
    y = torch.tensor([0, 0, 0, 1, 2])
    value = batch_hard_triplet(x, y)
    # Rows 3 and 4 have none of their label; of each other row only the farthest and the nearest count.
    assert value.item() == pytest.approx(naive(x.tolist(), y.tolist(), margin=0.35), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.count_nonzero(gradient[4]) == 0
    assert gradient[3, 1] < 0  # descent takes the negative away from row 0
    assert gradient[1, 0] > 0  # and the farthest positive closer


def test_a_margin_that_is_kept_costs_nothing() -> None:
    x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1, 1])
    value = batch_hard_triplet(x, y)
    assert value.item() == 0
    assert torch.count_nonzero(torch.autograd.grad(value, x)[0]) == 0
    soft = batch_hard_triplet(x, y, margin=None)
    assert 0 < soft.item() < 0.02
    assert torch.autograd.grad(soft, x)[0].abs().max() > 0


@pytest.mark.parametrize("margin", [0.35, None])
def test_rows_that_coincide_have_finite_gradients(margin: float | None) -> None:
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    x = draw(6, 5)
    x[1], x[2], x[4] = x[0], x[0], 0
    for rows in (x, torch.ones(6, 5), torch.zeros(6, 5)):
        leaf = rows.clone().requires_grad_()
        value = batch_hard_triplet(leaf, y, margin=margin)
        assert value.isfinite()
        assert gradients(value, leaf)[0].isfinite().all()
    assert value.item() == pytest.approx(0.35 if margin else math.log(2), rel=1e-6)


def test_a_common_offset_does_not_drown_distances_under_autocast() -> None:
    x, y = torch.nn.functional.normalize(draw(16, 64)), torch.arange(16) // 4
    with torch.autocast("cpu", torch.bfloat16):
        inside = batch_hard_triplet(x + 100, y)
    torch.testing.assert_close(inside, batch_hard_triplet(x, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_to_fp32(dtype: torch.dtype) -> None:
    x, y = draw(6, 4).to(dtype), torch.arange(6) // 2
    assert torch.equal(batch_hard_triplet(x, y), batch_hard_triplet(x.float(), y))


def test_lengths_count_and_maps_are_flattened() -> None:
    x, y = draw(6, 2, 3, 3), torch.arange(6) // 2
    assert torch.equal(batch_hard_triplet(x, y), batch_hard_triplet(x.flatten(1), y))
    doubled = batch_hard_triplet(2 * x, y, margin=0.7)
    torch.testing.assert_close(doubled, 2 * batch_hard_triplet(x, y))


def test_a_label_for_each_row() -> None:
    with pytest.raises(ValueError, match=r"6 rows need as many labels, got the shape \[5\]"):
        batch_hard_triplet(draw(6, 4), torch.arange(5))
