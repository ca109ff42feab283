"""What a teacher is shown and what is taught of its answers: ``teacher_view`` and ``teacher_errors``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, facts, training_plan

from kdcli.errors import Preempted, UsageError
from kdcli.stages import distill

Plan = Callable[..., distill.Plan]


@pytest.fixture(scope="module")
def plan(pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    cache, out = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("out")

    def make(**more: Any) -> distill.Plan:
        usual = {"teacher": [str(teacher)], "method.name": "kd", "views.store": "fp32"}
        return training_plan(pictures, more.pop("out", out / "student"), cache, **usual | more)

    return make


def last(path: Path) -> dict[str, list[float]]:
    found = load_file(path / "last" / "model.safetensors")
    return {name: tensor.flatten().tolist() for name, tensor in found.items()}


def test_a_whole_picture_is_answered_once(plan: Plan, tmp_path: Path) -> None:
    crops = plan(**{"views.count": "2"})
    whole = plan(teacher_view="plain", out=tmp_path / "whole")
    drawn = int(whole.material.order.used(8).any(axis=0).sum())
    assert whole.material.teacher_forwards == drawn <= len(whole.material.pool)
    assert crops.material.teacher_forwards > 0
    assert whole.material.order.views is None, "the student sees a new view each time"
    assert whole.material.cached
    result = distill.run(whole, QUIET)
    found = facts(result.path)
    assert found["config"]["teacher_view"] == "plain"
    assert found["teacher_answers"]["views"] > 0


@pytest.mark.parametrize("how", ["leave-out", "swap"])
def test_errors_change_what_is_learned_and_what_is_watched_stays(
    plan: Plan, tmp_path: Path, how: str
) -> None:
    kept, changed = tmp_path / "kept", tmp_path / "changed"
    distill.run(plan(out=kept), QUIET)
    distill.run(plan(teacher_errors=how, out=changed), QUIET)
    assert last(kept) != last(changed)
    assert facts(kept)["teacher_answers"] == facts(changed)["teacher_answers"], "of its own answers"


def test_a_run_of_both_goes_on_as_if_it_had_not_stopped(plan: Plan, tmp_path: Path) -> None:
    both = {"teacher_view": "plain", "teacher_errors": "swap", "method.name": "task-specific"}
    distill.run(plan(**both, out=tmp_path / "whole"), QUIET)
    with pytest.raises(Preempted):
        distill.run(plan(**both, out=tmp_path / "halves"), QUIET, stop=StopAfter(5))
    distill.run(plan(**both, out=tmp_path / "halves"), QUIET)
    assert last(tmp_path / "whole") == last(tmp_path / "halves")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_view": "plain", "method.name": "at"}, "at compares t.stage1, t.stage2, t.stage3"),
        ({"teacher_view": "plain", "optim.mixup": 0.2}, "have no un-augmented cut"),
        ({"teacher_errors": "swap", "method.name": "rkd"}, "method rkd teaches no answers"),
        ({"teacher_errors": "swap", "optim.mixup": 0.2}, "mixed pictures have no one label"),
        ({"teacher_errors": "leave-out", "method.name": "nkd"}, "nkd of method nkd teaches something"),
        ({"teacher_errors": "swap", "method.name": "supervised", "teacher": []}, "supervised has no teacher"),
        ({"teacher_view": "plain", "method.name": "generic"}, "generic"),
    ],
)
def test_what_cannot_be_heeded_is_refused(plan: Plan, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(**options)
