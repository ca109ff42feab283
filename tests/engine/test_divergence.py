"""What is kept of a run that diverges: the last state that is whole, and never half a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter, method_options
from torch import nn

from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.engine.guard import Buffers, all_finite
from kdcli.errors import Diverged, Preempted
from kdcli.stages import distill


@pytest.fixture
def make(pictures: Path, probed: Any, tmp_path: Path) -> Any:
    def plan(out: str, name: str = "supervised", **more: Any) -> distill.Plan:
        options = method_options(name, pictures, probed, tmp_path, **{"optim.warmup": 0.0, **more})
        return distill.plan(resolve(distill.Config, options={**options, "out": str(tmp_path / out)}), QUIET)

    return plan


def kept(plan: distill.Plan) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and weights of the one state that is left."""
    (state,) = plan.target.path.with_name(f"{plan.target.path.name}.partial").glob("state-*")
    return int(state.name.removeprefix("state-")), read_tensors(state / "weights.safetensors")


def poisoned(plan: distill.Plan, turn: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of a turn NaN in a step."""
    from kdcli.engine.turn import TurnModule

    forward, wanted = TurnModule.forward, plan.method.turns[turn].name

    def spoilt(self: TurnModule, batch: Any, share: Any, done: float) -> Any:
        found = forward(self, batch, share, done)
        if self.turn.name == wanted and round(done * plan.material.steps) == step:
            found = {**found, "loss": found["loss"] * torch.nan}
        return found

    monkeypatch.setattr(TurnModule, "forward", spoilt)


def test_the_state_before_the_step_is_kept_with_its_batch_norms(make: Any, monkeypatch: Any) -> None:
    """The forward that gave NaN has moved them: they are put back."""
    stopped = make("stopped")
    with pytest.raises(Preempted):
        distill.run(stopped, QUIET, stop=StopAfter(2))
    step, expected = kept(stopped)
    assert step == 2
    plan = make("poisoned")
    poisoned(plan, 0, 2, monkeypatch)
    with pytest.raises(Diverged, match=r"the loss became nan in step 3 .* The state after step 2 is kept\."):
        distill.run(plan, QUIET)
    step, found = kept(plan)
    assert step == 2
    assert any("running_mean" in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_later_turn_that_diverges_leaves_no_half_of_its_step(make: Any, monkeypatch: Any) -> None:
    """The turn before it has stepped: that step is not committed, the last whole one is what is left."""
    mutual = {"name": "dml", "method.update": "sequential"}
    stopped = make("stopped", **mutual)
    with pytest.raises(Preempted):
        distill.run(stopped, QUIET, stop=StopAfter(1))
    _, expected = kept(stopped)
    plan = make("poisoned", **mutual, save_steps=1)
    poisoned(plan, 1, 1, monkeypatch)
    with pytest.raises(Diverged, match=r"in step 2 .* The state after step 1 is kept\."):
        distill.run(plan, QUIET)
    step, found = kept(plan)
    assert step == 1
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_where_nothing_was_committed_nothing_is_kept(make: Any, monkeypatch: Any) -> None:
    plan = make("poisoned", name="dml", **{"method.update": "sequential"})
    poisoned(plan, 1, 1, monkeypatch)
    with pytest.raises(Diverged, match=r"in step 2 .*\. Lower --lr"):
        distill.run(plan, QUIET)
    assert not list(plan.target.path.with_name("poisoned.partial").glob("state-*"))


@pytest.mark.parametrize("student", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("lr", [1e9, 1e12])
@pytest.mark.parametrize("steps", [1, 4])
def test_rates_that_are_far_too_large(student: str, lr: float, steps: int, make: Any) -> None:
    """Whichever breaks first, loss, logits, weights or what is measured: the run says that it diverged."""
    more = {"student": student, "optim.lr": lr, "optim.max_steps": steps, "optim.opt": "momentum"}
    plan = make("out", **more, **{"optim.clip_grad": None})
    with pytest.raises(Diverged, match=r"became (nan|inf|-inf|NaN or Inf)"):
        distill.run(plan, QUIET)
    assert not plan.target.path.exists()
    for state in plan.target.path.with_name("out.partial").glob("state-*"):
        assert all(t.isfinite().all() for t in read_tensors(state / "weights.safetensors").values())


def test_a_step_too_large_for_the_numbers_of_the_weights(make: Any) -> None:
    more = {"optim.opt": "adam", "optim.lr": 1e12, "optim.weight_decay": 1e12}
    with pytest.raises(Diverged, match=r"became|too large for its numbers"):
        distill.run(make("out", **more), QUIET)


def test_weights_that_no_loss_shows_to_be_spoilt() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert all_finite([network])
    with torch.no_grad():
        network[1].running_var.fill_(torch.inf)
    assert not all_finite([network])
    with torch.no_grad():
        network[1].running_var.fill_(1.0)
        network[0].weight[0, 0] = torch.nan
    assert not all_finite([network])


def test_buffers_go_back() -> None:
    network = nn.BatchNorm1d(3)
    buffers = Buffers([network])
    buffers.keep()
    network(torch.randn(4, 3))
    moved = {name: b.clone() for name, b in network.named_buffers()}
    assert int(moved["num_batches_tracked"]) == 1
    buffers.put_back()
    assert int(network.num_batches_tracked) == 0
    assert torch.equal(network.running_mean, torch.zeros(3))
    Buffers([]).keep()
    Buffers([nn.Linear(1, 1)]).put_back()
