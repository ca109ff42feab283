"""Losses among peers against naive loops; who takes gradient from whom."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, labels, soften
from torch import Tensor

from kdcli.losses.logits import cross_entropy
from kdcli.losses.peers import (
    diversity,
    dml,
    gated_logits,
    okddip,
    peer_attention,
    peer_kl,
    peer_targets,
)


def naive_kl(s: list[float], t: list[float], temperature: float) -> float:
    pairs = zip(soften(t, temperature), soften(s, temperature))
    return temperature**2 * sum(q * math.log(q / p) for q, p in pairs)


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows)]


def naive_peer_kl(s: Any, t: Any, *, temperature: float) -> float:
    total = 0.0
    for students, teachers in zip(s, t):
        for m in range(max(len(students), len(teachers))):
            total += naive_kl(students[m % len(students)], teachers[m % len(teachers)], temperature)
    return total / len(s)


@pytest.mark.parametrize(("students", "teachers"), [(3, 3), (3, 1), (1, 3)])
def test_peer_kl_is_the_printed_sum(students: int, teachers: int) -> None:
    agree(
        peer_kl, naive_peer_kl, draw(4, students, 5), draw(4, teachers, 5, seed=1), temperature=3.0, rel=1e-4
    )


def naive_dml(s: Any, peers: Any, *, reduction: str, temperature: float) -> float:
    total = sum(naive_kl(row, other, temperature) for row, others in zip(s, peers) for other in others)
    return total / len(s) / (len(peers[0]) if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("peers", [1, 3])
def test_dml_is_the_printed_sum(reduction: str, peers: int) -> None:
    keywords = {"reduction": reduction, "temperature": 1.0}
    agree(dml, naive_dml, draw(4, 5), draw(4, peers, 5, seed=1), rel=1e-4, **keywords)


def test_dml_is_symmetric_under_swapping() -> None:
    """Two networks that change places change losses; identical ones teach nothing."""
    y, peers = labels(6, 5), draw(6, 2, 5).requires_grad_()

    def objective(one: Tensor, other: Tensor) -> Tensor:
        return cross_entropy(one, y) + dml(one, other.detach()[:, None])

    first = gradients(objective(peers[:, 0], peers[:, 1]), peers)[0]
    swapped = peers.detach().flip(1).requires_grad_()
    second = gradients(objective(swapped[:, 1], swapped[:, 0]), swapped)[0]
    assert torch.equal(first, second.flip(1))
    assert first[:, 1].abs().max() == 0
    assert dml(peers[:, 0], peers[:, :1].detach()).item() == 0


def naive_gated(gate: Any, peers: Any) -> list[list[float]]:
    found = []
    for scores, rows in zip(gate, peers):
        weight = soften(scores)
        found.append([sum(w * z for w, z in zip(weight, column)) for column in zip(*rows)])
    return found


def test_gated_logits_are_the_weighted_mean() -> None:
    agree(gated_logits, naive_gated, draw(4, 3), draw(4, 3, 5, seed=1))


def test_the_gate_learns_from_the_ensembles_labels_alone() -> None:
    gate, peers, y = draw(4, 3).requires_grad_(), draw(4, 3, 5, seed=1).requires_grad_(), labels(4, 5)
    ensemble = gated_logits(gate, peers)
    taught = peer_kl(peers, ensemble.detach()[:, None])
    assert gradients(taught, gate)[0].abs().max() == 0
    whole = cross_entropy(ensemble, y) + taught
    labels_only = gradients(cross_entropy(ensemble, y), gate)[0]
    assert labels_only.abs().max() > 0
    torch.testing.assert_close(gradients(whole, gate)[0], labels_only)


def naive_attention(f: Any, wq: Any, wk: Any) -> Any:
    def image(weight: Any, x: list[float]) -> list[float]:
        return [sum(w * v for w, v in zip(row, x)) for row in weight]

    found = []
    for peers in f:
        queries, keys = [image(wq, x) for x in peers], [image(wk, x) for x in peers]
        found.append([soften([sum(a * b for a, b in zip(q, k)) for k in keys]) for q in queries])
    return found


def test_peer_attention_is_the_printed_softmax() -> None:
    arguments = draw(4, 3, 8), 0.3 * draw(2, 8, seed=1), 0.3 * draw(2, 8, seed=2)
    agree(peer_attention, naive_attention, *arguments, rel=1e-4)
    torch.testing.assert_close(peer_attention(*arguments).sum(dim=2), torch.ones(4, 3))


def naive_targets(z: Any, f: Any, wq: Any, wk: Any, *, detach_targets: bool) -> Any:
    found = []
    for peers, weights in zip(z, naive_attention(f, wq, wk)):
        found.append([[sum(a * v for a, v in zip(row, column)) for column in zip(*peers)] for row in weights])
    return found


@pytest.mark.parametrize("detach", [False, True])
def test_peer_targets_are_the_attended_logits(detach: bool) -> None:
    arguments = draw(4, 3, 5), draw(4, 3, 8, seed=1), 0.3 * draw(2, 8, seed=2), 0.3 * draw(2, 8, seed=3)
    agree(peer_targets, naive_targets, *arguments, detach_targets=detach, rel=1e-4)


def naive_okddip(z: Any, t: Any, leader: Any, *, temperature: float, detach_targets: bool) -> float:
    total = 0.0
    for peers, targets, last in zip(z, t, leader):
        total += sum(naive_kl(row, target, temperature) for row, target in zip(peers, targets))
        total += naive_kl(last, mean(peers), temperature)
    return total / len(z)


@pytest.mark.parametrize("detach", [False, True])
def test_okddip_is_the_printed_sum(detach: bool) -> None:
    arguments = draw(4, 3, 5), draw(4, 3, 5, seed=1), draw(4, 5, seed=2)
    agree(okddip, naive_okddip, *arguments, temperature=3.0, detach_targets=detach, rel=1e-4)


@pytest.mark.parametrize("detach", [False, True])
def test_okddips_gradients(detach: bool) -> None:
    """W_q and W_k always learn; the authors' code also moves peers through targets and the leader's loss."""
    z, f, leader = (x.requires_grad_() for x in (draw(4, 3, 5), draw(4, 3, 8, seed=1), draw(4, 5, seed=2)))
    wq, wk = (0.3 * draw(2, 8, seed=seed) for seed in (3, 4))
    wq.requires_grad_(), wk.requires_grad_()
    targets = peer_targets(z, f, wq, wk, detach_targets=detach)
    total = okddip(z, targets, leader, detach_targets=detach)
    of_f, of_leader, of_q, of_k = gradients(total, f, leader, wq, wk)
    assert min(g.abs().max() for g in (of_leader, of_q, of_k)) > 0
    assert bool(of_f.abs().max() > 0) is not detach
    constant = targets.detach()
    peers_alone = gradients(peer_kl(z, constant), z)[0]
    assert torch.allclose(gradients(peer_kl(z, targets), z)[0], peers_alone) is detach
    with_leader = gradients(okddip(z, constant, leader, detach_targets=detach), z)[0]
    assert torch.allclose(with_leader, peers_alone) is detach


def naive_diversity(z: Any) -> float:
    total, count = 0.0, 0
    for peers in z:
        soft = [soften(row) for row in peers]
        for i in range(len(soft)):
            for j in range(i):
                total, count = total + math.dist(soft[i], soft[j]), count + 1
    return total / count


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_diversity_is_the_mean_distance_of_pairs(peers: int) -> None:
    agree(diversity, naive_diversity, draw(4, peers, 6))


def test_diversity_of_one_or_of_equal_peers() -> None:
    with pytest.raises(ValueError, match="diversity needs at least 2 peers, got 1"):
        diversity(draw(4, 1, 5))
    same = draw(4, 1, 5).repeat(1, 3, 1).requires_grad_()
    value = diversity(same)
    assert value.item() == 0
    assert gradients(value, same)[0].abs().max() == 0
