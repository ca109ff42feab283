"""A network of timm and the heads that stand on it, in the place of its own classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.metrics.efficiency import evaluating
from kdcli.models import heads, surgery
from kdcli.models.banks import TextBank
from kdcli.models.heads.base import Head
from kdcli.models.heads.embedding import EmbeddingHead
from kdcli.models.heads.linear import FeatureHead
from kdcli.models.heads.texts import BankHead
from kdcli.models.protocol import Model


class Headed(Model):
    """What is done with the classifier, or the head, of a timm model.

    Attributes:
        body: the timm model.
        operations: by which it differs from its architecture; see :mod:`kdcli.models.surgery`.
    """

    body: nn.Module
    operations: tuple[Mapping[str, Any], ...]

    def fresh_head(self, name: str, classes: int) -> Head:
        """A head with initial weights for this model; see :func:`kdcli.models.heads.fresh`."""
        return heads.fresh(name, self.body, classes, self._pooled_width())

    def _pooled_width(self) -> int | None:
        """Pooled features of a body whose widths are not those of its architecture; None where they are."""
        return surgery.pooled_width(self.body, self.spec) if self.operations else None

    def attach(self, head: Head | None, classes: list[str], task: str) -> None:
        """Make a head the network's; None stands for a fresh classifier of timm's own."""
        width = self._pooled_width() or 0
        self.operations = surgery.without_widths_of_classifier(self.operations, self.body)
        reset_classifier(self.body, len(classes) if head is None else 0)
        if self.operations:
            surgery.fit_classifier(self.body, width)
        like = next(self.body.parameters())
        self.head = None if head is None else head.to(device=like.device, dtype=like.dtype)
        if head is not None and head.squashes:
            self.spec = replace(self.spec, crop=1.0, crop_mode="squash")
        self.classes, self.task, self.unnamed = list(classes) or None, task, 0
        self.decoder = None  # what answers a task tells no pixels
        self.fresh = True

    def attach_linear(
        self, feature: str, weight: Tensor, bias: Tensor, classes: list[str], task: str = "classification"
    ) -> None:
        """Make a linear classifier over ``feature`` the head, in timm's own layout where it fits."""
        own = feature == "pooled"
        self.attach(None if own else FeatureHead(feature, weight.shape[1], len(classes)), classes, task)
        linear = self.linear
        with torch.no_grad():
            linear.weight.copy_(weight.to(linear.weight))
            linear.bias.copy_(bias.to(linear.bias))
        self.fresh = False

    def attach_embedding(self, feature: str, affine: dict[str, Tensor], task: str) -> None:
        """Make a feature what it answers: in timm's own layout where that is its pooled one."""
        head = None
        if affine:
            width, out = affine["weight"].shape[1], len(affine["weight"])
            head = EmbeddingHead("linear", feature, width, 0, out)
            head.neck.load_state_dict(affine)
        elif feature != "pooled":
            device = next(self.body.parameters()).device
            black = torch.zeros((1, 3, *self.spec.size), dtype=torch.uint8, device=device)
            with torch.no_grad(), evaluating(self):
                width = sum(part.shape[1] for part in self.features(black, [feature]).values())
            head = EmbeddingHead("plain", feature, width, 0)
        self.attach(head, [], task)

    @property
    def text_width(self) -> int:
        """D of the space that a bank of texts stands in, or that a CLIP tower of timm's projects into."""
        if self.bank is not None:
            return self.bank.width
        own: Any = self.body
        return int(own.num_classes) if self.head is None and self.classes is None and projects(own) else 0

    def attach_bank(self, bank: TextBank, *, projected: bool) -> None:
        """A bank of texts behind its own projection into their space, or a fresh one."""
        if projected and self.head is not None:
            self.head.replace_bank(bank)
            self.classes, self.task = list(bank.classes), BankHead.task
            return
        head = BankHead(bank, self._pooled_width() or heads.pooled_width(self.body))
        if projected:
            head.take_projection(self.linear)
        self.attach(head, list(bank.classes), head.task)
        self.fresh = not projected

    def forget_classes(self) -> None:
        """Leave away the classifier behind an embedding."""
        rest = None if self.head is None else self.head.refitted(0)
        if rest is None:
            raise InputError(f"{self.name} has no embedding apart from its classifier.")
        self.head, self.classes = rest, None

    @property
    def linear(self) -> Any:
        """The layer that gives the logits. Raises InputError if the timm model has no single linear one."""
        return self.head.linear if self.head is not None else classifier(self.body)

    @property
    def class_layers(self) -> list[Any]:
        """Its classifier, or the two of a distilled ViT, or those of a head."""
        if self.head is not None:
            return self.head.class_layers
        body: Any = self.body
        found = body.get_classifier()
        if isinstance(found, tuple) and all(isinstance(f, nn.Linear) for f in found):
            return list(found)
        return super().class_layers


def projects(body: Any) -> bool:
    """Whether a timm model ends in a projection into the space of texts, as its towers of CLIP do."""
    return bool(body.num_classes) and "clip" in str((body.pretrained_cfg or {}).get("architecture"))


def classifier(body: Any) -> nn.Linear:
    """The final linear layer of a timm model. Raises InputError if it ends otherwise."""
    found = body.get_classifier()
    if not isinstance(found, nn.Linear):
        raise InputError(f"{type(body).__name__} ends in {type(found).__name__}, not in a linear classifier.")
    return found


def reset_classifier(body: Any, classes: int) -> None:
    """Give a timm model a fresh classifier, on the device and in the type of its weights."""
    like = next(body.parameters())
    body.reset_classifier(classes)
    body.to(device=like.device, dtype=like.dtype)
