"""A method with a queue, a cumulative mask and a projection, stopped after every step and continued."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_method
from toolbox import QUIET, StopAfter, facts, method_options, rows

from kdcli import methods
from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.errors import Diverged, Preempted, UsageError
from kdcli.stages import distill

STEPS = 4


@pytest.fixture(scope="module")
def make(
    pictures: Path, probed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., distill.Plan]]:
    """Plans of the toy method."""
    folder = tmp_path_factory.mktemp("toy")
    patch = pytest.MonkeyPatch()
    patch.setitem(methods.METHODS, "toy", replace(methods.METHODS["kd"], target="toy_method:toy", parts=()))

    def plan(name: str, **more: object) -> distill.Plan:
        options = {
            **method_options("toy", pictures, probed, folder),
            "optim.accumulate": 2,
            "data.labels_per_class": 10,
            "out": str(folder / name),
            **more,
        }
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    yield plan
    patch.undo()


def running_state(plan: distill.Plan) -> dict[str, Any]:
    """What a run that was stopped after its last step has committed."""
    (folder,) = plan.target.path.with_name(f"{plan.target.path.name}.partial").glob("state-*")
    found: dict[str, Any] = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    facts = json.loads((folder / "progress.json").read_text())
    return {**found, "facts": {name: value for name, value in facts.items() if name != "seconds"}}


def stopped(plan: distill.Plan, looks: int) -> None:
    with pytest.raises(Preempted):
        distill.run(plan, QUIET, stop=StopAfter(looks))


@pytest.fixture(scope="module")
def whole(make: Callable[..., distill.Plan]) -> tuple[dict[str, Any], Path]:
    """The state of all steps of a run that was not stopped before, and an artifact."""
    artifact = distill.run(make("whole"), QUIET).path  # fills the cache, which looks for a stop too
    plan = make("to the end")
    stopped(plan, STEPS)
    return running_state(plan), artifact


@pytest.mark.parametrize("stop", range(STEPS))
def test_stopped_after_any_step_it_goes_on_bit_for_bit(
    stop: int, make: Callable[..., distill.Plan], whole: tuple[dict[str, Any], Path]
) -> None:
    plan = make(f"stopped-{stop}")
    stopped(plan, stop)
    stopped(plan, STEPS - stop)
    assert running_state(plan) == whole[0]
    resumed = distill.run(plan, QUIET).path
    files = facts(resumed)["files"]
    assert files == facts(whole[1])["files"]
    assert {"model.safetensors", "metrics.jsonl"} <= files.keys()


def test_the_states_are_what_their_functions_make(
    make: Callable[..., distill.Plan], whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    (tmp_path / "states").write_bytes(whole[0]["states.safetensors"])
    found = read_tensors(tmp_path / "states")
    assert set(found) == {f"queue/{n}" for n in ("keys", "count")} | {
        f"mask/{n}" for n in ("masked", "score", "seen")
    }
    assert int(found["queue/count"]) == int(found["mask/seen"].sum()) == 8 * STEPS  # of all micro-batches
    assert int(found["mask/masked"].sum()) == 3  # one a step, not one a micro-batch
    before = make("other").material.assembly.states
    assert int(before["queue"]["count"]) == 0
    assert before["queue"]["keys"].stride() == (1, toy_method.QUEUE)


def test_edits_have_changed_what_they_name(
    make: Callable[..., distill.Plan], whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    for name in ("weights", "states"):
        (tmp_path / name).write_bytes(whole[0][f"{name}.safetensors"])
    weights, states = read_tensors(tmp_path / "weights"), read_tensors(tmp_path / "states")
    assert weights["adapter/0.weight"].norm(dim=1).max() <= 0.7 + 1e-6
    assert weights["adapter/2.weight"].norm(dim=1).max() <= 0.7 + 1e-6
    first = make("first").material.assembly.parties["student"].state_dict()["body.conv1.0.weight"]
    moved = (weights["student/body.conv1.0.weight"] - first).flatten(1).abs().amax(1)
    assert (moved > 0).all()  # the last to be masked moved before it was
    assert states["mask/masked"].any()
    assert not any(name.startswith(("judge/", "constant/", "teacher/")) for name in weights)


def test_gradients_are_edited_then_clipped_as_the_turn_says(
    make: Callable[..., distill.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run clips at 1, the turn at 2; what is masked has no gradient when it is clipped."""
    seen: list[tuple[float, int]] = []
    clip = torch.nn.utils.clip_grads_with_norm_

    def spy(parameters: list[Any], most: float, norm: torch.Tensor) -> None:
        expected = torch.stack([p.grad.norm() for p in parameters]).norm()
        torch.testing.assert_close(norm, expected)  # of what is edited
        seen.append((most, int((parameters[0].grad.flatten(1).abs().amax(1) == 0).sum())))
        clip(parameters, most, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", spy)
    distill.run(make("clipped"), QUIET)
    assert seen == [(2.0, 1), (2.0, 2), (2.0, 3), (2.0, 3)]


def test_a_step_that_diverges_leaves_no_trace_in_states(make: Callable[..., distill.Plan]) -> None:
    plan = make("diverged", **{"optim.lr": 1e12, "optim.warmup": 0.0})
    with pytest.raises(Diverged, match="The state after step 1 is kept"):
        distill.run(plan, QUIET)
    (folder,) = plan.target.path.with_name("diverged.partial").glob("state-*")
    found = read_tensors(folder / "states.safetensors")
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert (int(found["queue/count"]), int(found["mask/masked"].sum())) == (8, 1)


def test_the_plain_cut_costs_the_teacher_one_forward_a_picture(make: Callable[..., distill.Plan]) -> None:
    plan = make("planned")
    seen = int(plan.material.order.used(STEPS).sum())
    assert plan.material.order.views is None
    assert plan.material.cached
    assert plan.material.forwards["teacher"] == seen < plan.material.live_forwards["teacher"] + 1
    assert plan.to_json()["teacher_forwards"] == seen
    assert not make("live", **{"views.count": "live"}).material.cached


def test_cached_and_live_plain_cuts_give_the_same_student(make: Callable[..., distill.Plan]) -> None:
    runs = []
    for views, store in (("auto", {"views.store": "fp32"}), ("live", {})):
        made = distill.run(make(f"views-{views}", **{"views.count": views, **store}), QUIET)
        runs.append([row["contrast"] for row in rows(made.path) if "loss" in row])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_the_plan_shows_what_the_table_has_no_room_for(make: Callable[..., distill.Plan]) -> None:
    plan = make("shown")
    (turn,) = plan.to_json()["turns"]
    inputs = {call["call"]: call["inputs"] for call in turn["calls"]}
    assert inputs["t"] == ["x@plain"]
    assert inputs["j"] == ["a.out", "~s@1.logits"]
    assert inputs["c"] == []
    assert turn["groups"] == {"adapter": {"lr": 5e-3, "weight_decay": 0.0}}
    assert turn["edits"][0]["parameters"] == ["body.conv1.0.weight"]
    assert plan.to_json()["states"]["queue"] == {"keys": [12, 4], "count": []}
    told: list[str] = []
    console = type(
        "Console",
        (),
        {
            **dict.fromkeys(("note", "warn"), lambda self, text: told.append(text)),
            "table": lambda *a, **k: None,
        },
    )()
    plan.describe(console)  # type: ignore[arg-type]
    shown = "\n".join(told)
    assert "calls    t: teacher on x@plain" in shown
    assert "calls    c: constant on nothing" in shown
    assert "group    adapter in turn student: lr 0.005, weight_decay 0" in shown
    assert "edits    prune: gradient of student, 1 parameters, in each step" in shown
    assert "keeps    queue: keys [12, 4], count []" in shown


def test_mixed_pictures_have_no_other_views(make: Callable[..., distill.Plan]) -> None:
    with pytest.raises(
        UsageError, match=r"sees x@1, x@plain beside each picture, and mixed pictures have no"
    ):
        make("mixed", **{"optim.mixup": 0.2})


def test_a_state_that_micro_batches_update_is_not_split_to_fit(make: Callable[..., distill.Plan]) -> None:
    with pytest.raises(UsageError, match=r"--auto-batch: .* Set optim\.accumulate yourself"):
        make("fitted", **{"optim.auto_batch": True})
