"""Attention transfer: Zagoruyko & Komodakis 2017, arXiv 1612.03928.

L = ce·CE(z_s, y) + kd·T²·KL + weight·Σ_levels mean (Q_s − Q_t)², Q = unit(flatten(mean over channels of A²))
"""

from __future__ import annotations

from kdcli.losses import features
from kdcli.methods.parts import STAGES, Part, by_level, labels_and_teacher, one_turn
from kdcli.methods.trainings import SMALL_PICTURES, keys, published, sgd, tables_cifar_100, tables_imagenet
from kdcli.tasks import Task
from kdcli.words import Method


def part(
    weight: float = 1000.0,
    *,
    student: tuple[str, ...] = STAGES,
    teacher: tuple[str, ...] = STAGES,
    name: str = "at",
) -> Part:
    """Attention maps, level by level."""
    return by_level(name, features.at, weight, student, teacher)


def at(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Attention maps of the teacher at several levels.

    Weight 1000 for the mean over positions is that of the authors' code, RepDistiller and mdistiller; the
    paper prints a norm (equation 2) with β/2 and β = 1000. The levels are the ends of all stages, four of a
    ResNet-18 or -50, as in the authors' imagenet.py, RepDistiller (``feat[1:-1]``) and mdistiller
    (``feats[1:]``). Of two grids the larger is averaged to the smaller.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = keys("method", weight=1000.0, ce=1.0, kd=0.0)
    levels = keys("method", student=list(STAGES), teacher=list(STAGES))
    groups = keys("method", student=list(STAGES[1:]), teacher=list(STAGES[1:]))
    own = sgd(lr=0.1, weight_decay=5e-4, epochs=200, batch=128, drops=(60, 120, 160), factor=0.2)
    recipes = (
        tables_cifar_100({**weights, **levels}, {"method.student": "the end of every stage"}),
        tables_imagenet({**weights, **levels}, "mdistiller configs/imagenet/r34_r18/at.yaml"),
        published(
            "cifar-10",
            {**own, **SMALL_PICTURES, **weights, **groups},
            "the authors' cifar.py",
            {"method.weight": "--beta 1e+3", "method.student": "the ends of a WRN's three groups"},
        ),
    )
    return one_turn("at", Part(labels), taught, recipes=recipes)
