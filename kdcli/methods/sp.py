"""Similarity-preserving knowledge distillation: Tung & Mori 2019, arXiv 1907.09682.

L = ce·CE(z_s, y) + kd·T²·KL + weight·‖G_s − G_t‖²/B² over the whole batch
G: similarities A·Aᵀ of its pictures, rows at length 1
"""

from __future__ import annotations

from kdcli.losses import relations
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import tables_cifar_100
from kdcli.tasks import Task
from kdcli.words import Method, Term


def part(
    weight: float = 3000.0, *, student: str = "stage4", teacher: str = "stage4", name: str = "sp"
) -> Part:
    """Similarities between rows."""
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part((Term(name, relations.sp, taps, weight, scope="batch"),))


def sp(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Which pictures are alike to the teacher shall be alike to the student.

    The last map before pooling, weight 3000, as in RepDistiller.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    recipe = tables_cifar_100(
        {
            **{"method.weight": 3000.0, "method.ce": 1.0, "method.kd": 0.0},
            **{"method.student": "stage4", "method.teacher": "stage4"},
        },
        {"method.student": "the last map before pooling"},
    )
    return one_turn("sp", Part(labels), taught, recipes=(recipe,))
