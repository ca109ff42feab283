"""A method that has every word: a queue, an edit with a cumulative mask, a projection, groups, views."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.words import Call, Derive, Edit, Method, Party, Phase, State, Term, Turn

QUEUE, WIDTH = 12, 6  # as many rows as one and a half batches, so that they wrap around
State_ = dict[str, Tensor]


def first_keys(logits: tuple[int, ...]) -> State_:
    """A queue [12, C] of rows that are drawn, laid out column by column, and how many were put in."""
    return {"keys": torch.randn(*logits, QUEUE).t(), "count": torch.zeros((), dtype=torch.long)}


def enqueued(state: State_, rows: Tensor) -> tuple[Tensor, State_]:
    """The queue as it was; then the oldest rows give way."""
    place = (state["count"] + torch.arange(len(rows), device=rows.device)) % QUEUE
    keys = state["keys"].index_copy(0, place, rows.to(state["keys"].dtype))
    return state["keys"], {"keys": keys, "count": state["count"] + len(rows)}


def contrast(rows: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """InfoNCE of rows [B, C] with what the teacher says of them, against a queue [K, C]."""
    positive = (rows * own).sum(1, keepdim=True)
    return (torch.cat([positive, rows @ others.t()], dim=1).logsumexp(1) - positive[:, 0]).mean()


def square(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference."""
    return ((a - b) ** 2).mean()


def first_mask(weight: tuple[int, ...]) -> State_:
    """No row of a weight [D, …] is masked, nothing was seen."""
    return {
        "masked": torch.zeros(weight[0], dtype=torch.bool),
        "score": torch.zeros(weight[0]),
        "seen": torch.zeros(4, dtype=torch.int32),
    }


def counted(state: State_, y: Tensor) -> tuple[Tensor, State_]:
    """How often each class was seen: nobody reads it but who reads the state."""
    found = torch.bincount(y.clamp(min=0), minlength=4).to(torch.int32)
    return found, {"seen": state["seen"] + found}


def pruned(
    state: State_, gradients: State_, weights: State_, *, lasso: float
) -> tuple[State_, tuple[State_, ...] | State_]:
    """The row of the least gradient so far is masked, its gradient reset; the others have a lasso's."""
    (name,) = gradients
    score = state["score"] + gradients[name].flatten(1).norm(dim=1)
    worst = score.masked_fill(state["masked"], torch.inf).argmin()
    masked = state["masked"].index_fill(0, worst, True) if state["masked"].sum() < 3 else state["masked"]
    weight = weights[name].flatten(1)
    penalty = (lasso * weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)).view_as(weights[name])
    kept = ~masked.view(-1, *[1] * (weights[name].ndim - 1))
    return {name: (gradients[name] + penalty) * kept}, {"masked": masked, "score": score}


def projected(weights: State_, *, most: float) -> State_:
    """Rows no longer than ``most``."""
    return {
        name: F.normalize(w, dim=1) * w.norm(dim=1, keepdim=True).clamp(max=most)
        for name, w in weights.items()
    }


def adapter(logits: tuple[int, ...]) -> nn.Module:
    """Two layers on the student's logits."""
    return nn.Sequential(nn.Linear(*logits, WIDTH), nn.Tanh(), nn.Linear(WIDTH, *logits))


class Judge(nn.Module):
    """Of two views' logits: a frozen layer with a batch norm, to be called in eval mode only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2 * width, 3), nn.BatchNorm1d(3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert not self.training
        return self.norm(self.layer(torch.cat([a, b], dim=1)))


class Constant(nn.Module):
    """What a call without inputs returns."""

    def forward(self) -> Tensor:
        return torch.linspace(0, 1, 3)[None]


def judge(logits: tuple[int, ...]) -> nn.Module:
    """See :class:`Judge`."""
    return Judge(*logits)


def toy(task: object) -> Method:
    """Everything at once."""
    queue = State("queue", first_keys, ("t.logits",))
    mask = State("mask", first_mask, ("s:conv1.0.weight",))
    parties = (
        Party("student", "trained", "student"),
        Party("teacher", "frozen", "teacher"),
        Party("adapter", "trained", build=adapter, reads=("s.logits",)),
        Party("judge", "frozen", build=judge, reads=("s.logits",)),
        Party("constant", "frozen", build=Constant),
    )
    turn = Turn(
        "student",
        trains=("student", "adapter"),
        calls=(
            Call("s", "student"),
            Call("s@1", "student", ("x@1",)),
            Call("t", "teacher", ("x@plain",)),
            Call("a", "adapter", ("s.logits",)),
            Call("j", "judge", ("a.out", "~s@1.logits")),
            Call("c", "constant", ()),
        ),
        terms=(
            *task.supervised("s"),  # type: ignore[attr-defined]
            Term("contrast", contrast, ("a.out", "~t.logits", "~bank"), 0.3),
            Term("judged", square, ("j.out", "c.out"), 0.2),
            Term("among", contrast, ("a.out", "~t.logits", "~t.logits"), 0.1, scope="batch", rows="labelled"),
        ),
        derives=(
            Derive("bank", enqueued, ("~t.logits",), scope="batch", state=queue),
            Derive("classes", counted, ("y",), scope="batch", state=mask),
        ),
        optim={"clip_grad": 2.0},
        groups={"adapter": {"lr": 5e-3, "weight_decay": 0.0}},
        edits=(
            Edit("prune", "gradient", "student", ("body.conv1.0.weight",), pruned, {"lasso": 1e-3}, mask),
            Edit("project", "weights", "adapter", ("*.weight",), projected, {"most": 0.7}),
        ),
    )
    return Method("toy", parties, (Phase((turn,)),))
