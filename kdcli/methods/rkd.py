"""Relational knowledge distillation: Park et al. 2019, arXiv 1904.05068.

L = ce·CE(z_s, y) + kd·T²·KL + distance·RKD-D + angle·RKD-A over the whole batch
RKD-D: smooth L1 of ‖f_i − f_j‖/μ between student and teacher, μ the mean distance
RKD-A: smooth L1 of cos ∠ f_i f_j f_k between student and teacher
"""

from __future__ import annotations

from kdcli.losses import relations
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import tables_cifar_100
from kdcli.tasks import Task
from kdcli.words import Method, Term


def part(
    weight: float = 1.0,
    /,
    *,
    distance: float = 25.0,
    angle: float = 50.0,
    student: str = "pooled",
    teacher: str = "pooled",
    name: str = "rkd",
) -> Part:
    """Distances and angles between rows; the weight multiplies both."""
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part(
        (
            Term(f"{name}-distance", relations.rkd_distance, taps, weight * distance, scope="batch"),
            Term(f"{name}-angle", relations.rkd_angle, taps, weight * angle, scope="batch"),
        )
    )


def rkd(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Distances and angles between pictures, which need no common width.

    25 and 50 are the weights for classification in RepDistiller and mdistiller; the authors' metric learning
    takes 1 and 2. The angle's memory grows with the cube of the batch. ``--add 'rkd=1'`` puts it beside
    another method; the paper finds it better with kd (kd=0.9).
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = {"method.distance": 25.0, "method.angle": 50.0, "method.ce": 1.0, "method.kd": 0.0}
    return one_turn("rkd", Part(labels), taught, recipes=(tables_cifar_100(weights),))
