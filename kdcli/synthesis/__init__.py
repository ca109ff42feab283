"""The table of mixers: how a new picture is made of K source pictures. Labels and text are never read.

A mixer that needs ``weights`` is a function of image embeddings ``[B, K, D]`` to cross-attention tokens
``[B, T, D]``; one that needs none is a function of K pictures and a seed to a picture. The table imports
without torch.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdcli.errors import UsageError, nearest

VARIATIONS = "lambdalabs/sd-image-variations-diffusers@v2.0"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: ``module:function``.
        help: one line.
        paper: where it comes from.
        sources: default number K of source pictures.
        exact: whether K can be no other.
        weights: whether it needs a diffusion model.
        default_weights: those that it takes without ``--weights``.
    """

    target: str
    help: str
    paper: str
    sources: int = 2
    exact: bool = False
    weights: bool = True
    default_weights: str | None = None


MIXERS: dict[str, Entry] = {
    "imagemixer": Entry(
        "kdcli.synthesis.imagemixer:imagemixer",
        "the sources' embeddings side by side as cross-attention tokens",
        "Marrie et al. 2024, arXiv 2402.11305; Justin Pinkney's Image Mixer (lambdalabs/image-mixer)",
    ),
    "variation": Entry(
        "kdcli.synthesis.variation:variation",
        "a variation of one picture",
        "Justin Pinkney's Image Variations (lambdalabs/sd-image-variations-diffusers)",
        sources=1,
        exact=True,
        default_weights=VARIATIONS,
    ),
    "tokens-mean": Entry(
        "kdcli.synthesis.tokens_mean:tokens_mean",
        "the mean embedding as one token, the ablation of imagemixer",
        "none",
        default_weights=VARIATIONS,
    ),
    "mixup": Entry(
        "kdcli.synthesis.mixup:mixup",
        "a convex combination of the pixels",
        "Zhang et al. 2018, arXiv 1710.09412",
        weights=False,
    ),
    "cutmix": Entry(
        "kdcli.synthesis.cutmix:cutmix",
        "a box of one picture pasted into another",
        "Yun et al. 2019, arXiv 1905.04899",
        exact=True,
        weights=False,
    ),
}


def entry(name: str) -> Entry:
    """Row of the table. Raises UsageError with the nearest name."""
    if name not in MIXERS:
        raise UsageError(f"unknown mixer '{name}'.{nearest(name, MIXERS)} Mixers: {', '.join(MIXERS)}.")
    return MIXERS[name]


def function(name: str) -> Callable[..., Any]:
    """The mixer's function (imports what it needs)."""
    module, _, attribute = entry(name).target.partition(":")
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
