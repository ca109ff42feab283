"""Losses of a network that shrinks while it is distilled, in fp32.

Capacity dynamic distillation: Xie et al. 2023, arXiv 2303.09230. A compactor is a square matrix, the identity
at first, behind a layer whose channels it mixes; a row that reaches zero is a channel that can be removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_norms(weight: Tensor) -> Tensor:
    """L2 norm of each row of a compactor, [p]; its gradient at a row of zeros is zero.

    Args:
        weight: [p, p] or, of a 1×1 convolution, [p, p, 1, 1]; of a diagonal one [p], whose norms are the
            absolute values.
    """
    return torch.linalg.vector_norm(weight.float().reshape(len(weight), -1), dim=1)


def group_lasso(*weights: Tensor) -> Tensor:
    """Σ_l Σ_i ‖W_l[i]‖₂, the group lasso over the rows of all compactors.

    Its gradient is W_l[i] / ‖W_l[i]‖, of length 1 however small the row is, so that rows reach zero; see
    :func:`kdcli.compression.rows.with_lasso` for the same as a change of gradients.

    Args:
        weights: of compactors, each as in :func:`row_norms`.

    Raises:
        ValueError: no weight.
    """
    if not weights:
        raise ValueError("a group lasso needs at least one compactor")
    return torch.cat([row_norms(weight) for weight in weights]).sum()


def pooled_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_l mean_b ‖pooled(t_l)_b − pooled(s_l)_b‖₂, the "Fitnet" term of capacity dynamic distillation.

    The norm is not squared, and there is no adapter between the two, as in the authors' code: the student is
    made like the teacher and its features are taken before the compactor. A row without a difference takes
    no gradient.

    Args:
        student: features of its layers, each maps [B, D, H, W], tokens [B, N, D] or rows [B, D].
        teacher: as many, of the same B and D; grids may differ.

    Raises:
        ValueError: another number of layers, or a layer of another B or D.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(f"{len(student)} layers of the student, and {len(teacher)} of the teacher")
    distances = []
    for number, (own, other) in enumerate(zip(student, teacher), 1):
        s, t = pooled(own), pooled(other)
        if s.shape != t.shape:
            raise ValueError(
                f"layer {number}: rows {list(s.shape)} of the student and {list(t.shape)} of the teacher "
                "must have one shape"
            )
        distances.append(torch.linalg.vector_norm(t - s, dim=1).mean())
    return torch.stack(distances).sum()


def pooled(features: Tensor) -> Tensor:
    """Mean over positions, [B, D] in fp32: of maps [B, D, H, W] or tokens [B, N, D]; rows stay as they are.

    Raises:
        ValueError: features of another number of dimensions.
    """
    if features.ndim == 2:
        return features.float()
    if features.ndim == 3:
        return features.float().mean(dim=1)
    if features.ndim == 4:
        return features.float().mean(dim=(2, 3))
    raise ValueError(
        f"maps [B, D, H, W], tokens [B, N, D] or rows [B, D] are needed, got {list(features.shape)}"
    )
