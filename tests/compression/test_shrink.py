"""How fast a reset row shrinks: torch's SGD beside it, and the published schedules."""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import pytest
import torch

from kdcli.compression.rows import with_lasso
from kdcli.compression.shrink import final_norm, norms, steps_to_shrink

CDD = {"strength": 0.004, "momentum": 0.9}
RESREP = {"strength": 1e-4, "momentum": 0.99}
STEPS = 340  # of an epoch


def cdd_rates(epochs: int, steps: int) -> list[float]:
    """Rates of the authors, equal within an epoch: from a tenth up, flat to epoch 40, a cosine to 1e-7."""
    found: list[float] = []
    for epoch in range(epochs):
        rate = 0.01 * min(1.0, 0.1 + 0.9 * epoch / 10)
        if epoch >= 40:
            rate = 1e-7 + (0.01 - 1e-7) * (1 + math.cos(math.pi * (epoch - 40) / (epochs - 40))) / 2
        found += [rate] * steps
    return found


@pytest.mark.parametrize("weight_decay", [0.0, 5e-2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_what_torch_makes_of_a_row(weight_decay: float, momentum: float) -> None:
    """Also where the row swings through zero, and the rate changes."""
    rates = [0.02] * 150 + [0.005] * 150
    row = torch.nn.Parameter(torch.tensor([[0.18, 0.24]], dtype=torch.float64))
    optimizer = torch.optim.SGD([row], lr=1.0, momentum=momentum, weight_decay=weight_decay)
    expected, signs = [], set()
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        row.grad = 0.1 * row.detach() / row.detach().norm()
        optimizer.step()
        expected.append(row.detach().norm().item())
        signs.add(bool(row[0, 0] > 0))
    found = norms(rates, strength=0.1, momentum=momentum, start=0.3, weight_decay=weight_decay)
    assert found == pytest.approx(expected, abs=1e-9)
    assert signs == {True, False}
    assert found[-1] == final_norm(
        rates, strength=0.1, momentum=momentum, start=0.3, weight_decay=weight_decay
    )


def test_a_zero_row_stays_zero() -> None:
    assert norms([0.1] * 3, start=0.0, **CDD) == [0.0] * 3
    zero = torch.zeros(2, 2)
    assert torch.equal(with_lasso(zero, zero, strength=0.004), zero)


def test_two_hundred_steps_remove_nothing() -> None:
    """0.914 with the decay of CDD's compactors, 0.924 without."""
    rates = [0.01] * 200
    assert final_norm(rates, weight_decay=5e-4, **CDD) == pytest.approx(0.914, abs=5e-4)
    assert final_norm(rates, **CDD) == pytest.approx(0.924, abs=5e-4)
    assert steps_to_shrink(rates, threshold=1e-5, weight_decay=5e-4, **CDD) is None


def test_a_row_shrinks_by_the_rate_over_one_minus_momentum() -> None:
    course = norms([0.01] * 1000, **CDD)
    assert course[500] - course[501] == pytest.approx(0.01 * 0.004 / 0.1, rel=1e-6)
    assert steps_to_shrink([0.01] * 5000, threshold=0.01, weight_decay=5e-4, **CDD) == 2339


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_at_a_constant_rate_it_swings_above_the_threshold(weight_decay: float) -> None:
    rates = [0.01] * 40_000
    course = norms(rates, weight_decay=weight_decay, **CDD)
    assert min(course[-1000:]) == pytest.approx(2.4e-5, abs=5e-7)
    assert max(course[-1000:]) < 2e-4
    assert steps_to_shrink(rates, threshold=1e-5, weight_decay=weight_decay, **CDD) is None
    dip = next(step for step, norm in enumerate(course, 1) if norm < 1e-5)
    assert dip < 2600  # below the threshold on its way through zero, which does not last
    assert course[dip + 10] > 1e-5


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_the_whole_training_takes_a_row_to_zero(weight_decay: float) -> None:
    """Reset from epoch 20 on. The last digits hang on all that came before; their order does not."""
    rates = cdd_rates(120, STEPS)[20 * STEPS :]
    assert 1e-9 < final_norm(rates, weight_decay=weight_decay, **CDD) < 1e-7
    steps = steps_to_shrink(rates, threshold=1e-5, weight_decay=weight_decay, **CDD)
    assert steps is not None
    assert 80 < 20 + steps / STEPS < 110  # not before the cosine has come down


def test_resrep_at_a_constant_rate() -> None:
    """About 10,000 steps of 1e-4; then the swings die down, to 2.5e-5 and not below."""
    rates = [0.01] * 40_000
    course = norms(rates, **RESREP)
    assert steps_to_shrink(rates, threshold=1e-2, **RESREP) == 10_000
    assert steps_to_shrink(rates, threshold=1e-3, **RESREP) == 10_329
    assert steps_to_shrink(rates, threshold=1e-4, **RESREP) == 10_680
    assert steps_to_shrink(rates, threshold=1e-5, **RESREP) is None
    assert max(course[-1000:]) == pytest.approx(2.47e-5, abs=1e-7)


def test_resrep_as_resnet_50_is_trained() -> None:
    """180 epochs, a cosine by epoch from 0.01 to 0, reset from the fifth epoch on.

    10,449 steps to a norm below 1e-5, on its way through zero; it stays there only later.
    """
    epochs, steps = 180, 5004
    rates = [0.005 * (1 + math.cos(math.pi * e / epochs)) for e in range(4, 12) for _ in range(steps)]
    course = norms(rates, **RESREP)
    assert next(step for step, norm in enumerate(course, 1) if norm < 1e-5) == 10_449
    assert steps_to_shrink(rates, threshold=1e-4, **RESREP) == 10_700
    assert steps_to_shrink(rates, threshold=1e-5, **RESREP) == 11_299


def test_steps_are_counted_to_the_end() -> None:
    shrink = partial(steps_to_shrink, strength=1.0, momentum=0.0, start=1.0)
    assert norms([0.25] * 3, strength=1.0, momentum=0.0) == [0.75, 0.5, 0.25]
    assert shrink([0.25] * 3, threshold=0.3) == 3
    assert shrink([0.25] * 3, threshold=0.5) == 3  # at the threshold is not below it
    assert shrink([0.25] * 3, threshold=0.51) == 2
    assert shrink([0.25] * 3, threshold=0.25) is None
    assert shrink([0.25] * 3, threshold=1.1) == 0
    assert shrink([0.25] * 3 + [0.5, 0.125], threshold=0.26) == 3
    assert shrink([0.25] * 3 + [0.5, 0.125], threshold=0.24) == 5  # it swings out to 0.25 and comes back
    assert shrink([], threshold=0.5) is None
    assert shrink([], threshold=1.5) == 0
    assert final_norm([], start=0.7, **CDD) == 0.7


def test_rates_may_be_an_array() -> None:
    rates = cdd_rates(12, 5)
    assert norms(np.array(rates), **CDD) == norms(rates, **CDD)


def test_it_is_quick() -> None:
    rates = [0.01] * 50_000
    times = []
    for _ in range(3):
        begin = time.process_time()
        steps_to_shrink(rates, threshold=1e-5, weight_decay=5e-4, **CDD)
        times.append(time.process_time() - begin)
    assert min(times) < 0.2
