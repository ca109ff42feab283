"""Peers that share a trunk, and an ensemble of them as the teacher.

ONE (Lan et al. 2018, arXiv 1806.04606), z_e = Σ_m g_m z_m with a gate g on the trunk's map:

    L = Σ_m CE(z_m, y) + CE(z_e, y) + w·Σ_m T²·KL(softmax(z_e/T) ‖ softmax(z_m/T)), z_e constant in the KL

OKDDip (Chen et al. 2020, arXiv 1912.00350), t_i = Σ_j A_ij z_j by attention over M peers, and a leader L:

    L = Σ_i CE(z_i, y) + CE(z_L, y)
        + w·[Σ_i T²·KL(softmax(t_i/T) ‖ softmax(z_i/T)) + T²·KL(softmax(z̄/T) ‖ softmax(z_L/T))]
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses import peers
from kdcli.methods.parts import Fraction
from kdcli.models.adapters import Gate, PeerAttention
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, RampUp, Term, Turn

Layout = Literal["branches", "networks"]


def stacked(*rows: Tensor) -> Tensor:
    """[B, M, …] of M tensors [B, …]."""
    return torch.stack(rows, dim=1)


def gated(scores: Tensor, peer_logits: Tensor) -> Tensor:
    """[B, 1, C], the gated ensemble of [B, M] scores and [B, M, C] logits."""
    return peers.gated_logits(scores, peer_logits)[:, None]


def first(rows: Tensor) -> Tensor:
    """[B, C] of [B, 1, C]."""
    return rows[:, 0]


def one(
    task: Task,
    *,
    branches: Annotated[int, Field(ge=2)] = 3,
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
    parties, calls = _peers(branches, layout, trunk, "branch")
    names = [call.name for call in calls]
    gate = Party("gate", "trained", build=partial(Gate, branches=branches), reads=(f"s.{_map(trunk)}",))
    supervised = task.supervised("s")
    derives = (
        Derive("peers", stacked, tuple(f"{name}.logits" for name in names)),
        Derive("ensemble", gated, ("gate.out", "peers")),
        Derive("ensemble_logits", first, ("ensemble",)),
    )
    terms = (
        *(replace(task.supervised(name), name=_named("ce", name)) for name in names),
        replace(supervised, name="ce-ensemble", args=("ensemble_logits", *supervised.args[1:])),
        Term(
            "kl",
            peers.peer_kl,
            ("peers", "~ensemble"),
            RampUp(weight, ramp),
            {"temperature": temperature},
        ),
    )
    gate_call = Call("gate", "gate", (f"s.{_map(trunk)}",))
    turn = Turn("all", tuple(p.name for p in (*parties, gate)), (*calls, gate_call), terms, derives)
    return Method("one", (*parties, gate), (Phase((turn,)),), beside=tuple(p.name for p in parties[1:]))


def okddip(
    task: Task,
    *,
    auxiliary: Annotated[int, Field(ge=2)] = 3,
    layout: Layout = "branches",
    trunk: str = "block-2",
    temperature: float = 3.0,
    weight: float = 1.0,
    ramp: Fraction = 80 / 300,
    detach_targets: bool = False,
) -> Method:
    """Peers with targets of their own by attention, and a leader that follows their mean; it is exported.

    Three auxiliary peers and the leader are the authors' four branches; ``layout=networks`` gives each a
    whole network. Peers are written beside the leader, as whole networks. The authors' code detaches nothing:
    gradient reaches the peers through their own targets, and the leader's loss moves them.
    ``detach_targets`` makes constants of both, but for W_q and W_k. KL's weight grows over 80 of 300 epochs,
    and attention is not scaled by √d.
    """
    parties, calls = _peers(auxiliary + 1, layout, trunk, "peer")
    names = [call.name for call in calls[1:]]
    mark = "~" if detach_targets else ""
    attention = Party("attention", "trained", build=PeerAttention, reads=("s.pooled",))
    seen = tuple(f"{mark}{name}.{tap}" for tap in ("pooled", "logits") for name in names)
    derives = (Derive("peers", stacked, tuple(f"{name}.logits" for name in names)),)
    terms = (
        *(replace(task.supervised(call.name), name=_named("ce", call.name)) for call in calls),
        Term(
            "kl",
            peers.okddip,
            ("peers", "attention.out", "s.logits"),
            RampUp(weight, ramp),
            {"temperature": temperature, "detach_targets": detach_targets},
        ),
    )
    everyone = (*parties, attention)
    turn = Turn(
        "all",
        tuple(p.name for p in everyone),
        (*calls, Call("attention", "attention", seen)),
        terms,
        derives,
    )
    return Method("okddip", everyone, (Phase((turn,)),), beside=tuple(p.name for p in parties[1:]))


def _peers(count: int, layout: Layout, trunk: str, name: str) -> tuple[tuple[Party, ...], tuple[Call, ...]]:
    """The student and its peers: branches on its trunk, or networks of their own."""
    tail, inputs = (trunk, (f"s.{trunk}",)) if layout == "branches" else ("", ("x",))
    others = [Party(f"{name}{i}", "trained", "student", seed=i - 1, tail=tail) for i in range(2, count + 1)]
    calls = [Call(f"b{i}", party.name, inputs) for i, party in enumerate(others, 2)]
    return (Party("student", "trained", "student"), *others), (Call("s", "student"), *calls)


def _map(trunk: str) -> str:
    return trunk.replace("block", "map")


def _named(term: str, call: str) -> str:
    return term if call == "s" else f"{term}-{call}"
