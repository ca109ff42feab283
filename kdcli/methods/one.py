"""On-the-fly native ensemble: Lan et al. 2018, arXiv 1806.04606 (ONE). Branches of one trunk.

L = Σ_m CE(z_m, y) + CE(z_e, y) + w·Σ_m T²·KL(softmax(z_e/T) ‖ softmax(z_m/T)), z_e constant in the KL
z_e = Σ_m g_m z_m, g = softmax(ReLU(BN(W·mean over positions of the trunk's map)))
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from kdcli.losses.peers import gated_logits, peer_kl
from kdcli.methods.parts import Fraction, Layout, Several, labels_of, peers, stacked
from kdcli.methods.trainings import SMALL_PICTURES, keys, published, sgd
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, RampUp, Term, Turn


class Gate(nn.Module):
    """Scores of M branches from the trunk's map.

    Args:
        trunk: shape [C, H, W].
        branches: M.
    """

    def __init__(self, trunk: tuple[int, ...], *, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(trunk[0], branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M] of [B, C, H, W], before the softmax."""
        return self.norm(self.linear(x.mean(dim=(2, 3)))).relu()


def gated(scores: Tensor, peer_logits: Tensor) -> Tensor:
    """[B, 1, C], the gated ensemble of [B, M] scores and [B, M, C] logits."""
    return gated_logits(scores, peer_logits)[:, None]


def first(rows: Tensor) -> Tensor:
    """[B, C] of [B, 1, C]."""
    return rows[:, 0]


def one(
    task: Task,
    *,
    branches: Several = 3,
    layout: Layout = "branches",
    trunk: str = "block-2",
    temperature: float = 3.0,
    weight: float = 1.0,
    ramp: Fraction = 80 / 300,
) -> Method:
    """Branches on one trunk, taught by their gated ensemble; the first branch is exported ("ONE").

    The others are written beside it, as whole networks with its trunk: ``kdcli eval OUT OUT/branch2
    OUT/branch3`` shows how they differ, and their mean. "ONE-E", the gated mean, is not exported.

    The trunk ends at the last block but one (``trunk``); a branch is what follows, with weights of its own.
    The KL's weight grows over 80 of the authors' 300 epochs. Their code detaches the ensemble in the KL, so
    the gate learns from its cross-entropy only; it adds 1e-7 to the target probabilities, which is left out.
    """
    parties, calls = peers(branches, layout, trunk, "branch")
    trunk_map = f"s.{trunk.replace('block', 'map')}"
    gate = Party("gate", "trained", build=partial(Gate, branches=branches), reads=(trunk_map,))
    (hard,) = task.supervised("s")
    derives = (
        Derive("peers", stacked, tuple(f"{call.name}.logits" for call in calls)),
        Derive("ensemble", gated, ("gate.out", "peers")),
        Derive("ensemble_logits", first, ("ensemble",)),
    )
    terms = (
        *labels_of(task, calls),
        replace(hard, name="ce-ensemble", args=("ensemble_logits", *hard.args[1:])),
        Term("kl", peer_kl, ("peers", "~ensemble"), RampUp(weight, ramp), {"temperature": temperature}),
    )
    everyone = (*parties, gate)
    turn = Turn(
        "all",
        tuple(party.name for party in everyone),
        (*calls, Call("gate", "gate", (trunk_map,))),
        terms,
        derives,
    )
    training = sgd(lr=0.1, weight_decay=1e-4, epochs=300, batch=128, drops=(151, 225))
    parameters = keys("method", branches=3, temperature=3.0, weight=1.0, ramp=80 / 300)
    recipe = published(
        "cifar-100",
        {**training, **SMALL_PICTURES, **parameters},
        "the authors' cifar_one.py and ONE_ResNet32.sh",
        {"optim.weight_decay": "--wd 1e-4 of the scripts, where the code's default is 5e-4"},
        taught=False,
    )
    beside = tuple(party.name for party in parties[1:])
    return Method("one", everyone, (Phase((turn,)),), beside=beside, recipes=(recipe,))
