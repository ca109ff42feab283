"""Correlation congruence: Peng et al. 2019, arXiv 1904.01802, in RepDistiller's form.

L = ce·CE(z_s, y) + kd·T²·KL + weight·mean_n Σ_k d[n, k]·d[n + 1, k] over the whole batch
d = |E_s f_s − E_t f_t|, E trained embeddings
"""

from __future__ import annotations

from functools import partial

from kdcli.losses import relations
from kdcli.methods.parts import Count, Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import embedding
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Term


def part(
    weight: float = 0.02,
    *,
    student: str = "pooled",
    teacher: str = "pooled",
    width: Count = 128,
    name: str = "cc",
) -> Part:
    """Differences of neighbours, after a trained embedding of both sides to one width."""
    mine, its = f"s.{student}", f"t.{teacher}"
    a, b = f"{name}-student", f"{name}-teacher"
    build = partial(embedding, width=width)
    return Part(
        (Term(name, relations.cc, (f"{a}.out", f"{b}.out"), weight, scope="batch"),),
        (
            Party(a, "trained", build=build, reads=(mine,)),
            Party(b, "trained", build=build, reads=(its,)),
        ),
        (Call(a, a, (mine,)), Call(b, b, (f"~{its}",))),
    )


def cc(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """How differences to the teacher hang together from picture to picture.

    RepDistiller's form compares neighbours in the batch, after embedding both sides to 128; the paper
    compares tables of kernels between all rows. Both embeddings are trained, as there.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = keys("method", weight=0.02, width=128, ce=1.0, kd=0.0)
    return one_turn("cc", Part(labels), taught, recipes=(tables_cifar_100(weights),))
