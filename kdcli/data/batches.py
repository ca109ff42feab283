"""Batches without state: which samples and views step k holds is a function of (seed, k), so any step can be
resumed.

A stream repeats its samples in a new order each epoch; a batch takes the next samples of each stream.
Batches are always full and run on over the end of an epoch: every sample is seen once per epoch, none is
dropped or repeated.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kdcli.artifacts.model import InputSpec
from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut, TrainingView, mix
from kdcli.errors import EnvironmentFault, InputError, KdcliError

Key = tuple[int, int]  # (index of the sample, view number)
_ORDERS_KEPT = 4  # two streams, each around the end of an epoch
_CHECK_S = 2.0  # how often the loader processes are looked after while a batch is awaited


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
        extra_ratio: extra samples per real one in each batch; None to draw all alike.
        real: how many samples at the beginning are real; None where none are extra.
        balance: draw classes evenly, with replacement; unlabelled samples keep their share.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        views: int | None,
        labelled_fraction: float | None = None,
        balance: bool = False,
        *,
        extra_ratio: float | None = None,
        real: int | None = None,
    ) -> None:
        self.labels, self.batch_size, self.seed, self.views, self.balance = (
            labels,
            batch_size,
            seed,
            views,
            balance,
        )
        everything, first, share = np.arange(len(labels)), labels >= 0, labelled_fraction
        if extra_ratio is not None:
            first, share = everything < (len(labels) if real is None else real), 1 / (1 + extra_ratio)
        self.streams = [everything]
        self.share = Fraction(1)  # of the first stream; the second has the rest
        if share is not None and first.any() and not first.all():
            self.share = Fraction(share).limit_denominator(1_000_000)
            both = [everything[first], everything[~first]]
            self.streams = both if self.share < 1 else both[:1]
        self._orders: dict[tuple[int, int], np.ndarray] = {}

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
                keys.append((int(rows[self._order(number, epoch)[place]]), view))
        if len(self.streams) > 1:
            order = np.random.default_rng(mix(self.seed, step, 3)).permutation(len(keys))
            keys = [keys[i] for i in order]
        return keys

    def _taken(self, step: int, number: int) -> int:
        """Samples of a stream in the first ``step`` batches; two streams add up to full batches."""
        first = step * self.batch_size * self.share.numerator // self.share.denominator
        return first if number == 0 else step * self.batch_size - first

    def _order(self, number: int, epoch: int) -> np.ndarray:
        """Order of a stream in an epoch; the last few are kept."""
        if (number, epoch) not in self._orders:
            if len(self._orders) >= _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            rng = np.random.default_rng(mix(self.seed, epoch, number))
            labels = self.labels[self.streams[number]]
            self._orders[number, epoch] = (
                _balanced(labels, rng) if self.balance else rng.permutation(len(labels))
            )
        return self._orders[number, epoch]

    def used(self, steps: int) -> np.ndarray:
        """[views, N] mask of the fixed views that the first ``steps`` batches hold."""
        assert self.views is not None
        mask = np.zeros((self.views, len(self.labels)), bool)
        for number, rows in enumerate(self.streams):
            left = self._taken(steps, number)
            for epoch in range(math.ceil(left / len(rows))):
                mask[epoch % self.views, rows[self._order(number, epoch)[:left]]] = True
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
        except Exception as error:
            names = ", ".join(part.name for part in self.pool.parts)
            return [_Fault(_bug(f"{names}, batch of sample {keys[0][0]}", error))]

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def _view(self, index: int, view: int) -> torch.Tensor:
        part, place = self.pool.locate(index)
        try:
            return self.cut(part.picture(place, self.max_pixels), view, int(self.ids[index]))
        except KdcliError:
            raise
        except Exception as error:  # a bug of ours or of an augmentation: say where it can be seen again
            where = f"{part.name} row {int(part.rows[place])}, view {view}"
            raise _bug(where, error) from error


def _bug(where: str, error: Exception) -> KdcliError:
    fault = KdcliError(f"{where}: cannot make a view: {type(error).__name__}: {error}")
    fault.add_note(traceback.format_exc())  # a note crosses processes, a traceback does not
    return fault


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
        """Yield ``x`` uint8 [B,3,S,S], ``y`` int64 [B], ``index`` [B] and cache columns per list of keys.

        Raises:
            BadImageError, InputError: a picture that cannot be read, with its row.
            EnvironmentFault: a loader process was lost, or hangs.
            KdcliError: a view cannot be made, with row and view.
        """
        loader = DataLoader(
            self._dataset,
            batch_sampler=keys,
            collate_fn=_single,
            num_workers=self._workers,
            timeout=min(self._timeout, _CHECK_S) if self._workers else 0,
            worker_init_fn=_one_thread,
            pin_memory=self._pin,
            prefetch_factor=4 if self._workers else None,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        if not self._workers:
            yield from map(_checked, loader)
            return
        others = set(multiprocessing.active_children())
        with _signals_apart():
            batches = iter(loader)
        kill = partial(_kill, set(multiprocessing.active_children()) - others)
        forget = partial(atexit.unregister, kill)  # bound here: at the very end modules are empty
        atexit.register(kill)  # Python would wait forever for those of a pass that was never closed
        try:
            while (batch := self._next(batches, kill)) is not None:
                yield _checked(batch)
        finally:
            del batches  # torch asks its processes to end, and waits some seconds
            kill()
            forget()

    def _next(self, batches: Iterator[Any], kill: Callable[[], None]) -> Any:
        """The next batch, None after the last. Waits in slices, so that a lost process is seen soon.

        Before a fault is raised the processes are killed: torch would wait for each.
        """
        start = time.monotonic()
        while True:
            try:
                return next(batches, None)
            except RuntimeError as error:
                text = str(error)
                if "DataLoader" not in text:
                    raise
                names = ", ".join(part.name for part in self._dataset.pool.parts)
                if "timed out" not in text:
                    kill()
                    raise EnvironmentFault(
                        f"a loader process of {names} was lost ({text.splitlines()[0].rstrip('.')}). It may "
                        "have run out of memory: lower --workers, then run the same command again."
                    ) from error
                if time.monotonic() - start >= self._timeout:
                    kill()
                    raise EnvironmentFault(
                        f"no batch of {names} within {self._timeout:g} s: a loader process hangs (slow or "
                        "lost storage?). Raise --set worker_timeout=… or lower --workers."
                    ) from None


def _checked(batch: Any) -> dict[str, torch.Tensor]:
    if isinstance(batch, _Fault):
        raise batch.error
    return batch


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


@contextmanager
def _signals_apart() -> Iterator[None]:
    """Start loader processes that no signal reaches, and leave the signals of this process as they were.

    A job's SIGTERM goes to all of its processes: this one finishes its step and then ends the others, which
    inherit the mask. Torch's SIGCHLD handler raises wherever the main thread is, out of the loader's reach.
    """
    before = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


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
