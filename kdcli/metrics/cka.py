"""Linear centred kernel alignment (CKA) of layers of two networks: Kornblith et al. 2019, arXiv 1905.00414.

It is estimated from minibatches, as Nguyen, Raghu & Kornblith 2021 (arXiv 2010.15327, eq. 2 and 3) do: HSIC
is estimated without bias on each, numerator and both parts of the denominator are averaged over all of them,
and only then divided. What is estimated does not hang on the size of the minibatches.

With X [n, D] the activations of a layer on n pictures, all positions flattened into D, it is unchanged by an
orthogonal map of X, by a scale and by a shift, and not by an arbitrary linear map.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 4  # pictures of a minibatch: with fewer HSIC₁ is not defined
_COLUMNS = 2**16


def gram(activations: Tensor) -> Tensor:
    """K = X Xᵀ [n, n] in fp64 of activations [n, …], flattened to X [n, D] and less their mean.

    HSIC₁ is the same with the mean as without; without it fewer digits are lost. Columns are taken in parts:
    maps of a first block in fp64 would fill a memory.
    """
    found = torch.zeros(len(activations), len(activations), dtype=torch.float64, device=activations.device)
    for part in activations.flatten(1).split(_COLUMNS, dim=1):
        x = part.double()
        x = x - x.mean(dim=0)
        found += x @ x.mT
    return found


def hsic1(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimator of the Hilbert–Schmidt independence criterion of every pair, [P, Q], in fp64.

    With K̃ and L̃ the Gram matrices with zeros on the diagonal,

        HSIC₁(K, L) = (tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n − 1)(n − 2)) − 2 / (n − 2) · 1ᵀK̃L̃1) / (n (n − 3)).

    Args:
        first: P Gram matrices of the same n pictures, [P, n, n].
        second: Q of them, [Q, n, n].

    Raises:
        ValueError: other shapes, or n < 4.
    """
    n = first.shape[-1]
    if first.ndim != 3 or first.shape[1:] != second.shape[1:] or first.shape[1] != n:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"Gram matrices of the same pictures are [P, n, n] and [Q, n, n], not {shapes}")
    if n < LEAST:
        raise ValueError(f"HSIC₁ takes {LEAST} pictures or more, not {n}")
    own = ~torch.eye(n, dtype=torch.bool, device=first.device)
    one, two = first.double() * own, second.double() * own
    traces = one.flatten(1) @ two.flatten(1).mT  # tr(K̃L̃) of symmetric matrices
    rows = one.sum(2), two.sum(2)
    sums = rows[0].sum(1)[:, None] * rows[1].sum(1)
    return (traces + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows[0] @ rows[1].mT) / (n * (n - 3))


def hsic_parts(first: Tensor, second: Tensor) -> Tensor:
    """What one minibatch adds to the sums of :func:`cka`, [P + 1, Q + 1].

    HSIC₁ of every pair, and in the last column and row of each layer with itself; 0 in the corner.

    Args:
        first: [P, n, n] Gram matrices of one network.
        second: [Q, n, n] of the other.
    """
    parts = torch.zeros(len(first) + 1, len(second) + 1, dtype=torch.float64, device=first.device)
    parts[:-1, :-1] = hsic1(first, second)
    parts[:-1, -1] = hsic1(first, first).diagonal()
    parts[-1, :-1] = hsic1(second, second).diagonal()
    return parts


def cka(sums: Tensor) -> Tensor:
    """CKA [P, Q] of sums over minibatches of :func:`hsic_parts`; NaN for a layer that says nothing.

    Estimates of small values may lie a little below 0.
    """
    own, other = sums[:-1, -1], sums[-1, :-1]
    scale = own.clamp(min=0).sqrt()[:, None] * other.clamp(min=0).sqrt()
    return (sums[:-1, :-1] / scale).where(scale > 0, torch.nan)
