"""Gradients are clipped by the norm of each network; how many were is counted, and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter, facts, method_options, rows
from torch import nn

from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.engine.clipping import Clipped, clipped_together
from kdcli.errors import Preempted
from kdcli.stages import distill
from kdcli.words import Party, Turn

Make = Callable[..., distill.Plan]


@pytest.fixture
def make(pictures: Any, probed: Any, tmp_path: Any) -> Make:
    def plan(name: str, out: str, **more: Any) -> distill.Plan:
        common = {"optim.opt": "momentum", "optim.lr": 0.05, "optim.warmup": 0.0, "optim.weight_decay": 0.0}
        options = method_options(name, pictures, probed, tmp_path, **{**common, **more})
        options |= {"out": str(tmp_path / out), "log_every": 1}
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return plan


def weights(plan: distill.Plan) -> dict[str, torch.Tensor]:
    return read_tensors(distill.run(plan, QUIET).path / "last" / "model.safetensors")


# -- which parties share a norm ------------------------------------------------------------------------------


def party(name: str, **more: Any) -> Party:
    return Party(name, "trained", **more)


@pytest.mark.parametrize(
    ("parties", "expected"),
    [
        ([party("student", source="student")], {"student": ("student",)}),
        (
            [party("student", source="student"), party("regressor", build=nn.Identity)],
            {"student": ("student", "regressor")},
        ),
        (
            [party("student", source="student"), party("branch2", source="student", tail="block-2")],
            {"student": ("student", "branch2")},
        ),
        ([party("generator", build=nn.Identity)], {"generator": ("generator",)}),
        (
            [
                party("student", source="student"),
                party("peer2", source="student"),
                party("gate", build=nn.Identity),
                party("scale", build=nn.Identity),
            ],
            {"student": ("student",), "peer2": ("peer2",), "gate": ("gate", "scale")},
        ),
    ],
)
def test_networks_have_a_norm_each_and_what_belongs_to_one_shares_it(
    parties: list[Party], expected: dict[str, tuple[str, ...]]
) -> None:
    turn = Turn("all", tuple(p.name for p in parties), (), ())
    assert clipped_together(turn, parties) == expected


# -- the first step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", [2, 4])
def test_the_first_step_of_a_student_among_peers_is_that_of_one_alone(networks: int, make: Make) -> None:
    """Without the peers' term it learns what a supervised student learns: however many clip beside it."""
    more = {"optim.max_steps": 1, "optim.clip_grad": 0.1}
    alone = weights(make("supervised", "alone", **more))
    mutual = {"method.networks": networks, "method.weight": 1e-30}
    found = weights(make("dml", "mutual", **more, **mutual))
    assert found.keys() == alone.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("networks", [2, 4])
def test_with_the_peers_term_each_networks_own_gradient_is_scaled(networks: int, make: Make) -> None:
    """Plain SGD: the step of each network is lr · g · min(1, limit / |g|), computed here on its own."""
    more = {"optim.max_steps": 1, "method.networks": networks, "optim.momentum": 0.0, "optim.lr": 1.0}
    free = make("dml", "free", **more, **{"optim.clip_grad": None})
    start = {k: v.clone() for k, v in free.material.networks["student"].state_dict().items()}
    gradients = {
        k: start_of(start, k) - v for k, v in weights(free).items() if start_of(start, k).is_floating_point()
    }
    trained = {k: g for k, g in gradients.items() if "running" not in k}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in trained.values()))
    clipped = weights(make("dml", "clipped", **more, **{"optim.clip_grad": norm / 2}))
    for name, gradient in trained.items():
        torch.testing.assert_close(
            start_of(start, name) - clipped[name], gradient / 2, rtol=1e-3, atol=1e-6, msg=name
        )


def start_of(start: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return start.get(name, start.get(f"body.{name}", torch.empty(0)))


# -- the record ----------------------------------------------------------------------------------------------


def test_a_record_counts_and_has_a_median() -> None:
    record = Clipped(1.0)
    for norm in (0.5, 1.0, 3.333, 3.334, 12.0):
        record.add(norm, 1.0)
    record.add(math.inf, 1.0)  # an fp16 overflow: no step
    assert record.facts() == {"limit": 1.0, "steps": 5, "clipped": 3, "median_norm": 3.33}
    assert record.said_of("student") == (
        "clipped  3 of 5 steps of student at a norm of 1, the median norm was 3.33 (optim.clip_grad)"
    )
    assert math.isnan(Clipped(1.0).median)


def test_the_log_and_the_manifest_say_how_many_steps_were_clipped(make: Make) -> None:
    plan = make("supervised", "out", **{"optim.max_steps": 6, "optim.clip_grad": 0.5})
    with pytest.raises(Preempted):
        distill.run(plan, QUIET, stop=StopAfter(3))
    out = distill.run(plan, QUIET).path
    steps = [row for row in rows(out) if "loss" in row]
    norms = sorted(row["grad_norm"] for row in steps)
    clipped = [sum(row["grad_norm"] > 0.5 for row in steps[: i + 1]) for i in range(6)]
    assert [row["clipped/student"] for row in steps] == clipped
    assert clipped[-1] > 3, "else the test proves nothing"
    found = facts(out)["clipping"]["student"]
    assert (found["limit"], found["steps"], found["clipped"]) == (0.5, 6, clipped[-1])
    assert found["median_norm"] == pytest.approx(norms[2], rel=6e-3)


def test_without_clipping_nothing_is_said_of_it(make: Make) -> None:
    out = distill.run(
        make("supervised", "free", **{"optim.max_steps": 2, "optim.clip_grad": None}), QUIET
    ).path
    assert not any(key.startswith("clipped") for row in rows(out) for key in row)
    assert facts(out)["clipping"] == {}


def test_a_plan_says_what_is_clipped(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from kdcli.console import Console

    plan = make("dml", "plan")
    plan.describe(Console())
    assert "clips    each network's gradient at a norm of 1 (optim.clip_grad)" in capsys.readouterr().err
    assert plan.to_json()["clipping"] == {"all": 1.0}
    make("dml", "free", **{"optim.clip_grad": None}).describe(Console())
    assert "clips" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("branches", {"student"}), ("networks", {"student", "branch2", "branch3", "gate"})],
)
def test_branches_on_a_trunk_are_one_network(layout: str, expected: set[str], make: Make) -> None:
    plan = make("one", layout, **{"method.layout": layout})
    (turn,) = plan.method.turns
    assert set(clipped_together(turn, plan.method.parties)) == expected
    out = distill.run(plan, QUIET).path
    assert set(facts(out)["clipping"]) == expected
