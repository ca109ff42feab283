"""Mixup and CutMix, against their equations."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli import synthesis
from kdcli.data.mixing import mixed
from kdcli.errors import UsageError
from kdcli.synthesis.cutmix import cutmix
from kdcli.synthesis.mixup import mixup


def picture(seed: int, width: int = 12, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_mixup_is_a_convex_combination(count):
    sources = [picture(i) for i in range(count)]
    mixed = np.asarray(mixup(sources, 5, size=None, alpha=1.0), float)
    columns = np.stack([np.asarray(s, float).ravel() for s in sources], axis=1)
    weights, *_ = np.linalg.lstsq(columns, mixed.ravel())
    assert weights.sum() == pytest.approx(1, abs=5e-3)
    assert (weights > 0).all()
    assert np.abs(columns @ weights - mixed.ravel()).max() < 1  # rounding alone


def test_mixup_weights_follow_beta():
    black, white = Image.new("RGB", (1, 1)), Image.new("RGB", (1, 1), "white")

    def shares(alpha):
        return [
            mixup([black, white], s, size=None, alpha=alpha).getpixel((0, 0))[0] / 255 for s in range(600)
        ]

    assert np.mean(shares(1.0)) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares(1.0)) == pytest.approx(1 / 12, abs=0.01)  # Beta(1, 1) is uniform
    assert np.var(shares(0.1)) == pytest.approx(0.25 / 1.2, abs=0.02)  # Beta(α, α): 1 / (4 (2 α + 1))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_at_the_same_place(seed):
    first, second = picture(1, 20, 30), picture(2, 20, 30)
    mixed = np.asarray(cutmix([first, second], seed, size=None, alpha=1.0))
    own = (mixed == np.asarray(first)).all(-1)
    assert (mixed[~own] == np.asarray(second)[~own]).all()
    rows, columns = np.where(~own)
    if len(rows):  # a rectangle
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


@pytest.mark.parametrize("seed", range(20))
def test_the_box_is_that_of_training(seed):
    """``kdcli distill --set optim.cutmix=…`` cuts the same one from the same seed."""
    black, white = Image.new("RGB", (30, 20)), Image.new("RGB", (30, 20), "white")
    mixed_here = np.asarray(cutmix([black, white], seed, size=None, alpha=0.7))
    pair = torch.stack([torch.zeros(3, 20, 30), torch.full((3, 20, 30), 255.0)]).to(torch.uint8)
    views, *_ = mixed(pair, mixup=0, cutmix=0.7, seed=seed)
    assert np.array_equal(mixed_here, views[0].permute(1, 2, 0).numpy())


def test_cutmix_areas_follow_lambda():
    black, white = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")
    areas = [np.asarray(cutmix([black, white], s, size=None, alpha=1.0)).mean() / 255 for s in range(400)]
    # E[(1 − λ) (share inside)]: with side r = √(1 − λ), inside is (1 − r/4)² on average; λ uniform
    r = np.sqrt(np.linspace(0, 1, 10_001))
    assert np.mean(areas) == pytest.approx(np.mean((r - r**2 / 4) ** 2), abs=0.03)


@pytest.mark.parametrize("mixer", [mixup, cutmix])
def test_other_sizes_are_cropped_and_resized(mixer):
    sources = [picture(0, 12, 8), picture(1, 40, 40)]
    assert mixer(sources, 0, size=None, alpha=1.0).size == (12, 8)
    assert mixer(sources, 0, size=(16, 16), alpha=1.0).size == (16, 16)


@pytest.mark.parametrize("mixer", [mixup, cutmix])
def test_the_seed_decides(mixer):
    sources = [picture(0), picture(1)]
    first, again, other = (np.asarray(mixer(sources, s, size=None, alpha=1.0)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_unknown_mixer():
    with pytest.raises(UsageError, match=r"unknown mixer 'image-mixer'\. Did you mean 'imagemixer'\?"):
        synthesis.entry("image-mixer")
