"""What a model is to all who use one: its input, its call, what heads can read, its classes, its files.

Kinds are timm's networks (:mod:`kdcli.models.timm`), transformers' (:mod:`kdcli.models.transformers`),
several teachers as one (:mod:`kdcli.models.ensemble`) and exported files (:mod:`kdcli.models.onnx`). Nothing
outside this room names what is inside one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.models.autoencoder import Decoder
    from kdcli.models.banks import TextBank
    from kdcli.models.heads.base import Head


class Model(nn.Module, ABC):
    """A network with everything that makes its output reproducible.

    A kind answers what is abstract here; the rest it may leave out, and it is then refused by a message.

    Args:
        spec: what it wants to see.
        classes: names of its logits; None where they have none, or where it has no trained classifier.
        name: for messages.
        source: hash of the weights it was built from, for cache keys.
        trained: the state of its weights: ``random``, ``pretrained`` or ``artifact``.
        task: what its logits answer, a name of :data:`kdcli.tasks.TASKS`.
        unnamed: number of the logits of a trained classifier that knows no names of its classes.
        notes: what was decided while it was built and its user should know, a sentence each.
        temperature: by what its logits are divided where it teaches (``kdcli probe`` fits it); what it
            answers itself is not.

    Attributes:
        head: what stands in the place of its own classifier, if anything does.
        decoder: of a masked autoencoder, where this is one with its decoder.
        fresh: whether its classifier has its initial weights.
    """

    def __init__(
        self,
        spec: InputSpec,
        classes: list[str] | None,
        *,
        name: str,
        source: str = "",
        trained: str = "random",
        task: str = "classification",
        unnamed: int = 0,
        notes: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec, self.classes, self.name, self.source, self.trained = spec, classes, name, source, trained
        self.task, self.unnamed, self.notes = task, unnamed, tuple(notes)
        self.temperature = temperature
        self.head: Head | None = None
        self.decoder: Decoder | None = None
        self.fresh = False

    # -- input and call --------------------------------------------------------------------------------------
    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Resize and normalise views uint8 [B, 3, H, W]; float tensors are taken as prepared."""

    @abstractmethod
    def restore(self, x: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] of prepared ones (float): what :meth:`prepare` normalises to them."""

    @abstractmethod
    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Named tensors of one call.

        Args:
            inputs: as many as the model takes, views (uint8) or prepared pictures (float).
            taps: see :mod:`kdcli.models.taps` for the names.

        Returns:
            ``{tap: tensor}``, or a list of tensors for a pattern.

        Raises:
            InputError: another number of inputs, or a tap that it has not.
        """

    @abstractmethod
    def tappable(self) -> dict[str, nn.Module]:
        """Modules by the names that taps call them by, in the order of the model."""

    def block_taps(self) -> list[str]:
        """Taps of its blocks or stages, the first one first; none where they have no names."""
        return []

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name; ``classifier`` is the classifier's rows.

        Raises InputError if there is none.
        """

    def _single(self, inputs: Sequence[Tensor]) -> Tensor:
        """The one input of a model that takes one. Raises InputError for another number."""
        if len(inputs) != 1:
            raise InputError(f"{self.name} takes one input, pictures, and a call gives it {len(inputs)}.")
        return inputs[0]

    def traceable(self) -> AbstractContextManager[None]:
        """A block in which a graph of any batch can be traced of its ``forward``."""
        return nullcontext()

    # -- what it is ------------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def architecture(self) -> str:
        """Its name in the library that it is from."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """Who loads its files with the same answers: ``timm``, ``transformers``, or ``kdcli`` alone."""

    @property
    def counted(self) -> nn.Module:
        """What its parameters and FLOPs are counted of."""
        return self

    @property
    def runs_in(self) -> str:
        """Another runtime than torch that it answers by, and the device; empty for torch itself."""
        return ""

    @property
    def outputs(self) -> int:
        """Number of its logits, named or not; 0 without a trained classifier."""
        return self.unnamed if self.classes is None else len(self.classes)

    @property
    def columns(self) -> list[str] | None:
        """What tells its logits apart in cache keys: names, or numbers where it knows none."""
        return (
            [str(i) for i in range(self.unnamed)] if self.classes is None and self.unnamed else self.classes
        )

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Its own, or those of the networks that it is made of."""
        return (self.temperature,)

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one picture: [C], [C, h, w], or [Q, C] of queries."""
        return (self.outputs,)

    @property
    def logit_count(self) -> int:
        """Numbers in the logits of one picture."""
        return math.prod(self.logit_shape)

    @abstractmethod
    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Write it as a model directory; the caller commits it.

        Args:
            folder: existing directory.
            tensors: state dict to write instead of the model's own (the best step's).

        Returns:
            Names of the files written.
        """

    # -- training --------------------------------------------------------------------------------------------
    def undecayed(self) -> set[str]:
        """Names of parameters that weight decay spares, beside biases and norms."""
        return set()

    def layer_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups with ``lr_scale`` for a learning rate that falls from layer to layer.

        Args:
            weight_decay: of all but what is spared.
            layer_decay: factor from one layer to the one below it.

        Raises:
            InputError: a model whose layers are not known.
        """
        self._refuse("layers that a layer decay could tell apart")

    def freeze_body(self) -> None:
        """Let nothing learn but the head: the rest stays in eval mode, whatever mode the network is in."""
        self._refuse("head apart from its body")

    def synchronise(self) -> None:
        """Let the head's batch norms see the batches of all processes; CUDA only, torch has none for CPUs."""

    # -- what heads read -------------------------------------------------------------------------------------
    def feature_names(self) -> list[str]:
        """Features of ``FEATURES`` that a linear classifier can read here."""
        return []

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Parts [B, D_i] that the named features are made of."""
        self._refuse("features for a linear classifier")

    def map_count(self, feature: str) -> int:
        """Number of maps that a feature of ``GRIDS`` is made of."""
        self._refuse("feature maps")

    def maps(self, x: Tensor, feature: str) -> tuple[Tensor, ...]:
        """Maps [B, D_i, h_i, w_i] of views that a feature of ``GRIDS`` is made of."""
        self._refuse("feature maps")

    def map_module(self, name: str) -> nn.Module:
        """The module behind ``mapK``, ``stageK`` or ``a.b.c.map``. Raises InputError if there is none."""
        self._refuse("feature maps")

    def as_map(self, output: Tensor) -> Tensor:
        """What such a module returns, as a map [B, D, H, W]. Raises InputError if it is none."""
        self._refuse("feature maps")

    def assembled(self, maps: Sequence[Tensor]) -> Tensor:
        """A feature grid [B, D, h, w] of its maps."""
        self._refuse("feature maps")

    def fresh_head(self, name: str, classes: int) -> Head:
        """A head with initial weights for it; see :func:`kdcli.models.heads.fresh`."""
        self._refuse("place for a new head")

    # -- classifier ------------------------------------------------------------------------------------------
    def attach(self, head: Head | None, classes: list[str], task: str) -> None:
        """Make a head the model's; None stands for a fresh classifier of its own kind."""
        self._refuse("place for a new head")

    def attach_linear(
        self, feature: str, weight: Tensor, bias: Tensor, classes: list[str], task: str = "classification"
    ) -> None:
        """Make a linear classifier over ``feature`` the head, in the library's own layout where it fits."""
        self._refuse("place for a new head")

    def attach_embedding(self, feature: str, affine: dict[str, Tensor], task: str) -> None:
        """Make a feature what it answers, in the library's own layout where that has it.

        Args:
            feature: of ``FEATURES``.
            affine: weight [E, D] and bias [E] of a map of it; empty for the feature as it is.
            task: whose answer that is.
        """
        self._refuse("place for a new head")

    @property
    def text_width(self) -> int:
        """D of the space that it shares with texts as it is; 0 where it shares none."""
        return 0

    def attach_bank(self, bank: TextBank, *, projected: bool) -> None:
        """Answer by how alike pictures and texts are.

        Args:
            bank: embeddings of the texts.
            projected: whether it ends in their space already; else in a fresh projection.

        Raises:
            InputError: it does not, or has no place for a projection.
        """
        self._refuse("place for a bank of texts")

    @property
    def bank(self) -> TextBank | None:
        """The texts that it compares pictures with, if it does; any of their classes may be candidates."""
        return None if self.head is None else self.head.bank

    def select(self, classes: Sequence[str]) -> None:
        """Candidates: these of the classes that it has texts of, in this order.

        Raises:
            InputError: one that it has no text of, or no texts at all.
        """
        if self.head is None or self.head.bank is None:
            self._refuse("bank of texts")
        self.head.replace_bank(self.head.bank.taking(classes, "its bank of texts"))
        self.classes = list(classes)

    def forget_classes(self) -> None:
        """Leave away a classifier that answers do not come from: what is compared is an embedding."""
        self._refuse("classifier apart from its answers")

    @property
    def linear(self) -> Any:
        """The layer that gives the logits. Raises InputError if there is no single linear one."""
        self._refuse("classifier")

    def take_names(self, classes: list[str], order: Literal["names", "same"]) -> None:
        """Give a classifier that knows no names those of the data, where the user says that they are its own.

        Args:
            classes: names in the order of the data.
            order: ``same`` if the user says so.

        Raises:
            InputError: nobody says so, or there is another number of them.
        """
        if self.classes is not None or not self.unnamed:
            return
        shown = f"{', '.join(classes[:3])}, …" if len(classes) > 3 else ", ".join(classes)
        if self.unnamed != len(classes):
            raise InputError(
                f"{self.name} knows {self.unnamed} classes and no names of them, the data has {len(classes)} "
                f"({shown}). Fit a head on this data with kdcli probe first."
            )
        if order != "same":
            raise InputError(
                f"{self.name} knows no names of its {self.unnamed} classes. If they stand in the order of "
                f"the data ({shown}), say --set data.class_order=same; else fit a head with kdcli probe."
            )
        self.classes = list(classes)

    def reorder(self, order: Sequence[int] | None, classes: list[str]) -> None:
        """Put the classifier's rows into the order of ``classes``; ``order[i]`` is the old row of class i.

        Classes that it has texts of go by these names, whatever their order.
        """
        if self.bank is not None and list(classes) != self.classes:
            self.select(classes)
            return
        self.classes = list(classes)
        if order is None:
            return
        with torch.no_grad():
            for layer in self.class_layers or [self.linear]:
                behind = range(len(order), len(layer.weight))  # of no class
                rows = torch.tensor([*order, *behind])
                layer.weight.copy_(layer.weight[rows].clone())
                if getattr(layer, "bias", None) is not None:
                    layer.bias.copy_(layer.bias[rows].clone())

    @property
    def class_layers(self) -> list[Any]:
        """Layers whose rows are its classes: its classifier, or two that answer by their mean."""
        try:
            return [self.linear]
        except InputError:
            return []

    def class_rows(self) -> Tensor | None:
        """Weight [C, D] of its linear classifier, None where it ends otherwise."""
        try:
            linear = self.linear
        except InputError:
            return None
        return linear.weight if isinstance(linear, nn.Linear) else None

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.name} ({self.architecture}) has no {what}.")
