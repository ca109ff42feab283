"""Linear heads on features of a frozen backbone, for any task that gives a picture one row of logits.

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): the last n ∈ {1, 4} blocks' class
tokens, with or without the mean patch token, times a grid of learning rates and weight decays by SGD; beside
them the L-BFGS path, and the published live protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut
from kdcli.engine.features import Backbone
from kdcli.engine.grid import Features, HeadResult, HeadSpec, Objective
from kdcli.engine.heads import train_heads, train_heads_live
from kdcli.engine.lbfgs import lbfgs_path
from kdcli.errors import UsageError
from kdcli.tasks.settings import ProbeOptions, Probing

# DINOv2's thirteen learning rates (for a batch of 256)
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


def specs(options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
    """The heads that are tried.

    Raises:
        UsageError: L-BFGS alone on features that are made live.
    """
    grid, live = options.grid, options.protocol == "dinov2"
    if live and grid.solver == "lbfgs":
        raise UsageError("--protocol dinov2 trains by SGD, and grid.solver=lbfgs reads cached features.")
    found: list[HeadSpec] = []
    if grid.solver != "lbfgs":
        rates = grid.lr or RATES
        found += [HeadSpec(f, r, decay) for f in features for r in rates for decay in grid.weight_decay]
    if grid.solver != "sgd" and not live:
        found += [HeadSpec(f, 0.0, l2, "lbfgs") for f in features for l2 in grid.l2]
    return found


def fit(
    probing: Probing, objective: Objective, targets: Callable[[Samples], Tensor], column: str = "y"
) -> list[HeadResult]:
    """Results of the whole grid, the same on every process.

    Args:
        probing: what heads are fitted on.
        objective: of all heads.
        targets: [N, …] of samples.
        column: of a batch, which has the same.
    """
    plain, device = EvaluationCut(probing.network.spec), probing.runtime.device
    backbone = Backbone(probing.network, probing.features, probing.cache, probing.filling)
    train, held, training = probing.labelled("train"), probing.labelled("validation"), probing.training
    validation = Features(backbone.cached(held, plain, 1), targets(held), training=False)
    if probing.options.protocol == "dinov2":
        every = max(1, round(len(train) / training.batch_size))
        made = backbone.live(train, probing.view, training.epochs * every, training.seed)
        batches = ((features, batch[column].to(device)) for features, batch in made)
        return train_heads_live(
            batches, validation, probing.specs, objective, training, device, score_every=every
        )
    cut: Any = plain if probing.views == 1 else probing.view
    answers = torch.cat([targets(train)] * probing.views)
    features = Features(backbone.cached(train, cut, probing.views), answers)
    results: list[HeadResult] = []
    if sgd := [spec for spec in probing.specs if spec.solver == "sgd"]:
        results += train_heads(features, validation, sgd, objective, training, device)
    if closed := [spec for spec in probing.specs if spec.solver == "lbfgs"]:
        results += lbfgs_path(features, validation, closed, objective, device)
    return results
