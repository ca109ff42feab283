"""Mixup in pixels (Zhang et al. 2018, arXiv 1710.09412), for any number of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def mixup(pictures: Sequence[Any], seed: int, *, size: tuple[int, int] | None, alpha: float) -> Any:
    """Σ λ_k x_k with λ from a symmetric Dirichlet (for two pictures: Beta(α, α), the paper's).

    Args:
        pictures: K RGB pictures.
        seed: of λ.
        size: (width, height) of the result; None for that of the first picture.
        alpha: α; small ones leave one picture almost alone.
    """
    weights = np.random.default_rng(seed).dirichlet([alpha] * len(pictures))
    mixed = sum(w * pixels.astype(np.float64) for w, pixels in zip(weights, fitted(pictures, size)))
    return Image.fromarray(np.asarray(mixed).round().astype(np.uint8))


def fitted(pictures: Sequence[Any], size: tuple[int, int] | None) -> list[np.ndarray]:
    """Pictures as uint8 [H, W, 3] of one size, resized to cover it and cropped in the centre."""
    wanted = size or pictures[0].size
    resized = (p if p.size == wanted else ImageOps.fit(p, wanted, Image.Resampling.BICUBIC) for p in pictures)
    return [np.asarray(p) for p in resized]
