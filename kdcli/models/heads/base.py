"""What every head is that stands on a timm model's features in place of its own classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from kdcli.models.banks import TextBank
    from kdcli.models.timm import TimmModel


class Head(nn.Module, ABC):
    """Logits from what it reads of a network; ``linear`` is the layer that gives them.

    What a head makes of features before that layer is its ``neck``, if it has one.

    Attributes:
        kind: its kind, for those who ask for one: ``linear``, a name of
            :data:`kdcli.models.heads.decoders.DECODERS`, or a detector with its settings.
        task: what an artifact that does not say so does with it.
        gives: taps that it has beside logits.
        squashes: whether it wants to see whole pictures, squashed, since it answers where something is.
        least_rows: pictures that a step of training needs, for the sake of its batch norms.
        deterministic: whether CUDA has a deterministic gradient of it.
        bank: the texts that its logits compare pictures with, if they do.
    """

    kind = "linear"
    task = "classification"
    gives: tuple[str, ...] = ()
    squashes = False
    least_rows = 1
    deterministic = True
    bank: TextBank | None = None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What ``config.json`` says of it."""

    def replace_bank(self, bank: TextBank) -> None:
        """Take another bank of the same space, where it has one."""
        raise TypeError(f"a {self.kind} head has no bank of texts")

    def write_beside(self, folder: Path) -> list[str]:
        """Write what describes it beside its tensors; returns names of files, none by default."""
        return []

    @abstractmethod
    def read(self, network: TimmModel, x: Any) -> tuple[Any, Any]:
        """What the body ends in, for prepared pictures, and what ``forward`` takes of it."""

    def answer(self, taken: Any) -> Any:
        """What the network answers a picture with; by default the logits."""
        return self(taken)

    def refitted(self, classes: int) -> Head | None:
        """The same head for other classes, where more of it than its last layer is worth keeping."""
        return None

    def named(self, taken: Any, taps: Sequence[str], beside: Sequence[Any]) -> dict[str, Any]:
        """Logits, and what it gives by these taps.

        Args:
            taken: what :meth:`read` gave.
            taps: of ``gives``.
            beside: what a call gives behind the pictures.

        Raises:
            InputError: a tap that takes something that is not given.
        """
        return {"logits": self(taken)}

    def traceable(self) -> AbstractContextManager[None]:
        """A block in which a graph of any batch can be traced."""
        return nullcontext()

    @property
    def class_layers(self) -> list[Any]:
        """Layers whose rows are classes: what gives the logits, where it is one such layer."""
        return [self.linear] if isinstance(self.linear, nn.Linear | nn.Conv2d) else []

    def logit_shape(self, network: TimmModel) -> tuple[int, ...]:
        """Shape of the logits of one picture of the network's input."""
        return (network.outputs, *self.cells(network))

    @abstractmethod
    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """The grid of its logits for the network's input: () for one row a picture, else (h, w)."""
