"""Losses of pictures with several labels: each label is a question of its own, answered yes or no.

A label that nobody answered for a picture is NaN in the targets and counts nowhere. Each loss is the mean
over a picture's answered labels, then over pictures: every picture counts the same however much is known of
it, and, as a mean over rows, it does not depend on how a batch is divided into micro-batches or processes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(
    logits: Tensor, target: Tensor, label_weight: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of each label, mean over the answered labels of a picture, then over pictures.

    Args:
        logits: [B, L].
        target: [B, L] in [0, 1], NaN where a label is not answered.
        label_weight: [L] factors of the answer yes (class balance), or None; the mean still counts labels.
        label_smoothing: ε of the targets (1 − ε)·y + ε/2.
    """
    known = ~target.isnan()
    wanted = target.float().nan_to_num(0.0) * (1 - label_smoothing) + label_smoothing / 2
    values = F.binary_cross_entropy_with_logits(
        logits.float(), wanted, reduction="none", pos_weight=label_weight
    )
    return ((values * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()


def binary_kl_divergence(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, t_squared: bool = True
) -> Tensor:
    """KL(Bernoulli(σ(t/T)) ‖ Bernoulli(σ(s/T))) of each label, mean over labels, then over rows.

    What Hinton's divergence is for one label of two classes, label by label. Probabilities of labels need not
    add up to one, so no softmax joins them.

    Args:
        logits: student's [B, L].
        teacher_logits: [B, L]; gradient flows into them unless the caller detaches.
        temperature: T.
        t_squared: multiply by T².
    """
    rows = bernoulli_divergence(logits.float() / temperature, teacher_logits.float() / temperature)
    divergence = rows.mean(dim=1).mean()
    return divergence * temperature**2 if t_squared else divergence


def bernoulli_divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(Bernoulli(σ(t)) ‖ Bernoulli(σ(s))) of each pair of logits, of any shape, in fp32."""
    student, teacher = logits.float(), teacher_logits.float()
    yes, no = teacher.sigmoid(), (-teacher).sigmoid()
    # log σ(z) = −softplus(−z): exact for logits of any size, where log(sigmoid(z)) would be −inf
    found = yes * (F.softplus(-student) - F.softplus(-teacher))
    return found + no * (F.softplus(student) - F.softplus(teacher))
