"""CLIP-KD: Yang et al. 2024, arXiv 2307.12732, of a student that has a picture tower only.

The paper trains both towers of a student. Here the texts are the teacher's, one for each picture, so that
their parts fall away or are constant. Readings are those of the authors' code (winycg/CLIP-KD), run at
f3ae18b; what is said of the paper's equations is from memory. The code's weights, beside CLIP's own loss:

    L = contrastive_relation + 2000·feature_distance + interactive_contrast

Embeddings come as they are and are brought to length 1, as in the code. It takes them of all processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdcli.losses.features import hint
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.losses.products import cosines, same_shape, unit


def contrastive_relation(
    embedding: Tensor, texts: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float
) -> Tensor:
    """CRD: which text goes with which picture, as the teacher has it. Scope ``batch``. Weight 1.

    ½·KL(softmax(t·xᵀ/τ_t) ‖ softmax(s·xᵀ/τ_s)), of pictures over texts, and ½·KL of the transposed, of texts
    over pictures; means over rows. The paper adds the two without ½; we follow the code. Neither multiplies
    by a squared temperature. In the code 1/τ_s is the student's own scale, learnt from 1/0.07 on and at most
    100, and 1/τ_t what the teacher was trained to (100 for OpenAI's CLIP): here both are given numbers.

    Args:
        embedding: student's [B, D] of pictures.
        texts: teacher's [B, D], of each picture's text.
        teacher: teacher's [B, D] of pictures.
        temperature: τ_s.
        teacher_temperature: τ_t.

    Raises:
        ValueError: shapes that differ.
    """
    _same_rows(embedding, texts, teacher)
    ours, theirs = cosines(embedding, texts) / temperature, cosines(teacher, texts) / teacher_temperature
    return 0.5 * (kl_divergence(ours, theirs) + kl_divergence(ours.mT, theirs.mT))


def feature_distance(embedding: Tensor, teacher: Tensor) -> Tensor:
    """FD: mean squared difference of the picture embeddings over all B·D elements. Weight 2000.

    The paper sums over D; the code takes the mean, which its weight belongs to, and so do we: 2000 times this
    at D = 512 is 3.9 times ‖s − t‖². The code adds the same of the texts, which is 0 where the texts are the
    teacher's. Where widths differ the code puts a linear layer before the student's: so may the caller.

    Args:
        embedding: student's [B, D].
        teacher: [B, D].

    Raises:
        ValueError: two shapes.
    """
    same_shape(embedding, teacher)
    return hint(unit(embedding), unit(teacher))


def interactive_contrast(
    embedding: Tensor,
    texts: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.07,
    reverse: Literal["code", "student"] = "code",
) -> Tensor:
    """ICL: the student's embeddings as anchors among the teacher's. Scope ``batch``. Weight 1.

    ½·CE(s·xᵀ/τ), which of the teacher's texts goes with the student's picture, and ½·CE of the reverse. In
    code and paper the reverse asks which of the teacher's pictures goes with the *student's text*. With the
    teacher's texts in its place that is a constant: it keeps the code's value and gives no gradient.

    1/τ is learnt in the code, apart from the student's own scale. It starts at ln(1/0.07) = 2.66 and is not
    exponentiated, as the other scales are, so that τ starts at 0.376; the paper has one τ. Here τ is a given
    number, 0.07 by default.

    Args:
        embedding: student's [B, D] of pictures.
        texts: teacher's [B, D], of each picture's text.
        teacher: teacher's [B, D] of pictures; read for the code's reverse only.
        temperature: τ.
        reverse: ``code`` as above; ``student`` asks which of the student's pictures goes with the teacher's
            text, ½·CE(x·sᵀ/τ), which the authors have not, and which has a gradient.

    Raises:
        ValueError: shapes that differ.
    """
    _same_rows(embedding, texts, teacher)
    rows = torch.arange(len(embedding), device=embedding.device)
    pictures = embedding if reverse == "student" else teacher
    forth, back = cosines(embedding, texts) / temperature, cosines(texts, pictures) / temperature
    return 0.5 * (cross_entropy(forth, rows) + cross_entropy(back, rows))


def _same_rows(embedding: Tensor, texts: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless all three have one shape."""
    same_shape(embedding, teacher)
    if texts.shape != teacher.shape:
        raise ValueError(
            f"texts {list(texts.shape)} and teacher features {list(teacher.shape)} must have one shape: one "
            "text for each picture, in one space"
        )
