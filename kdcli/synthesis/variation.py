"""Image Variations: one picture's CLIP embedding is the one token that the UNet was trained on."""

from __future__ import annotations

from torch import Tensor


def variation(embeddings: Tensor) -> Tensor:
    """The embedding as the only token: [B, 1, D] → [B, 1, D]."""
    return embeddings
