"""What losses read of a batch of pictures with identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IdentityColumns:
    """Numbers of identities among those of the training pictures.

    Attributes:
        numbers: [C] int64 of these identities in the data, ascending.
    """

    numbers: Tensor

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``target`` int64 [B], the place of a picture's identity, -1 for none, and ``labelled`` [B]."""
        import torch

        y = batch["y"]
        found = torch.searchsorted(self.numbers.to(y.device), y.clamp(min=0))
        return {"target": torch.where(y >= 0, found, -1), "labelled": y >= 0}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Raise UsageError: a mixed picture is of no identity."""
        raise UsageError("retrieval has no mixup and no CutMix: a mixed picture is of no identity.")
