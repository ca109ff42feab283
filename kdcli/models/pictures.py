"""Pictures as a party: a batch whose pixels are learned, and how another network sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts.model import InputSpec


class Pictures(nn.Module):
    """A batch of pictures, normalised as a network takes them, whose pixels are the parameter.

    Args:
        pixels: at the start, [B, C, H, W].
    """

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Parameter(pixels)

    def forward(self, view: Tensor | None = None) -> Tensor:
        """The batch; with ``view`` as :func:`viewed` has it."""
        return self.pixels if view is None else viewed(self.pixels, view)


def viewed(pixels: Tensor, view: Tensor) -> Tensor:
    """Pictures [B, C, H, W] shifted around their edges, then mirrored; ``view`` = (down, right, mirrored)."""
    down, right, mirrored = (int(v) for v in view)
    seen = torch.roll(pixels, (down, right), (2, 3)) if down or right else pixels
    return seen.flip(3) if mirrored else seen


def first_pictures(spec: InputSpec, count: int, start: tuple[float, float] | None = None) -> Pictures:
    """Pictures that are noise yet, from torch's own generator: standard normal once they are normalised.

    Args:
        spec: of the network that they are made for.
        count: B.
        start: mean and deviation of their pixels in [0, 1] instead.
    """
    values = torch.randn((count, 3, *spec.size))
    if start is None:
        return Pictures(values)
    mean, deviation = start
    centre, scale = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
    return Pictures((mean + deviation * values - centre) / scale)


class Renormalised(nn.Module):
    """From the normalisation of one network's input to another's; resized where their sizes differ.

    Args:
        source: what the pictures are made for.
        target: what they are to be.
    """

    def __init__(self, source: InputSpec, target: InputSpec) -> None:
        super().__init__()
        self.size = None if source.size == target.size else target.size
        std = torch.tensor(target.std)
        self.register_buffer("scale", (torch.tensor(source.std) / std).view(-1, 1, 1))
        self.register_buffer(
            "shift", ((torch.tensor(source.mean) - torch.tensor(target.mean)) / std).view(-1, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same pictures [B, C, H, W] for the other network."""
        scale: Any = self.scale
        shift: Any = self.shift
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return x * scale + shift
