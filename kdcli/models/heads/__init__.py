"""Heads that stand on a model's features where its own classifier does not serve: made, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdcli.models.heads.base import Head
from kdcli.models.heads.decoders import DECODERS, DecodeHead, pyramid_widths
from kdcli.models.heads.dense import GRIDS, DenseHead, grid_width
from kdcli.models.heads.detection import described_detector, fresh_detector, is_detector
from kdcli.models.heads.embedding import EmbeddingHead, described_embedding, is_embedding
from kdcli.models.heads.linear import FEATURES, FeatureHead

__all__ = ["DECODERS", "FEATURES", "GRIDS", "Head", "described", "fresh", "pooled_width"]


def fresh(name: str, body: Any, classes: int, width: int | None = None) -> Head:
    """A head with initial weights on the features of a timm model.

    Args:
        name: a feature of ``GRIDS``, for a linear one, a name of ``DECODERS``, an embedding's, or a
            detector's, perhaps with settings.
        body: the timm model.
        classes: number of logits.
        width: of its pooled features, where an embedding reads them.

    Raises:
        InputError: a model of too few stages for it.
        UsageError: settings that a detector has not.
    """
    if is_detector(name):
        return fresh_detector(name, body, classes)
    if name in DECODERS:
        return DecodeHead(name, pyramid_widths(body), classes)
    if is_embedding(name):
        return EmbeddingHead(name, "pooled", pooled_width(body) if width is None else width, classes)
    return DenseHead(name, grid_width(body, name), classes)


def pooled_width(body: Any) -> int:
    """Pooled features of a timm model whose widths are those of its architecture."""
    return int(getattr(body, "head_hidden_size", body.num_features))


def described(config: Mapping[str, Any], tensors: Mapping[str, Tensor], body: Any) -> Head | None:
    """The head that ``config.json`` and the tensors of ``head.safetensors`` describe, not loaded.

    Returns None where they describe none that is known here.
    """
    name = str(config.get("kind", config.get("feature")))
    if is_detector(name):
        return _fitting(described_detector(config, tensors, body), tensors)
    if is_embedding(name):
        return _fitting(described_embedding(config, tensors), tensors)
    weight = tensors.get("decoder.classifier.weight" if name in DECODERS else "linear.weight")
    if name not in (*FEATURES, *GRIDS, *DECODERS) or weight is None or weight.ndim not in (2, 4):
        return None
    classes, width = weight.shape[:2]
    head: Head
    if name in DECODERS:
        head = DecodeHead(name, pyramid_widths(body), classes, width)
    else:
        head = (FeatureHead if name in FEATURES else DenseHead)(name, width, classes)
    return _fitting(head, tensors)


def _fitting(head: Head | None, tensors: Mapping[str, Tensor]) -> Head | None:
    """The head, if these are its tensors."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    fits = head is not None and {n: t.shape for n, t in head.state_dict().items()} == shapes
    return head if fits else None
