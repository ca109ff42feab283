"""The three effects of distillation, measured on a teacher and a student: Tang et al. 2020, arXiv 2002.03532.

1. Label smoothing: how soft the two distributions are.
2. Class relationships: whether the student finds the same classes alike as the teacher.
3. Gradient rescaling: the factor that distillation puts on each sample's gradient.

Two permuted teachers are the controls. Each destroys one effect and keeps what it can of the others: one
whose non-target probabilities are shuffled within each sample (no class relationships), and one whose
probabilities of the true class are shuffled among the samples of a class (no knowledge of which sample is
hard). Correlations are Spearman's: ranks bear the heavy tail of the factors, whose denominator is 1 − p_y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdcli.losses.products import cosines
from kdcli.losses.targets import rescaling_weight, split
from kdcli.metrics.classification import check_labels, check_pair, expected_calibration_error

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 5
ENTRIES = 2**24  # of logits that are weighed together, in fp64
RELATED = 1000  # classes whose relations are compared: their number squared is ranked


def effects(
    student_logits: Tensor,
    teacher_logits: Tensor,
    y: Tensor,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    mix: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """The three effects of a teacher on a student, at temperature 1, and the same under permuted teachers.

    Args:
        student_logits: [N, C].
        teacher_logits: [N, C].
        y: [N], integers in [0, C).
        weights: rows [C, D] of the classifiers of student and teacher, their D may differ; None where one
            of them has no linear classifier.
        mix: λ of the gradient factors.
        seed: of the permutations.

    Returns:
        ``student``, its :func:`softness`; ``smoothing``, the mean of 1 − q_y, which is the label smoothing
        that keeps as much for the true class as the teacher on average; ``mix``; ``weights``, Spearman's
        correlation of the cosines between the rows of a classifier, or None; and in ``teachers``, for
        ``teacher``, ``shuffled_classes`` and ``shuffled_samples``, the :func:`softness` of each, and what
        ``relations`` and ``rescaling`` say of it.

    Raises:
        ValueError: shapes that differ, N = 0, logits that are not finite, or labels that do not fit them.
    """
    check_pair(student_logits, teacher_logits)
    check_labels(y, *student_logits.shape)
    student, teacher, y = (
        student_logits.detach().cpu().float(),
        teacher_logits.detach().cpu().float(),
        y.cpu().long(),
    )
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for name, permuted in (  # one after another: each is as large as the logits
        ("teacher", None),
        ("shuffled_classes", shuffle_classes),
        ("shuffled_samples", shuffle_samples),
    ):
        logits = teacher if permuted is None else permuted(teacher, y, generator)
        found[name] = {
            **softness(logits, y),
            "relations": relations(student, logits, y),
            "rescaling": rescaling(student, logits, y, mix=mix),
        }
    return {
        "student": softness(student, y),
        "smoothing": float(1 - _true(teacher, y).double().mean()),
        "mix": mix,
        "weights": None if weights is None else spearman(*(_pairs(w) for w in weights)),
        "teachers": found,
    }


def softness(logits: Tensor, y: Tensor) -> dict[str, float]:
    """How soft a network's answers are.

    Returns:
        Means over samples of ``entropy`` (nats), ``max_prob`` and ``logit_norm`` (‖z − mean z‖₂: a shift of
        all logits of a sample changes nothing), and ``ece``.
    """
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    centred = logits - logits.mean(dim=1, keepdim=True)
    return {
        "entropy": float(-(probabilities * log_probabilities).sum(dim=1).mean()),
        "max_prob": float(probabilities.amax(dim=1).mean()),
        "logit_norm": float(torch.linalg.vector_norm(centred, dim=1).mean()),
        "ece": expected_calibration_error(logits, y),
    }


def relations(student: Tensor, teacher: Tensor, y: Tensor) -> float | None:
    """Spearman's correlation of the off-diagonal class-mean probabilities of two networks.

    Row c of such a matrix is the mean of softmax(z) over the samples of class c; a class without samples is
    left out. Of more than ``RELATED`` classes so many are compared with one another, spread evenly over those
    that have samples. None where a network gives all classes the same.
    """
    found = [logits.softmax(dim=1) for logits in (student, teacher)]
    if student.shape[1] > RELATED:
        some = _spread(y.unique())
        rows = torch.isin(y, some)
        found, y = [p[rows][:, some] for p in found], torch.searchsorted(some, y[rows])
    classes = found[0].shape[1]
    one_hot = torch.nn.functional.one_hot(y, classes).to(student)
    counts = one_hot.sum(dim=0)
    present = counts > 0
    parts = []
    for probabilities in found:
        means = one_hot.mT @ probabilities / counts.clamp(min=1)[:, None]
        parts.append(means[present[:, None] & ~torch.eye(classes, dtype=torch.bool)])
    return spearman(*parts)


def rescaling(student: Tensor, teacher: Tensor, y: Tensor, *, mix: float) -> dict[str, Any]:
    """The factors w = (1 − λ) + λ·(q_y − p_y)/(1 − p_y) that distillation puts on the samples' gradients.

    Returns:
        ``mean`` and ``quantiles`` (at ``QUANTILES``) of w; Spearman's correlations ``with_teacher`` of w and
        q_y, and ``with_difficulty`` of w and the student's loss −log p_y; ``bins`` of equal count by q_y,
        each with its means ``teacher`` (q_y), ``weight`` (w) and its ``count``.
    """
    rows = max(1, ENTRIES // student.shape[1])
    parts = zip(student.split(rows), teacher.split(rows), y.split(rows))
    factors = torch.cat([rescaling_weight(*part, mix=mix) for part in parts]).double()
    true = _true(teacher, y)
    difficulty = -student.log_softmax(dim=1).gather(1, y[:, None])[:, 0]
    groups = true.argsort(stable=True).tensor_split(min(BINS, len(true)))
    return {
        "mean": float(factors.mean()),
        "quantiles": factors.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist(),
        "with_teacher": spearman(factors, true),
        "with_difficulty": spearman(factors, difficulty),
        "bins": [
            {"teacher": float(true[g].mean()), "weight": float(factors[g].mean()), "count": len(g)}
            for g in groups
        ],
    }


def shuffle_classes(logits: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Logits [N, C] whose other classes than the true one are permuted, in each sample otherwise."""
    true, others = split(logits, y)
    order = torch.rand(others.shape, generator=generator).argsort(dim=1)
    return _joined(true, others.gather(1, order), y)


def shuffle_samples(logits: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Log-probabilities [N, C] whose q_y is that of another sample of the class.

    Among the other classes what is left is divided as before.
    """
    log_probabilities = logits.log_softmax(dim=1)
    true, others = split(log_probabilities, y)
    rest = others.logsumexp(dim=1)
    source = torch.arange(len(y))
    for label in y.unique():
        members = (y == label).nonzero()[:, 0]
        source[members] = members[torch.randperm(len(members), generator=generator)]
    return _joined(true[source], others - rest[:, None] + rest[source][:, None], y)


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of two lists of N numbers; None where one is constant.

    Equal numbers share the mean of their ranks.
    """
    ranks = [_ranks(x) for x in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else None


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = x.flatten().double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def _true(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, y[:, None])[:, 0]


def _joined(true: Tensor, others: Tensor, y: Tensor) -> Tensor:
    """The inverse of :func:`kdcli.losses.targets.split`."""
    classes = others.shape[1] + 1
    places = (y[:, None] + torch.arange(classes)) % classes
    return torch.empty(len(y), classes, dtype=true.dtype).scatter(
        1, places, torch.cat([true[:, None], others], dim=1)
    )


def _spread(values: Tensor) -> Tensor:
    """At most ``RELATED`` of the values, spread evenly over them."""
    places = torch.linspace(0, len(values) - 1, min(RELATED, len(values)), dtype=torch.float64)
    return values[places.round().long()]


def _pairs(rows: Tensor) -> Tensor:
    """Cosine of every two rows, [C·(C − 1)/2], of at most ``RELATED`` of them."""
    rows = rows[_spread(torch.arange(len(rows)))]
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return cosines(rows, rows)[first, second]
