"""Heads of retrieval: features to an embedding that pictures are compared by, and in training to identities.

``plain``: the embedding is the features. ``bnneckN``: batch norm, ReLU, a linear layer to N numbers without
bias, batch norm, as Lin et al. 2023 (arXiv 2303.09230) have it; ``bnneck`` is of 512. ``linear``: an affine
map, for one that is fitted in closed form. Behind each of them there may be a linear classifier of the
identities of the training pictures, without bias, which training learns by and a search has no use for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcli.models.heads.base import Head
from kdcli.models.heads.linear import FEATURES

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

_BNNECK = re.compile(r"bnneck(\d{0,5})")
_WIDTH = 512  # of the paper's embedding
_CLASSIFIER_STD = 0.001  # of a fresh classifier's weights, as codes of re-identification have it; from memory


def is_embedding(kind: str) -> bool:
    """Whether ``kind`` names a head of retrieval."""
    return kind in ("plain", "linear") or neck_width(kind) > 0


def neck_width(kind: str) -> int:
    """N of ``bnneckN``, 512 of ``bnneck``, 0 of anything else."""
    match = _BNNECK.fullmatch(kind)
    return 0 if match is None else int(match[1] or _WIDTH)


class EmbeddingHead(Head):
    """An embedding [B, E] of features, and logits [B, C] of identities.

    Args:
        kind: ``plain``, ``linear`` or ``bnneckN``.
        feature: what it reads, a name of ``FEATURES``.
        width: its dimension D.
        classes: number of identities; 0 for a head without a classifier, whose logits are the embedding.
        out: E of a ``linear`` one.
    """

    task = "retrieval"

    def __init__(self, kind: str, feature: str, width: int, classes: int, out: int = 0) -> None:
        super().__init__()
        self.kind, self.feature, self.width = kind, feature, width
        self.neck, own = _neck(kind, width, out)
        self.least_rows = 2 if neck_width(kind) else 1
        self.linear: nn.Module = nn.Linear(own, classes, bias=False) if classes else nn.Identity()
        if isinstance(self.linear, nn.Linear):
            nn.init.normal_(self.linear.weight, std=_CLASSIFIER_STD)

    def to_json(self) -> dict[str, str]:
        """What ``config.json`` says of it."""
        found = {"kind": self.kind, "feature": self.feature}
        return found if self.state_dict() else {**found, "width": str(self.width)}

    def read(self, network: TimmModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the body's own head would take, unpooled, and the feature's parts, each [B, D_i]."""
        return network.run(x, FEATURES[self.feature])

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """One row a picture."""
        return ()

    def answer(self, parts: dict[str, Tensor]) -> Tensor:
        """The embedding [B, E]."""
        return self.neck(torch.cat([parts[name] for name in FEATURES[self.feature]], dim=1))

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """Logits [B, C] of identities; the embedding [B, E] where there is no classifier."""
        return self.linear(self.answer(parts))

    def refitted(self, classes: int) -> EmbeddingHead:
        """The same embedding, with a fresh classifier or none."""
        found = copy.deepcopy(self)
        width = _out(self.neck) or self.width
        found.linear = nn.Linear(width, classes, bias=False) if classes else nn.Identity()
        if isinstance(found.linear, nn.Linear):
            nn.init.normal_(found.linear.weight, std=_CLASSIFIER_STD)
        return found


def described_embedding(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> EmbeddingHead | None:
    """The head that ``config.json`` and ``head.safetensors`` describe, not loaded; None for another."""
    kind, feature = str(config.get("kind")), str(config.get("feature"))
    if not is_embedding(kind) or feature not in FEATURES:
        return None
    first = tensors.get("neck.0.weight" if neck_width(kind) else "neck.weight", tensors.get("linear.weight"))
    classifier = tensors.get("linear.weight")
    if first is None:  # plain, without a classifier: it has no tensors
        width = str(config.get("width"))
        plain = kind == "plain" and not tensors and width.isdecimal() and 0 < len(width) < 7
        return EmbeddingHead(kind, feature, int(width), 0) if plain else None
    out = len(first) if kind == "linear" else 0
    classes = 0 if classifier is None else len(classifier)
    return EmbeddingHead(kind, feature, first.shape[-1], classes, out)


def _neck(kind: str, width: int, out: int) -> tuple[nn.Module, int]:
    """What makes an embedding of features, and its width."""
    if kind == "plain":
        return nn.Identity(), width
    if kind == "linear":
        return nn.Linear(width, out), out
    inner = neck_width(kind)
    layers = (nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, inner, bias=False), nn.BatchNorm1d(inner))
    return nn.Sequential(*layers), inner


def _out(neck: nn.Module) -> int:
    """Width of the embedding that a neck makes; 0 where it keeps that of its input."""
    last = neck[-1] if isinstance(neck, nn.Sequential) else neck
    return int(getattr(last, "num_features", getattr(last, "out_features", 0)))
