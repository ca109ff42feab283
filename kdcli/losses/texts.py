"""Embeddings beside a vision-language teacher's pictures and texts: Li et al. 2023, arXiv 2307.03135.

The student has a picture tower only: its embedding lives in the teacher's space, where texts are the classes.
With s, t, x and k the embeddings of student, teacher, texts and captions at length 1, and τ the temperature,

    L = L_cls + L_mse + L_im-cst + L_vlprox + L_cap

each of weight 1 in the authors' code. τ is 0.07 there, fixed; the paper does not print it. All functions take
embeddings as they are and bring them to length 1; a row of zeros stays one and has the cosine 0 with all.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.logits import cross_entropy
from kdcli.losses.products import cosines, same_shape, unit

TEMPERATURE = 0.07  # τ, of the authors' code
SOFTENING = 10.0  # what a squared distance is divided by under the logarithm, in the authors' code


def text_likelihood(
    embedding: Tensor, bank: Tensor, target: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """L_cls, equation 1: cross-entropy of softmax(s·xᵀ/τ) with the label, mean over rows.

    Args:
        embedding: student's [B, D].
        bank: [C, D] one text for each class.
        target: [B] class numbers, or [B, C] probabilities.
        temperature: τ.
    """
    return cross_entropy(cosines(embedding, bank) / temperature, target)


def embedding_distance(embedding: Tensor, teacher: Tensor, *, normalised: bool = True) -> Tensor:
    """L_mse, equation 2: ‖s − t‖², a sum over D and a mean over rows, which is 2 − 2·cos.

    A mean over D would be D times smaller, and the published weight 1 does not belong to it.

    Args:
        embedding: student's [B, D].
        teacher: [B, D].
        normalised: False takes log(1 + mean ‖S − T‖²/10) of embeddings as they are, an option of the authors'
            code that the paper has not; the logarithm is of the batch's mean (scope ``batch``).

    Raises:
        ValueError: two shapes.
    """
    same_shape(embedding, teacher)
    if normalised:
        return (unit(embedding) - unit(teacher)).square().sum(dim=1).mean()
    mean = (embedding.float() - teacher.float()).square().sum(dim=1).mean()
    return (mean / SOFTENING).log1p()


def image_contrast(
    embedding: Tensor,
    teacher: Tensor,
    *,
    temperature: float = TEMPERATURE,
    direction: Literal["both", "single"] = "both",
    form: Literal["cosine", "squared"] = "cosine",
) -> Tensor:
    """L_im-cst: which of the teacher's pictures is this one? Scope ``batch``: the other rows are negatives.

    They are so whatever their class. One row alone costs 0. The defaults are the authors' code, which made
    the published numbers: logits s·tᵀ/τ and the mean of both directions. Equation 3 is ``single`` and
    ``squared``: logits −‖s − t‖²/τ, which halves the temperature, as ‖s − t‖² = 2 − 2·cos; its −log is not
    printed.

    Args:
        embedding: student's [B, D].
        teacher: [B, D].
        temperature: τ.
        direction: ``single`` finds the teacher's picture for each of the student's; ``both`` is the mean with
            the student's for each of the teacher's.
        form: what the logits are.

    Raises:
        ValueError: two shapes.
    """
    same_shape(embedding, teacher)
    logits = cosines(embedding, teacher) / temperature
    if form == "squared":
        lengths, its = (unit(rows).square().sum(dim=1) for rows in (embedding, teacher))
        logits = 2 * logits - (lengths[:, None] + its) / temperature
    rows = torch.arange(len(logits), device=logits.device)
    if direction == "single":
        return cross_entropy(logits, rows)
    return 0.5 * (cross_entropy(logits, rows) + cross_entropy(logits.mT, rows))


def proximal_texts(
    embedding: Tensor,
    teacher: Tensor,
    bank: Tensor,
    target: Tensor,
    *,
    temperature: float = TEMPERATURE,
    texts: int = 256,
    filtered: bool = True,
) -> Tensor:
    """L_vlprox, equation 6: KL(p^t ‖ p^s) over the k texts nearest to the teacher's embedding.

    Both are softmax(·xᵀ/τ) over those k texts alone, of sum 1. With C ≤ k it is over all texts; with one text
    it is 0. Of texts that tie the lower number is the nearer. Scope ``batch`` where filtered: a mean over the
    rows that are kept, as in the authors' code, where the paper's sum divides by all B. None kept costs 0,
    with a gradient of 0; the authors' code gives NaN.

    Args:
        embedding: student's [B, D].
        teacher: [B, D].
        bank: [C, D] one text for each class.
        target: [B] class numbers; of no effect where not filtered.
        temperature: τ.
        texts: k; at most C are taken.
        filtered: keep only rows whose nearest text, to the teacher's embedding, is that of their class.

    Raises:
        ValueError: fewer than one text, or two shapes of embeddings.
    """
    same_shape(embedding, teacher)
    if texts < 1:
        raise ValueError(f"texts must be at least 1, not {texts}: a row is compared with its nearest texts")
    ours, theirs = cosines(embedding, bank) / temperature, cosines(teacher, bank) / temperature
    order = theirs.argsort(dim=1, descending=True, stable=True)
    near = order[:, :texts]
    student, wanted = (logits.gather(1, near).log_softmax(dim=1) for logits in (ours, theirs))
    divergences = F.kl_div(student, wanted, reduction="none", log_target=True).sum(dim=1)
    if not filtered:
        return divergences.mean()
    kept = order[:, 0] == target
    return (divergences * kept).sum() / kept.sum().clamp(min=1)


def caption_contrast(
    embedding: Tensor,
    captions: Tensor,
    target: Tensor,
    *,
    form: Literal["code", "temperature", "paper"] = "code",
    temperature: float = TEMPERATURE,
) -> Tensor:
    """L_cap: which caption is this picture's? Scope ``batch``: captions of other classes are negatives.

    A row without a row of another class costs 0, and still counts in the mean over rows.

    Args:
        embedding: student's [B, D].
        captions: [B, D] one text for each picture.
        target: [B] class numbers.
        form: ``code``: cross-entropy of the cosines s·kᵀ, without a temperature, among the own caption and
            those of other classes, as the authors' code has it. ``temperature``: the same of s·kᵀ/τ.
            ``paper``: equation 8, −log(exp(s_i·k_i/τ) / Σ_j exp(s_i·k_j/τ)) with j over other classes only;
            the own caption is not in the denominator, so it may be below 0.
        temperature: τ; ``code`` has none.

    Raises:
        ValueError: two shapes.
    """
    same_shape(embedding, captions)
    logits = cosines(embedding, captions)
    if form != "code":
        logits = logits / temperature
    same = target[:, None] == target
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if form != "paper":
        rows = torch.arange(len(logits), device=logits.device)
        return cross_entropy(logits.masked_fill(same & ~own, -torch.inf), rows)
    counted = ~same.all(dim=1)
    others = logits.masked_fill(same, -torch.inf)[counted].logsumexp(dim=1)
    return (others - logits.diagonal()[counted]).sum() / len(logits)
