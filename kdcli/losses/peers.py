"""Losses among peers that learn together. Peers are stacked on an axis of their own: logits [B, M, C],
features [B, M, D].

Two networks that teach one another need no more than ``kl_divergence`` per pair; what is here serves M ≥ 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdcli.losses.logits import kl_divergence
from kdcli.losses.products import product


def peer_kl(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 3.0) -> Tensor:
    """Σ_m T²·KL(softmax(t_m/T) ‖ softmax(z_m/T)), mean over rows.

    The distillation term of ONE (Lan et al. 2018, arXiv 1806.04606: every branch follows the detached gated
    ensemble) and of OKDDip's first level (every peer follows its own target).

    Args:
        logits: students' [B, M, C], or [B, 1, C] for one student of M teachers.
        teacher_logits: [B, M, C], or [B, 1, C] for one teacher of all.
        temperature: T.
    """
    logits, teacher_logits = torch.broadcast_tensors(logits, teacher_logits)
    pairs = (logits.flatten(0, 1), teacher_logits.flatten(0, 1))
    return logits.shape[1] * kl_divergence(*pairs, temperature=temperature)


def dml(
    logits: Tensor,
    peer_logits: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    temperature: float = 1.0,
) -> Tensor:
    """Deep mutual learning, the part beside cross-entropy: Zhang et al. 2018, arXiv 1706.00384.

    Mean over the other peers of KL(p_j ‖ p_i). Peers are constants there: detach them.

    Args:
        logits: this network's [B, C].
        peer_logits: the others' [B, M − 1, C].
        reduction: ``mean`` as printed, 1/(M − 1); ``sum`` as in the authors' TensorFlow code. They differ
            from three networks on.
        temperature: T; 1 in the paper.
    """
    total = peer_kl(logits[:, None], peer_logits, temperature=temperature)
    return total / peer_logits.shape[1] if reduction == "mean" else total


def gated_logits(gate: Tensor, peer_logits: Tensor) -> Tensor:
    """ONE's ensemble z_e = Σ_m softmax(gate)_m·z_m, [B, C]: Lan et al. 2018, arXiv 1806.04606.

    Args:
        gate: scores [B, M], before the softmax (after the ReLU of the gate's own layers).
        peer_logits: branches' [B, M, C].
    """
    return (gate.float().softmax(dim=1)[:, :, None] * peer_logits.float()).sum(dim=1)


def peer_attention(features: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """OKDDip's weights A = softmax_j((W_q f_i)·(W_k f_j)), [B, M, M]: Chen et al. 2020, arXiv 1912.00350.

    Every peer attends to itself too; the scores are not divided by √d.

    Args:
        features: pooled [B, M, D] of the auxiliary peers; the leader takes no part.
        query: W_q [d, D], shared by all peers (d = D/8 in the paper).
        key: W_k [d, D].
    """
    queries, keys = product(features, query.mT), product(features, key.mT)
    return product(queries, keys.mT).softmax(dim=2)


def peer_targets(
    peer_logits: Tensor, features: Tensor, query: Tensor, key: Tensor, *, detach_targets: bool = False
) -> Tensor:
    """OKDDip's targets t_i = Σ_j A_ij·z_j in logit space, [B, M, C]: Chen et al. 2020, arXiv 1912.00350.

    Args:
        peer_logits: auxiliary peers' [B, M, C].
        features: their pooled features [B, M, D].
        query: W_q [d, D].
        key: W_k [d, D].
        detach_targets: the authors' code lets gradient reach the peers through their targets (False). True
            makes teachers of them: only W_q and W_k, which would else never train, take gradient.
    """
    if detach_targets:
        peer_logits, features = peer_logits.detach(), features.detach()
    return product(peer_attention(features, query, key), peer_logits)


def okddip(
    peer_logits: Tensor,
    targets: Tensor,
    leader_logits: Tensor,
    *,
    temperature: float = 3.0,
    detach_targets: bool = False,
) -> Tensor:
    """OKDDip's two levels, the part beside cross-entropy: Chen et al. 2020, arXiv 1912.00350.

    Σ_i T²·KL(t_i ‖ z_i) + T²·KL(mean_i z_i ‖ z_leader).

    Args:
        peer_logits: auxiliary peers' [B, M, C].
        targets: :func:`peer_targets`, [B, M, C].
        leader_logits: [B, C].
        temperature: T.
        detach_targets: whether the leader's loss leaves the peers alone; in the authors' code it moves them
            (False).
    """
    mean = peer_logits.float().mean(dim=1)
    leader = kl_divergence(leader_logits, mean.detach() if detach_targets else mean, temperature=temperature)
    return peer_kl(peer_logits, targets, temperature=temperature) + leader


def diversity(peer_logits: Tensor) -> Tensor:
    """How far peers disagree: ‖softmax z_i − softmax z_j‖₂, mean over pairs and rows (Chen et al. 2020).

    Args:
        peer_logits: [B, M, C].

    Raises:
        ValueError: fewer than two peers.
    """
    peers = peer_logits.shape[1]
    if peers < 2:
        raise ValueError(f"diversity needs at least 2 peers, got {peers}")
    first, second = torch.triu_indices(peers, peers, offset=1, device=peer_logits.device)
    probabilities = peer_logits.float().softmax(dim=2)
    return torch.linalg.vector_norm(probabilities[:, first] - probabilities[:, second], dim=2).mean()
