"""A head that compares what a network makes of a picture with texts about classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.models.banks import TextBank, read_bank
from kdcli.models.heads.base import Head
from kdcli.models.heads.linear import FEATURES

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

_FEATURE = "pooled"


class CosineToTexts(nn.Module):
    """scale · cos(e, x_c) of embeddings e [B, D] and the rows x of a bank: logits [B, C], in fp32.

    Args:
        bank: its rows, and the scale.
    """

    def __init__(self, bank: TextBank) -> None:
        super().__init__()
        self.register_buffer("weight", bank.embeddings.float().clone())
        self.register_buffer("scale", torch.tensor(bank.scale))

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits [B, C]."""
        weight: Any = self.weight
        scale: Any = self.scale
        return scaled_cosines(embedding, weight, scale)


def scaled_cosines(embedding: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Logits [B, C] of embeddings [B, D] and rows [C, D], in fp32."""
    with torch.autocast(embedding.device.type, enabled=False):
        return scale * F.normalize(embedding.float(), dim=1) @ F.normalize(weight, dim=1).t()


class BankHead(Head):
    """A projection into the space of texts, and their bank behind it.

    What the bank takes, the tap ``embedding`` [B, D], is not normalised.

    Args:
        bank: of texts; its rows are no parameters.
        width: of the features that are projected; None where the network answers in that space itself.
    """

    kind = "texts"
    task = "zeroshot"

    def __init__(self, bank: TextBank, width: int | None = None) -> None:
        super().__init__()
        self.bank: TextBank = bank
        self.neck: nn.Module = nn.Identity() if width is None else nn.Linear(width, bank.width)
        self.linear: nn.Module = CosineToTexts(bank)
        self._keep_beside()

    def _keep_beside(self) -> None:
        """Hold the rows of classes that are no candidates, to be written with it."""
        beside = self.bank.beside
        rows = None if beside is None else beside.embeddings.clone().to(self.device)
        self.register_buffer("beside", rows)

    def to_json(self) -> dict[str, Any]:
        """What ``config.json`` says of it; the rest is in ``texts.json``."""
        return {"kind": self.kind, "feature": _FEATURE}

    def write_beside(self, folder: Path) -> list[str]:
        """Write ``texts.json``, and the contexts that the bank was learned with; returns names of files."""
        text = json.dumps(self.bank.to_json(), indent=1, ensure_ascii=False) + "\n"
        write_bytes(folder / artifacts.TEXTS, text.encode())
        if self.bank.contexts is None:
            return [artifacts.TEXTS]
        write_tensors(folder / artifacts.PROMPTS, {"contexts": self.bank.contexts})
        return [artifacts.TEXTS, artifacts.PROMPTS]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        scale: Any = self.linear.scale
        return scale.device

    @property
    def class_layers(self) -> list[Any]:
        """The bank: its rows are classes."""
        return [self.linear]

    def replace_bank(self, bank: TextBank) -> None:
        """Take another bank of the same space."""
        self.bank, self.linear = bank, CosineToTexts(bank).to(self.device)
        self._keep_beside()

    def take_projection(self, linear: nn.Linear) -> None:
        """Project as another layer does, [D, W], perhaps without a bias."""
        neck: Any = self.neck
        with torch.no_grad():
            neck.weight.copy_(linear.weight)
            neck.bias.zero_() if linear.bias is None else neck.bias.copy_(linear.bias)

    def read(self, network: TimmModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the body's own head would take, unpooled, and its pooled features [B, W]."""
        return network.run(x, FEATURES[_FEATURE])

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """One row a picture."""
        return ()

    def forward(self, taken: Any) -> Tensor:
        """Logits [B, C] of pooled features, by their name, or of an embedding."""
        return self.linear(self.neck(taken if isinstance(taken, Tensor) else taken[_FEATURE]))


def described_bank(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
    where: str,
    contexts: Tensor | None = None,
) -> BankHead | None:
    """The head that ``config.json``, ``head.safetensors`` and ``texts.json`` describe, not loaded.

    ``contexts`` are those of ``prompts.safetensors``. None for another head; raises InputError for a bank
    that is none.
    """
    weight, neck = tensors.get("linear.weight"), tensors.get("neck.weight")
    if config.get("kind") != BankHead.kind or weight is None:
        return None
    bank = read_bank(described, weight, where, beside=tensors.get("beside"), contexts=contexts)
    return BankHead(bank, None if neck is None else neck.shape[-1])
