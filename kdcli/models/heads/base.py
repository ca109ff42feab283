"""What every head is that stands on a timm model's features in place of its own classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel


class Head(nn.Module, ABC):
    """Logits from what it reads of a network; ``linear`` is the layer that gives them.

    What a head makes of features before that layer is its ``neck``, if it has one.

    Attributes:
        kind: its kind, for those who ask for one: ``linear``, or a name of
            :data:`kdcli.models.heads.decoders.DECODERS`.
        task: what an artifact that does not say so does with it.
        least_rows: pictures that a step of training needs, for the sake of its batch norms.
        deterministic: whether CUDA has a deterministic gradient of it.
    """

    kind = "linear"
    task = "classification"
    least_rows = 1
    deterministic = True

    @abstractmethod
    def to_json(self) -> dict[str, str]:
        """What ``config.json`` says of it."""

    @abstractmethod
    def read(self, network: TimmModel, x: Any) -> tuple[Any, Any]:
        """What the body ends in, for prepared pictures, and what ``forward`` takes of it."""

    def answer(self, taken: Any) -> Any:
        """What the network answers a picture with; by default the logits."""
        return self(taken)

    def refitted(self, classes: int) -> Head | None:
        """The same head for other classes, where more of it than its last layer is worth keeping."""
        return None

    @abstractmethod
    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """The grid of its logits for the network's input: () for one row a picture, else (h, w)."""
