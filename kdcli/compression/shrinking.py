"""What the methods of ``kdcli compress`` have in common: the sites they work on, and terms over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcli.losses.compaction import group_lasso, pooled, pooled_distance, row_norms
from kdcli.losses.logits import kl_divergence
from kdcli.tasks import Task
from kdcli.words import Derive, Term

SMALL = 0.01  # norm of a row that is as good as gone; rows begin with 1
PARAMETER = "body.{}.compactor.weight"  # of the compactor of a site, in a network that has some


@dataclass(frozen=True)
class Compaction:
    """What a method of ``kdcli compress`` is made for.

    Attributes:
        sites: names of the sites, which are taps too: ``SITE.in`` before the compactor, ``SITE.compactor``
            behind it.
        widths: of the sites.
        each: channels of one unit of each site: 1, or of heads their dimension.
        cost: FLOPs of one picture at widths of the sites.
        steps: of the training.
        batch: global batch.
        accumulate: micro-batches of a step, each of which a derive sees by itself.
        pictures: to train on.
        taught: whether there is a teacher.
        alike: whether it has the student's sites, of the same widths.
        answers: whether its logits are the student's, one by one: [B, C] of the same names.
    """

    sites: tuple[str, ...]
    widths: tuple[int, ...]
    each: tuple[int, ...]
    cost: Callable[[Sequence[int]], float]
    steps: int
    batch: int
    accumulate: int
    pictures: int
    taught: bool
    alike: bool
    answers: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the compactors' weights in the student."""
        return tuple(map(PARAMETER.format, self.sites))


def between_layers(*maps: Tensor) -> Tensor:
    """:func:`kdcli.losses.compaction.pooled_distance` of s_1, …, s_L, t_1, …, t_L."""
    half = len(maps) // 2
    return pooled_distance(maps[:half], maps[half:])


def layers(of: Compaction, weight: float) -> tuple[Term, ...]:
    """The student's features in front of its compactors, and the teacher's of the same layers."""
    if not (of.taught and of.alike and weight):
        return ()
    own = tuple(f"s.{site}.in" for site in of.sites)
    others = tuple(f"~t.{site}.in" for site in of.sites)
    return (Term("layers", between_layers, (*own, *others), weight),)


def watched(of: Compaction) -> tuple[Term, ...]:
    """For the log: median and sum of the norms of all rows, and the share of those as good as gone."""
    weights = tuple(f"~s:{site}.compactor.weight" for site in of.sites)
    return (
        Term("row norm", _median_norm, weights, 0.0, watched=True),
        Term("small rows", _small_share, weights, 0.0, watched=True),
        Term("lasso", group_lasso, weights, 0.0, watched=True),
    )


def _median_norm(*weights: Tensor) -> Tensor:
    return torch.cat([row_norms(weight) for weight in weights]).median()


def _small_share(*weights: Tensor) -> Tensor:
    return (torch.cat([row_norms(weight) for weight in weights]) < SMALL).float().mean()


def answers(task: Task, of: Compaction, weight: float, temperature: float) -> tuple[Term, ...]:
    """KL to the teacher's answers: of its logits where they are the student's, else the task's own."""
    if not of.taught:
        return ()
    if not of.answers:
        return (replace(task.taught("s", "t", temperature=temperature, t_squared=True), weight=weight),)
    keywords = {"temperature": temperature, "t_squared": True}
    return (Term("kl", kl_divergence, ("s.logits", "~t.logits"), weight, keywords),)


def pooled_taps(of: Compaction) -> tuple[Derive, ...]:
    """``own1``, ``its1``, …: pooled features of the student behind each compactor, and of the teacher."""
    found = []
    for number, site in enumerate(of.sites, 1):
        found.append(Derive(f"own{number}", pooled, (f"~s.{site}.compactor",)))
        found.append(Derive(f"its{number}", pooled, (f"~t.{site}.in",)))
    return tuple(found)
