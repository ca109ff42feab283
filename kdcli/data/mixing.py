"""Mixup and CutMix on views, before any party sees them: all parties see the same mixed picture.

What becomes of a mixed picture's target is the task's to say (:class:`kdcli.data.targets.TargetColumns`).

Pairs are (i, B−1−i) within a micro-batch, one λ per micro-batch, as timm's batch mode does it. A row counts
as labelled when both of its pictures are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def mixed(x: Tensor, *, mixup: float, cutmix: float, seed: int) -> tuple[Tensor, float]:
    """Mix a micro-batch.

    Args:
        x: uint8 [B, 3, H, W].
        mixup: alpha of Beta for mixup (Zhang et al. 2018), 0 for never.
        cutmix: alpha of Beta for CutMix (Yun et al. 2019), 0 for never; with both, each is used half of the
            time.
        seed: of λ and the box.

    Returns:
        Mixed views (uint8), and λ: how much of each is its own picture.
    """
    rng = np.random.default_rng(seed)
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    lam = float(rng.beta(alpha, alpha))
    other = x.flip(0)
    if cut:
        height, width = x.shape[-2:]
        side = math.sqrt(1 - lam)
        h, w = int(height * side), int(width * side)
        cy, cx = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(cy - h // 2, 0), min(cy + (h + 1) // 2, height)
        left, right = max(cx - w // 2, 0), min(cx + (w + 1) // 2, width)
        x = x.clone()
        x[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        x = (lam * x.float() + (1 - lam) * other.float()).round().to(torch.uint8)
    return x, lam


def averaged(rows: Tensor, share: float) -> Tensor:
    """Targets [B, …] of mixed views, of the pictures' own: ``share`` of each, the rest of its partner's."""
    return share * rows + (1 - share) * rows.flip(0)


def both_labelled(labelled: Tensor) -> Tensor:
    """Which rows of a mixed micro-batch have two known labels."""
    return labelled & labelled.flip(0)
