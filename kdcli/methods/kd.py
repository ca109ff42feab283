"""Knowledge distillation: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.

L = ce·CE(z_s, y) + kd·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.losses.logits import kl_divergence
from kdcli.methods.parts import Count, Fraction, Part, Positive, labels_and_teacher, one_turn
from kdcli.tasks import Task
from kdcli.words import Method, Term, Until, Weight


def part(
    weight: Weight = 1.0, *, temperature: Positive = 4.0, t_squared: bool = True, name: str = "kd"
) -> Part:
    """KL to the teacher's softened logits."""
    keywords = {"temperature": temperature, "t_squared": t_squared}
    return Part((Term(name, kl_divergence, ("s.logits", "~t.logits"), weight, keywords),))


def kd(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    t_squared: bool = True,
) -> Method:
    """Softened teacher logits beside labels.

    Defaults are those of RepDistiller and mdistiller (ce 0.1, kd 0.9, T 4). The paper gives no weights; it
    asks for T² so that the two gradients keep their relation when T changes. Unlabelled pictures enter the
    teacher term only.
    """
    terms = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature, t_squared=t_squared)
    return one_turn("kd", Part(terms))


def eskd(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    stop: Fraction = 0.4,
    ce_after: float = 1.0,
) -> Method:
    """Early-stopped distillation: the teacher's term is dropped when ``stop`` of the training is done.

    No official code was found, and neither the paper's stopping point nor the weight of the labels
    afterwards could be read: ``stop`` is an axis, and ``ce_after`` says what labels weigh then (the weight
    from the beginning, 0.1, keeps the learning rate's effect low to the end). The other early stopping of the
    paper is the teacher's, and two different things are called so: a short run of its own (``kdcli distill
    --method supervised --epochs 50``), and a long run that is cut off (``--epochs 200 --set
    optim.stop_epoch=50``: the learning rate is still high).
    """
    labels, teacher = Until(ce, stop, ce_after), Until(kd, stop)
    return one_turn("eskd", Part(labels_and_teacher(task, ce=labels, kd=teacher, temperature=temperature)))


def sequential(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    generations: Count = 2,
) -> Method:
    """Sequential distillation: teacher → student 1 → student 2 …, each a full run of kd by the one before.

    Every generation is an artifact of its own (``OUT-via-1`` and so on), as with ``--via``. Cho & Hariharan
    report that it does not work; beside it, look at one run of as many steps in all.
    """
    return replace(kd_of(task, ce, kd, temperature), name="sequential")


def self(task: Task, *, alpha: float = 0.5, temperature: float = 4.0) -> Method:
    """Self-distillation: the teacher is the same network, trained before with another seed.

    L = (1 − α)·CE + α·T²·KL. Allen-Zhu & Li explain why the second run gains from the first; the weights are
    not theirs. A teacher of another architecture is refused.
    """
    return replace(kd_of(task, 1 - alpha, alpha, temperature), name="self")


def ensemble(task: Task, *, alpha: float = 0.9, temperature: float = 4.0) -> Method:
    """Distillation from the mean of several independently trained teachers (repeat ``--teacher``).

    ``--set teacher_mean=logits`` averages outputs (Allen-Zhu & Li), ``probabilities`` softmax at the
    temperature T (Hinton et al.). L = (1 − α)·CE + α·T²·KL; the weights are RepDistiller's for kd.
    """
    return replace(kd_of(task, 1 - alpha, alpha, temperature), name="ensemble")


def kd_of(task: Task, ce: float, teacher: float, temperature: float) -> Method:
    """``kd`` with these weights, under its own name."""
    return kd(task, ce=ce, kd=teacher, temperature=temperature)
