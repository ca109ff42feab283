"""What masked autoencoders learn by: pixels of hidden patches, or features of the teacher's decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-6


def generic_distillation(prediction: Tensor, hidden: Tensor, *, beta: float = 2.0) -> Tensor:
    """Smooth L1 between what the student predicts and the teacher's hidden features, each token normalised.

    Huang et al. 2023, arXiv 2302.14771 (G2SD), as in the authors' code: LayerNorm without weights,
    beta 2, and a mean over all tokens, visible, hidden and class.

    Args:
        prediction: [B, 1 + N, D].
        hidden: [B, 1 + N, D] of a block of the teacher's decoder, as it is.
        beta: where the loss turns from quadratic to linear.
    """
    return F.smooth_l1_loss(prediction.float(), _normal(hidden), beta=beta)


def explained_variance(prediction: Tensor, hidden: Tensor) -> Tensor:
    """Part of the variance of the normalised features [B, T, D] that is predicted: 1 is all of it.

    The variance is that around the mean of each of the D features over the tokens here: 0 is what a constant
    reaches.
    """
    target = _normal(hidden)
    spread = (target - target.mean(dim=(0, 1), keepdim=True)).square().sum()
    return 1 - (prediction.float() - target).square().sum() / spread.clamp(min=torch.finfo(target.dtype).tiny)


def _normal(hidden: Tensor) -> Tensor:
    hidden = hidden.float()
    return F.layer_norm(hidden, hidden.shape[-1:], eps=_EPS)


def patchify(pictures: Tensor, patches: Tensor) -> Tensor:
    """Pixels of each patch [B, N, p·q·C] of pictures [B, C, H, W], row by row, channels last (MAE).

    Args:
        pictures: as the network takes them.
        patches: [h, w], N = h·w.

    Raises:
        ValueError: a side that the patches do not divide.
    """
    (rows, columns), (height, width) = patches.shape, pictures.shape[2:]
    if height % rows or width % columns:
        raise ValueError(f"{rows}x{columns} patches do not divide a picture of {height}x{width}")
    cut = pictures.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [B, C, h, p, w, q]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def reconstruction(
    told: Tensor, pictures: Tensor, visible: Tensor, patches: Tensor, *, norm_pixels: bool = True
) -> Tensor:
    """Mean squared error of the pixels of hidden patches: He et al. 2022, arXiv 2111.06377, section 3.

    Args:
        told: [B, N, Q] by the decoder.
        pictures: [B, C, H, W] as the encoder takes them.
        visible: bool [B, N].
        patches: [h, w].
        norm_pixels: whether each patch is brought to mean 0 and variance 1 before (N − 1 in the divisor, as
            in the authors' code).
    """
    target = patchify(pictures.float(), patches)
    if norm_pixels:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + _EPS).sqrt()
    hidden = ~visible
    return (told.float() - target).square().mean(dim=-1)[hidden].mean()
