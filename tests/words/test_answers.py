"""A teacher's logits over a temperature: where they are read so, and where they are left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcli.engine.turn import TurnModule
from kdcli.losses.logits import kl_divergence
from kdcli.methods import arguments, function
from kdcli.tasks import task_named
from kdcli.words import Method
from kdcli.words.analysis import cacheable_calls, references, taps_used, without_zero_terms
from kdcli.words.answers import answers, calibrated

TASK = task_named("classification", ["a", "b", "c"])


def made(name: str) -> Method:
    return without_zero_terms(function(name)(TASK, **arguments(name, {})))


@pytest.mark.parametrize("name", ["kd", "task-specific", "dkd", "kd-pt", "sskd", "fitnets", "eskd"])
def test_terms_read_divided_logits_and_caches_raw_ones(name: str) -> None:
    method = made(name)
    changed = calibrated(method, "teacher", 2.5)
    for before, after in zip(method.turns, changed.turns, strict=True):
        assert taps_used(before)["t"] == taps_used(after)["t"] if "t" in taps_used(before) else True
        reads = [r for term in after.terms for r in term.args]
        assert not {"t.logits", "~t.logits"} & set(reads)
        if any(r.removeprefix("~") == "t.logits" for r in references(before)):
            (derive,) = (d for d in after.derives if d.out == "t_calibrated")
            assert (derive.args, derive.keywords) == (("~t.logits",), {"temperature": 2.5})
            assert "~t_calibrated" in references(after)
    assert cacheable_calls(changed) == cacheable_calls(method)


def test_a_temperature_of_one_changes_nothing() -> None:
    method = made("kd")
    assert calibrated(method, "teacher", 1.0) is method


def test_features_and_other_turns_are_left() -> None:
    assert calibrated(made("rkd"), "teacher", 2.0) == made("rkd")
    generator, student = calibrated(made("dafl"), "teacher", 2.0).turns
    assert generator == made("dafl").turns[0]
    assert student.terms[0].args == ("s.logits", "~t_calibrated")


def test_the_reference_of_the_answers() -> None:
    (turn,) = made("kd").turns
    (changed,) = calibrated(made("kd"), "teacher", 2.0).turns
    assert answers(turn, "teacher", ("x",)) == "t.logits"
    assert answers(changed, "teacher", ("x",)) == "t_calibrated"
    assert answers(made("rkd").turns[0], "teacher", ("x",)) == ""
    assert answers(made("dafl").turns[1], "teacher", ("x", "x@plain")) == ""


class Given(nn.Module):
    """Logits as parameters; the tap is ``logits``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(5 * torch.randn(6, 3, generator=generator))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.rows[x]}


@pytest.mark.parametrize("cached", [False, True])
def test_the_loss_is_that_of_divided_logits(cached: bool) -> None:
    student, teacher = Given(0), Given(1)
    (turn,) = calibrated(made("task-specific"), "teacher", 3.0).turns
    module = TurnModule(turn, {"student": student, "teacher": teacher.requires_grad_(False)})
    y = torch.tensor([0, 1, 2, 0, 1, -1])
    batch = {"x": torch.arange(6), "target": y, "labelled": y >= 0}
    if cached:
        batch["t.logits"] = teacher.rows.detach()
    found = module(batch, torch.ones(2), 0.0)
    wanted = kl_divergence(student.rows, teacher.rows / 3)
    torch.testing.assert_close(found["kl"], wanted.detach())
    found["loss"].backward()
    assert student.rows.grad is not None
