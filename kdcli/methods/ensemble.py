"""Ensembles and self-distillation: Allen-Zhu & Li 2020, arXiv 2012.09816.

L = (1 − α)·CE(z_s, y) + α·T²·KL(softmax(z_E/T) ‖ softmax(z_s/T))
z_E: the mean of M teachers' logits, M = 1 for self-distillation

Their training and the weights of their terms could not be read: neither method has a recipe.
"""

from __future__ import annotations

from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.tasks import Task
from kdcli.words import Method


def self(task: Task, *, alpha: float = 0.5, temperature: float = 4.0) -> Method:
    """Self-distillation: the teacher is the same network, trained before with another seed.

    L = (1 − α)·CE + α·T²·KL. Allen-Zhu & Li explain why the second run gains from the first; the weights are
    not theirs. A teacher of another architecture is refused.
    """
    return one_turn("self", Part(labels_and_teacher(task, ce=1 - alpha, kd=alpha, temperature=temperature)))


def ensemble(task: Task, *, alpha: float = 0.9, temperature: float = 4.0) -> Method:
    """Distillation from the mean of several independently trained teachers (repeat ``--teacher``).

    ``--set teacher_mean=logits`` averages outputs (Allen-Zhu & Li), ``probabilities`` softmax at the
    temperature T (Hinton et al.). L = (1 − α)·CE + α·T²·KL; the weights are RepDistiller's for kd.
    """
    terms = labels_and_teacher(task, ce=1 - alpha, kd=alpha, temperature=temperature)
    return one_turn("ensemble", Part(terms))
