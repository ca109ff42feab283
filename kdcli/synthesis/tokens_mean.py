"""The ablation of Image Mixer: sources are averaged before the UNet instead of attended to one by one."""

from __future__ import annotations

from torch import Tensor


def tokens_mean(embeddings: Tensor) -> Tensor:
    """The mean embedding as one token: [B, K, D] → [B, 1, D]."""
    return embeddings.mean(dim=1, keepdim=True)
