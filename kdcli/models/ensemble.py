"""Several frozen networks that answer as one teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts.manifest import digest
from kdcli.errors import InputError
from kdcli.losses.targets import ensemble_logits
from kdcli.models.protocol import Model

Mean = Literal["logits", "probabilities"]


class _Mean(nn.Module):
    """The mean of the members' answers to views (uint8), which each of them prepares for itself."""

    def __init__(
        self, members: Sequence[Model], mean: Mean, temperature: float, own: Sequence[float]
    ) -> None:
        super().__init__()
        self.members, self.mean, self.temperature = nn.ModuleList(members), mean, temperature
        self.own = tuple(own)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]: z̄ = mean z_m, or T·log mean softmax(z_m/T), whose softmax at T is the mean.

        Grids of logits [B, C, h, w] are brought to the finest one's size.
        """
        found = [member(x) for member in self.members]
        found = [z if own == 1 else z.float() / own for z, own in zip(found, self.own)]
        if found[0].ndim == 4:
            size = max((z.shape[-2:] for z in found), key=lambda shape: shape[0] * shape[1])
            found = [F.interpolate(z, size, mode="bilinear", align_corners=False) for z in found]
        return ensemble_logits(torch.stack(found, dim=1), mean=self.mean, temperature=self.temperature)


class Ensemble(Model):
    """A teacher made of several, with the classes of all in the same order.

    Args:
        members: each with its own input and normalisation.
        mean: of their logits (Allen-Zhu & Li 2020), or of their softened probabilities (Hinton et al. 2015).
        temperature: T at which probabilities are averaged, and are to be read.
        own: what each member's logits are divided by before that; none is, by default.

    Raises:
        InputError: their classes differ.
    """

    def __init__(
        self,
        members: Sequence[Model],
        mean: Mean,
        temperature: float = 1.0,
        own: Sequence[float] | None = None,
    ) -> None:
        first = members[0]
        if other := next((m for m in members if m.classes != first.classes), None):
            raise InputError(f"{first.name} and {other.name} have different classes, or in another order.")
        softened = [temperature] if mean == "probabilities" else []
        own = own or [1.0] * len(members)
        calibrated = [list(own)] if set(own) != {1.0} else []
        super().__init__(
            max((m.spec for m in members), key=lambda spec: spec.size[0] * spec.size[1]),
            first.classes,
            name=" + ".join(m.name for m in members),
            source=digest([mean, *softened, *calibrated, *([m.source, m.spec.to_json()] for m in members)]),
            trained=" + ".join(dict.fromkeys(m.trained for m in members)),
            task=first.task,
            notes=[f"{m.name}: {note}" for m in members for note in m.notes],
        )
        self.body = _Mean(members, mean, temperature, own)

    def prepare(self, x: Tensor) -> Tensor:
        """Views as they are: the members prepare them."""
        return x

    def restore(self, x: Tensor) -> Tensor:
        """Refused: the members have no one normalisation."""
        self._refuse("one normalisation")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C], or [B, C, h, w], of views (uint8)."""
        return self.body(x)

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Logits. Raises InputError for any other tap: the members' tensors have no mean."""
        if tuple(taps) != ("logits",):
            raise InputError(f"several teachers give logits only, not {', '.join(taps)}. Take one teacher.")
        return {"logits": self(self._single(inputs))}

    def tappable(self) -> dict[str, nn.Module]:
        """None: the members' tensors have no mean."""
        return {}

    def tensor(self, name: str) -> Tensor:
        """None. Raises InputError: several networks have no parameters in common."""
        return self.linear.weight

    @property
    def architecture(self) -> str:
        """Those of the members."""
        return " + ".join(member.architecture for member in self._members)

    @property
    def layout(self) -> str:
        """It has no files."""
        return "kdcli"

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those of the members."""
        return tuple(member.temperature for member in self._members)

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one picture, on the finest grid."""
        return max((member.logit_shape for member in self._members), key=math.prod)

    @property
    def linear(self) -> Any:
        """None. Raises InputError: several classifiers have no rows in common."""
        raise InputError(f"{self.name} has several classifiers. Take one teacher.")

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Refused: several networks are no one artifact."""
        self._refuse("files of its own")

    @property
    def _members(self) -> list[Model]:
        body: Any = self.body
        return list(body.members)
