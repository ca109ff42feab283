"""Maps of the teacher: joint hints (the "FitNet" of tables), attention transfer, neuron selectivity.

L = ce·CE(z_s, y) + kd·T²·KL + weight·Σ_levels loss(map of the student, map of the teacher)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from kdcli.errors import UsageError
from kdcli.losses import features
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.models.adapters import Match, Regressor
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Term, Weight

LEVELS = ("stage2", "stage3", "stage4")
Adapter = Literal["conv", "linear", "none"]


def hint_part(
    weight: Weight = 1.0,
    *,
    student: str = "stage3",
    teacher: str = "stage3",
    adapter: Adapter = "conv",
    match: Match = "conv",
    relu: bool = True,
    name: str = "hint",
) -> Part:
    """Mean squared difference of the teacher's map and an adapter on the student's.

    ``conv`` is a regressor with BN, and ``match`` and ``relu`` are its own; ``linear`` is one linear map at
    every position, on the teacher's grid; ``none`` compares the maps as they are.
    """
    mine, its = f"s.{as_map_tap(student)}", f"t.{as_map_tap(teacher)}"
    if adapter == "none":
        return Part((Term(name, features.hint, (mine, f"~{its}"), weight),))
    build = (
        partial(Regressor, match=match, relu=relu)
        if adapter == "conv"
        else partial(Regressor, match="pool", relu=False, norm=False)
    )
    regressor = f"{name}-regressor"
    return Part(
        (Term(name, features.hint, (f"{regressor}.out", f"~{its}"), weight),),
        (Party(regressor, "trained", build=build, reads=(mine, its)),),
        (Call(regressor, regressor, (mine,)),),
    )


def at_part(
    weight: Weight = 1.0,
    *,
    student: tuple[str, ...] = LEVELS,
    teacher: tuple[str, ...] = LEVELS,
    name: str = "at",
) -> Part:
    """Attention maps, level by level."""
    return _levels(features.at, weight, student, teacher, name)


def nst_part(
    weight: Weight = 1.0,
    *,
    student: tuple[str, ...] = LEVELS,
    teacher: tuple[str, ...] = LEVELS,
    name: str = "nst",
) -> Part:
    """Selectivity of channels, level by level."""
    return _levels(features.nst, weight, student, teacher, name)


def _levels(
    loss: Callable[..., Any],
    weight: Weight,
    student: tuple[str, ...],
    teacher: tuple[str, ...],
    name: str,
) -> Part:
    if len(student) != len(teacher):
        raise UsageError(f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher.")
    pairs = [(f"s.{as_map_tap(a)}", f"~t.{as_map_tap(b)}") for a, b in zip(student, teacher)]
    return Part(tuple(Term(f"{name}{i}", loss, pair, weight) for i, pair in enumerate(pairs, 1)))


def hint(
    task: Task,
    *,
    weight: float = 100.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: str = "stage3",
    teacher: str = "stage3",
    adapter: Adapter = "conv",
    match: Match = "conv",
    relu: bool = True,
) -> Method:
    """Joint hint: labels and one regressed map in one phase.

    This is what RepDistiller and mdistiller call FitNet, and what published tables mean by it (weight 100
    beside labels, no kd, convolution with BN and ReLU, third of their five features); the two phases of the
    paper are ``fitnets``. Taps: stage1 to stage4, mapK, or any module's path. With a transformer for a
    teacher say ``relu=false`` or ``adapter=linear``: its features have signs. ``match`` and ``relu`` belong
    to ``adapter=conv``; ``none`` asks for two maps of one shape.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    found = hint_part(weight, student=student, teacher=teacher, adapter=adapter, match=match, relu=relu)
    return one_turn("hint", Part(labels), found)


def at(
    task: Task,
    *,
    weight: float = 1000.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: tuple[str, ...] = LEVELS,
    teacher: tuple[str, ...] = LEVELS,
) -> Method:
    """Attention transfer: Zagoruyko & Komodakis 2017, arXiv 1612.03928.

    Weight 1000 for the mean over positions is that of RepDistiller; the paper prints a norm (equation 2) with
    β/2 and β = 1000. Of two grids the larger is averaged to the smaller.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("at", Part(labels), at_part(weight, student=student, teacher=teacher))


def nst(
    task: Task,
    *,
    weight: float = 50.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: tuple[str, ...] = LEVELS,
    teacher: tuple[str, ...] = LEVELS,
) -> Method:
    """Neuron selectivity transfer: Huang & Wang 2017, arXiv 1707.01219, with the polynomial kernel.

    Weight 50 is RepDistiller's, for its mean over pairs of channels.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("nst", Part(labels), nst_part(weight, student=student, teacher=teacher))
