"""Activation boundaries: Heo et al. 2019, arXiv 1811.03233. First the neurons' boundaries, then the student.

Phase 1: weight·Σ_levels 2^(l − L)·Σ (m − sign(t)·c(s))₊², s and t before the last activation of a level, c a
connector
Phase 2: ce·CE(z_s, y) + kd·T²·KL
"""

from __future__ import annotations

from functools import partial

from kdcli.errors import UsageError
from kdcli.losses import features
from kdcli.methods.parts import STAGES, STUDENT, TEACHER, Positive, S, Share, T, labels_and_teacher
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import Match, connector
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Term, Turn


def boundaries(
    weight: float = 3e-3,
    *,
    student: tuple[str, ...] = STAGES,
    teacher: tuple[str, ...] = STAGES,
    margin: Positive = 1.0,
    match: Match = "conv",
    boundary_share: Share = 1 / 9,
) -> tuple[Phase, tuple[Party, ...]]:
    """Phase 1, and its connectors. Raises UsageError for a map too many."""
    if len(student) != len(teacher):
        raise UsageError(f"ab: {len(student)} maps of the student and {len(teacher)} of the teacher.")
    levels = [(f"s.{a}.pre", f"t.{b}.pre") for a, b in zip(student, teacher)]
    names = [f"connector{i}" for i in range(1, len(levels) + 1)]
    build, keywords = partial(connector, match=match), {"margin": margin}
    turn = Turn(
        "boundaries",
        trains=("student", *names),
        calls=(S, T, *(Call(name, name, (mine,)) for name, (mine, _) in zip(names, levels))),
        terms=tuple(
            Term(
                f"ab{i}", features.ab, (f"{name}.out", f"~{its}"), weight * 2.0 ** (i - len(levels)), keywords
            )
            for i, (name, (_, its)) in enumerate(zip(names, levels), 1)
        ),
    )
    parties = tuple(Party(name, "trained", build=build, reads=pair) for name, pair in zip(names, levels))
    return Phase((turn,), "boundaries", boundary_share), parties


def ab(
    task: Task,
    boundaries: tuple[Phase, tuple[Party, ...]],
    *,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
) -> Method:
    """The student's neurons are made to fire where the teacher's do, then it learns from labels.

    In RepDistiller's form: of each stage's end what its last activation is given (the tap ``stage1.pre`` and
    so on), so both networks need one there, as ResNets have; of others name modules that end in one. Each
    level has half the weight of the next; ``weight``, of the last, is the released 3/1000. Connectors are
    convolutions with a batch norm, and nothing where two maps have one shape. 30 epochs at the full learning
    rate, in which the classifier rests, come before 240 of labels alone (``-r 1 -a 0`` of its scripts).
    """
    first, parties = boundaries
    taught = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    second = Phase((Turn("student", ("student",), (S, T), taught),), "distill", 1 - first.share)
    weights = keys("method", weight=3e-3, margin=1.0, ce=1.0, kd=0.0)
    levels = keys("method", student=list(STAGES), teacher=list(STAGES), boundary_share=30 / 270)
    recipe = tables_cifar_100(
        {**weights, **levels, "optim.epochs": 270},
        {
            "method.student": "the end of every stage, before its activation",
            "optim.epochs": "30 of the boundaries, 240 of the student",
            "optim.milestones": "of the student's epochs",
        },
    )
    return Method("ab", (STUDENT, TEACHER, *parties), (first, second), recipes=(recipe,))
