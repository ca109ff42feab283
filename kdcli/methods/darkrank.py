"""DarkRank: Chen et al. 2018, arXiv 1707.01220, its hard form.

L = ce·CE(z_s, y) + kd·T²·KL + weight·DR over the whole batch
DR: −log of how likely the teacher's order of each picture's nearest others is, by scores −α·dᵝ of the student
"""

from __future__ import annotations

from kdcli.losses import relations
from kdcli.methods.parts import Count, Part, Positive, labels_and_teacher, one_turn
from kdcli.tasks import Task
from kdcli.words import Method, Term


def part(
    weight: float = 1.0,
    *,
    alpha: Positive = 2.0,
    beta: Positive = 3.0,
    length: Count = 4,
    student: str = "pooled",
    teacher: str = "pooled",
    name: str = "darkrank",
) -> Part:
    """The order of neighbours."""
    keywords = {"alpha": alpha, "beta": beta, "length": length}
    taps = (f"s.{student}", f"~t.{teacher}")
    return Part((Term(name, relations.darkrank, taps, weight, keywords, scope="batch"),))


def darkrank(
    task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0
) -> Method:
    """Who is nearest to whom, in the order that the teacher sees, which needs no common width.

    Made for embeddings; α 2, β 3 and 4 neighbours are the defaults of RKD's run_distill.py, in which it is a
    baseline whose weight is 0 unless it is given. Distances are of features as they are: where
    they are large, every order is certain and a smaller ``alpha`` teaches more.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("darkrank", Part(labels), taught)
