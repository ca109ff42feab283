"""CLIP's image encoder as the published pipelines use it: preprocessing, projection, no normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.artifacts.model import InputSpec
from kdcli.data.views import EvaluationCut
from kdcli.models.transformers import CLIP_SPEC, PictureTower
from kdcli.synthesis.weights import load_part

TAP = "embedding"


class SquashCut:
    """Straight to a square, bicubic *without* antialiasing: what the image-variation model card asks for.

    Called like a training view, whatever its number: float32 [3, size, size], about 0 to 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def recipe(self) -> dict[str, Any]:
        """What decides its pixels."""
        return {"squash": self.size, "antialias": False}

    def __call__(self, picture: Any, view: int, sample_id: int) -> Tensor:
        """The view of an RGB picture."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        pixels = pil_to_tensor(picture).float().div(255)[None]
        size = (self.size, self.size)
        return F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=False)[0]


def cut(size: int, *, squash: bool) -> EvaluationCut | SquashCut:
    """The preprocessing before normalisation: the model card's, or CLIP's own (resize, centre crop)."""
    return SquashCut(size) if squash else EvaluationCut(_spec(size))


def _spec(size: int) -> InputSpec:
    return replace(CLIP_SPEC, size=(size, size))


def load_encoder(folder: Path, name: str, source: str) -> PictureTower:
    """The frozen encoder of a diffusers directory.

    Args:
        folder: the directory.
        name: of the weights.
        source: hash of the weights.

    Raises:
        InputError: damaged files.
    """
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # kdcli shows its own
    body = load_part(CLIPVisionModelWithProjection, folder, "image_encoder")
    spec = _spec(int(body.config.image_size))
    encoder = PictureTower(body, spec, name=name, source=source, trained="pretrained")
    return encoder.requires_grad_(False).eval()


def embed(encoder: PictureTower, x: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Embeddings as a cached tap, at a constant batch shape: a row does not depend on its neighbours.

    Args:
        encoder: on the device of ``x``.
        x: cut pictures [B, 3, S, S], uint8 or float of about 0 to 1.
        batch_size: at least B; of the batches that the encoder sees.
    """
    whole = F.pad(x, (0,) * 7 + (batch_size - len(x),))
    prepared = encoder.prepare(whole) if x.dtype == torch.uint8 else encoder.normalise(whole)
    return {tap: t[: len(x)] for tap, t in encoder.call([prepared], [TAP]).items()}
