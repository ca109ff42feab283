"""Rounds of a toy method: columns made for each step, a rate and an edit of its own, stopped anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter
from torch import Tensor, nn

from kdcli.artifacts.manifest import file_hash
from kdcli.artifacts.store import Output
from kdcli.engine.feed import Made
from kdcli.engine.job import Job
from kdcli.engine.loop import train
from kdcli.engine.rounds import fresh_parties, kept
from kdcli.engine.runtime import open_runtime
from kdcli.errors import Diverged, InputError, Preempted
from kdcli.sections import OptimSection, RunSection
from kdcli.seeds import seed_of
from kdcli.words import Call, Edit, Method, Party, Phase, Term, Turn

STEPS = 12


class Points(nn.Module):
    """Numbers that are learned, for rows of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(4, 3))

    def forward(self) -> Tensor:
        return self.values


def distance(points: Tensor, goal: Tensor) -> Tensor:
    return ((points - goal) ** 2).sum()


def largest(points: Tensor) -> Tensor:
    return points.abs().max()


TURN = Turn(
    "points",
    ("points",),
    (Call("p", "points", ()),),
    (
        Term("distance", distance, ("p.out", "goal"), 0.5),
        Term("largest", largest, ("p.out",), 0.0, watched=True),
        Term("unseen", largest, ("p.out",), 0.0),
    ),
)
METHOD = Method(
    "toy",
    (Party("points", "trained", build=Points), Party("half", "frozen", build=lambda: nn.AvgPool2d(2))),
    (Phase((TURN,), "first", 1 / 3), Phase((TURN,), "second", 2 / 3)),
    export="points",
)


def goal(step: int) -> dict[str, Tensor]:
    return {"goal": torch.randn(4, 3, generator=torch.Generator().manual_seed(seed_of(9, step) >> 1))}


def rate(step: int, steps: int) -> float:
    return 0.1 * (1 - step / steps)


def job_of(parties: dict[str, nn.Module], **more: Any) -> Job:
    optim = OptimSection(opt="adam", weight_decay=0.0, clip_grad=None)
    given: dict[str, Any] = {"rate": rate, "label": "", "save_ends": False, "log_every": 5, **more}
    return Job(METHOD, parties, Made(goal, "of round 3"), optim, STEPS, STEPS, seed=1, **given)


def a_round(
    output: Output, stop: StopAfter | None = None, **more: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """What a round leaves: the points, and its log."""
    parties = fresh_parties(METHOD, {}, 7)
    values: Any = parties["points"].values
    runtime = open_runtime(RunSection(device="cpu")).alone()
    with kept(output, 3) as own:
        train(job_of(parties, **more), own, runtime, QUIET, stop)
        log = [json.loads(line) for line in (own.partial / "metrics.jsonl").read_text().splitlines()]
    return values.detach(), log


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "out", tmp_path, replace=False)


def plainly(after: Callable[[Tensor], None] = lambda values: None) -> Tensor:
    """The same, written out."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        values = nn.Parameter(torch.randn(4, 3))
    for begin, end in ((0, 4), (4, 12)):
        optimizer = torch.optim.Adam([values])
        for step in range(begin, end):
            optimizer.param_groups[0]["lr"] = rate(step - begin, end - begin)
            optimizer.zero_grad()
            (0.5 * distance(values, goal(step)["goal"])).backward()
            optimizer.step()
            after(values)
    return values.detach()


def test_a_round_is_the_plain_descent(output: Output) -> None:
    found, log = a_round(output, looks=False)
    assert torch.equal(found, plainly())
    assert [row["step"] for row in log] == [4, 5, 10, 12]  # the ends of phases, and each fifth
    assert log[-1]["lr"] == pytest.approx(rate(7, 8))
    assert "epoch" not in log[0]  # nothing is passed over
    assert list(output.partial.iterdir()) == []


def test_looking_at_every_step_changes_nothing(output: Output) -> None:
    assert torch.equal(a_round(output, looks=True)[0], plainly())


def test_weights_are_edited_after_each_step(output: Output) -> None:
    def clamp(values: Tensor) -> None:
        with torch.no_grad():
            values.clamp_(-0.5, 0.5)

    parties = fresh_parties(METHOD, {}, 7)
    values: Any = parties["points"].values
    edit = Edit("clamp", "weights", "points", ("values",), lambda w: {"values": w["values"].clamp(-0.5, 0.5)})
    phases = tuple(replace(phase, turns=(replace(TURN, edits=(edit,)),)) for phase in METHOD.phases)
    job = replace(job_of(parties), method=replace(METHOD, phases=phases))
    train(job, output, open_runtime(RunSection(device="cpu")).alone(), QUIET)
    assert torch.equal(values, plainly(clamp))
    assert not torch.equal(values, plainly())


def test_a_watched_term_is_logged_and_another_of_weight_zero_is_not_computed(output: Output) -> None:
    _, log = a_round(output)
    assert all(row["largest"] > 0 for row in log)
    assert {row["unseen"] for row in log} == {0.0}
    assert all(row["loss"] == pytest.approx(0.5 * row["distance"]) for row in log)


@pytest.mark.parametrize("looks", range(STEPS + 2))  # once before each phase, and after each step
def test_stopped_anywhere_a_round_goes_on(looks: int, output: Output) -> None:
    whole, log = a_round(output)
    with pytest.raises(Preempted):
        a_round(output, StopAfter(looks))
    (folder,) = output.partial.iterdir()
    assert folder.name == "round-000000003"
    again, other = a_round(output)
    assert torch.equal(again, whole)
    assert other == log
    assert list(output.partial.iterdir()) == []


def test_parties_are_a_function_of_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (fresh_parties(METHOD, {}, seed)["points"].values for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_alone_nothing_is_kept_or_shared() -> None:
    runtime = open_runtime(RunSection(device="cpu", precision="bf16"))
    runtime.rank, runtime.world_size = 1, 2
    alone, module = runtime.alone(), nn.Linear(2, 2)
    assert (alone.main, alone.rank, alone.world_size, runtime.main) == (True, 0, 1, False)
    prepared = alone.prepare(module)
    assert prepared(torch.ones(1, 2)).dtype == torch.bfloat16
    assert alone.prepare(torch.optim.SGD(module.parameters(), lr=1.0)).step_was_skipped is False
    assert runtime.accelerator._models == runtime.accelerator._optimizers == []
    assert alone.largest([3.0]) == [3.0]
    alone.barrier()


def test_a_loss_that_is_no_number(output: Output) -> None:
    bad = Made(lambda step: {"goal": torch.full((4, 3), float("nan") if step == 6 else 0.0)}, "of round 3")
    runtime = open_runtime(RunSection(device="cpu")).alone()

    def diverging(**more: Any) -> None:
        job = replace(job_of(fresh_parties(METHOD, {}, 7), remedy="Take care.", **more), batches=bad)
        train(job, output, runtime, QUIET)

    with pytest.raises(Diverged, match=r"^the loss became nan by step 10 of round 3\. Take care\.$"):
        diverging(looks=False)
    assert not list(output.partial.glob("state-*"))
    with pytest.raises(
        Diverged, match=r"nan in step 7 of round 3\. The state after step 6 is kept\. Take care"
    ):
        diverging()
    assert [p.name for p in output.partial.glob("state-*")] == ["state-000000000006"]


def test_made_batches_are_not_divided() -> None:
    with pytest.raises(ValueError, match="not divided"):
        Made(goal).split(2)


def test_a_state_in_another_form_is_refused(output: Output) -> None:
    with pytest.raises(Preempted):
        a_round(output, StopAfter(2))
    (state,) = output.partial.glob("round-*/state-*")
    facts = json.loads((state / "progress.json").read_text())
    del facts["format"]  # as 0.1 wrote it
    (state / "progress.json").write_text(json.dumps(facts))
    hashes = json.loads((state / "hashes.json").read_text())
    hashes["progress.json"] = file_hash(state / "progress.json")
    (state / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(InputError, match=r"by another version of kdcli.*Start anew with --overwrite"):
        a_round(output)
