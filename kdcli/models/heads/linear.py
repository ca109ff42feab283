"""A linear classifier over several features laid side by side, which timm's heads do not take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcli.models.heads.base import Head

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

# What a linear head may read, as parts laid side by side: oldest block first, then the mean of the patch
# tokens, as DINOv2's create_linear_input has it. ``pooled`` is what timm's own head takes.
FEATURES: dict[str, tuple[str, ...]] = {
    "pooled": ("pooled",),
    "pooled+avg": ("pooled", "avg"),
    "last4": ("back4", "back3", "back2", "pooled"),
    "last4+avg": ("back4", "back3", "back2", "pooled", "avg"),
}


class FeatureHead(Head):
    """A linear classifier over features that timm's heads do not take.

    Args:
        feature: a name of ``FEATURES``.
        width: its dimension.
        classes: number of logits.
    """

    def __init__(self, feature: str, width: int, classes: int) -> None:
        super().__init__()
        self.feature = feature
        self.linear = nn.Linear(width, classes)

    def to_json(self) -> dict[str, str]:
        """What ``config.json`` says of it."""
        return {"feature": self.feature}

    def read(self, network: TimmModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the body's own head would take, unpooled, and the feature's parts, each [B, D_i]."""
        return network.run(x, FEATURES[self.feature])

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """One row a picture."""
        return ()

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """Logits [B, C] from the parts, each [B, D_i]."""
        return self.linear(torch.cat([parts[name] for name in FEATURES[self.feature]], dim=1))
