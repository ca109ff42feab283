"""CutMix in pixels (Yun et al. 2019, arXiv 1905.04899)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from kdcli.data.mixing import box
from kdcli.synthesis.mixup import fitted


def cutmix(pictures: Sequence[Any], seed: int, *, size: tuple[int, int] | None, alpha: float) -> Any:
    """A box of the second picture pasted into the first at the same place.

    The box has 1 − λ of the area, λ from Beta(α, α), and a uniform centre; what sticks out is cut off.

    Args:
        pictures: two RGB pictures.
        seed: of λ and the box.
        size: (width, height) of the result; None for that of the first picture.
        alpha: α of the paper (1: λ is uniform).
    """
    first, second = fitted(pictures, size)
    rng = np.random.default_rng(seed)
    top, bottom, left, right = box(rng, 1 - rng.beta(alpha, alpha), *first.shape[:2])
    mixed = first.copy()
    mixed[top:bottom, left:right] = second[top:bottom, left:right]
    return Image.fromarray(mixed)
