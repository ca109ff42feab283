"""transformers' networks as models: the image encoder of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.model import InputSpec
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.errors import InputError, nearest
from kdcli.models.protocol import Model

TAPS = ("embedding", "pooled", "tokens")


class ClipEncoder(Model):
    """CLIP's image encoder with its projection, ``CLIPVisionModelWithProjection``.

    Its taps are ``embedding`` [B, D], projected and not normalised to length 1; ``pooled`` [B, W], the class
    token after the last norm, which the projection takes; ``tokens`` [B, N, W], all before that norm.

    Args:
        body: the network of transformers.
        spec: what it wants to see; the size is that of its configuration.
        facts: further arguments of :class:`kdcli.models.protocol.Model`, by name.
    """

    def __init__(self, body: nn.Module, spec: InputSpec, **facts: Any) -> None:
        super().__init__(spec, None, **facts)
        self.body, self.head = body, None

    def prepare(self, x: Tensor) -> Tensor:
        """Normalise views uint8 [B, 3, S, S] of its own size; float tensors are taken as prepared."""
        return self.normalise(x.float().div(255)) if x.dtype == torch.uint8 else x

    def normalise(self, x: Tensor) -> Tensor:
        """Prepared pictures of float ones, which an interpolation may have left beyond 0 to 1."""
        mean, std = self._normalisation(x)
        return (x - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """Pictures uint8 of prepared ones."""
        mean, std = self._normalisation(x)
        return ((x.detach() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _normalisation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (x.new_tensor(value)[:, None, None] for value in (self.spec.mean, self.spec.std))
        return mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, D] of views (uint8) or prepared pictures (float)."""
        return self.call([x], ["embedding"])["embedding"]

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Named tensors of one call on one batch of pictures."""
        if unknown := next((tap for tap in taps if tap not in TAPS), None):
            raise InputError(f"{self.name} has no tap '{unknown}': a CLIP encoder gives {', '.join(TAPS)}.")
        pooled: list[Tensor] = []
        body: Any = self.body
        projection = body.visual_projection
        handle = projection.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
        try:
            found = body(pixel_values=self.prepare(self._single(inputs)))
        finally:
            handle.remove()
        tensors = {
            "embedding": found.image_embeds,
            "pooled": pooled[0],
            "tokens": found.last_hidden_state,
        }
        return {tap: tensors[tap] for tap in taps}

    def tappable(self) -> dict[str, nn.Module]:
        """None: its taps have names of their own."""
        return {}

    def tensor(self, name: str) -> Tensor:
        """A parameter by its name in transformers. Raises InputError if there is none."""
        known = dict(self.body.named_parameters())
        if name not in known:
            raise InputError(f"{self.name} has no parameter '{name}'.{nearest(name, known)}")
        return known[name]

    @property
    def architecture(self) -> str:
        """Its class in transformers."""
        return type(self.body).__name__

    @property
    def layout(self) -> str:
        """``transformers`` loads its files."""
        return "transformers"

    @property
    def outputs(self) -> int:
        """0: it has no classifier."""
        return 0

    def feature_names(self) -> list[str]:
        """What CLIP's own projection takes."""
        return ["pooled"]

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The part ``pooled`` [B, W]."""
        return self.call([x], ["pooled"])

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Write it as ``from_pretrained`` of its class reads it."""
        body: Any = self.body
        own = body.state_dict() if tensors is None else tensors
        write_tensors(folder / artifacts.WEIGHTS, {n.removeprefix("body."): t for n, t in own.items()})
        write_bytes(folder / artifacts.CONFIG, body.config.to_json_string(use_diff=False).encode())
        return [artifacts.WEIGHTS, artifacts.CONFIG]
