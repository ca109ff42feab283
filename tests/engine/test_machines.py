"""A run that goes on with other threads says so, and its artifact names all that it was made on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter, facts, method_options, synthesis_plan

from kdcli.artifacts.lock import MACHINES
from kdcli.config import resolve
from kdcli.engine.state import Progress
from kdcli.errors import Preempted
from kdcli.stages import distill, synthesize


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(pictures: Path, probed: Any, tmp_path: Path) -> Any:
    def plan(**more: Any) -> distill.Plan:
        options = method_options("supervised", pictures, probed, tmp_path, **more)
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return plan


def test_other_threads_are_said_and_recorded(make: Any, warnings: list[str]) -> None:
    with pytest.raises(Preempted):
        distill.run(make(threads=2), QUIET, stop=StopAfter(2))
    assert torch.get_num_threads() == 2
    assert warnings == []
    out = distill.run(make(threads=1), QUIET).path
    assert torch.get_num_threads() == 1
    assert warnings == [
        "threads 2 before, 1 now: sums are rounded otherwise, so this run will not be bit for bit what it "
        "would have been. Results are equal for equal numbers of threads and processes only."
    ]
    found = facts(out)
    assert found["threads"] == 1
    assert [(m["from_step"], m["threads"]) for m in found["machines"]] == [(0, 2), (2, 1)]
    assert found["config"]["threads"] == 1


def test_the_same_threads_are_not_worth_a_word(make: Any, warnings: list[str]) -> None:
    with pytest.raises(Preempted):
        distill.run(make(threads=1), QUIET, stop=StopAfter(2))
    out = distill.run(make(threads=1, workers=1), QUIET).path
    assert warnings == []
    (machine,) = facts(out)["machines"]
    assert machine == {"from_step": 0, "device": "cpu", "threads": 1, "world_size": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world_size": 2}, "world size 1 before, 2 now"),
        ({"device": "H100"}, "device cpu before, H100 now"),
        ({"device": "H100", "threads": 4}, "device cpu before, H100 now: sums"),
    ],
)
def test_processes_and_devices_too(change: dict[str, Any], said: str) -> None:
    progress, machine = Progress(step=7), {"device": "cpu", "threads": 2, "world_size": 1}
    assert progress.goes_on(machine) == ""
    assert said in progress.goes_on({**machine, **change})
    assert progress.machines[1] == {"from_step": 7, **machine, **change}


def test_threads_of_the_host_of_a_gpu_are_no_matter() -> None:
    progress, machine = Progress(), {"device": "H100", "threads": 2, "world_size": 1}
    progress.goes_on(machine)
    assert progress.goes_on({**machine, "threads": 64}) == ""
    assert len(progress.machines) == 1


def test_pictures_that_are_made_with_other_threads(
    pictures: Path, tmp_path: Path, warnings: list[str]
) -> None:
    def plan(threads: int) -> Any:
        return synthesis_plan(pictures, tmp_path / "out", mixer="cutmix", threads=threads, commit_images=8)

    with pytest.raises(Preempted):
        synthesize.run(plan(2), QUIET, stop=StopAfter(3))
    assert not any("threads" in text for text in warnings)
    out = synthesize.run(plan(1), QUIET).path
    assert [text.partition(":")[0] for text in warnings if "threads" in text] == ["threads 2 before, 1 now"]
    found = facts(out)["machines"]
    assert [machine["threads"] for machine in found] == [2, 1]
    assert found[0]["from_picture"] == 0 < found[1]["from_picture"] < 40
    assert not (out / MACHINES).exists()
