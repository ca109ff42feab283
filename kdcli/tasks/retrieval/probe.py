"""Embeddings of a frozen backbone that need no training: its features as they are, and whitened.

Whitening is by principal components of the training pictures' features: e = (Λ + s·λ̄)^(−1/2) Vᵀ (f − μ), with
a share s of the mean variance λ̄ in each, so that directions of little variance are not blown up (shrinkage).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcli.data.views import EvaluationCut
from kdcli.engine.features import Backbone
from kdcli.engine.grid import HeadResult, HeadSpec
from kdcli.errors import InputError
from kdcli.tasks.retrieval.evaluate import searched
from kdcli.tasks.settings import Probing


def fit(probing: Probing) -> list[HeadResult]:
    """Results of all embeddings, the same on every process; ranked by mean average precision."""
    backbone = Backbone(probing.network, probing.features, probing.cache, probing.filling)
    held, cut = probing.labelled("validation"), EvaluationCut(probing.network.spec)
    validation = backbone.cached(held, cut, 1)
    wanted = any(spec.solver == "whitened" for spec in probing.specs)
    train = backbone.cached(probing.data.split("train"), cut, 1) if wanted else {}
    results = []
    for spec in probing.specs:
        rows = validation[spec.feature]
        if not bool(rows.isfinite().all()):
            raise InputError(f"features '{spec.feature}' of the validation pictures hold NaN or infinity.")
        tensors = whitening(train[spec.feature], spec.weight_decay) if spec.solver == "whitened" else {}
        embedded = rows @ tensors["weight"].T + tensors["bias"] if tensors else rows
        metrics = searched(held, embedded).metrics
        results.append(HeadResult(spec, tensors, metrics, _rank(spec, metrics), 1, 1))
    return results


def whitening(features: Tensor, shrinkage: float) -> dict[str, Tensor]:
    """The affine map of features [N, D] to whitened ones: weight [E, D] and bias [E], E = min(D, N − 1).

    Args:
        features: of training pictures.
        shrinkage: share of the mean variance that every direction is given beside its own.

    Raises:
        InputError: fewer than two different rows.
    """
    rows = features.double()
    mean = rows.mean(dim=0)
    variances, directions = _components(rows - mean)
    keep = min(len(rows) - 1, rows.shape[1])
    if keep < 1 or not variances[0] > 0:
        raise InputError("the training pictures have one feature all, and there is nothing to whiten.")
    variances, directions = variances[:keep], directions[:keep]
    scale = (variances + shrinkage * variances.mean()).rsqrt()
    weight = scale[:, None] * _fixed_signs(directions)
    return {"weight": weight.float(), "bias": -(weight @ mean).float()}


def _components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and directions of centred rows [N, D], the largest first, by the smaller of two tables."""
    degrees = max(len(rows) - 1, 1)
    if len(rows) < rows.shape[1]:
        _, values, directions = torch.linalg.svd(rows, full_matrices=False)
        return values.square() / degrees, directions
    values, vectors = torch.linalg.eigh(rows.T @ rows / degrees)
    return values.flip(0).clamp(min=0), vectors.T.flip(0)


def _fixed_signs(directions: Tensor) -> Tensor:
    """Rows whose largest number is positive: a decomposition leaves their signs open."""
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()


def _rank(spec: HeadSpec, metrics: dict[str, float]) -> tuple[float, ...]:
    """The smallest is the best; of equals the plainer."""
    value = metrics["mAP"]
    return (math.inf if math.isnan(value) else -value, float(spec.solver == "whitened"))
