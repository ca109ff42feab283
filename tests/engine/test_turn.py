"""A turn in one process: shares of rows, detached calls, cached columns, lists of taps."""

import pytest
import timm
import torch
from torch import nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.turn import TurnModule
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.models.timm import TimmModel
from kdcli.words import Call, Term, Turn


class Table(nn.Module):
    """Rows of logits as parameters; x selects them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[x]


TURN = Turn(
    "student",
    ("student",),
    (Call("s", "student"), Call("t", "teacher")),
    (
        Term("ce", cross_entropy, ("s.out", "y"), weight=0.5, rows="labelled"),
        Term("kl", kl_divergence, ("s.out", "~t.out"), weight=lambda done: 0.25 * done),
    ),
)


def step(parts, labelled, done=2.0):
    networks = {"student": Table(0), "teacher": Table(1).requires_grad_(False)}
    module = TurnModule(TURN, networks)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    mask = torch.tensor(labelled, dtype=torch.bool)
    total = 0.0
    for rows in parts:
        index = torch.tensor(rows)
        batch = {"x": index, "y": y[index], "labelled": mask[index]}
        share = torch.tensor([len(rows) / 8, float(mask[index].sum()) / max(int(mask.sum()), 1)])
        terms = module(batch, share, done)
        terms["loss"].backward()
        total += float(terms["loss"].detach())
    return networks["student"].rows.grad, total


@pytest.mark.parametrize("labelled", [[1] * 8, [1, 1, 0, 0, 0, 0, 0, 1], [0] * 8])
def test_any_division_of_the_batch_gives_the_same_gradient(labelled):
    whole, loss = step([range(8)], labelled)
    for parts in ([range(4), range(4, 8)], [[i] for i in range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]):
        gradient, total = step([list(p) for p in parts], labelled)
        torch.testing.assert_close(gradient, whole)
        assert total == pytest.approx(loss, rel=1e-6)


def test_the_objective_is_the_weighted_sum():
    _, loss = step([range(8)], [1, 0, 1, 0, 0, 0, 0, 0], done=3.0)
    student, teacher = Table(0).rows.detach(), Table(1).rows.detach()
    ce = nn.functional.cross_entropy(student[[0, 2]], torch.tensor([0, 2]))
    kl = nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    assert loss == pytest.approx(float(0.5 * ce + 0.75 * kl), rel=1e-6)


def test_a_cached_column_stands_for_a_call():
    class Refuses(nn.Module):
        def forward(self, x):
            raise AssertionError("the teacher was called")

    module = TurnModule(TURN, {"student": Table(0), "teacher": Refuses()})
    batch = {
        "x": torch.arange(8),
        "y": torch.zeros(8, dtype=torch.long),
        "labelled": torch.ones(8, dtype=torch.bool),
    }
    live = TurnModule(TURN, {"student": Table(0), "teacher": Table(1)})(batch, torch.ones(2), 1.0)
    cached = module({**batch, "t.out": Table(1).rows.detach()}, torch.ones(2), 1.0)
    assert torch.equal(live["loss"], cached["loss"])


def test_only_the_trained_party_is_a_child_and_trains():
    student, teacher = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Dropout())
    turn = Turn("student", ("student",), (Call("s", "student"), Call("t", "teacher")), ())
    module = TurnModule(turn, {"student": student, "teacher": teacher}).train()
    assert student.training
    assert not teacher.training
    assert list(module.state_dict()) == ["trained.student.0.weight", "trained.student.0.bias"]
    assert module.party("teacher") is teacher


def test_detached_calls_keep_no_graph():
    seen = []
    teacher = Table(1)
    teacher.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    batch = {
        "x": torch.arange(8),
        "y": torch.zeros(8, dtype=torch.long),
        "labelled": torch.ones(8, dtype=torch.bool),
    }
    TurnModule(TURN, {"student": Table(0), "teacher": teacher})(batch, torch.ones(2), 1.0)["loss"].backward()
    assert seen == [False]
    assert teacher.rows.grad is None


def test_taps_of_a_real_network_parameters_and_lists():
    body = timm.create_model("test_resnet", num_classes=3)
    network = TimmModel(body, InputSpec((32, 32)), ["a", "b", "c"], name="toy")

    def norms(weight, maps):
        assert weight.shape[0] == 3
        return weight.sum() * 0 + sum(m.float().pow(2).mean() for m in maps)

    terms = (
        Term("norms", norms, ("s:fc.weight", "~s.BatchNorm2d.in")),
        Term("ce", cross_entropy, ("s.logits", "y"), rows="labelled"),
    )
    module = TurnModule(Turn("student", ("student",), (Call("s", "student"),), terms), {"student": network})
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labelled = torch.tensor([True, False, True, False])
    out = module({"x": x, "y": torch.tensor([0, -1, 1, -1]), "labelled": labelled}, torch.ones(2), 0.0)
    out["loss"].backward()
    assert float(out["norms"]) > 0
    assert all(p.grad is not None for p in body.conv1.parameters())
