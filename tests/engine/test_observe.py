"""What is observed beside the terms: summed over the first rows, told once, taken out of what is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.observe import Observer, Watch
from kdcli.engine.turn import TurnModule
from kdcli.words import Call, Term, Turn

TURN = Turn(
    "student", ("student",), (Call("s", "student"),), (Term("loss-of-it", lambda x: x.mean(), ("s.out",)),)
)


def rows(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"seen/rows": torch.tensor(len(values["x"])), "seen/mean": values["s.out"].detach().sum()}


def made(told: list[Mapping[str, float]], enough: int, sums: dict[str, float]) -> tuple[Observer, TurnModule]:
    module = TurnModule(TURN, {"student": nn.Identity()})
    watch = Watch({"student": rows}, "seen/", "seen/rows", enough, told.append)
    return Observer(watch, {"student": module}, sums, world=2), module


def step(module: TurnModule, *values: float) -> dict[str, float]:
    found = module({"x": torch.tensor(values, requires_grad=True)}, torch.ones(2), 0.0)
    return {name: float(value.detach()) for name, value in found.items()}


def test_rows_are_summed_until_there_are_enough() -> None:
    told: list[Mapping[str, float]] = []
    sums: dict[str, float] = {}
    observer, module = made(told, 6, sums)
    plain = {"loss", "loss-of-it"}
    assert set(observer.take(step(module, 1.0, 2.0))) == plain
    assert observer.told(last=False) == {}
    assert sums == {"seen/rows": 4.0, "seen/mean": 6.0}  # of two processes, whose mean a step gives
    observer.take(step(module, 3.0))
    assert observer.told(last=False) == {"seen/rows": 6.0, "seen/mean": 2.0}
    assert set(step(module, 5.0)) == plain  # no more is observed
    assert observer.told(last=True) == {}
    assert told == [{"seen/rows": 6.0, "seen/mean": 2.0}]


def test_the_last_step_ends_it_and_a_continued_run_goes_on() -> None:
    told: list[Mapping[str, float]] = []
    sums = {"seen/rows": 4.0, "seen/mean": 6.0}
    observer, module = made(told, 100, sums)
    observer.take(step(module, 3.0))
    assert observer.told(last=True) == {"seen/rows": 6.0, "seen/mean": 2.0}
    again, module = made(told, 6, sums)  # there was enough before: nothing is observed, nor told again
    assert module.observe is None
    assert again.told(last=True) == {}
    assert len(told) == 1


def test_nothing_is_observed_in_evaluation_or_without_a_watch() -> None:
    _, module = made([], 6, {})
    assert "seen/rows" not in step(module.eval(), 1.0)
    nobody = Observer(None, {"student": module}, {}, world=1)
    assert nobody.take({"loss": 1.0}) == {"loss": 1.0}
    assert nobody.told(last=True) == {}
