"""Losses between the relations that student and teacher see among the rows of a batch (scope ``batch``).

All but ``cc`` compare what does not depend on the width, so widths may differ. They see the batch they are
given: with several processes or micro-batches, gather the rows first. All compute in fp32, also under
autocast, where distances between rows with a common offset would otherwise be noise. Features of more than
two dimensions are flattened. Published weights (RepDistiller): RKD 25 and 50, SP 3000, CC 0.02, PKT 30000.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.products import cosines, product, same_shape, unit


def rkd_distance(features: Tensor, teacher_features: Tensor, *, normalize: bool = False) -> Tensor:
    """RKD-D, distances between rows: Park et al. 2019, arXiv 1904.05068, section 3.2.1. Scope ``batch``.

    Smooth L1 between tables of distances, each divided by the mean of its positive entries; mean over all B²
    entries, the zero diagonal included, as in the authors' code.

    Args:
        features: student's [B, D_s].
        teacher_features: [B, D_t].
        normalize: bring rows to length 1 first (mmrazor's default; the authors do so for the teacher only,
            and only in metric learning).

    Raises:
        ValueError: fewer than 3 rows: the one distance between 2 is always 1.
    """
    student, teacher = _rows(features, 3, normalize), _rows(teacher_features, 3, normalize)
    return F.smooth_l1_loss(_relative(_distances(student)), _relative(_distances(teacher)))


def rkd_angle(features: Tensor, teacher_features: Tensor, *, normalize: bool = False) -> Tensor:
    """RKD-A, angles of triples of rows: Park et al. 2019, arXiv 1904.05068, section 3.2.2. Scope ``batch``.

    Smooth L1 between cosines of the angle at row i of the directions to rows j and k; mean over all B³
    entries, the degenerate zeros included, as in the authors' code. Takes B²·D + B³ numbers of memory.

    Args:
        features: student's [B, D_s].
        teacher_features: [B, D_t].
        normalize: bring rows to length 1 first (mmrazor's default).

    Raises:
        ValueError: fewer than 3 rows, which make no angle.
    """
    student, teacher = _rows(features, 3, normalize), _rows(teacher_features, 3, normalize)
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def darkrank(
    features: Tensor, teacher_features: Tensor, *, alpha: float = 2.0, beta: float = 3.0, length: int = 4
) -> Tensor:
    """Hard DarkRank: Chen et al. 2018, arXiv 1707.01220. Scope ``batch``; mean over rows.

    Negative log-likelihood, under the student's scores −α·dᵝ, of the teacher's ranking of each row's
    ``length`` nearest others: −Σ_i (s_i − log Σ_{j ≥ i} exp s_j).

    Args:
        features: student's [B, D_s].
        teacher_features: [B, D_t].
        alpha: α.
        beta: β.
        length: how many neighbours are ranked, at most B − 1.

    Raises:
        ValueError: fewer than 3 rows: one neighbour has one ranking.
    """
    student, teacher = _rows(features, 3), _rows(teacher_features, 3)
    near = _distances(teacher).detach().fill_diagonal_(torch.inf).argsort(dim=1, stable=True)
    scores = -alpha * _distances(student).pow(beta)
    ranked = scores.gather(1, near[:, : min(length, len(student) - 1)])
    later = torch.stack([ranked[:, i:].logsumexp(dim=1) for i in range(ranked.shape[1])], dim=1)
    return (later - ranked).sum(dim=1).mean()


def sp(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Similarity-preserving distillation: Tung & Mori 2019, arXiv 1907.09682. Scope ``batch``.

    Mean squared difference of G = rows of A·Aᵀ at length 1, [B, B]: 1/B² of the squared Frobenius
    norm.

    Args:
        features: student's [B, ...].
        teacher_features: [B, ...].
    """
    student, teacher = _rows(features, 1), _rows(teacher_features, 1)
    return F.mse_loss(unit(product(student, student.mT)), unit(product(teacher, teacher.mT)))


def cc(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Correlation congruence in RepDistiller's form: Peng et al. 2019, arXiv 1904.01802. Scope ``batch``.

    With d = |s − t|: mean over n of Σ_k d[n, k]·d[n + 1, k], neighbours in the batch. The paper compares
    tables of kernels between all rows instead.

    Args:
        features: student's [B, D], embedded to the teacher's width.
        teacher_features: [B, D], embedded.

    Raises:
        ValueError: fewer than 2 rows, or two widths.
    """
    same_shape(features, teacher_features)
    difference = (_rows(features, 2) - _rows(teacher_features, 2)).abs()
    return (difference[:-1] * difference[1:]).sum(dim=1).mean()


def pkt(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: Passalis & Tefas 2018, arXiv 1803.10837. Scope ``batch``.

    KL between P(f) = rows of (cos(f, f) + 1)/2 scaled to sum 1, as P_t·log((P_t + ε)/(P_s + ε)) with
    ε = 1e-7; the mean over all B² entries, as in the authors' code, where the paper sums them.

    Args:
        features: student's [B, D_s].
        teacher_features: [B, D_t].
    """
    student, teacher = _affinities(_rows(features, 1)), _affinities(_rows(teacher_features, 1))
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def _rows(features: Tensor, least: int, normalize: bool = False) -> Tensor:
    """[B, D] in fp32, refused if B is too small."""
    if len(features) < least:
        raise ValueError(f"a relation between rows needs at least {least} rows, got {len(features)}")
    rows = features.float().flatten(1)
    return unit(rows) if normalize else rows


def _distances(x: Tensor) -> Tensor:
    """Euclidean, [B, B]; equal rows have distance 0 and gradient 0. Differences, never |x|² − 2xy + |y|²."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _relative(distances: Tensor) -> Tensor:
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=1e-12)


def _angles(x: Tensor) -> Tensor:
    """Cosine at row i between the directions to rows j and k, [B, B, B]."""
    directions = unit(x[None] - x[:, None])
    return product(directions, directions.mT)


def _affinities(x: Tensor) -> Tensor:
    similar = ((cosines(x, x) + 1) / 2).clamp(min=0)  # rounding takes opposite rows below
    return similar / similar.sum(dim=1, keepdim=True)
