"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679.

L = ce·CE + α·TCKD + β·NCKD, both T²·KL
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.losses import logits
from kdcli.methods.parts import Fraction, Part, Positive, one_turn
from kdcli.tasks import Task
from kdcli.words import Linear, Method, Term, Weight


def part(
    weight: Weight = 1.0,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Positive = 4.0,
    name: str = "dkd",
) -> Part:
    """TCKD and NCKD on labelled rows, which know their true class."""
    keywords = {"alpha": alpha, "beta": beta, "temperature": temperature}
    taps = ("s.logits", "~t.logits", "y")
    return Part((Term(name, logits.dkd, taps, weight, keywords, rows="labelled"),))


def dkd(
    task: Task,
    *,
    ce: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: Fraction = 20 / 240,
) -> Method:
    """The teacher's view of the true class and of the others, apart.

    ``beta`` is chosen per pair in mdistiller (8 for ResNet32x4 to ResNet8x4, 1 to 8 elsewhere), and its
    weight grows in a straight line over the first 20 of 240 epochs; ``warmup`` is that part of the run (0
    for none). Two classes leave no distribution over others and are refused. Unlabelled pictures teach
    nothing here.
    """
    weight: Weight = Linear(0.0, 1.0, 0.0, warmup) if warmup else 1.0
    labels = replace(task.supervised("s"), weight=ce)
    return one_turn("dkd", Part((labels,)), part(weight, alpha=alpha, beta=beta, temperature=temperature))
