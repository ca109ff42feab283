"""What the linear heads of a probe learn: softmax cross-entropy, whose gradient is closed.

A head's best epoch is that of the best top-1, ties by likelihood. Of all heads the likeliest is taken among
those whose top-1 is the best within the noise of the validation pictures
(:func:`kdcli.engine.grid.within_noise`): on a few hundred pictures many heads tie, and some of them are sure
of what they do not know. Its temperature is fitted there too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kdcli.engine.grid import Answers, HeadResult, Objective, best, within_noise
from kdcli.metrics.calibration import calibrate
from kdcli.tasks.linear import fit as fit_linear
from kdcli.tasks.settings import Probing


def fit(probing: Probing, classes: int) -> list[HeadResult]:
    """Results of the whole grid, the same on every process; the one that is chosen is calibrated."""
    return fit_linear(probing, softmax(classes), lambda samples: torch.from_numpy(samples.labels))


def softmax(classes: int) -> Objective:
    """The objective of heads for C classes."""
    return Objective(classes, gradient, loss, scores, rank, partial(fault, classes), settled)


def settled(results: list[HeadResult], answers: Answers, y: Tensor) -> list[HeadResult]:
    """The results; the likeliest of those that are the best within the noise is ranked first and calibrated.

    Args:
        results: of the whole grid.
        answers: gives the logits [N, C] of one of them.
        y: class numbers [N].
    """
    first = best(results)
    most = right(answers(first).t()[None], y)[0]
    likely = [r for r in results if not r.diverged and r.metrics["nll"] < first.metrics["nll"]]
    chosen = first
    for result in sorted(likely, key=lambda r: r.metrics["nll"]):
        behind = (first.metrics["top1"] - result.metrics["top1"]) * len(y)
        # no head is within the noise that is more than √N pictures behind
        if behind**2 <= len(y) + 1 and within_noise(right(answers(result).t()[None], y)[0], most):
            chosen = result
            break
    calibrated = replace(chosen, rank=(-math.inf,), calibration=calibrate(answers(chosen), y))
    return [calibrated if result is chosen else result for result in results]


def gradient(logits: Tensor, y: Tensor) -> Tensor:
    """softmax(Z) - onehot(y), [H, C, B], of logits of that shape and class numbers [B]."""
    shape = len(logits), 1, len(y)
    grad = logits.softmax(1)  # over classes, with samples contiguous: vectorised for any C
    return grad.scatter_add_(1, y.expand(shape), grad.new_full((1, 1, 1), -1).expand(shape))


def loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of logits [N, C] and class numbers [N], and N times its gradient in the logits."""
    log_p = logits.log_softmax(1)
    own = (torch.arange(len(y), device=y.device), y)
    return -log_p[own].mean(), log_p.exp().index_put_(own, -log_p.new_ones(()), accumulate=True)


def scores(batches: Iterable[tuple[Tensor, Tensor]]) -> list[dict[str, float]]:
    """Top-1 and mean NLL (inf for a head that diverged) of each head, over logits [H, C, B] and y [B]."""
    hits, losses, count = [], [], 0
    for logits, y in batches:
        margins = logits - logits.gather(1, y.expand(len(logits), 1, -1))  # of the logits; 0 at the label
        losses.append(margins.logsumexp(1).sum(1))
        hits.append(_alone_on_top(margins).sum(1))
        count += len(y)
    top1, nll = (torch.stack(v).cpu().double().sum(0) / count for v in (hits, losses))
    nll = nll.where(nll.isfinite(), math.inf)
    return [{"top1": a, "nll": b} for a, b in zip(top1.tolist(), nll.tolist())]


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which samples each head answers right, [H, B], of logits [H, C, B] and class numbers [B]."""
    return _alone_on_top(logits - logits.gather(1, y.expand(len(logits), 1, -1)))


def _alone_on_top(margins: Tensor) -> Tensor:
    """Whether the label has the largest logit, [H, B]: a tie is a miss, and so is NaN."""
    return (margins >= 0).sum(1) == 1


def rank(score: dict[str, float]) -> tuple[float, ...]:
    """The smallest is the best."""
    return -score["top1"], score["nll"]


def fault(classes: int, y: Tensor, training: bool) -> str:
    """What is wrong with labels [N] of C classes, or an empty string."""
    found = y.unique().tolist()
    if found[-1] >= classes:
        return f"has the label {found[-1]}, but {classes} classes end at {classes - 1}: check the names"
    if training and len(found) == 1:
        return f"has one class only, {found[0]}, in {len(y):,} labels: a head needs two; check the column"
    return ""
