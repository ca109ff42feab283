"""L2-regularised logistic regression on cached features: the closed optimum beside the grid of SGD heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kdcli.engine.heads import HeadResult, HeadSpec, best, head_scores, labelled_part
from kdcli.errors import UsageError


@torch.no_grad()
def lbfgs_path(
    features: Tensor, y: Tensor, val_features: Tensor, val_y: Tensor, classes: int, *, l2: Sequence[float],
    feature: str = "features", max_iter: int = 500, tolerance: float = 1e-6,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> list[HeadResult]:  # fmt: skip
    """Fit L2-regularised multinomial logistic regression for each `l2`, warm-started from strong to weak.

    Minimises mean cross-entropy + l2/2 ||W||² on features standardised over the labelled rows (bias not
    regularised), by full-batch L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, alg. 7.5, 3.5):
    the optimum of scikit-learn's `LogisticRegression(C=1 / (N * l2))`. The standardisation is folded into the
    result. A fit ends after `max_iter` iterations or when no entry of the gradient exceeds `tolerance` (below
    1e-7 with `dtype` fp64 only); `feature` is the name in specs. The rest is as in `train_heads`.
    """
    if not l2 or min(l2) < 0:
        raise UsageError(f"l2 needs at least one factor, and none below 0; got {list(l2)}.")
    data = labelled_part({feature: features}, feature, y, classes, "training", device)
    val = labelled_part(
        {feature: val_features}, feature, val_y, classes, "validation", device, data.x.shape[1]
    )
    x, target = data.x[data.rows].to(dtype), data.y[data.rows]
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-6 * mean.abs(), std, 1)  # a constant column is only centred
    x = (x - mean) / scale
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    results: dict[float, HeadResult] = {}
    for factor in sorted(set(l2), reverse=True):
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=max_iter, max_eval=2 * max_iter, tolerance_grad=tolerance,
            tolerance_change=0, history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip
        solver.step(partial(_objective, x, target, weight, bias, factor))
        count = int(solver.state[weight]["n_iter"])
        raw, shift = (weight / scale).float(), (bias - (weight / scale) @ mean).float()
        [(top1, nll)] = head_scores(raw, shift[:, None], classes, val)
        spec = HeadSpec(feature, 0.0, factor, "lbfgs")
        results[factor] = HeadResult(spec, raw.cpu(), shift.cpu(), top1, nll, count, count)
    best(list(results.values()))  # raises Diverged if there is none
    return [results[factor] for factor in l2]


def _objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    """Return mean CE + l2/2 ||W||² and set the gradients."""
    log_p = (x @ weight.t() + bias).log_softmax(1)
    own = (torch.arange(len(x), device=x.device), y)
    grad = log_p.exp().index_put_(own, -log_p.new_ones(()), accumulate=True)
    weight.grad, bias.grad = (grad.t() @ x) / len(x) + l2 * weight, grad.mean(0)
    return float(-log_p[own].mean() + l2 / 2 * weight.square().sum())
