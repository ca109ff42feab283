"""Which samples, and which views of them, step k holds: a function of (seed, k), so any step can be resumed.

A stream repeats its samples in a new order each epoch; a batch takes the next samples of each stream.
Batches are always full and run on over the end of an epoch: every sample is seen once per epoch, none is
dropped or repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data.samples import Samples
from kdcli.seeds import seed_of

Key = tuple[int, int]  # (index of the sample, view number)
_KEPT = 4  # two streams, each around the end of an epoch


@dataclass(frozen=True)
class Pool:
    """Samples of one or several sources side by side."""

    parts: tuple[Samples, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum([len(p) for p in self.parts]))

    @property
    def ends(self) -> np.ndarray:
        """[parts] number of samples up to the end of each part."""
        return vars(self)["_ends"]

    def __len__(self) -> int:
        return sum(len(p) for p in self.parts)

    @property
    def ids(self) -> np.ndarray:
        """[N] uint64."""
        return np.concatenate([p.ids for p in self.parts])

    @property
    def labels(self) -> np.ndarray:
        """[N] int64, -1 for unlabelled."""
        return np.concatenate([p.labels for p in self.parts])

    def locate(self, index: int) -> tuple[Samples, int]:
        """The part that holds sample ``index`` and its place there."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - (int(self.ends[part - 1]) if part else 0)

    def columns(self, indices: Sequence[int], moved: Sequence[Any]) -> dict[str, Any]:
        """What the targets add to a batch; see :meth:`kdcli.data.targets.Targets.columns`."""
        rows = np.asarray(indices)
        part = np.searchsorted(self.ends, rows, side="right")
        found, order = [], []
        for number in np.unique(part).tolist():
            at = np.flatnonzero(part == number).tolist()
            places = rows[at] - (self.ends[number - 1] if number else 0)
            found.append(self.parts[number].targets.columns(places, [moved[i] for i in at]))
            order += at
        if len(found) == 1:
            return found[0]
        back = np.argsort(order).tolist()
        return {name: _in_order([columns[name] for columns in found], back) for name in found[0]}


def _in_order(parts: list[Any], back: list[int]) -> Any:
    """Rows of a column, laid end to end by parts, as they stand in the batch."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[back]
    rows = [row for part in parts for row in part]
    return [rows[i] for i in back]


@dataclass(frozen=True)
class Share:
    """Samples that fill a fixed part of every batch; all others fill the rest.

    Attributes:
        first: [N] which samples.
        part: of a batch, above 0 and at most 1.
    """

    first: np.ndarray
    part: float


class Order:
    """Which (sample, view) keys each global batch holds.

    Args:
        labels: [N] labels of the pool, -1 for unlabelled.
        batch_size: global batch.
        seed: of the order.
        views: number of fixed views, or None for a new view each epoch (live).
        share: what fills a part of every batch; None to draw all alike.
        balance: draw classes evenly, with replacement; unlabelled samples keep their share.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        views: int | None,
        share: Share | None = None,
        balance: bool = False,
    ) -> None:
        self.labels, self.batch_size, self.seed = labels, batch_size, seed
        self.views, self.balance = views, balance
        everything = np.arange(len(labels))
        self.streams = [everything]
        self.share = Fraction(1)  # of the first stream; the second has the rest
        if share is not None and share.first.any() and not share.first.all():
            self.share = Fraction(share.part).limit_denominator(1_000_000)
            both = [everything[share.first], everything[~share.first]]
            self.streams = both if self.share < 1 else both[:1]
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are drawn as the pool holds."""
        return len(self.labels) / self.batch_size

    def keys(self, step: int) -> list[Key]:
        """The global batch of ``step``."""
        keys: list[Key] = []
        for number, rows in enumerate(self.streams):
            for position in range(self._taken(step, number), self._taken(step + 1, number)):
                epoch, place = divmod(position, len(rows))
                view = epoch if self.views is None else epoch % self.views
                keys.append((int(rows[self._permutation(number, epoch)[place]]), view))
        if len(self.streams) > 1:
            order = np.random.default_rng(seed_of(self.seed, step, 3)).permutation(len(keys))
            keys = [keys[i] for i in order]
        return keys

    def _taken(self, step: int, number: int) -> int:
        """Samples of a stream in the first ``step`` batches; two streams add up to full batches."""
        first = step * self.batch_size * self.share.numerator // self.share.denominator
        return first if number == 0 else step * self.batch_size - first

    def _permutation(self, number: int, epoch: int) -> np.ndarray:
        """Order of a stream in an epoch; the last few are kept."""
        if (number, epoch) not in self._permutations:
            if len(self._permutations) >= _KEPT:
                del self._permutations[next(iter(self._permutations))]
            rng = np.random.default_rng(seed_of(self.seed, epoch, number))
            labels = self.labels[self.streams[number]]
            self._permutations[number, epoch] = (
                _balanced(labels, rng) if self.balance else rng.permutation(len(labels))
            )
        return self._permutations[number, epoch]

    def used(self, steps: int) -> np.ndarray:
        """[views, N] mask of the fixed views that the first ``steps`` batches hold.

        Where views are live it has one row: the samples.
        """
        views = self.views or 1
        mask = np.zeros((views, len(self.labels)), bool)
        for number, rows in enumerate(self.streams):
            left = self._taken(steps, number)
            for epoch in range(math.ceil(left / len(rows))):
                mask[epoch % views, rows[self._permutation(number, epoch)[:left]]] = True
                left -= len(rows)
                if mask[:, rows].all():
                    break
        return mask

    def labelled_in(self, step: int) -> int:
        """How many labelled rows the global batch of ``step`` holds: what row means divide by."""
        return sum(self.labels[index] >= 0 for index, _ in self.keys(step))


def _balanced(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn with replacement so that every class present is equally likely."""
    if (labels < 0).all():
        return rng.permutation(len(labels))
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    known = classes >= 0
    share = np.where(known, counts[known].sum() / known.sum(), counts)
    weights = (share / counts)[inverse]
    return rng.choice(len(labels), len(labels), p=weights / weights.sum())


def in_order(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
    """Keys of one pass without augmentation: this rank's every ``world_size``-th sample, in batches."""
    mine = [(i, 0) for i in range(rank, count, world_size)]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
