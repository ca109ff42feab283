"""A grid of heads on features of a frozen backbone: what is tried, on what, for what, and what comes of it.

:mod:`kdcli.engine.heads` and :mod:`kdcli.engine.lbfgs` train linear heads; a task may have its own solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdcli.errors import Diverged, InputError
from kdcli.metrics.calibration import Calibration


@dataclass(frozen=True)
class HeadSpec:
    """One head of a grid.

    For the solver `lbfgs`, lr is 0 and weight_decay the L2 factor; a `plain` embedding is not fitted at all,
    and for a `whitened` one weight_decay is the shrinkage.
    """

    feature: str
    lr: float  # for a batch of 256; scaled linearly
    weight_decay: float
    solver: Literal["sgd", "lbfgs", "adamw", "plain", "whitened"] = "sgd"  # adamw takes rates as they are

    @property
    def name(self) -> str:
        """A label for tables: `cls4+avg lr=0.01 wd=0`, or `cls4+avg lbfgs l2=0.001`."""
        if self.solver in ("plain", "whitened"):
            shrinkage = f" shrinkage={self.weight_decay:g}" if self.solver == "whitened" else ""
            return f"{self.feature} {self.solver}{shrinkage}"
        kind = f"lr={self.lr:g} wd" if self.solver != "lbfgs" else "lbfgs l2"
        return f"{self.feature} {kind}={self.weight_decay:g}"


@dataclass(frozen=True)
class HeadResult:
    """A trained head as it was at its best on the validation part.

    Attributes:
        spec: what was tried.
        tensors: of the head, on the CPU; of a linear one `weight` [C, F] and `bias` [C], for raw features.
        metrics: on the validation part; the first one names the head's quality.
        rank: the smallest is the best.
        epoch: the best one, counted from 1 (lbfgs: the last iteration).
        epochs: run before the head was frozen (lbfgs: iterations).
        calibration: how its answers are softened to be likely, of the head that is chosen; None where that is
            not done.
    """

    spec: HeadSpec
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    rank: tuple[float, ...]
    epoch: int
    epochs: int
    calibration: Calibration | None = None

    @property
    def diverged(self) -> bool:
        """Whether what was measured became NaN or Inf."""
        return not all(map(math.isfinite, self.metrics.values()))


Answers = Callable[[HeadResult], Tensor]
"""Logits [N, C] of a head on the labelled validation samples, on the CPU."""


@dataclass(frozen=True)
class Objective:
    """What linear heads learn and are chosen by. Targets are [B] or [B, …], as a task has them.

    Attributes:
        outputs: number of logits C of a sample.
        gradient: of the summed loss in logits [H, C, B], which it may overwrite, for targets of B samples.
        loss: mean over logits [N, C], and N times its gradient in them.
        scores: of each of H heads, by name, from the logits [H, C, B] and targets of all batches.
        rank: of such scores; the smallest is the best.
        fault: what is wrong with all targets of a part, and whether it is for training; "" if nothing.
        settle: of all results, and of what gives the logits [N, C] of one of them and the targets [N, …] of
            the labelled validation samples, makes those that are handed on; None leaves them.
    """

    outputs: int
    gradient: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    scores: Callable[[Iterable[tuple[Tensor, Tensor]]], list[dict[str, float]]]
    rank: Callable[[dict[str, float]], tuple[float, ...]]
    fault: Callable[[Tensor, bool], str]
    settle: Callable[[list[HeadResult], Answers, Tensor], list[HeadResult]] | None = None


@dataclass(frozen=True)
class Training:
    """How the heads of a grid are trained.

    Attributes:
        epochs: passes over the labelled samples; the cosine spans all of their steps.
        batch_size: samples in a step, by which rates are scaled; a smaller last batch is used too.
        momentum: SGD's, not dampened.
        seed: of initial weights and sample order.
        patience: epochs without a better score after which a head is frozen; None for never.
    """

    epochs: int = 10
    batch_size: int = 128
    momentum: float = 0.9
    seed: int = 0
    patience: int | None = None


class Part(NamedTuple):
    """Features `[N, F]`, targets `[N, …]`, indices of labelled rows."""

    x: Tensor
    y: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Features:
    """What heads read and are to answer.

    Attributes:
        features: name → `[N, F]` floats (stored in fp16, bf16 or fp32; the arithmetic is fp32).
        targets: `[N, …]`; -1 in the rows without a label, which are left out.
        training: whether heads learn on them, or are chosen.
    """

    features: Mapping[str, Tensor]
    targets: Tensor
    training: bool = True

    def part(
        self, name: str, objective: Objective, device: torch.device | str, width: int | None = None
    ) -> Part:
        """One feature on the device, its targets and shape checked, and its labelled rows for NaN and Inf.

        Raises:
            InputError: no labelled sample, targets that the objective cannot learn, NaN or Inf, wrong shapes.
        """
        y, part = self.targets, "training" if self.training else "validation"
        rows = (y.reshape(len(y), -1) != -1).all(1).nonzero()[:, 0]
        x = self.features.get(name, torch.empty(0))
        shape, wrong = [len(y), width or x.shape[-1]], ""
        if not len(rows):
            wrong = f"has no labelled sample among {len(y):,} (every label is -1): name the label column"
        elif fault := objective.fault(y[rows], self.training):
            wrong = fault
        elif name not in self.features:
            wrong = f"has no features {name!r}, only {', '.join(self.features) or 'none'}: check the grid"
        elif list(x.shape) != shape:
            wrong = f"has features {name!r} of shape {list(x.shape)}, not {shape}: check the cache"
        if wrong:
            raise InputError(f"the {part} part {wrong} and the split.")
        x, rows = x.to(device), rows.to(device)
        if not x.sum(dtype=torch.float32).isfinite():  # one cheap pass; only a suspect is looked at by row
            bad = torch.cat([some[~x[some].isfinite().all(1)] for some in rows.split(4096)])
            if len(bad):
                rows_hit = f"{len(bad):,} of {len(rows):,} labelled rows, the first {int(bad[0])}"
                advice = "see the pictures, extract in fp32, not fp16"
                raise InputError(f"{part} features {name!r} hold NaN or Inf in {rows_hit}: {advice}.")
        return Part(x, y.to(device), rows)


def best(results: Sequence[HeadResult]) -> HeadResult:
    """Return the head of the smallest rank, ties by order.

    Raises:
        Diverged: all are.
    """
    finite = [result for result in results if not result.diverged]
    if not finite:
        raise Diverged(f"all {len(results)} heads diverged (NaN or Inf): try smaller learning rates.")
    return min(finite, key=lambda result: result.rank)


def logits_of(weight: Tensor, bias: Tensor, outputs: int, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [H, C, B] of heads in `weight` `[H*C, F]`, `bias` `[H*C, 1]`, and targets, batch by batch."""
    for rows in part.rows.split(512):
        z = torch.addmm(bias, weight, part.x.index_select(0, rows).float().t())
        yield z.unflatten(0, (-1, outputs)), part.y[rows]


def within_noise(right: Tensor, best: Tensor) -> bool:
    """Whether a head is as good as the best one within one standard error of their paired difference.

    Of D, how many more samples the best answers right, and S, the samples that one of the two answers right:
    the difference D/N has the standard error √((S − D²/N) / (N (N − 1))), by the sample variance of what each
    sample adds, and is not above it if and only if D² ≤ S (McNemar's statistic D²/S is at most 1).

    Args:
        right: [N] which samples the head answers right.
        best: [N] the same of the best head.
    """
    more, apart = int(best.sum()) - int(right.sum()), int((best != right).sum())
    return more <= 0 or more**2 <= apart
