"""Mixed pictures and mixed targets say the same thing."""

from __future__ import annotations

import pytest
import torch

from kdcli.data.mixing import both_labelled, mixed
from kdcli.tasks.classification.target import ClassColumns

CLASSES = 7


def batch(count: int, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i is a plain picture of value 10 i, of class i."""
    x = (torch.arange(count, dtype=torch.uint8) * 10).view(-1, 1, 1, 1).expand(-1, 3, side, side + 8)
    return x.contiguous(), torch.arange(count) % CLASSES


def both(
    x: torch.Tensor, y: torch.Tensor, **options: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mixed pictures, their targets, and which of these are known."""
    views, share = mixed(x, **options)  # type: ignore[arg-type]
    columns = ClassColumns(CLASSES).mixed({"y": y}, share)
    return views, columns["target"], columns["labelled"]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("seed", range(20))
def test_mixup_mixes_pictures_and_targets_alike(count: int, seed: int) -> None:
    x, y = batch(count)
    kept = x.clone()
    views, targets, known = both(x, y, mixup=0.8, cutmix=0, seed=seed)
    assert torch.equal(x, kept)
    assert (views.dtype, views.shape, targets.shape) == (torch.uint8, x.shape, (count, CLASSES))
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert known.all()
    expected = (targets * torch.arange(CLASSES) * 10).sum(1)  # a picture's value is its target's
    assert (views.float().amax((1, 2, 3)) - views.float().amin((1, 2, 3))).eq(0).all()
    assert (views[:, 0, 0, 0] - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("seed", range(20))
def test_cutmix_takes_its_share_from_the_area(count: int, seed: int) -> None:
    x, y = batch(count)
    kept = x.clone()
    views, targets, _ = both(x, y, mixup=0, cutmix=1.0, seed=seed)
    assert torch.equal(x, kept)
    for i in range(count):
        values, counts = views[i].unique(return_counts=True)
        assert set(values.tolist()) <= {10 * i, 10 * (count - 1 - i)}
        share = torch.zeros(CLASSES)
        share[values.long() // 10] = counts / counts.sum()
        torch.testing.assert_close(targets[i], share)


def test_cutmix_pastes_one_box() -> None:
    x, y = batch(2)
    views, _, _ = both(x, y, mixup=0, cutmix=1.0, seed=4)
    pasted = views[0, 0] == 10
    rows, columns = pasted.any(1), pasted.any(0)
    assert 0 < pasted.sum() < pasted.numel()
    assert torch.equal(pasted, rows[:, None] & columns[None, :])


def test_the_seed_decides_everything() -> None:
    x, y = batch(6)
    state = torch.get_rng_state()
    for options in (
        {"mixup": 0.8, "cutmix": 0.0},
        {"mixup": 0.0, "cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0},
    ):
        first = both(x, y, seed=3, **options)
        again = both(x, y, seed=3, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert len({both(x, y, seed=s, **options)[1].numpy().tobytes() for s in range(10)}) > 5
    assert torch.equal(torch.get_rng_state(), state)


def test_with_both_each_is_used_half_of_the_time() -> None:
    x, y = batch(2)
    cut = sum(
        set(both(x, y, mixup=1.0, cutmix=1.0, seed=s)[0].unique().tolist()) <= {0, 10} for s in range(400)
    )
    plain = sum(
        set(both(x, y, mixup=1.0, cutmix=0.0, seed=s)[0].unique().tolist()) <= {0, 10} for s in range(400)
    )  # mixup that rounds back to the pictures themselves
    assert 160 < cut - plain / 2 < 240


def test_a_row_is_labelled_when_both_of_its_pictures_are() -> None:
    y = torch.tensor([0, -1, 2, 3, 4, 5])
    x, _ = batch(6)
    _, targets, known = both(x, y, mixup=0.8, cutmix=0, seed=0)
    assert known.tolist() == [True, False, True, True, False, True]
    assert torch.isfinite(targets).all()
    assert torch.equal(both_labelled(y >= 0), known)
    assert both_labelled(torch.tensor([True])).tolist() == [True]
    assert both_labelled(torch.tensor([False])).tolist() == [False]
