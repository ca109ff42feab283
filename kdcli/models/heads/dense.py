"""The linear segmentation head of DINOv2 (arXiv 2304.07193).

It is a batch norm on a feature grid, dropout and a 1×1 convolution. The grid of a ViT is its patch
tokens after the final norm. A CNN's stages differ in size: all are brought to that of the finest stage of
stride 8 or more. Stride 8 is the output stride of the dilated networks of semantic segmentation; stride 4
would take four times the memory, and stride 32 has lost what is small.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.heads.base import Head

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

# The last n ∈ {1, 4} blocks of a ViT, or stages of a CNN: DINOv2's two.
GRIDS: dict[str, int] = {"grid": 1, "grid4": 4}
_STRIDE = 8


class DenseHead(Head):
    """Logits of every cell of a feature grid.

    Args:
        feature: a name of ``GRIDS``.
        width: channels of its maps together.
        classes: number of logits.
        dropout: of whole channels, in training.
    """

    task = "segmentation"

    def __init__(self, feature: str, width: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.feature = feature
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, str]:
        """What ``config.json`` says of it."""
        return {"feature": self.feature}

    def read(self, network: TimmModel, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature grid [B, D, h, w] of prepared pictures, twice."""
        grid = assembled_grid(feature_maps(network.body, x, self.feature), x.shape[-1])
        return grid, grid

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """(h, w) of the feature grid."""
        return grid_size(network.body, self.feature, network.spec.size)

    def forward(self, grid: Tensor) -> Tensor:
        """Logits [B, C, h, w] of a feature grid [B, D, h, w]."""
        return self.linear(self.dropout(self.norm(grid)))


def feature_maps(body: Any, x: Tensor, feature: str) -> tuple[Tensor, ...]:
    """The maps [B, D_i, h_i, w_i] that a feature is made of, oldest first, from one pass of a timm model."""
    return maps_of(body, x, min(GRIDS[feature], len(body.feature_info)))


def maps_of(body: Any, x: Tensor, which: int | list[int]) -> tuple[Tensor, ...]:
    """Maps [B, D_i, h_i, w_i] of blocks or stages, by index or the last so many; a ViT's after its norm."""
    keywords = {"norm": True} if is_vit(body) else {}
    maps = body.forward_intermediates(
        x, indices=which, intermediates_only=True, output_fmt="NCHW", **keywords
    )
    return tuple(maps)


def assembled_grid(maps: Sequence[Tensor], side: int) -> Tensor:
    """Maps laid side by side at one size: [B, D, h, w]; ``side`` is the input's width in pixels."""
    size = next((m.shape[-2:] for m in maps if (m.shape[-1] - 1) * _STRIDE < side), maps[-1].shape[-2:])
    same = [
        m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=False)
        for m in maps
    ]
    return torch.cat(same, dim=1) if len(same) > 1 else same[0]


def grid_width(body: Any, feature: str) -> int:
    """D of a feature of a timm model."""
    return sum(info["num_chs"] for info in list(body.feature_info)[-GRIDS[feature] :])


def grid_size(body: Any, feature: str, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a feature of a timm model for an input of ``size``."""
    strides = [info["reduction"] for info in list(body.feature_info)[-GRIDS[feature] :]]
    stride = next((s for s in strides if s >= _STRIDE), strides[-1])
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def is_vit(body: Any) -> bool:
    """Whether this is a plain ViT, whose blocks' tokens can be read one by one."""
    return (
        hasattr(body, "blocks")
        and "return_prefix_tokens" in inspect.signature(body.forward_intermediates).parameters
    )
