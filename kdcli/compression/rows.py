"""Rows of compactors: the gradient that shrinks them, and which of them are kept.

Gradient resetting of ResRep (Ding et al. 2021, arXiv 2007.03260), which capacity dynamic distillation (Xie et
al. 2023, arXiv 2303.09230) takes over. A mask says which rows follow the objective; the others have the
group lasso alone, which then takes them to zero. A weight is [p, p], [p, p, 1, 1] or, diagonal, [p].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kdcli.losses.compaction import row_norms

EPS = 1e-12  # least divisor of a row; far below the thresholds at which rows are removed (1e-5)


def with_lasso(
    gradient: Tensor, weight: Tensor, *, strength: float, mask: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """m_i·∂L/∂W[i] + λ·W[i] / max(‖W[i]‖, ε) for each row i.

    The lasso is on all rows, masked or not, as in the authors' codes. A row of zeros stays zero where they
    would divide by zero.

    Args:
        gradient: of the objective without the lasso.
        weight: of the compactor, of the same shape.
        strength: λ.
        mask: [p] bool, false where the objective's gradient is reset; None for nowhere.
        eps: ε.
    """
    row = (-1, *[1] * (weight.ndim - 1))
    if mask is not None:
        gradient = gradient.masked_fill(~mask.view(row), 0.0)
    return gradient + strength * weight / row_norms(weight).clamp(min=eps).view(row)


def kept(weight: Tensor, threshold: float) -> Tensor:
    """The rows that stay in the network, [p] bool: those of norm ``threshold`` or more.

    Where there is none the largest stays, the first of equals: a layer without channels is no layer.

    Args:
        weight: of the compactor.
        threshold: 1e-5 in both papers' codes.
    """
    norms = row_norms(weight.detach())
    keep = norms >= threshold
    if not keep.any():
        keep[norms.argmax()] = True
    return keep


def reset_edit(
    state: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    strength: float,
    masks: Mapping[str, str] | None = None,
    eps: float = EPS,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An edit of gradients with a state: masked rows are reset, then the group lasso is added.

    Args:
        state: with a mask [p] bool for each parameter, and whatever else it holds. It does not change.
        gradients: of compactors, by the parameter's name.
        weights: the parameters.
        strength: λ.
        masks: the name in the state of each parameter's mask; None where it is the parameter's own.
        eps: ε of :func:`with_lasso`.

    Raises:
        ValueError: a parameter without a mask.
    """
    found = {}
    for name, gradient in gradients.items():
        own = name if masks is None else masks.get(name, "")
        if own not in state:
            raise ValueError(f"'{name}' has no mask among {', '.join(state)}")
        found[name] = with_lasso(gradient, weights[name], strength=strength, mask=state[own], eps=eps)
    return found, {}
