"""Probabilistic knowledge transfer: Passalis & Tefas 2018, arXiv 1803.10837.

L = ce·CE(z_s, y) + kd·T²·KL + weight·mean_ij P_t log(P_t/P_s) over the whole batch
P: rows of (cos(f_i, f_j) + 1)/2 scaled to sum 1
"""

from __future__ import annotations

from kdcli.losses import relations
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import tables_cifar_100
from kdcli.tasks import Task
from kdcli.words import Method, Term


def part(
    weight: float = 30000.0, *, student: str = "pooled", teacher: str = "pooled", name: str = "pkt"
) -> Part:
    """Cosine affinities as probabilities."""
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part((Term(name, relations.pkt, taps, weight, scope="batch"),))


def pkt(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """How probable each picture is as the neighbour of another.

    Weight 30000 is RepDistiller's, for the mean over all pairs where the paper sums.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    weights = {"method.weight": 30000.0, "method.ce": 1.0, "method.kd": 0.0}
    return one_turn("pkt", Part(labels), taught, recipes=(tables_cifar_100(weights),))
