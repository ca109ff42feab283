"""Metrics of pictures with several labels: pure functions of logits ``[N, L]`` and answers ``[N, L]``.

An answer is 1, 0, or NaN where nobody gave one; such entries count nowhere. A label without a positive among
its answers has no average precision and no F1, and is left out of their means (so is one without any answer).
The tests compare with scikit-learn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.metrics.classification import check_logits


def check_answers(logits: Tensor, answers: Tensor) -> None:
    """Refuse what cannot be measured.

    Raises:
        ValueError: logits that are not finite or of another shape than the answers, answers other than 0, 1
            and NaN, or no answer at all.
    """
    check_logits(logits)
    if answers.shape != logits.shape:
        raise ValueError(
            f"answers must have the shape {list(logits.shape)} of the logits, not {list(answers.shape)}"
        )
    known = answers[~answers.isnan()]
    if not len(known):
        raise ValueError("no label of any sample is answered: there is nothing to measure")
    if bool(((known != 0) & (known != 1)).any()):
        raise ValueError("answers are 1, 0 or NaN")


def average_precision(logits: Tensor, answers: Tensor) -> Tensor:
    """Average precision of each label [L], NaN for one without a positive.

    AP = Σ_n (R_n − R_{n−1})·P_n over the thresholds n in falling order: the area under the steps of the
    precision-recall curve, without interpolation. Samples of one score share a threshold.

    Args:
        logits: [N, L].
        answers: [N, L].
    """
    check_answers(logits, answers)
    order = logits.argsort(dim=0, descending=True, stable=True)
    scores, truth = logits.gather(0, order), answers.gather(0, order)
    yes = (truth == 1).double()
    hits, seen = yes.cumsum(0), (~truth.isnan()).cumsum(0)
    ends = torch.ones_like(scores, dtype=torch.bool)
    ends[:-1] = scores[1:] != scores[:-1]
    places = torch.arange(len(scores), device=scores.device)[:, None]
    places = places.where(ends, len(scores) - 1).flip(0).cummin(0).values.flip(0)  # of equal scores the last
    precision = hits.gather(0, places) / seen.gather(0, places).clamp(min=1)
    return (yes * precision).sum(0) / hits[-1]


def counts(predicted: Tensor, answers: Tensor) -> Tensor:
    """True positives, false positives and false negatives of each label, [3, L].

    Args:
        predicted: [N, L] booleans.
        answers: [N, L].
    """
    yes, no = answers == 1, answers == 0
    return torch.stack([(predicted & yes).sum(0), (predicted & no).sum(0), (~predicted & yes).sum(0)])


def f1(found: Tensor) -> Tensor:
    """F1 [L] of :func:`counts`, NaN for a label without a positive among its answers."""
    hits, false, missed = found.double()
    value = 2 * hits / (2 * hits + false + missed)
    return value.where(hits + missed > 0, math.nan)


def thresholds(logits: Tensor, answers: Tensor) -> Tensor:
    """For each label the logit [L] from which on yes is said, such that its F1 is greatest.

    A label without positives keeps 0, which is a probability of one half. Where several are best, the one
    nearest to 0 is taken. A threshold lies half-way between two neighbouring logits, so that it does not hang
    on the pictures that it was found on.

    Args:
        logits: [N, L] on validation, never on pictures that are to be measured.
        answers: [N, L].
    """
    check_answers(logits, answers)
    found = [_threshold(z[~y.isnan()], y[~y.isnan()]) for z, y in zip(logits.T, answers.T)]
    return torch.tensor(found, dtype=torch.float64)


def _threshold(scores: Tensor, truth: Tensor) -> float:
    if not truth.sum():
        return 0.0
    values = scores.double().unique()  # rising
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2])
    hits, false = (_above(scores, truth == answer, cuts) for answer in (1, 0))
    value = 2 * hits / (hits + false + truth.sum())
    best = cuts[value == value.max()]
    return float(best[best.abs().argmin()])


def _above(scores: Tensor, chosen: Tensor, cuts: Tensor) -> Tensor:
    """How many of the chosen scores lie above each cut; cuts rise."""
    kept = scores[chosen].double().sort().values
    return (len(kept) - torch.searchsorted(kept, cuts, right=True)).double()


def multilabel_metrics(logits: Tensor, answers: Tensor, cuts: Tensor | None = None) -> dict[str, float]:
    """The figures of a split.

    Args:
        logits: [N, L].
        answers: [N, L].
        cuts: [L] of :func:`thresholds`; None for a probability of one half.

    Returns:
        ``mean_ap`` (mean average precision), ``macro_f1`` (mean over labels), ``micro_f1`` (of all answers
        together), ``exact`` (pictures all of whose answered labels are right), ``nll`` (binary
        cross-entropy in nats, mean over a picture's answered labels, then over pictures). A figure without
        any label to stand on is NaN.
    """
    check_answers(logits, answers)
    logits = logits.double()
    predicted = logits >= (torch.zeros(logits.shape[1]) if cuts is None else cuts)
    found, known = counts(predicted, answers), ~answers.isnan()
    hits, false, missed = found.double().sum(dim=1).tolist()
    values = (
        F.binary_cross_entropy_with_logits(logits, answers.double().nan_to_num(0.0), reduction="none") * known
    )
    told = known.any(dim=1)
    right = ((predicted == (answers == 1)) | ~known).all(dim=1)[told]
    return {
        "mean_ap": float(average_precision(logits, answers).nanmean()),
        "macro_f1": float(f1(found).nanmean()),
        "micro_f1": 2 * hits / (2 * hits + false + missed) if hits + missed else math.nan,
        "exact": float(right.double().mean()),
        "nll": float((values.sum(1)[told] / known.sum(1)[told]).mean()),
    }


def agreement(
    logits: Tensor, teacher_logits: Tensor, answers: Tensor, cuts: Tensor, teacher_cuts: Tensor
) -> dict[str, float]:
    """Fidelity of a student to its teacher, answer by answer, and who of them is right.

    Args:
        logits: [N, L].
        teacher_logits: [N, L].
        answers: [N, L].
        cuts: the student's thresholds [L].
        teacher_cuts: the teacher's.

    Returns:
        Over all N·L answers ``agreement`` (both say the same) and ``kl`` (mean of KL(teacher ‖ student) of
        one label, in nats); over those that are known ``both_right``, ``only_student``, ``only_teacher``
        and ``neither_right``, which sum to 1.
    """
    check_answers(logits, answers)
    check_answers(teacher_logits, answers)
    ours, theirs = logits.double() >= cuts, teacher_logits.double() >= teacher_cuts
    known = ~answers.isnan()
    right, teacher_right = (said[known] == (answers[known] == 1) for said in (ours, theirs))
    student, teacher = logits.double(), teacher_logits.double()
    divergence = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergence += (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    fractions = {
        "both_right": right & teacher_right,
        "only_student": right & ~teacher_right,
        "only_teacher": ~right & teacher_right,
        "neither_right": ~right & ~teacher_right,
    }
    return {
        "agreement": float((ours == theirs).double().mean()),
        "kl": max(0.0, float(divergence.mean())),  # rounding may leave it a hair below 0
        **{name: float(rows.double().mean()) for name, rows in fractions.items()},
    }
