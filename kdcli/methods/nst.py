"""Neuron selectivity transfer: Huang & Wang 2017, arXiv 1707.01219.

L = ce·CE(z_s, y) + kd·T²·KL + weight·Σ_levels [mean k(t, t) + mean k(s, s) − 2·mean k(s, t)]
k(x, y) = ⟨x, y⟩² over pairs of channels, each a unit vector over positions
"""

from __future__ import annotations

from kdcli.losses import features
from kdcli.methods.parts import STAGES, Part, by_level, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.tasks import Task
from kdcli.words import Method


def part(
    weight: float = 50.0,
    *,
    student: tuple[str, ...] = STAGES,
    teacher: tuple[str, ...] = STAGES,
    name: str = "nst",
) -> Part:
    """Selectivity of channels, level by level."""
    return by_level(name, features.nst, weight, student, teacher)


def nst(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Where the teacher's channels are active, by the maximum mean discrepancy with the polynomial kernel.

    Weight 50 is that of RepDistiller and mdistiller, for their mean over pairs of channels. The levels are
    the ends of all stages, four of a ResNet-18 or -50, as there (``feat[1:-1]``, ``feats[1:]``).
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    recipe = tables_cifar_100(
        keys("method", weight=50.0, ce=1.0, kd=0.0, student=list(STAGES), teacher=list(STAGES)),
        {"method.student": "the end of every stage"},
    )
    return one_turn("nst", Part(labels), taught, recipes=(recipe,))
