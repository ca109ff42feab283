"""The decode heads of SegFormer and UPerNet, transformers' own modules, over four maps of a timm model.

SegFormer's (Xie et al. 2021, arXiv 2105.15203) projects every map to one width, brings all to the size of the
first and mixes them by a 1×1 convolution. UPerNet's (Xiao et al. 2018, arXiv 1807.10221) pools the last map
at four scales and hands the result down a feature pyramid to the first. transformers is imported where such a
head is built.

A network of stages gives its last four. A ViT gives its blocks at 1/4, 2/4, 3/4 and the end of its depth,
each after the final norm as the linear head has them. They are all of one size, and are resized as BEiT's are
for UPerNet (arXiv 2106.08254), without weights: bilinear by 4, bilinear by 2, as it is, max-pooling by 2.
Patches of 16 pixels so have strides 4, 8, 16 and 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.errors import InputError
from kdcli.models.heads.base import Head
from kdcli.models.heads.dense import maps_of
from kdcli.models.taps import is_isotropic, quarter_ends

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

# Their width between the maps and the logits: transformers' defaults.
DECODERS: dict[str, int] = {"segformer": 256, "upernet": 512}
_STD = 0.02  # of initial weights: transformers' too
_FINEST = 4  # how much finer than a ViT's patches the first map is


class DecodeHead(Head):
    """A decode head of transformers, with its initial weights (normal, biases 0).

    Args:
        kind: a name of ``DECODERS``.
        widths: channels of the four maps, finest first.
        classes: number of logits.
        width: channels inside; None for those of ``DECODERS``.
    """

    task = "segmentation"

    def __init__(self, kind: str, widths: Sequence[int], classes: int, width: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        if kind == "upernet":  # its pyramid pooling takes a map to one value, which a batch norm then sees
            self.least_rows, self.deterministic = 2, False
        self.decoder = _decoder(kind, list(widths), classes, width or DECODERS[kind])
        for module in self.decoder.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def linear(self) -> nn.Conv2d:
        """The layer that gives the logits."""
        return cast(nn.Conv2d, self.decoder.classifier)

    def to_json(self) -> dict[str, str]:
        """What ``config.json`` says of it."""
        return {"kind": self.kind}

    def read(self, network: TimmModel, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Four maps [B, D_i, h_i, w_i] of prepared pictures, finest first, twice."""
        maps = pyramid(network.body, x)
        return maps, maps

    def cells(self, network: TimmModel) -> tuple[int, ...]:
        """(h, w) of the logits: those of the finest map."""
        body: Any = network.body
        size = network.spec.size
        stride = list(body.feature_info)[_ends(body)[0]]["reduction"]
        finer = _FINEST if is_isotropic(body) else 1
        return math.ceil(size[0] / stride) * finer, math.ceil(size[1] / stride) * finer

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, h, w] of four maps, at the size of the first."""
        return self.decoder(maps)


def pyramid(body: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Four maps [B, D_i, h_i, w_i] of prepared pictures, finest first, from one pass of a timm model.

    Raises:
        InputError: it has fewer than four stages.
    """
    ends = _ends(body)
    taken = sorted(set(ends))  # a ViT of two blocks gives each twice
    found = dict(zip(taken, maps_of(body, x, taken)))
    maps = tuple(found[end] for end in ends)
    if not is_isotropic(body):
        return maps
    first, second, third, fourth = maps
    return (
        F.interpolate(first, scale_factor=_FINEST, mode="bilinear", align_corners=False),
        F.interpolate(second, scale_factor=2, mode="bilinear", align_corners=False),
        third,
        F.max_pool2d(fourth, 2, ceil_mode=True),  # an odd last row or column counts too
    )


def pyramid_widths(body: Any) -> list[int]:
    """D_i of the maps of :func:`pyramid`. Raises InputError for fewer than four stages."""
    info = list(body.feature_info)
    return [info[end]["num_chs"] for end in _ends(body)]


def _ends(body: Any) -> list[int]:
    ends = quarter_ends(body)
    if not ends:
        stages = len(getattr(body, "feature_info", None) or [])
        raise InputError(f"{type(body).__name__} has {stages} stages, and such a head reads four maps.")
    return ends


def _decoder(kind: str, widths: list[int], classes: int, width: int) -> nn.Module:
    if kind == "segformer":
        from transformers import SegformerConfig
        from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

        return SegformerDecodeHead(
            SegformerConfig(hidden_sizes=widths, decoder_hidden_size=width, num_labels=classes)
        )
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    return UperNetHead(UperNetConfig(hidden_size=width, num_labels=classes), in_channels=widths)
