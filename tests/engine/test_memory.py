"""Batches are split further until a step fits into memory, by injected faults: results do not change."""

from types import SimpleNamespace

import pytest
import torch
from test_resume import StopAfter, finished, make_plan
from toolbox import QUIET, facts

from kdcli.engine.memory import micro_batches_that_fit
from kdcli.engine.turn import TurnModule
from kdcli.errors import EnvironmentFault, Preempted, UsageError
from kdcli.stages import distill

RUNTIME = SimpleNamespace(largest=lambda values: values, device=torch.device("cpu"))
MORE = {"optim.batch_size": 12, "optim.max_steps": 4, "optim.accumulate": 1}


@pytest.fixture
def little_memory(monkeypatch):
    """Lets a turn have four rows."""
    forward, sizes = TurnModule.forward, []

    def limited(self, batch, *rest):
        sizes.append(len(batch["x"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, *rest)

    monkeypatch.setattr(TurnModule, "forward", limited)
    return sizes


@pytest.mark.parametrize(
    ("start", "rows", "fits", "expected"), [(1, 12, 12, 1), (1, 12, 5, 4), (3, 12, 1, 12)]
)
def test_the_least_split_that_fits(start, rows, fits, expected):
    def trial(accumulate):
        if rows // accumulate > fits:
            raise MemoryError

    assert micro_batches_that_fit(trial, start, rows, RUNTIME) == expected


def test_nothing_fits_and_other_errors_are_not_hidden():
    def trial(accumulate):
        raise RuntimeError("can't allocate memory" if accumulate < 3 else "a bug")

    with pytest.raises(EnvironmentFault, match="out of memory with one picture at a time"):
        micro_batches_that_fit(trial, 1, 2, RUNTIME)
    with pytest.raises(RuntimeError, match="a bug"):
        micro_batches_that_fit(trial, 3, 6, RUNTIME)


def test_a_split_batch_gives_the_same_student(pictures, teacher, tmp_path, little_memory):
    by_hand = make_plan("cached", pictures, teacher, tmp_path / "hand", **{**MORE, "optim.accumulate": 4})
    distill.run(by_hand, QUIET)
    little_memory.clear()
    split = make_plan("cached", pictures, teacher, tmp_path / "split", **MORE, **{"optim.auto_batch": True})
    with pytest.raises(Preempted, match="after step 2 of 4"):
        distill.run(split, QUIET, stop=StopAfter(2))
    distill.run(split, QUIET)
    assert (
        little_memory == [12, 6, 3, 3] + [3] * 4 * 4
    )  # the split that fits is tried with both ends of schedules
    assert facts(split.target.path)["accumulate"] == 4
    files, other = (finished(p.target.path)[0] for p in (split, by_hand))
    assert files["model.safetensors"] == other["model.safetensors"]


@pytest.mark.parametrize(
    ("scene", "more", "message"),
    [
        ("batchnorm", {}, r"has batch norms, whose statistics are those of a micro-batch\. Set optim\.acc"),
        ("cached", {"optim.mixup": 0.2}, "mixup and CutMix pair the pictures of a micro-batch"),
    ],
)
def test_what_depends_on_the_split_is_refused(scene, more, message, pictures, teacher, tmp_path):
    with pytest.raises(UsageError, match=message):
        make_plan(scene, pictures, teacher, tmp_path / "out", **{"optim.auto_batch": True, **more})
