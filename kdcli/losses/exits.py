"""Be Your Own Teacher: Zhang et al. 2019, arXiv 1905.08094. Exits learn from the deepest one.

L = CE(z_0, y) + Σ_{i ≥ 1} [(1 − α)·CE(z_i, y) + α·exit_logits(z_i, z_0)] + λ·Σ_i exit_features(f_i, f_0)

with exit 0 the deepest, detached where it teaches; α = 0.3, λ = 0.03, T = 3. The authors' code leaves the
feature term out for exit 1, the next to deepest; the paper has it for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcli.losses.logits import kl_divergence, soft_cross_entropy

Reading = Literal["code", "paper"]


def exit_logits(
    logits: Tensor, deepest_logits: Tensor, *, temperature: float = 3.0, reading: Reading = "code"
) -> Tensor:
    """What a shallow exit learns from the deepest one's logits.

    Args:
        logits: of the exit, [B, C].
        deepest_logits: [B, C].
        temperature: T.
        reading: ``code`` is the cross-entropy of the softened distributions without T²; ``paper`` is T²·KL.
    """
    if reading == "code":
        return soft_cross_entropy(logits, deepest_logits, temperature=temperature)
    return kl_divergence(logits, deepest_logits, temperature=temperature)


def exit_features(features: Tensor, deepest_features: Tensor, *, reading: Reading = "code") -> Tensor:
    """What a shallow exit learns from the deepest one's features.

    Args:
        features: of the exit, [B, D]; for ``code`` after a linear adapter.
        deepest_features: [B, D].
        reading: ``code`` is the Frobenius norm of the whole batch's difference, neither squared nor averaged
            (scope ``batch``; it grows as √B). ``paper`` is the squared norm of a row, mean over rows.
    """
    difference = features.float() - deepest_features.float()
    if reading == "code":
        return torch.linalg.vector_norm(difference)
    return difference.square().flatten(1).sum(dim=1).mean()


def early_exit(
    logits: Tensor,
    thresholds: Sequence[float] | Tensor,
    *,
    measure: Literal["max_prob", "entropy"] = "max_prob",
) -> Tensor:
    """Exit at which each row stops, [B]: the first that is sure enough, else the last.

    Args:
        logits: of all exits, [E, B, C], the shallowest first.
        thresholds: one for each exit; the last one's has no effect.
        measure: ``max_prob`` stops at max softmax ≥ threshold, ``entropy`` at entropy ≤ threshold (nats).

    Raises:
        ValueError: not one threshold for each exit.
    """
    if len(thresholds) != len(logits):
        raise ValueError(f"{len(logits)} exits need as many thresholds, got {len(thresholds)}")
    limits = torch.as_tensor(thresholds, dtype=torch.float32, device=logits.device)[:, None]
    log_probabilities = logits.float().log_softmax(dim=2)
    probabilities = log_probabilities.exp()
    if measure == "max_prob":
        sure = probabilities.amax(dim=2) >= limits
    else:
        sure = -(probabilities * log_probabilities).sum(dim=2) <= limits
    sure[-1] = True
    return sure.byte().argmax(dim=0)
