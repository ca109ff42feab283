"""Attention transfer: Zagoruyko & Komodakis 2017, arXiv 1612.03928.

L = ce·CE(z_s, y) + kd·T²·KL + weight·Σ_levels mean (Q_s − Q_t)², Q = unit(flatten(mean over channels of A²))
"""

from __future__ import annotations

from kdcli.losses import features
from kdcli.methods.parts import LEVELS, STAGES, Part, by_level, labels_and_teacher, one_turn
from kdcli.methods.trainings import SMALL_PICTURES, published, sgd, tables_cifar_100, tables_imagenet
from kdcli.tasks import Task
from kdcli.words import Method


def part(
    weight: float = 1000.0,
    *,
    student: tuple[str, ...] = LEVELS,
    teacher: tuple[str, ...] = LEVELS,
    name: str = "at",
) -> Part:
    """Attention maps, level by level."""
    return by_level(name, features.at, weight, student, teacher)


def at(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Attention maps of the teacher at several levels.

    Weight 1000 for the mean over positions is that of RepDistiller; the paper prints a norm (equation 2) with
    β/2 and β = 1000. RepDistiller and mdistiller take the end of every stage, four of a ResNet, as the recipe
    does; the default here leaves ``stage1`` out. Of two grids the larger is averaged to the smaller.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = {"method.weight": 1000.0, "method.ce": 1.0, "method.kd": 0.0}
    levels = {"method.student": list(STAGES), "method.teacher": list(STAGES)}
    own = sgd(lr=0.1, weight_decay=5e-4, epochs=200, batch=128, drops=(60, 120, 160), factor=0.2)
    recipes = (
        tables_cifar_100({**weights, **levels}, {"method.student": "the end of every stage"}),
        tables_imagenet({**weights, **levels}, "mdistiller configs/imagenet/r34_r18/at.yaml"),
        published(
            "cifar-10",
            {**own, **SMALL_PICTURES, **weights},
            "the authors' cifar.py",
            {"method.weight": "--beta 1e+3, at the ends of a WRN's three groups"},
        ),
    )
    return one_turn("at", Part(labels), taught, recipes=recipes)
