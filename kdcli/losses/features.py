"""Losses between features of student and teacher. All compute in fp32, also under autocast.

Maps are [B, C, H, W]; of two grids the larger is first averaged to the smaller. Default readings are those of
RepDistiller, whose published weights belong to them: hint 100, AT 1000, FT 200, NST 50, AB 0.003.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.products import product, same_shape, unit


def hint(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference over all elements: the joint hint loss that tables call "FitNet".

    Args:
        features: student's, after the regressor, of any shape [B, ...].
        teacher_features: the same shape.

    Raises:
        ValueError: two shapes.
    """
    same_shape(features, teacher_features)
    return F.mse_loss(features.float(), teacher_features.float())


def fitnets_hint(features: Tensor, teacher_features: Tensor) -> Tensor:
    """FitNets' first phase, ½‖u − r‖²: Romero et al. 2015, arXiv 1412.6550, equation 3.

    Summed over channels (dimension 1) and averaged over rows and positions, as the authors' code does; the
    printed norm sums over positions too, which differs by their number.

    Args:
        features: student's, after the regressor, [B, C, ...].
        teacher_features: the same shape.

    Raises:
        ValueError: two shapes.
    """
    return 0.5 * features.shape[1] * hint(features, teacher_features)


def at(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Attention transfer: Zagoruyko & Komodakis 2017, arXiv 1612.03928.

    Mean squared difference of f(A) = unit(flatten(mean_c A²)), over rows and positions. The paper's equation
    2 is a norm of the difference, summed; code and published weights (1000) belong to the mean square.

    Args:
        features: student's maps [B, C_s, H, W].
        teacher_features: [B, C_t, H', W'].

    Raises:
        ValueError: not maps.
    """
    student, teacher = same_grid(features, teacher_features)
    return F.mse_loss(attention_map(student), attention_map(teacher))


def ft(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Factor transfer: Kim et al. 2018, arXiv 1802.04977: mean absolute difference of factors.

    Args:
        features: the translator's output on the student's maps, [B, C_s, H, W].
        teacher_features: the paraphraser's output on the teacher's, [B, C_t, H', W']. Both are reduced by
            :func:`attention_map` as in RepDistiller; the paper normalises the whole factors.

    Raises:
        ValueError: not maps.
    """
    student, teacher = same_grid(features, teacher_features)
    return F.l1_loss(attention_map(student), attention_map(teacher))


def vid(mean: Tensor, teacher_features: Tensor, scale: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Variational information distillation: Ahn et al. 2019, arXiv 1904.05835, equation 6.

    Mean over rows, channels and positions of ½·((t − μ)²/σ² + log σ²), the negative log-likelihood of the
    teacher's map under a normal distribution around what is regressed from the student's, without its
    constant; σ²_c = softplus(α_c) + ε.

    Args:
        mean: μ, [B, C, H, W].
        teacher_features: t, [B, C, H', W']; averaged where its grid is the larger one.
        scale: α, [C].
        eps: ε, of the authors' code.

    Raises:
        ValueError: not maps, or of two widths or another grid than μ's.
    """
    student, teacher = same_grid(mean, teacher_features)
    same_shape(student, teacher)
    variance = (F.softplus(scale.float()) + eps).view(-1, 1, 1)
    return 0.5 * ((student - teacher).square() / variance + variance.log()).mean()


def mgd(generated: Tensor, teacher_features: Tensor) -> Tensor:
    """Masked generative distillation: Yang et al. 2022, arXiv 2205.01529, equation 5.

    Squared difference, summed over channels and positions; mean over rows, as in the authors' code.

    Args:
        generated: what is made of the student's masked map, [B, C, H, W].
        teacher_features: [B, C, H, W].

    Raises:
        ValueError: two shapes.
    """
    return teacher_features[0].numel() * hint(generated, teacher_features)


def ab(features: Tensor, teacher_features: Tensor, *, margin: float = 1.0) -> Tensor:
    """Activation boundaries: Heo et al. 2019, arXiv 1811.03233, the alternative loss that has a gradient.

    Squared distance to the side of the boundary on which the teacher's neuron is, by a margin: (s + m)² where
    t ≤ 0 and s > −m, (m − s)² where t > 0 and s < m; summed over channels and positions, mean over rows, as
    in RepDistiller. How far the teacher's neuron is from the boundary does not count.

    Args:
        features: student's, before an activation, of any shape [B, ...].
        teacher_features: the same shape.
        margin: m.

    Raises:
        ValueError: two shapes.
    """
    same_shape(features, teacher_features)
    side = torch.where(teacher_features > 0, 1.0, -1.0)
    return (margin - side * features.float()).relu().square().flatten(1).sum(dim=1).mean()


def nst(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Neuron selectivity transfer: Huang & Wang 2017, arXiv 1707.01219, with k(x, y) = <x, y>².

    Squared maximum mean discrepancy between the channels of a picture, each a unit vector over positions:
    mean k(t, t) + mean k(s, s) − 2·mean k(s, t) over pairs of channels, mean over rows. k(t, t) takes no
    gradient.

    Args:
        features: student's maps [B, C_s, H, W].
        teacher_features: [B, C_t, H', W'].

    Raises:
        ValueError: not maps.
    """
    student, teacher = (unit(x.flatten(2)) for x in same_grid(features, teacher_features))
    return _kernel(teacher, teacher).detach() + _kernel(student, student) - 2 * _kernel(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """unit(flatten(mean_c A²)): [B, H·W] from maps [B, C, H, W]."""
    return unit(features.float().square().mean(dim=1).flatten(1))


def same_grid(features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in fp32 on the smaller of the two grids, by averaging.

    Raises:
        ValueError: not maps [B, C, H, W].
    """
    for x in (features, teacher_features):
        if x.ndim != 4:
            raise ValueError(f"maps [B, C, H, W] are needed, got {list(x.shape)}")
    grid = (
        min(features.shape[2], teacher_features.shape[2]),
        min(features.shape[3], teacher_features.shape[3]),
    )
    return _pooled(features.float(), grid), _pooled(teacher_features.float(), grid)


def _pooled(x: Tensor, grid: tuple[int, int]) -> Tensor:
    (height, width), (rows, columns) = x.shape[2:], grid
    if height % rows or width % columns:
        return F.adaptive_avg_pool2d(x, grid)
    # the same windows, and deterministic on CUDA
    return F.avg_pool2d(x, (height // rows, width // columns)) if (height, width) != grid else x


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b.mT).square().mean()
