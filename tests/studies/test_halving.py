"""Rungs, and who goes on from them, against Optuna's own pruner."""

from __future__ import annotations

import random

import optuna
import pytest

from kdcli.studies.halving import goes_on, rungs


@pytest.mark.parametrize(
    ("steps", "count", "factor", "wanted"),
    [
        (90, 2, 3, [10, 30]),
        (100, 3, 2, [12, 25, 50]),
        (60, 2, 3, [7, 20]),
        (90, 2, 1, []),
        (90, 0, 3, []),
        (2, 4, 3, [1]),
        (1, 2, 3, []),
    ],
)
def test_rungs(steps: int, count: int, factor: int, wanted: list[int]) -> None:
    assert rungs(steps, count, factor) == wanted


def test_the_first_goes_on_and_ties_do() -> None:
    assert goes_on(0.1, [], 3)
    assert goes_on(0.5, [0.5, 0.5, 0.5], 3)
    assert not goes_on(0.4, [0.5], 3)
    assert goes_on(0.4, [0.5, 0.3, 0.2, 0.1, 0.1], 3)
    assert not goes_on(0.3, [0.5, 0.4, 0.2, 0.1, 0.1], 3)
    assert goes_on(0.0, [1.0] * 9, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_as_optunas_pruner_has_it(factor: int, seed: int) -> None:
    rng, steps = random.Random(seed), factor**3
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=factor, reduction_factor=factor)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    seen: dict[int, list[float]] = {}
    places = rungs(steps, 2, factor)
    assert places == [factor, factor**2]
    for _ in range(40):
        trial = study.ask()
        for rung in places:
            value = rng.random()
            trial.report(value, rung)
            mine = goes_on(value, seen.setdefault(rung, []), factor)
            seen[rung].append(value)
            assert mine == (not trial.should_prune())
            if not mine:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)
