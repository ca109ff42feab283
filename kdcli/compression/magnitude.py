"""Pruning by magnitude, before the training: Li et al. 2017, arXiv 1608.08710 (by L1 norms; here by L2).

The channels of least filter norm go until the target is met; what is left learns on, from labels and perhaps
from a teacher. Norms are divided by their mean over the site, so that layers of unlike scales compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdcli.compression.shrinking import Compaction, answers
from kdcli.losses.compaction import row_norms
from kdcli.methods.parts import STUDENT, TEACHER, Positive, S, T
from kdcli.tasks import Task
from kdcli.words import Method, Phase, Recipe, Turn


def magnitude(
    task: Task,
    of: Compaction,
    *,
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    kd: float = 1.0,
    temperature: Positive = 4.0,
) -> Method:
    """The smaller network learns on; a baseline for methods that choose channels while they learn.

    ``target`` is the part of FLOPs (``--target params=…``: of parameters) that is left. A teacher teaches by
    its answers, with weight ``kd``.
    """
    return learns_on("magnitude", task, of, kd, temperature)


def learns_on(name: str, task: Task, of: Compaction, kd: float, temperature: float) -> Method:
    """A network that is small already learns from labels, and from a teacher's answers where there is one.

    Args:
        name: of the method.
        task: of the data.
        of: what the method is made for.
        kd: weight of the teacher's answers.
        temperature: of both answers.
    """
    turn = Turn(
        "student",
        ("student",),
        (S, T) if of.taught else (S,),
        (*task.supervised("s"), *answers(task, of, kd, temperature)),
    )
    parties = (STUDENT, TEACHER) if of.taught else (STUDENT,)
    return Method(name, parties, (Phase((turn,)),))


def importance(filters: Sequence[Tensor]) -> list[Tensor]:
    """The norm of what makes each channel, over the mean of its site, [p] of each site.

    Args:
        filters: of each site, [p, …]: a row for each channel or head.
    """
    norms = [row_norms(weight.detach().cpu()) for weight in filters]
    return [norm / norm.mean().clamp(min=1e-12) for norm in norms]


def recipes() -> tuple[Recipe, ...]:
    """None: the paper's trainings differ by network, and are left out."""
    return ()
