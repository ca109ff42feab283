"""Relations between the pictures of a batch, which need no common width.

L = ce·CE(z_s, y) + kd·T²·KL + weight·loss(features of the student, features of the teacher)

Every loss here sees the whole batch, gathered over processes.
"""

from __future__ import annotations

from functools import partial

from kdcli.losses import relations
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.models.adapters import embedding
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Term, Weight


def rkd_part(
    weight: float = 1.0,
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


def sp_part(
    weight: Weight = 1.0, *, student: str = "stage4", teacher: str = "stage4", name: str = "sp"
) -> Part:
    """Similarities between rows."""
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part((Term(name, relations.sp, taps, weight, scope="batch"),))


def cc_part(
    weight: Weight = 1.0,
    *,
    student: str = "pooled",
    teacher: str = "pooled",
    width: int = 128,
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


def pkt_part(
    weight: Weight = 1.0, *, student: str = "pooled", teacher: str = "pooled", name: str = "pkt"
) -> Part:
    """Cosine affinities as probabilities."""
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part((Term(name, relations.pkt, taps, weight, scope="batch"),))


def rkd(
    task: Task,
    *,
    distance: float = 25.0,
    angle: float = 50.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: str = "pooled",
    teacher: str = "pooled",
) -> Method:
    """Relational distillation: Park et al. 2019, arXiv 1904.05068, distances and angles.

    25 and 50 are the weights for classification in RepDistiller and mdistiller; the authors' metric learning
    takes 1 and 2. Widths may differ. The angle's memory grows with the cube of the batch. ``--add 'rkd=1'``
    puts it beside another method; the paper finds it better with kd (kd=0.9).
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    found = rkd_part(distance=distance, angle=angle, student=student, teacher=teacher)
    return one_turn("rkd", Part(labels), found)


def sp(
    task: Task,
    *,
    weight: float = 3000.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: str = "stage4",
    teacher: str = "stage4",
) -> Method:
    """Similarity-preserving distillation: Tung & Mori 2019, arXiv 1907.09682.

    The last map before pooling, weight 3000, as in RepDistiller.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("sp", Part(labels), sp_part(weight, student=student, teacher=teacher))


def cc(
    task: Task,
    *,
    weight: float = 0.02,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: str = "pooled",
    teacher: str = "pooled",
    width: int = 128,
) -> Method:
    """Correlation congruence: Peng et al. 2019, arXiv 1904.01802, in RepDistiller's form.

    That form compares neighbours in the batch, after embedding both sides to 128; the paper compares tables
    of kernels between all rows. Both embeddings are trained, as there.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("cc", Part(labels), cc_part(weight, student=student, teacher=teacher, width=width))


def pkt(
    task: Task,
    *,
    weight: float = 30000.0,
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
    student: str = "pooled",
    teacher: str = "pooled",
) -> Method:
    """Probabilistic knowledge transfer: Passalis & Tefas 2018, arXiv 1803.10837.

    Weight 30000 is RepDistiller's, for the mean over all pairs where the paper sums.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("pkt", Part(labels), pkt_part(weight, student=student, teacher=teacher))
