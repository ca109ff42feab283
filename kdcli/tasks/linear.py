"""Linear heads on features of a frozen backbone, for any task that gives a picture one row of logits.

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): the last n ∈ {1, 4} blocks' class
tokens, with or without the mean patch token, times a grid of learning rates and weight decays by SGD; beside
them the L-BFGS path, and the published live protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut
from kdcli.engine.features import Backbone
from kdcli.engine.grid import Features, HeadResult, HeadSpec, Objective, logits_of
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
    backbone = Backbone(probing.network, probing.features, probing.cache, probing.filling)
    held, plain = probing.labelled("validation"), EvaluationCut(probing.network.spec)
    validation = Features(backbone.cached(held, plain, 1), targets(held), training=False)
    results = _trained(probing, backbone, validation, objective, targets, column)
    if objective.settle is None:
        return results
    answers = partial(_answers, validation, objective, probing.runtime.device)
    return objective.settle(results, answers, validation.targets)


def _trained(
    probing: Probing,
    backbone: Backbone,
    validation: Features,
    objective: Objective,
    targets: Callable[[Samples], Tensor],
    column: str,
) -> list[HeadResult]:
    """All heads at their best on the validation part; see :func:`fit`."""
    train, training, device = probing.labelled("train"), probing.training, probing.runtime.device
    if probing.options.protocol == "dinov2":
        every = max(1, round(len(train) / training.batch_size))
        made = backbone.live(train, probing.view, training.epochs * every, training.seed)
        batches = ((features, batch[column].to(device)) for features, batch in made)
        return train_heads_live(
            batches, validation, probing.specs, objective, training, device, score_every=every
        )
    cut: Any = EvaluationCut(probing.network.spec) if probing.views == 1 else probing.view
    answers = torch.cat([targets(train)] * probing.views)
    features = Features(backbone.cached(train, cut, probing.views), answers)
    results: list[HeadResult] = []
    if sgd := [spec for spec in probing.specs if spec.solver == "sgd"]:
        results += train_heads(features, validation, sgd, objective, training, device)
    if closed := [spec for spec in probing.specs if spec.solver == "lbfgs"]:
        results += lbfgs_path(features, validation, closed, objective, device)
    return results


@torch.no_grad()
def _answers(
    validation: Features, objective: Objective, device: torch.device | str, result: HeadResult
) -> Tensor:
    """Logits [N, C] of a head on the validation part, on the CPU."""
    part = validation.part(result.spec.feature, objective, device)
    weight, bias = (result.tensors[name].to(device) for name in ("weight", "bias"))
    found = [z[0].t() for z, _ in logits_of(weight, bias[:, None], objective.outputs, part)]
    return torch.cat(found).cpu()
