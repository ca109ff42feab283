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
from kdcli.words.answers import (
    answers,
    calibrated,
    mended,
    placed_taps,
    shown_whole,
    swapped,
    without_errors,
)

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


ROWS = torch.tensor([[3.0, 1.0, 0.5], [0.2, 2.0, 1.0], [1.0, 4.0, 2.0], [5.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2, 0, -1])  # right, wrong, wrong, unlabelled
LABELLED = LABELS >= 0


def test_a_wrong_top_changes_places_with_the_true_class() -> None:
    wanted = ROWS.tolist()
    for row, label in zip(wanted, LABELS.tolist()):
        top = row.index(max(row))
        if label >= 0 and top != label:
            row[label], row[top] = row[top], row[label]
    found = swapped(ROWS, LABELS, LABELLED)
    assert found.tolist() == wanted
    assert found.argmax(dim=1).tolist() == [0, 2, 0, 0]
    assert torch.equal(found.sort(dim=1).values, ROWS.sort(dim=1).values), "the same probabilities"


def test_wrong_rows_are_left_to_the_student() -> None:
    student = -ROWS
    found = without_errors(ROWS, LABELS, LABELLED, student)
    assert torch.equal(found[[0, 3]], ROWS[[0, 3]])
    assert torch.equal(found[[1, 2]], student[[1, 2]])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", ["kd", "task-specific", "dkd"])
def test_rows_that_are_left_out_teach_nothing(name: str, temperature: float) -> None:
    student, teacher = Given(0), Given(1)
    method = mended(calibrated(made(name), "teacher", temperature), "teacher", "leave-out")
    (turn,) = method.turns
    assert answers(turn, "teacher", ("x",)) == ("t.logits" if temperature == 1 else "t_calibrated")
    module = TurnModule(turn, {"student": student, "teacher": teacher.requires_grad_(False)})
    top = teacher.rows.argmax(dim=1)
    y = torch.where(torch.arange(6) < 3, (top + 1) % 3, top)  # wrong about the first three
    batch = {"x": torch.arange(6), "y": y, "target": y, "labelled": torch.ones(6, dtype=torch.bool)}
    terms = [t for t in turn.terms if t.name != "ce"]
    assert len(terms) == 1
    module.term(terms[0], dict(batch), torch.ones(2)).backward()
    assert student.rows.grad is not None
    assert student.rows.grad[:3].abs().max() < 1e-6
    assert student.rows.grad[3:].abs().min(dim=1).values.min() > 0


def test_swapped_answers_are_learned_at_the_calibrated_temperature() -> None:
    student, teacher = Given(0), Given(1)
    (turn,) = mended(calibrated(made("task-specific"), "teacher", 2.0), "teacher", "swap").turns
    module = TurnModule(turn, {"student": student, "teacher": teacher.requires_grad_(False)})
    y = torch.tensor([0, 1, 2, 0, 1, -1])
    batch = {"x": torch.arange(6), "target": y, "labelled": y >= 0}
    found = module(batch, torch.ones(2), 0.0)["kl"]
    wanted = kl_divergence(student.rows, swapped(teacher.rows / 2, y, y >= 0))
    torch.testing.assert_close(found, wanted.detach())


def test_errors_of_methods_without_answers_and_kept_ones_change_nothing() -> None:
    method = made("kd")
    assert mended(method, "teacher", "keep") is method
    assert mended(made("rkd"), "teacher", "swap") == made("rkd")


@pytest.mark.parametrize(("name", "placed"), [("kd", []), ("rkd", []), ("at", ["t.stage1"]), ("dkd", [])])
def test_what_is_seen_whole(name: str, placed: list[str]) -> None:
    method = made(name)
    assert placed_taps(method, "teacher")[: len(placed)] == placed
    (turn,) = shown_whole(method, "teacher").turns
    inputs = {call.name: call.inputs for call in turn.calls}
    assert (inputs["s"], inputs["t"]) == (("x",), ("x@plain",))
    assert cacheable_calls(shown_whole(made("kd"), "teacher")) == {"t": "x@plain"}


def test_turns_that_do_not_train_the_student_see_what_they_saw() -> None:
    generator, student = shown_whole(made("dafl"), "teacher").turns
    assert (generator, student) == made("dafl").turns
