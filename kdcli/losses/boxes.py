"""Boxes (cx, cy, w, h) as fractions of a picture: corners, and how far two overlap.

Generalized IoU: Rezatofighi et al. 2019, arXiv 1902.09630. With C the smallest box that holds A and B,

    GIoU = |A ∩ B| / |A ∪ B| − (|C| − |A ∪ B|) / |C|, from −1 (far apart) to 1 (the same)
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12  # below the area of any box that a picture can show: two boxes without area have a GIoU of 0


def corners(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) [..., 4] of boxes (cx, cy, w, h) [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU [...] of boxes (cx, cy, w, h) [..., 4], pair by pair; the shapes are broadcast.

    Of all pairs of [B, K, 4] and [B, Q, 4] it is that of ``boxes[:, :, None]`` and ``others[:, None]``.
    """
    a, b = corners(boxes), corners(others)
    shared = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return shared / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Of boxes from corner to corner; 0 where they are the wrong way round."""
    width, height = (high - low).clamp(min=0).unbind(dim=-1)
    return width * height
