"""The table of mixers: how a new picture is made. Labels and text are never read.

By family, a mixer is a function of

* ``diffusion``: image embeddings of K source pictures ``[B, K, D]`` to cross-attention tokens ``[B, T, D]``;
* ``pixels``: K source pictures and a seed to a picture;
* ``inversion``: weights, a teacher, and what it needs beside, to the method by which pictures are optimised;
* ``generator``: weights and a teacher to the method by which a generator of pictures is trained.

Those of the last two are in :mod:`kdcli.methods`. The table imports without torch.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
        family: what kind of function it is.
        records: whether it needs activations that probe recorded.
        student: whether it plays a student against the teacher.
        default_weights: those that it takes without ``--weights``.
    """

    target: str
    help: str
    paper: str
    sources: int = 2
    exact: bool = False
    family: Literal["diffusion", "pixels", "inversion", "generator"] = "diffusion"
    records: bool = False
    student: bool = False
    default_weights: str | None = None

    @property
    def weights(self) -> bool:
        """Whether it needs a diffusion model."""
        return self.family == "diffusion"

    @property
    def data_free(self) -> bool:
        """Whether it reads no pictures, but a teacher."""
        return self.family in ("inversion", "generator")


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
        family="pixels",
    ),
    "cutmix": Entry(
        "kdcli.synthesis.cutmix:cutmix",
        "a box of one picture pasted into another",
        "Yun et al. 2019, arXiv 1905.04899",
        exact=True,
        family="pixels",
    ),
    "deepinversion": Entry(
        "kdcli.methods.deepinversion:deepinversion",
        "pictures with the statistics of a teacher's batch norms",
        "Yin et al. 2020, arXiv 1912.08795",
        sources=0,
        family="inversion",
    ),
    "adaptive-deepinversion": Entry(
        "kdcli.methods.deepinversion:adaptive_deepinversion",
        "the same, sought where a student disagrees with the teacher",
        "Yin et al. 2020, arXiv 1912.08795",
        sources=0,
        family="inversion",
        student=True,
    ),
    "lopes": Entry(
        "kdcli.methods.lopes:lopes",
        "pictures with activations like those that probe recorded of each class",
        "Lopes, Fenu & Starner 2017, arXiv 1710.07535",
        sources=0,
        family="inversion",
        records=True,
    ),
    "dafl": Entry(
        "kdcli.methods.dafl:dafl_generator",
        "pictures of a generator that was trained against the teacher",
        "Chen et al. 2019, arXiv 1904.01186",
        sources=0,
        family="generator",
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
