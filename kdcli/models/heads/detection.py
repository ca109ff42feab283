"""A detector of transformers on three maps of a timm model: RT-DETR, D-FINE, or a light one.

A network of stages gives its last three strides, mostly 8, 16 and 32. A plain ViT has maps of one stride: of
its last one, after the norm, come three by ViTDet's simple pyramid (Li et al. 2022, arXiv 2203.16527):
transposed convolution, as it is, max-pooling. The 1×1 convolution and norm that end each of its levels are
those with which the detector begins; its 3×3 convolutions are left to the detector's own pyramid.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.errors import InputError, UsageError
from kdcli.models import detecting, detectors
from kdcli.models.detecting import Objects
from kdcli.models.detectors import KINDS, LEVELS
from kdcli.models.heads.base import Head
from kdcli.models.heads.dense import maps_of
from kdcli.models.taps import is_isotropic

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

_NECK = tuple(f"neck{level}" for level in range(1, LEVELS + 1))
_PLACES = tuple(f"objectness{level}" for level in range(1, LEVELS + 1))
_LOSSES = ("loss_class", "loss_box")
TAPS = ("boxes", *_NECK, *_PLACES, *_LOSSES)
"""Beside logits [B, Q, C]: boxes [B, Q, 4], maps ``neckK``, scores ``objectnessK`` [B, h, w], losses [B]."""


class DetectionHead(Head):
    """Boxes of objects, and their classes.

    Args:
        kind: a name of ``KINDS``.
        settings: that differ from its own.
        widths: channels of the body's maps that it is given, finest first; one for a plain ViT.
        classes: number of logits.
    """

    task = "detection"
    gives = TAPS
    squashes = True
    deterministic = False  # CUDA has no deterministic gradient of sampling at places

    def __init__(self, kind: str, settings: Mapping[str, Any], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.name, self.settings = kind, dict(settings)
        self.kind = detectors.described(kind, settings)
        self.pyramid: nn.Module | None = None
        if len(widths) == 1:
            width = widths[0]
            self.pyramid, widths = nn.ConvTranspose2d(width, width // 2, 2, 2), (width // 2, width, width)
        self.detector = detectors.make(kind, settings, widths, classes)

    @property
    def linear(self) -> Any:
        """The layer that gives the logits of the last refinement."""
        return self.detector.model.decoder.class_embed[-1]

    @property
    def class_layers(self) -> list[Any]:
        """All layers that know classes."""
        return detectors.class_layers(self.detector)

    def to_json(self) -> dict[str, Any]:
        """What ``config.json`` says of it."""
        return {"kind": self.name, **({"settings": self.settings} if self.settings else {})}

    def read(self, network: TimmModel, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The body's last map, and three maps [B, D_i, h_i, w_i] of prepared pictures, finest first."""
        maps = maps_of(network.body, x, ends(network.body))
        if self.pyramid is None:
            return maps[-1], maps
        (only,) = maps
        return only, (self.pyramid(only), only, F.max_pool2d(only, 2))

    def named(self, taken: tuple[Tensor, ...], taps: Sequence[str], beside: Sequence[Any]) -> dict[str, Any]:
        """Logits, and what is named of :data:`TAPS`; ``beside`` are boxes, classes and ``labelled``."""
        objects = Objects(*beside) if beside else None
        outputs = detecting.run(self.detector, taken[0], taken, objects)
        return taps_of(self.detector, outputs, taps, objects)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Logits [B, Q, C] of the queries."""
        return detecting.answers(detecting.run(self.detector, maps[0], maps, None))[0]

    def answer(self, taken: tuple[Tensor, ...]) -> Tensor:
        """The best detections [B, K, 6]; see :func:`kdcli.models.detecting.detections`."""
        return detecting.detections(*detecting.answers(detecting.run(self.detector, taken[0], taken, None)))

    def traceable(self) -> AbstractContextManager[None]:
        """A block in which a graph of any batch can be traced."""
        return detectors.symbolic_lengths(self.detector)

    def refitted(self, classes: int) -> DetectionHead:
        """The same detector for other classes."""
        found = copy.deepcopy(self)
        found.detector = detectors.for_classes(self.detector, classes)
        return found

    def logit_shape(self, network: TimmModel) -> tuple[int, ...]:
        """(queries, classes)."""
        return (int(self.detector.config.num_queries), network.outputs)

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """One answer a picture, of all queries."""
        return ()


def taps_of(detector: Any, outputs: Any, taps: Sequence[str], objects: Objects | None) -> dict[str, Any]:
    """Logits, and what is named of :data:`TAPS`, of a detector's outputs.

    Raises:
        InputError: losses of a call that is given no objects.
    """
    logits, boxes = detecting.answers(outputs)
    found: dict[str, Any] = {"logits": logits, "boxes": boxes}
    found |= dict(zip(_NECK, outputs.encoder_last_hidden_state))
    if not set(_PLACES).isdisjoint(taps):
        found |= dict(zip(_PLACES, detecting.scored_places(outputs)))
    if not set(_LOSSES).isdisjoint(taps):
        if objects is None:
            raise InputError(
                f"'{next(t for t in taps if t in _LOSSES)}' is of a call in which a network in training is "
                "given the objects of its pictures."
            )
        found |= detecting.losses(detector, outputs, objects)
    return {name: found[name] for name in ("logits", *taps)}


def ends(body: Any) -> list[int]:
    """Indices of the blocks or stages whose maps a detector reads: the last of each of three strides.

    Raises:
        InputError: fewer strides, or such as do not double.
    """
    info = list(getattr(body, "feature_info", None) or [])
    if info and is_isotropic(body):
        return [len(info) - 1]
    last = {entry["reduction"]: index for index, entry in enumerate(info)}
    strides = sorted(last)[-LEVELS:]
    if len(strides) < LEVELS or any(2 * a != b for a, b in pairwise(strides)):
        shown = ", ".join(map(str, sorted(last))) or "none"
        raise InputError(
            f"{type(body).__name__} has maps of stride {shown}, and a detector reads three of which each is "
            "half as large as the one before it."
        )
    return [last[stride] for stride in strides]


def widths(body: Any) -> list[int]:
    """Channels of these maps."""
    info = list(body.feature_info)
    return [info[end]["num_chs"] for end in ends(body)]


def is_detector(kind: str) -> bool:
    """Whether ``kind`` names a detector, perhaps with settings."""
    return kind.partition(",")[0] in KINDS


def fresh_detector(kind: str, body: Any, classes: int) -> DetectionHead:
    """A detector with initial weights on the maps of a timm model."""
    name, settings = detectors.parsed(kind)
    return DetectionHead(name, settings, widths(body), classes)


def described_detector(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], body: Any
) -> DetectionHead | None:
    """The head that ``config.json`` and ``head.safetensors`` describe, not loaded; None for another."""
    settings, scores = config.get("settings", {}), tensors.get("detector.model.enc_score_head.weight")
    if not isinstance(settings, dict) or scores is None:
        return None
    kind = detectors.described(str(config.get("kind")), settings)
    try:
        name, checked = detectors.parsed(kind)
    except UsageError as error:  # of a file, which no user has written so
        raise InputError(f"its configuration describes no detector: {error}") from error
    with torch.random.fork_rng(devices=[]):
        return DetectionHead(name, checked, widths(body), len(scores))
