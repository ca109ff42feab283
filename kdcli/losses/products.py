"""What several losses share: products of rows in fp32, where autocast would multiply in bf16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product ``a @ b`` [..., N, M] of [..., N, D] and [..., D, M], in fp32 also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Vectors of length 1 along ``dim``; a zero vector stays zero, with zero gradient."""
    x = x.float()
    zero = (x == 0).all(dim=dim, keepdim=True)
    return F.normalize(x, dim=dim).masked_fill(zero, 0.0)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of ``a`` [N, D] with every row of ``b`` [M, D]: [N, M]; 0 with a zero row."""
    return product(unit(a), unit(b).mT)


def same_shape(features: Tensor, teacher_features: Tensor) -> None:
    """Raise ValueError unless student and teacher have one shape."""
    if features.shape != teacher_features.shape:
        raise ValueError(
            f"student features {list(features.shape)} and teacher features {list(teacher_features.shape)} "
            "must have one shape; a regressor or an embedding brings them together"
        )
