"""Contrast with a memory bank: against a naive loop, and against RepDistiller's code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, gradients
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.bank import crd, partition, similarities
from kdcli.losses.products import unit
from kdcli.methods.crd import remembered

SAMPLES, WIDTH, COUNT = 12, 5, 7
INDEX = [torch.tensor([3, 0, 11, 7]), torch.tensor([7, 2, 3, 5])]


def given(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def negatives(step: int) -> Tensor:
    draw = torch.Generator().manual_seed(80 + step)
    return torch.randint(0, SAMPLES, (4, COUNT), generator=draw)


def naive_side(own: Any, other: Any, index: Any, negatives: Any, z: float, temperature: float) -> float:
    noise, total = len(negatives[0]) / len(other), 0.0
    for row, place, places in zip(own, index, negatives):

        def likely(at: int, row: Any = row) -> float:
            return math.exp(sum(a * b for a, b in zip(row, other[at])) / temperature) / z

        total -= math.log(likely(place) / (likely(place) + noise + 1e-7))
        total -= sum(math.log(noise / (likely(at) + noise + 1e-7)) for at in places)
    return total / len(own)


def naive(own: Any, its: Any, index: Any, negatives: Any, bank: Any, z: Any, *, temperature: float) -> float:
    """A student's row meets the teacher's half of the bank, and a teacher's row the student's."""
    mine = naive_side(own, bank[1], index, negatives, z[0], temperature)
    return mine + naive_side(its, bank[0], index, negatives, z[1], temperature)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_crd_is_its_equation(temperature: float) -> None:
    own, its = (F.normalize(given(4, WIDTH, seed=s), dim=1).float() for s in (1, 2))
    bank = F.normalize(given(2, SAMPLES, WIDTH, seed=3), dim=2).float()
    z = torch.tensor([4000.0, 2500.0]) if temperature < 0.1 else torch.tensor([20.0, 15.0])
    agree(crd, naive, own, its, INDEX[0], negatives(0), bank, z, temperature=temperature)


def test_crd_has_the_values_of_repdistiller() -> None:
    """CRDLoss of crd/criterion.py over two steps, weights, bank and negatives drawn as here, in float64.

    In between its memory was updated with momentum 0.5; Z is that of the first step.
    """
    weights = [given(*shape, seed=40 + n) for n, shape in enumerate([(5, 6), (5,), (5, 9), (5,)])]
    its_weight = weights[2].requires_grad_()
    bank = torch.stack([0.3 * given(SAMPLES, WIDTH, seed=s) for s in (50, 51)]).float()
    z, place = torch.zeros(2), torch.arange(SAMPLES)
    expected = [
        (18.84753784144926, 2.5193047102048864, 1.3227368233817145),
        (14.609418383413136, 5.249773819280975, 2.9739494528374992),
    ]
    banks = [
        (-1.615947142095098, 2.6186620523713304, -4.884541577154662),
        (2.0790538798303744, 2.792964620473536, -13.401058402921553),
    ]
    for step in range(2):
        mine = given(4, 6, seed=60 + step).requires_grad_()
        own = unit(F.linear(mine, weights[0], weights[1]))
        its = unit(F.linear(given(4, 9, seed=70 + step), its_weight, weights[3]))
        read = INDEX[step], negatives(step), bank
        if step == 0:
            z = partition(own, its, *read).detach()
            assert z.tolist() == pytest.approx([4508.425553998329, 4297.670333779973], rel=1e-5)
        value = crd(own, its, *read, z)
        slopes = [float(g.norm()) for g in gradients(value, mine, its_weight)]
        assert [float(value.detach()), *slopes] == pytest.approx(expected[step], rel=1e-5)
        state = {"bank": bank}
        before, changes = remembered(state, own.detach(), its.detach(), INDEX[step], momentum=0.5)
        assert before is bank
        bank = changes["bank"]
        found = bank[0].sum(), bank[1].norm(), (bank[1, :, 0] * place).sum()
        assert [float(f) for f in found] == pytest.approx(banks[step], rel=1e-5)


def test_the_positive_comes_first_and_rows_are_of_the_other_network() -> None:
    own, bank = F.normalize(given(4, WIDTH, seed=1)), F.normalize(given(SAMPLES, WIDTH, seed=2))
    found = similarities(own, bank, INDEX[0], negatives(0))
    assert found.shape == (4, 1 + COUNT)
    torch.testing.assert_close(found[:, 0].double(), (own * bank[INDEX[0]]).sum(1), rtol=1e-5, atol=1e-6)
    its, z = F.normalize(given(4, WIDTH, seed=3)), torch.tensor([1e5, 1e5])
    both = F.normalize(given(2, SAMPLES, WIDTH, seed=4), dim=2)
    both[1, INDEX[0]], both[0, INDEX[0]] = own, its  # each network finds itself in the other's half
    others = torch.tensor([1, 2, 4, 5, 6, 8, 9]).repeat(4, 1)
    right = crd(own, its, INDEX[0], others, both, z)
    assert right < 0.5 * crd(own, its, INDEX[0], others, both.flip(0), z)


def test_an_embedding_that_is_zero_has_finite_gradients() -> None:
    own = torch.zeros(4, WIDTH, requires_grad=True)
    its, bank = unit(given(4, WIDTH, seed=1)), unit(given(2, SAMPLES, WIDTH, seed=2))
    value = crd(unit(own), its, INDEX[0], negatives(0), bank, torch.tensor([4000.0, 4000.0]))
    assert gradients(value, own)[0].isfinite().all()
