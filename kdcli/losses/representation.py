"""What a backbone learns of another's features, without labels: vectors, maps, relations between places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.features import hint
from kdcli.losses.products import product, same_shape, unit

SMOOTH = 1.0  # of smooth L1: torch's beta


def cosine_distance(features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 − cosine of rows [B, D], mean over them; of AM-RADIO's summaries (arXiv 2312.06709)."""
    same_shape(features, teacher_features)
    return 1 - (unit(features) * unit(teacher_features)).sum(dim=-1).mean()


def spatial_match(
    grid: Tensor, teacher_grid: Tensor, *, cosine: float = 0.9, smooth_l1: float = 0.1
) -> Tensor:
    """Maps [B, D, h, w] position by position: cosine·(1 − cos) + smooth_l1·smooth-L1.

    AM-RADIO, Ranzinger et al. 2024, arXiv 2312.06709: weights 0.9 and 0.1 (from memory).
    """
    same_shape(grid, teacher_grid)
    alike = (unit(grid, dim=1) * unit(teacher_grid, dim=1)).sum(dim=1).mean()
    return cosine * (1 - alike) + smooth_l1 * F.smooth_l1_loss(
        grid.float(), teacher_grid.float(), beta=SMOOTH
    )


def all_tokens(token: Tensor, grid: Tensor, teacher_token: Tensor, teacher_grid: Tensor) -> Tensor:
    """Mean squared error over class token [B, D] and map [B, D, h, w] together, each of the 1 + h·w tokens
    alike.

    The feature objective of Proteus, Zhang et al. 2024, arXiv 2407.10366, as in the authors' code.
    """
    same_shape(grid, teacher_grid)
    places = grid.shape[2] * grid.shape[3]
    of_token, of_grid = hint(token, teacher_token), hint(grid, teacher_grid)
    return (of_token + places * of_grid) / (1 + places)


def hidden_places(grid: Tensor, teacher_grid: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error of maps [B, D, h, w] where a patch was hidden from the student; 0 where none was.

    The patch objective of Proteus, as in the authors' code: a mean over all hidden patches of the batch.

    Args:
        grid: student's.
        teacher_grid: of whole pictures.
        visible: bool [B, h·w].

    Raises:
        ValueError: grids of unlike size.
    """
    if grid.shape != teacher_grid.shape or visible.shape[1] != grid.shape[2] * grid.shape[3]:
        raise ValueError(
            f"hidden patches are compared on one grid: the student's has {grid.shape[2]}x{grid.shape[3]}, "
            f"the teacher's {teacher_grid.shape[2]}x{teacher_grid.shape[3]}: take another --image-size, or "
            "method.patch=0"
        )
    hidden = ~visible.view(len(grid), 1, *grid.shape[2:])
    errors = (grid.float() - teacher_grid.float()).square() * hidden
    return errors.sum() / (hidden.sum() * grid.shape[1]).clamp(min=1)


def token_relations(grid: Tensor, teacher_grid: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all places of a picture: [B, D, h, w] of any two widths.

    The Gram objective of DINOv3 (Siméoni et al. 2025, arXiv 2508.10104), there between a network and an
    earlier self, here between student and teacher: what dense tasks read, without an adapter. A mean over
    pairs, where the paper has a sum.

    Raises:
        ValueError: grids of unlike size.
    """
    if grid.shape[2:] != teacher_grid.shape[2:]:
        raise ValueError(
            f"relations between places need one grid, and student and teacher have {list(grid.shape[2:])} "
            f"and {list(teacher_grid.shape[2:])}"
        )
    return F.mse_loss(_places(grid), _places(teacher_grid))


def _places(grid: Tensor) -> Tensor:
    """Cosines [B, N, N] between the places of maps."""
    rows = unit(grid.flatten(2).transpose(1, 2))
    return product(rows, rows.mT)


def queue_similarities(
    features: Tensor,
    teacher_features: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy between how alike teacher and student find a picture and those of a queue.

    SEED, Fang et al. 2021, arXiv 2101.04731: both are compared with the teacher's features of earlier
    pictures and of this one, which comes first, as in the authors' code.

    Args:
        features: student's [B, D].
        teacher_features: [B, D].
        queue: [K, D] of length 1.
        temperature: of the student's similarities.
        teacher_temperature: of the teacher's.
    """
    same_shape(features, teacher_features)
    student, teacher = unit(features), unit(teacher_features)
    own = (student * teacher).sum(dim=1, keepdim=True)
    its = (teacher * teacher).sum(dim=1, keepdim=True)
    logits = torch.cat([own, product(student, queue.mT)], dim=1) / temperature
    wanted = torch.cat([its, product(teacher, queue.mT)], dim=1) / teacher_temperature
    return F.cross_entropy(logits, wanted.softmax(dim=1))
