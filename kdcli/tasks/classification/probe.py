"""Linear classifiers on features of a frozen backbone: SGD's grid, L-BFGS' path, DINOv2's live protocol.

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): the last n ∈ {1, 4} blocks' class
tokens, with or without the mean patch token, times a grid of learning rates and weight decays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut
from kdcli.engine.features import Backbone
from kdcli.engine.heads import Features, HeadResult, HeadSpec, train_heads, train_heads_live
from kdcli.engine.lbfgs import lbfgs_path
from kdcli.tasks.classification.softmax import softmax
from kdcli.tasks.settings import ProbeOptions, Probing

# DINOv2's thirteen learning rates (for a batch of 256)
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


def specs(options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
    """The heads that are tried; live features have no L-BFGS."""
    grid, found = options.grid, []
    live = options.protocol == "dinov2"
    if grid.solver != "lbfgs" or live:
        rates = grid.lr or RATES
        found += [HeadSpec(f, r, decay) for f in features for r in rates for decay in grid.weight_decay]
    if grid.solver != "sgd" and not live:
        found += [HeadSpec(f, 0.0, l2, "lbfgs") for f in features for l2 in grid.l2]
    return found


def fit(probing: Probing, classes: int) -> list[HeadResult]:
    """Results of the whole grid, the same on every process."""
    plain, device = EvaluationCut(probing.network.spec), probing.runtime.device
    backbone = Backbone(probing.network, probing.features, probing.cache, probing.filling)
    objective, training = softmax(classes), probing.training
    train, held = probing.labelled("train"), probing.labelled("validation")
    validation = Features(backbone.cached(held, plain, 1), _labels(held), training=False)
    if probing.options.protocol == "dinov2":
        every = max(1, round(len(train) / training.batch_size))
        found = backbone.live(train, probing.view, training.epochs * every, training.seed)
        batches = ((features, batch["y"].to(device)) for features, batch in found)
        return train_heads_live(
            batches, validation, probing.specs, objective, training, device, score_every=every
        )
    cut: Any = plain if probing.views == 1 else probing.view
    features = Features(backbone.cached(train, cut, probing.views), _labels(train).repeat(probing.views))
    results: list[HeadResult] = []
    if sgd := [spec for spec in probing.specs if spec.solver == "sgd"]:
        results += train_heads(features, validation, sgd, objective, training, device)
    if closed := [spec for spec in probing.specs if spec.solver == "lbfgs"]:
        results += lbfgs_path(features, validation, closed, objective, device)
    return results


def _labels(samples: Samples) -> Tensor:
    return torch.from_numpy(samples.labels)
