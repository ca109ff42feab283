"""Distillation of an embedding by how alike it finds pictures (scope ``batch``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.products import cosines

SCALE = 20.0  # of cosines before they are softened: a temperature of 1 is one of 0.05 on cosines


def similarity_kl(
    embedding: Tensor, teacher_embedding: Tensor, *, temperature: float = 4.0, t_squared: bool = True
) -> Tensor:
    """KL of rows' distributions over other rows by likeness: SEED, Fang et al. 2021, arXiv 2101.04731.

    p_ij = softmax_j≠i(20·cos(e_i, e_j) / T), mean over rows of KL(p^t_i ‖ p^s_i), times T². SEED compares
    with a queue of the teacher's embeddings of other pictures; here each network compares the pictures of the
    batch by its own embedding, so that widths may differ. The temperature 4 stands for 0.2 on cosines, which
    SEED has for the student.

    Args:
        embedding: student's [B, E_s].
        teacher_embedding: [B, E_t].
        temperature: T.
        t_squared: whether the mean is multiplied by T².

    Raises:
        ValueError: fewer than 3 rows: one other row has all of the likeness.
    """
    if len(embedding) < 3:
        raise ValueError(f"likeness to other rows needs at least 3 rows, got {len(embedding)}")
    student, teacher = (_others(rows, temperature) for rows in (embedding, teacher_embedding))
    mean = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return mean * temperature**2 if t_squared else mean


def _others(rows: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [B, B − 1] of the other rows by their likeness to each row."""
    likeness = cosines(rows, rows) * (SCALE / temperature)
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return likeness[~own].view(len(rows), len(rows) - 1).log_softmax(dim=1)
