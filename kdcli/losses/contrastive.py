"""SSKD, self-supervision as an auxiliary task: Xu et al. 2020, arXiv 2006.07114.

Each item has V views on an axis of their own, [B, V, ...], the first upright (the released code turns the
others by 90, 180 and 270 degrees; the paper lists more transformations). Rows of "augmented" tables are
item-major: views 1 to V − 1 of item 0, then of item 1, and so on.

    L = 0.1·CE(z_0, y) + 0.9·KL(z_0; T = 4) + 2.7·KL(z_aug[kept]; T = 4) + 10·KL(table[kept]; T = 0.5)

with ``kl_divergence``, which has T², and kept rows by ``least_wrong`` on the teacher's logits or table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.logits import cross_entropy
from kdcli.losses.products import cosines


def view_table(representations: Tensor) -> Tensor:
    """Cosines of each augmented view with each upright one, [B·(V − 1), B].

    Args:
        representations: [B, V, D] after the projection head.
    """
    return cosines(representations[:, 1:].flatten(0, 1), representations[:, 0])


def view_sources(items: int, views: int, device: torch.device | None = None) -> Tensor:
    """Which item each row of :func:`view_table` comes from, [B·(V − 1)]."""
    return torch.arange(items, device=device).repeat_interleave(views - 1)


def view_contrast(representations: Tensor) -> Tensor:
    """The head's own task: which item does an augmented view come from? Scope ``batch``.

    Cross-entropy on the cosines themselves, without a temperature, as in the released code.

    Args:
        representations: [B, V, D].
    """
    items, views = representations.shape[:2]
    return cross_entropy(view_table(representations), view_sources(items, views, representations.device))


def least_wrong(teacher_scores: Tensor, target: Tensor, *, ratio: float = 1.0) -> Tensor:
    """Rows to transfer, [R] of booleans: where the teacher ranks the truth first, and the least wrong others.

    Of the wrong rows the first int(ratio·number) by the truth's rank are kept. Ties, of scores in a row and
    of ranks between rows, go to the lower index, so the choice does not depend on the device. It is
    relative to the rows that are given (scope ``batch``).

    Args:
        teacher_scores: [R, K] logits or cosines.
        target: [R] the true column.
        ratio: 1 for the logits and 0.75 for the table in the paper's code.
    """
    order = teacher_scores.argsort(dim=1, descending=True, stable=True)
    rank = (order == target[:, None]).byte().argmax(dim=1)
    wrong = int((rank > 0).sum())
    count = len(rank) - wrong + int(wrong * ratio)
    kept = torch.zeros_like(rank, dtype=torch.bool)
    kept[rank.argsort(stable=True)[:count]] = True
    return kept
