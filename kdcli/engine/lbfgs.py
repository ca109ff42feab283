"""L2-regularised linear models on cached features: the closed optimum beside the grid of SGD heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kdcli.engine.grid import Features, HeadResult, HeadSpec, Objective, best, logits_of
from kdcli.errors import UsageError


@dataclass(frozen=True)
class Descent:
    """When a fit ends, and what it is computed in.

    Attributes:
        iterations: at most so many.
        tolerance: or when no entry of the gradient exceeds it (below 1e-7 with fp64 only).
        dtype: of the arithmetic.
    """

    iterations: int = 500
    tolerance: float = 1e-6
    dtype: torch.dtype = torch.float32


@torch.no_grad()
def lbfgs_path(
    train: Features, validation: Features, specs: Sequence[HeadSpec], objective: Objective,
    device: torch.device | str, descent: Descent | None = None,
) -> list[HeadResult]:  # fmt: skip
    """Fit an L2-regularised linear model for each spec, of each feature warm-started from strong to weak.

    Minimises the mean loss + l2/2 ||W||² on features standardised over the labelled rows (bias not
    regularised), by full-batch L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, alg. 7.5, 3.5):
    with softmax cross-entropy the optimum of scikit-learn's `LogisticRegression(C=1 / (N * l2))`. The
    standardisation is folded into the result. The factor l2 is a spec's weight decay; the rest is as in
    `train_heads`.
    """
    if not specs or min(spec.weight_decay for spec in specs) < 0:
        given = [spec.weight_decay for spec in specs]
        raise UsageError(f"l2 needs at least one factor, and none below 0; got {given}.")
    results: dict[HeadSpec, HeadResult] = {}
    for feature in dict.fromkeys(spec.feature for spec in specs):
        own = [spec for spec in specs if spec.feature == feature]
        results |= _path(train, validation, own, objective, device, descent or Descent())
    best(list(results.values()))  # raises Diverged if there is none
    return [results[spec] for spec in specs]


def _path(
    train: Features, validation: Features, specs: Sequence[HeadSpec], objective: Objective,
    device: torch.device | str, descent: Descent,
) -> dict[HeadSpec, HeadResult]:  # fmt: skip
    """Fits on one feature, from the strongest factor to the weakest."""
    feature = specs[0].feature
    data = train.part(feature, objective, device)
    val = validation.part(feature, objective, device, data.x.shape[1])
    x, target = data.x[data.rows].to(descent.dtype), data.y[data.rows]
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-6 * mean.abs(), std, 1)  # a constant column is only centred
    x = (x - mean) / scale
    weight, bias = x.new_zeros(objective.outputs, x.shape[1]), x.new_zeros(objective.outputs)
    results: dict[HeadSpec, HeadResult] = {}
    for spec in sorted(dict.fromkeys(specs), key=lambda spec: -spec.weight_decay):
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=descent.iterations, max_eval=2 * descent.iterations,
            tolerance_grad=descent.tolerance, tolerance_change=0, history_size=20,
            line_search_fn="strong_wolfe",
        )  # fmt: skip
        solver.step(partial(_value, objective, x, target, weight, bias, spec.weight_decay))
        count = int(solver.state[weight]["n_iter"])
        raw, shift = (weight / scale).float(), (bias - (weight / scale) @ mean).float()
        [score] = objective.scores(logits_of(raw, shift[:, None], objective.outputs, val))
        tensors = {"weight": raw.cpu(), "bias": shift.cpu()}
        results[spec] = HeadResult(spec, tensors, score, objective.rank(score), count, count)
    return results


def _value(objective: Objective, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    """Return the mean loss + l2/2 ||W||² and set the gradients."""
    value, grad = objective.loss(x @ weight.t() + bias, y)
    weight.grad, bias.grad = (grad.t() @ x) / len(x) + l2 * weight, grad.mean(0)
    return float(value + l2 / 2 * weight.square().sum())
