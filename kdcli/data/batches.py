"""Batches without state: which samples and views step k holds is a function of (seed, k), so any step can be
resumed.

A stream repeats its samples in a new order each epoch; a batch takes the next samples of each stream.
Batches are always full and run on over the end of an epoch: every sample is seen once per epoch, none is
dropped or repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kdcli.artifacts.model import InputSpec
from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut, TrainingView, mix
from kdcli.errors import EnvironmentFault, InputError, KdcliError

Key = tuple[int, int]  # (index of the sample, view number)


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


class Plan:
    """Which (sample, view) keys each global batch holds.

    Args:
        labels: [N] labels of the pool, -1 for unlabelled.
        batch_size: global batch.
        seed: of the order.
        views: number of fixed views, or None for a new view each epoch (live).
        labelled_fraction: share of labelled samples in each batch; None to draw all alike.
        balance: draw classes evenly (labelled samples only).
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        views: int | None,
        labelled_fraction: float | None = None,
        balance: bool = False,
    ) -> None:
        self.labels, self.batch_size, self.seed, self.views, self.balance = (
            labels,
            batch_size,
            seed,
            views,
            balance,
        )
        everything, has_label = np.arange(len(labels)), labels >= 0
        self.streams: list[tuple[np.ndarray, float]] = [(everything, 1.0)]
        if labelled_fraction is not None and not has_label.all():
            shares = (labelled_fraction, 1 - labelled_fraction)
            streams = [(everything[has_label], shares[0]), (everything[~has_label], shares[1])]
            self.streams = [(rows, share) for rows, share in streams if share > 0 and len(rows)]

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are drawn as the pool holds."""
        return len(self.labels) / self.batch_size

    def keys(self, step: int) -> list[Key]:
        """The global batch of ``step``."""
        keys: list[Key] = []
        for number, (rows, share) in enumerate(self.streams):
            start = _taken(step, self.batch_size, share, number)
            stop = _taken(step + 1, self.batch_size, share, number)
            for position in range(start, stop):
                epoch, place = divmod(position, len(rows))
                view = epoch if self.views is None else epoch % self.views
                keys.append((int(rows[self._order(number, epoch)[place]]), view))
        if len(self.streams) > 1:
            order = np.random.default_rng(mix(self.seed, step, 3)).permutation(len(keys))
            keys = [keys[i] for i in order]
        return keys

    def _order(self, number: int, epoch: int) -> np.ndarray:
        rows = self.streams[number][0]
        if not self.balance:
            return _permutation(len(rows), mix(self.seed, epoch, number))
        return _balanced(self.labels[rows].tobytes(), mix(self.seed, epoch, number))

    def labelled_in(self, step: int) -> int:
        """How many labelled rows the global batch of ``step`` holds: what row means divide by."""
        return sum(self.labels[index] >= 0 for index, _ in self.keys(step))


def _taken(step: int, batch_size: int, share: float, number: int) -> int:
    """Samples of a stream in the first ``step`` batches; two streams add up to full batches."""
    if share == 1:
        return step * batch_size
    first = int(np.floor(step * batch_size * (share if number == 0 else 1 - share) + 1e-9))
    return first if number == 0 else step * batch_size - first


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


@lru_cache(maxsize=8)
def _balanced(labels: bytes, seed: int) -> np.ndarray:
    """Rows drawn with replacement so that every class present is equally likely."""
    array = np.frombuffer(labels, np.int64)
    classes, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    weights = 1.0 / (len(classes) * counts[inverse])
    return np.random.default_rng(seed).choice(len(array), len(array), p=weights / weights.sum())


# -- loading -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    """An error met in a loader process, carried whole to the process that trains."""

    error: KdcliError


class _Views(Dataset):
    """Decodes and cuts views; a cache adds the teacher's columns for the same (sample, view)."""

    def __init__(
        self, pool: Pool, cut: Callable[..., torch.Tensor], max_pixels: int, columns: Any = None
    ) -> None:
        self.pool, self.cut, self.max_pixels, self.columns = pool, cut, max_pixels, columns
        self.ids, self.labels = pool.ids, pool.labels

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        try:
            batch: dict[str, Any] = {
                "x": torch.stack([self._view(index, view) for index, view in keys]),
                "y": torch.from_numpy(self.labels[[index for index, _ in keys]]),
                "index": torch.tensor([index for index, _ in keys]),
            }
            if self.columns is not None:
                batch |= self.columns.read([(int(self.ids[index]), view) for index, view in keys])
            return [batch]
        except KdcliError as error:
            return [_Fault(error)]

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def _view(self, index: int, view: int) -> torch.Tensor:
        part, place = self.pool.locate(index)
        return self.cut(part.picture(place, self.max_pixels), view, int(self.ids[index]))


def _single(items: list[Any]) -> Any:
    return items[0]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class Loader:
    """Iterates batches of keys through loader processes; every loader fault is a clear error."""

    def __init__(
        self,
        pool: Pool,
        cut: Callable[..., torch.Tensor],
        *,
        max_pixels: int,
        workers: int = 0,
        timeout: float = 300,
        columns: Any = None,
        pin: bool = False,
    ) -> None:
        self._dataset = _Views(pool, cut, max_pixels, columns)
        self._workers, self._timeout, self._pin = workers, timeout, pin

    def __call__(self, keys: Sequence[list[Key]] | Iterator[list[Key]]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield ``x`` uint8 [B,3,S,S], ``y`` int64 [B], ``index`` [B] and cache columns per list of keys."""
        loader = DataLoader(
            self._dataset,
            batch_sampler=keys,
            collate_fn=_single,
            num_workers=self._workers,
            timeout=self._timeout if self._workers else 0,
            worker_init_fn=_one_thread,
            pin_memory=self._pin,
            prefetch_factor=4 if self._workers else None,
        )
        try:
            for batch in loader:
                if isinstance(batch, _Fault):
                    raise batch.error
                yield batch
        except RuntimeError as error:
            text = str(error)
            if "DataLoader" not in text:
                raise
            names = ", ".join(part.name for part in self._dataset.pool.parts)
            if "timed out" in text:
                raise EnvironmentFault(
                    f"no batch of {names} within {self._timeout:g} s: a loader process hangs (slow or lost "
                    "storage?). "
                    "Raise --set worker_timeout=… or lower --workers."
                ) from error
            raise EnvironmentFault(
                f"a loader process of {names} was lost ({text.splitlines()[0]}). It may have run out of "
                "memory: lower "
                "--workers, then run the same command again."
            ) from error


def evaluation_loader(
    samples: Samples, spec: InputSpec, *, max_pixels: int, workers: int, timeout: float
) -> Loader:
    """Loader of un-augmented views as ``spec`` asks for."""
    if len(samples) == 0:
        raise InputError(f"{samples.name} is empty.")
    return Loader(
        Pool((samples,)), EvaluationCut(spec), max_pixels=max_pixels, workers=workers, timeout=timeout
    )


def training_loader(pool: Pool, view: TrainingView, **options: Any) -> Loader:
    """Loader of training views."""
    return Loader(pool, view, **options)


def in_order(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
    """Keys of one pass without augmentation: this rank's every ``world_size``-th sample, in batches."""
    mine = [(i, 0) for i in range(rank, count, world_size)]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
