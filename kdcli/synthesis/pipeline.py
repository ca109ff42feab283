"""The diffusion model that turns tokens into pictures: loaded part by part, noise drawn per picture."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.errors import Diverged
from kdcli.synthesis.imagemixer import ImageMixerPipeline
from kdcli.synthesis.weights import load_part

# name -> diffusers' class and what it must be told; none of them draws noise of its own
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),  # latents are not bounded by 1, as its default assumes
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
}
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(folder: Path, scheduler: str, dtype: torch.dtype, device: torch.device) -> ImageMixerPipeline:
    """UNet, VAE and scheduler of a diffusers directory, without its image encoder.

    Raises:
        InputError: a damaged or incomplete part.
    """
    import diffusers

    unet = load_part(diffusers.UNet2DConditionModel, folder, "unet", dtype=dtype)
    vae = load_part(diffusers.AutoencoderKL, folder, "vae", dtype=dtype)
    name, options = SCHEDULERS[scheduler]
    kind = getattr(importlib.import_module("diffusers"), name)
    stepping = kind.from_config(kind.load_config(folder, subfolder="scheduler"), **options)
    pipeline = ImageMixerPipeline(
        vae=vae,
        image_encoder=None,
        unet=unet,
        scheduler=stepping,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@torch.inference_mode()
def sample(
    pipeline: ImageMixerPipeline,
    tokens: Tensor,
    seeds: Sequence[int],
    *,
    resolution: int,
    steps: int,
    guidance: float,
) -> np.ndarray:
    """Pictures uint8 [B, H, W, 3] from tokens [B, T, D].

    Noise is drawn on the CPU, per picture from its own seed: devices and batches agree.

    Raises:
        Diverged: NaN or Inf in a picture.
    """
    side = resolution // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    images = pipeline(
        tokens,
        height=resolution,
        width=resolution,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=torch.stack(noise).to(pipeline.unet.dtype),
        output_type="pt",
    ).images.float()
    if not torch.isfinite(images).all():
        raise Diverged(
            "NaN or Inf in a new picture: the weights are damaged, or --precision fp16 overflows in the VAE "
            "(bf16 does not)."
        )
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
