"""Which samples, and which views of them, step k holds: a function of (seed, k), so any step can be resumed.

A stream repeats its samples in a new order each epoch; a batch takes the next samples of each stream.
Batches are always full and run on over the end of an epoch: every sample is seen once per epoch, none is
dropped or repeated, unless balance or groups of one label ask for it.
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
        views: number of fixed views, or None for a new view each epoch (live); of two streams a number each.
        share: what fills a part of every batch; None to draw all alike.
        balance: draw classes evenly, with replacement; unlabelled samples keep their share.
        per_label: K; above 1 a batch is made of groups of K samples of one label, as losses over triplets
            want them (P identities x K pictures: Hermans et al. 2017, section 2). The samples of a label,
            shuffled, are cut into groups, the last one filled from their beginning, so that an epoch is
            that much longer; unlabelled ones are grouped alike. A sample that is repeated in an epoch has
            another view each time: live ones are numbered epoch·K + repeat, fixed ones (epoch + repeat)
            mod views. Groups are shuffled whatever their labels: two in a batch may be of the same.

    Raises:
        ValueError: groups that do not fill a batch, or are to be balanced too.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        views: int | tuple[int | None, ...] | None,
        share: Share | None = None,
        balance: bool = False,
        per_label: int = 1,
    ) -> None:
        if per_label < 1 or batch_size % per_label:
            raise ValueError(f"a batch of {batch_size} is no multiple of {per_label} samples of each label")
        if balance and per_label > 1:
            raise ValueError("samples are balanced by label or drawn in groups of one, not both")
        self.labels, self.batch_size, self.seed = labels, batch_size, seed
        self.balance, self.per_label = balance, per_label
        everything = np.arange(len(labels))
        self.streams = [everything]
        self.share = Fraction(1)  # of the first stream; the second has the rest
        if share is not None and share.first.any() and not share.first.all():
            self.share = Fraction(share.part).limit_denominator(1_000_000)
            both = [everything[share.first], everything[~share.first]]
            self.streams = both if self.share < 1 else both[:1]
        given = views if isinstance(views, tuple) else (views,) * len(self.streams)
        self.counts = given[: len(self.streams)]  # of fixed views, by stream
        self._lengths = [_grouped_length(labels[rows], per_label) for rows in self.streams]
        self._permutations: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def views(self) -> int | None:
        """Fixed views of a sample, of the stream that has most; None where views are live."""
        return None if self.counts[0] is None else max(count for count in self.counts if count is not None)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are drawn as the pool holds, those that fill groups among them."""
        return len(self.labels) / self.batch_size

    def keys(self, step: int) -> list[Key]:
        """The global batch of ``step``."""
        keys: list[Key] = []
        for number, rows in enumerate(self.streams):
            for position in range(self._taken(step, number), self._taken(step + 1, number)):
                epoch, place = divmod(position, self._lengths[number])
                order, repeats = self._permutation(number, epoch)
                keys.append((int(rows[order[place]]), self._view(number, epoch, int(repeats[place]))))
        if len(self.streams) > 1:
            size = self.per_label
            order = np.random.default_rng(seed_of(self.seed, step, 3)).permutation(len(keys) // size)
            keys = [key for i in order for key in keys[i * size : (i + 1) * size]]
        return keys

    def _view(self, number: int, epoch: int, repeat: Any) -> Any:
        """The view of a stream's sample in an epoch, at one of its occurrences there: K at most."""
        count = self.counts[number]
        return epoch * self.per_label + repeat if count is None else (epoch + repeat) % count

    def _taken(self, step: int, number: int) -> int:
        """Samples of a stream in the first ``step`` batches, whole groups; two streams fill the batches."""
        groups = step * (self.batch_size // self.per_label)
        first = groups * self.share.numerator // self.share.denominator
        return self.per_label * (first if number == 0 else groups - first)

    def _permutation(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of a stream in an epoch, and which of its occurrences each is; the last few are kept."""
        if (number, epoch) not in self._permutations:
            if len(self._permutations) >= _KEPT:
                del self._permutations[next(iter(self._permutations))]
            rng = np.random.default_rng(seed_of(self.seed, epoch, number))
            labels = self.labels[self.streams[number]]
            if self.per_label > 1:
                found = _grouped(labels, self.per_label, rng)
            else:
                order = _balanced(labels, rng) if self.balance else rng.permutation(len(labels))
                found = order, np.zeros(len(order), np.int64)
            self._permutations[number, epoch] = found
        return self._permutations[number, epoch]

    def used(self, steps: int) -> np.ndarray:
        """[views, N] mask of the fixed views that the first ``steps`` batches hold.

        Where views are live it has one row: the samples.
        """
        views = self.views or 1
        mask = np.zeros((views, len(self.labels)), bool)
        for number, rows in enumerate(self.streams):
            left, length = self._taken(steps, number), self._lengths[number]
            for epoch in range(math.ceil(left / length)):
                order, repeats = self._permutation(number, epoch)
                mask[self._view(number, epoch, repeats[:left]) if self.views else 0, rows[order[:left]]] = (
                    True
                )
                left -= length
                if mask[: self.counts[number] or 1, rows].all():
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


def _grouped_length(labels: np.ndarray, size: int) -> int:
    """Rows of an epoch in groups of ``size``, each of one label: [N] labels, those that fill up counted."""
    counts = np.unique(labels, return_counts=True)[1]
    return size * int((-(-counts // size)).sum())


def _grouped(labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An epoch in shuffled groups of ``size`` rows of one label: the rows, and which occurrence each is."""
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    filled = size * -(-counts // size)
    label = np.repeat(np.arange(len(counts)), filled)
    place = np.arange(filled.sum()) - np.repeat(np.cumsum(filled) - filled, filled)  # in its label's list
    rows = by_label[(np.cumsum(counts) - counts)[label] + place % counts[label]]
    groups = rng.permutation(len(rows) // size)
    repeats = place // counts[label]
    return rows.reshape(-1, size)[groups].ravel(), repeats.reshape(-1, size)[groups].ravel()


def in_order(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
    """Keys of one pass without augmentation: this rank's every ``world_size``-th sample, in batches."""
    mine = [(i, 0) for i in range(rank, count, world_size)]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
