"""Random occlusion of patches, by which Naseer et al. 2021 (arXiv 2105.10497, "random PatchDrop") measure how
much of a picture a network needs, and Huang et al. 2023 (G2SD, arXiv 2302.14771) a distilled one.

A picture is divided into G × G cells, of which a share is hidden. Here which ones is a function of a seed and
of the sample id, and what is hidden at one share is hidden at all larger ones: every network sees the same
pictures without the same cells, and neither batches nor processes change that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdcli.seeds import seed_of

RATIOS = tuple(tenth / 10 for tenth in range(10))
_CELLS = 7  # tells this use of a seed from others


def hiding_order(seed: int, ids: Sequence[int], grid: int) -> Tensor:
    """When each cell of each picture is hidden: [B, G²], 0 for the first one.

    Args:
        seed: of the run.
        ids: B sample ids.
        grid: G.
    """
    drawn = [np.random.default_rng(seed_of(seed, int(i), _CELLS)).permutation(grid * grid) for i in ids]
    return torch.from_numpy(np.stack(drawn))


def hidden_cells(ratio: float, grid: int) -> int:
    """How many of G² cells are hidden; of two equally near numbers the even one."""
    return round(ratio * grid * grid)


def hidden_pixels(order: Tensor, ratio: float, size: tuple[int, int]) -> Tensor:
    """Which pixels are hidden: [B, 1, H, W], booleans.

    Args:
        order: [B, G²] of :func:`hiding_order`.
        ratio: share of the cells that is hidden.
        size: H and W; where G does not divide them, cells differ by one pixel.

    Raises:
        ValueError: more cells along a side than pixels.
    """
    grid = math.isqrt(order.shape[1])
    if min(size) < grid:
        raise ValueError(f"{grid} cells do not fit along a side of {min(size)} pixels")
    cells = (order < hidden_cells(ratio, grid)).unflatten(1, (grid, grid))
    rows, columns = (torch.arange(side, device=order.device) * grid // side for side in size)
    return cells[:, rows][:, :, columns][:, None]
