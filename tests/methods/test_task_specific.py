"""The loss of task-specific distillation through the real method and the real turn, on given logits."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.turn import TurnModule
from kdcli.methods.task_specific import task_specific
from kdcli.models.timm import TimmModel
from kdcli.tasks.classification import Classification
from kdcli.words.analysis import without_zero_terms

CE = 2.6455927  # cross-entropy of the six labelled rows
# (T, T² or not) to the whole loss at alpha 0.5
TOTAL = {(1.0, False): 1.8240699, (2.0, False): 1.5074844, (2.0, True): 2.0615487}
TOTAL |= {(4.0, False): 1.3763953, (4.0, True): 2.1803808}


def g(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Given(nn.Module):
    """Logits that are the parameter itself."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == len(self.logits)
        return self.logits * 1.0


def party(logits: Tensor) -> TimmModel:
    return TimmModel(Given(logits), InputSpec((2, 2)), [str(i) for i in range(7)], name="given")


S = torch.cat([g(6, 7, seed=1), g(4, 7, seed=3)])
T = torch.cat([2 * g(6, 7, seed=2), 2 * g(4, 7, seed=4)])
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, -1, -1, -1, -1])


def run(student: TimmModel, teacher: TimmModel, rows: slice, **settings: float | bool) -> dict[str, Tensor]:
    task = Classification(tuple(str(i) for i in range(7)))
    method = without_zero_terms(task_specific(task, **settings))  # type: ignore[arg-type]
    module = TurnModule(method.phases[0].turns[0], {"student": student, "teacher": teacher}).train()
    y = LABELS[rows]
    share = torch.tensor([len(y) / 10, float((y >= 0).sum()) / 6])
    batch = {"x": torch.zeros(len(y), 3, 2, 2), "y": y, "target": y, "labelled": y >= 0}
    return module(batch, share, 0.0)


@pytest.mark.parametrize(("temperature", "t_squared"), TOTAL)
def test_golden_values(temperature: float, t_squared: bool) -> None:
    found = run(party(S), party(T), slice(None), alpha=0.5, temperature=temperature, t_squared=t_squared)
    assert found["ce"].item() == pytest.approx(CE, rel=1e-6)
    assert found["loss"].item() == pytest.approx(TOTAL[temperature, t_squared], rel=1e-6)
    total = 0.5 * found["ce"] + 0.5 * found["kl"]
    torch.testing.assert_close(found["loss"].detach(), total)


def test_unlabelled_rows_have_no_part_in_the_supervised_gradient() -> None:
    gradients = {}
    for alpha in (0.0, 0.5, 1.0):
        student, teacher = party(S), party(T)
        run(student, teacher, slice(None), alpha=alpha)["loss"].backward()
        gradients[alpha] = student.body.logits.grad
        assert teacher.body.logits.grad is None
    assert torch.count_nonzero(gradients[0.0][6:]) == 0
    assert gradients[0.0][:6].abs().sum(dim=1).min() > 0
    # d KL / d z = (softmax(s) − softmax(t)) / N, and for unlabelled rows that is all
    kl = (S.softmax(dim=1) - T.softmax(dim=1)) / 10
    torch.testing.assert_close(gradients[0.5][6:], 0.5 * kl[6:])
    torch.testing.assert_close(gradients[1.0], kl)
    ce = (S[:6].softmax(dim=1) - torch.eye(7)[:6]) / 6
    torch.testing.assert_close(gradients[0.5][:6], 0.5 * kl[:6] + 0.5 * ce)


@pytest.mark.parametrize("cuts", [[5], [6], [2, 7], [6, 8]], ids=str)
def test_micro_batches_add_up_to_the_batch(cuts: list[int]) -> None:
    whole, teacher = party(S), party(T)
    run(whole, teacher, slice(None), temperature=2.0)["loss"].backward()
    bounds = [0, *cuts, 10]
    total, pieces = 0.0, []
    for begin, end in itertools.pairwise(bounds):
        part = party(S[begin:end])
        loss = run(part, party(T[begin:end]), slice(begin, end), temperature=2.0)["loss"]
        loss.backward()
        total += loss.item()
        pieces.append(part.body.logits.grad)
    assert total == pytest.approx(TOTAL[2.0, False], rel=1e-6)
    torch.testing.assert_close(torch.cat(pieces), whole.body.logits.grad)


def test_a_batch_without_labels_learns_from_the_teacher_alone() -> None:
    student = party(S[6:])
    found = run(student, party(T[6:]), slice(6, 10), alpha=0.5)
    assert found["ce"].item() == 0
    found["loss"].backward()
    assert torch.isfinite(student.body.logits.grad).all()
    assert student.body.logits.grad.abs().sum() > 0


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_annealing_ends_with_the_labels(alpha: float) -> None:
    task = Classification(tuple(str(i) for i in range(7)))
    (turn,) = task_specific(task, alpha=alpha, annealing=True).turns
    weights = {term.name: term.weight for term in turn.terms}
    for done in (0.0, 0.25, 1.0):
        left = alpha * (1 - done)
        assert callable(weights["kl"])
        assert callable(weights["ce"])
        assert weights["kl"](done) == pytest.approx(left)
        assert weights["ce"](done) == pytest.approx(1 - left)
