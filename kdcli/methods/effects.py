"""The three effects of distillation, one at a time: Tang et al. 2020, arXiv 2002.03532.

L = (1 − λ)·CE(z_s, y) + λ·CE(z_s, ρ), with ρ a synthetic teacher that keeps some of what a teacher tells:
how sure it is of each picture (KD-pt), how classes are related (KD-sim), its first classes (KD-topk).
The paper's training could not be read: none of the three has a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from kdcli.losses import targets
from kdcli.losses.logits import cross_entropy
from kdcli.methods.parts import Fraction, Part, labels, one_turn
from kdcli.tasks import Task
from kdcli.words import Method, Term


def taught_by_pt(logits: Tensor, teacher_logits: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    """CE with KD-pt's distribution: logits [B, C], teacher_logits [B, C], y [B]."""
    return cross_entropy(logits, targets.kd_pt(teacher_logits, y, temperature=temperature))


def taught_by_sim(logits: Tensor, rows: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    """CE with KD-sim's distribution: logits [B, C], rows [C, D] of the teacher's last layer, y [B]."""
    return cross_entropy(logits, targets.kd_sim(rows, y, temperature=temperature))


def taught_by_topk(
    logits: Tensor, teacher_logits: Tensor, y: Tensor, *, k: int, keep_true: bool, temperature: float
) -> Tensor:
    """CE with KD-topk's distribution: logits [B, C], teacher_logits [B, C], y [B]."""
    kept = targets.kd_topk(teacher_logits, y if keep_true else None, k=k, temperature=temperature)
    return cross_entropy(logits, kept)


def kd_pt(task: Task, *, lam: Fraction = 0.5, temperature: float = 1.0) -> Method:
    """The teacher's probability of the true class only, the rest spread evenly: no class relations.

    The formulas are our reading of the paper (its code was not found); compare with label smoothing of the
    same strength and with ``kd-sim``.
    """
    taps = ("s.logits", "~t.logits", "y")
    return _method("kd-pt", task, lam, taught_by_pt, taps, temperature=temperature)


def kd_sim(task: Task, *, lam: Fraction = 0.5, temperature: float = 0.3, head: str = "") -> Method:
    """Class relations only: softmax of the cosines between the rows of the teacher's last layer.

    ``temperature`` sharpens the cosines; the paper's exponent could not be read, so it is an axis. ``head``
    names the teacher's weight (default: its classifier's).
    """
    taps = ("s.logits", f"t:{head or 'classifier'}", "y")
    return _method("kd-sim", task, lam, taught_by_sim, taps, temperature=temperature)


def kd_topk(
    task: Task,
    *,
    lam: Fraction = 0.5,
    part: Annotated[Fraction, Field(gt=0)] = 0.25,
    temperature: float = 1.0,
    keep_true: bool = False,
) -> Method:
    """The teacher's largest probabilities for ``part`` of the classes, the rest spread evenly.

    The paper's grid is 5, 10, 25 and 50 % of the classes. ``keep_true`` forces the true class among them.
    """
    k = max(1, round(part * len(task.classes)))
    taps = ("s.logits", "~t.logits", "y")
    keywords = {"k": k, "keep_true": keep_true, "temperature": temperature}
    return _method("kd-topk", task, lam, taught_by_topk, taps, **keywords)


def _method(
    name: str, task: Task, lam: float, loss: Callable[..., Tensor], taps: tuple[str, ...], **keywords: Any
) -> Method:
    taught = Term(name, loss, taps, lam, keywords, rows="labelled")
    return one_turn(name, Part((*labels(task, 1 - lam), taught)))
