"""Image Mixer: the CLIP image embeddings of K pictures, side by side, as cross-attention tokens.

The projected embeddings of CLIP ViT-L/14, *not* L2-normalised, are concatenated along the sequence
(``[B, K, 768]``), each times its strength; the author's script always fills up to five tokens with zeros. A
zero token is not an absent one: attention spends weight on it. Guidance is against all-zero tokens.
Source: Justin Pinkney's model card and scripts/gradio_image_mixer.py; used by arXiv 2402.11305.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionImageVariationPipeline
from torch import Tensor


class ImageMixerPipeline(StableDiffusionImageVariationPipeline):
    """diffusers' image-variation pipeline, conditioned on tokens instead of one picture.

    Call it with tokens ``[B, T, D]`` as ``image``. The cross-attention takes any T, and with T = 1 this is
    the stock pipeline.
    """

    def _encode_image(
        self,
        image: Tensor,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> Tensor:
        tokens = image.to(device, self.unet.dtype).repeat_interleave(num_images_per_prompt, 0)
        return torch.cat([torch.zeros_like(tokens), tokens]) if do_classifier_free_guidance else tokens


def imagemixer(embeddings: Tensor) -> Tensor:
    """One token per source: [B, K, D] → [B, K, D]."""
    return embeddings


def scaled(embeddings: Tensor, strengths: Sequence[float]) -> Tensor:
    """Embeddings [B, K, D], each times the strength of its place."""
    return embeddings * embeddings.new_tensor(strengths)[:, None] if strengths else embeddings


def padded(tokens: Tensor, count: int) -> Tensor:
    """Tokens [B, T, D] filled up with zero tokens to ``count``."""
    missing = max(0, count - tokens.shape[1])
    return torch.nn.functional.pad(tokens, (0, 0, 0, missing))
