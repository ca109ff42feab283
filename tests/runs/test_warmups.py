"""A weight that grows over steps: a plan knows how long the phase is, and says where it is too short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toolbox import QUIET, rows, training_plan

from kdcli import methods
from kdcli.methods.parts import Part, labels, one_turn
from kdcli.stages import distill
from kdcli.tasks import Task
from kdcli.words import Method, Warmup


def grown(task: Task, *, warmup: int = 4) -> Method:
    """Labels, and the teacher's answers with a weight that grows."""
    teach = task.taught("s", "t", temperature=1.0, t_squared=True)
    return one_turn("grown", Part((*labels(task), replace(teach, weight=Warmup(0.5, warmup)))))


@pytest.fixture
def plan(
    pictures: Path, probed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    entry = replace(methods.METHODS["kd"], target=f"{__name__}:grown", parts=())
    monkeypatch.setitem(methods.METHODS, "grown", entry)

    def make(**more: Any) -> Any:
        usual = {"method.name": "grown", "teacher": str(probed("test_resnet"))}
        return training_plan(pictures, tmp_path / "out", tmp_path / "cache", **{**usual, **more})

    return make


def test_the_weight_of_each_step(plan: Callable[..., Any], warnings: list[str]) -> None:
    made = plan(**{"views.count": "live"})
    assert made.method.turns[0].terms[1].weight == Warmup(0.5, 4, 8)
    assert made.to_json()["objective"][1]["weight"] == "0.5, from 0 over 4 steps"
    assert made.material.forwards == {"student": 64, "teacher": 56}, "none of it in the first step"
    logged = [row for row in rows(distill.run(made, QUIET).path) if "loss" in row]
    grown = [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5]
    assert [row["weight/kl"] for row in logged] == pytest.approx(grown)
    assert logged[0]["loss"] == pytest.approx(logged[0]["ce"])
    assert not any("full after" in text for text in warnings)


def test_a_run_cut_off_goes_by_the_whole_schedule(plan: Callable[..., Any]) -> None:
    made = plan(**{"optim.max_steps": None, "optim.epochs": 4, "optim.stop_epoch": 1})
    assert (made.material.schedule_steps, made.material.steps) == (29, 8)
    assert made.method.turns[0].terms[1].weight == Warmup(0.5, 4, 29)


def test_a_run_too_short_for_it_is_warned_of(plan: Callable[..., Any], warnings: list[str]) -> None:
    plan(**{"method.warmup": 500})
    (said,) = [text for text in warnings if text.startswith("kl")]
    assert said == (
        "kl: its weight would be full after 500 steps, and the phase has 8: train longer, or lower "
        "method.warmup."
    )
