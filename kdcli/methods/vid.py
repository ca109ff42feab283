"""Variational information distillation: Ahn et al. 2019, arXiv 1904.05835.

L = ce·CE(z_s, y) + kd·T²·KL + weight·Σ_levels mean ½·((t − μ(s))²/σ² + log σ²), μ and σ trained
"""

from __future__ import annotations

from functools import partial

from kdcli.errors import UsageError
from kdcli.losses import features
from kdcli.methods.parts import STAGES, Part, Positive, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import VariationalMean
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Term


def part(
    weight: float = 1.0,
    *,
    student: tuple[str, ...] = STAGES,
    teacher: tuple[str, ...] = STAGES,
    variance: Positive = 5.0,
    name: str = "vid",
) -> Part:
    """Likelihood of the teacher's maps, level by level. Raises UsageError for a map too many."""
    if len(student) != len(teacher):
        raise UsageError(f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher.")
    levels = [(f"s.{as_map_tap(a)}", f"t.{as_map_tap(b)}") for a, b in zip(student, teacher)]
    build = partial(VariationalMean, variance=variance)
    names = [f"{name}-regressor{i}" for i in range(1, len(levels) + 1)]
    return Part(
        tuple(
            Term(f"{name}{i}", features.vid, (f"{own}.out", f"~{its}", f"{own}:scale"), weight)
            for i, (own, (_, its)) in enumerate(zip(names, levels), 1)
        ),
        tuple(Party(own, "trained", build=build, reads=pair) for own, pair in zip(names, levels)),
        tuple(Call(own, own, (mine,)) for own, (mine, _) in zip(names, levels)),
    )


def vid(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """What the student's maps tell of the teacher's, as a bound on their mutual information.

    In RepDistiller's form: weight 1, the ends of all stages (``feat[1:-1]``), a variance for each channel
    that begins with 5. The paper also has one for the logits.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = keys("method", weight=1.0, ce=1.0, kd=0.0, variance=5.0)
    levels = keys("method", student=list(STAGES), teacher=list(STAGES))
    recipe = tables_cifar_100({**weights, **levels}, {"method.student": "the end of every stage"})
    return one_turn("vid", Part(labels), taught, recipes=(recipe,))
