"""Loads batches of views: pictures decoded and cut in loader processes, with what a cache holds of them."""

from __future__ import annotations

import atexit
import copy
import ctypes
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kdcli.artifacts.model import InputSpec
from kdcli.data.order import Key, Pool
from kdcli.data.samples import Samples
from kdcli.data.views import EvaluationCut, TrainingView
from kdcli.errors import EnvironmentFault, InputError, KdcliError

_OUT_OF_MEMORY = "It may have run out of memory: lower --workers, then run the same command again."
_CRASHED = (
    "Compiled code crashed there, mostly a decoder at a damaged picture: --workers 0 and "
    "PYTHONFAULTHANDLER=1 before the command show where."
)
_CHECK_S = 2.0  # how often the loader processes are looked after while a batch is awaited


@dataclass(frozen=True)
class _Fault:
    """An error met in a loader process, carried whole to the process that trains."""

    error: KdcliError


class _Views(Dataset):
    """Decodes and cuts views; a cache adds the teacher's columns for the same (sample, view)."""

    def __init__(
        self,
        pool: Pool,
        cut: Callable[..., Any],
        max_pixels: int,
        columns: Any = None,
        targets: bool = False,
        others: Mapping[str, Callable[..., torch.Tensor]] | None = None,
    ) -> None:
        self.pool, self.cut, self.max_pixels, self.columns = pool, cut, max_pixels, columns
        self.targets, self.others = targets, others or {}
        self.ids, self.labels = pool.ids, pool.labels

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        try:
            views = [self._view(index, view) for index, view in keys]
            batch: dict[str, Any] = {
                "x": torch.stack([x for x, *_ in views]),
                "y": torch.from_numpy(self.labels[[index for index, _ in keys]]),
                "index": torch.tensor([index for index, _ in keys]),
            }
            if self.targets:
                batch |= self.pool.columns([index for index, _ in keys], [moved for _, moved, _ in views])
            for place, name in enumerate(self.others):
                batch[name] = torch.stack([others[place] for *_, others in views])
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

    def _view(self, index: int, view: int) -> tuple[torch.Tensor, Any, list[torch.Tensor]]:
        """The picture's view and, where wanted, what is cut with it and the picture's other views."""
        part, place = self.pool.locate(index)
        try:
            picture, number = part.picture(place, self.max_pixels), int(self.ids[index])
            others = [cut(picture, view, number) for cut in self.others.values()]
            beside = part.beside(place, picture.size, self.max_pixels) if self.targets else None
            if beside is None:
                return self.cut(picture, view, number), None, others
            return *self.cut(picture, view, number, beside), others
        except KdcliError:
            raise
        except Exception as error:  # a bug of ours or of an augmentation: say where it can be seen again
            raise _bug(f"{part.where(place)}, view {view}", error) from error


def _bug(where: str, error: Exception) -> KdcliError:
    fault = KdcliError(f"{where}: cannot make a view: {type(error).__name__}: {error}")
    fault.add_note(traceback.format_exc())  # a note crosses processes, a traceback does not
    return fault


def _single(items: list[Any]) -> Any:
    return items[0]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class Loader:
    """Iterates batches of keys through loader processes; every loader fault is a clear error.

    Args:
        pool: the samples.
        cut: makes a view of a picture, of its number and of the sample's id, and where something is cut with
            the picture also of that.
        max_pixels: of a picture.
        workers: loader processes.
        timeout: seconds without a batch after which the loader hangs.
        columns: a cache that is read beside the pictures.
        pin: whether batches stand in pinned memory.
        targets: whether the pool's targets are read beside the pictures, class numbers apart.
    """

    def __init__(
        self,
        pool: Pool,
        cut: Callable[..., Any],
        *,
        max_pixels: int,
        workers: int = 0,
        timeout: float = 300,
        columns: Any = None,
        pin: bool = False,
        targets: bool = False,
        others: Mapping[str, Callable[..., torch.Tensor]] | None = None,
    ) -> None:
        self._dataset = _Views(pool, cut, max_pixels, columns, targets, others)
        self._workers, self._timeout, self._pin = workers, timeout, pin

    def __call__(self, keys: Sequence[list[Key]] | Iterator[list[Key]]) -> Iterator[dict[str, Any]]:
        """Yield ``x`` uint8 [B,3,S,S], ``y`` int64 [B], ``index`` [B] and cache columns per list of keys.

        With ``targets`` also what they add; with ``others``, by name, also what they cut.

        Raises:
            BadImageError, InputError: a picture that cannot be read, with its row.
            EnvironmentFault: a loader process was lost, or hangs.
            KdcliError: a view cannot be made, with row and view.
        """
        loader = DataLoader(
            self._dataset,
            multiprocessing_context=_context() if self._workers else None,
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
        own = set(multiprocessing.active_children()) - others
        kill = partial(_kill, own)
        forget = partial(atexit.unregister, kill)  # bound here: at the very end modules are empty
        atexit.register(kill)  # Python would wait forever for those of a pass that was never closed
        try:
            while (batch := self._next(batches, own)) is not None:
                yield _checked(batch)
        finally:
            del batches  # torch asks its processes to end, and waits some seconds
            kill()
            forget()

    def _next(self, batches: Iterator[Any], own: Collection[Any]) -> Any:
        """The next batch, None after the last. Waits in slices, so that a lost process is seen soon.

        Before a fault is raised the processes are killed: torch would wait for each.
        """
        start = time.monotonic()
        while True:
            try:
                return next(batches, None)
            except (ConnectionError, EOFError) as error:  # it died while its batch was fetched from it
                raise self._lost(str(error) or "its batch with it", own) from error
            except RuntimeError as error:
                text = str(error)
                if "DataLoader" not in text:
                    raise
                if "timed out" not in text:
                    raise self._lost(text.splitlines()[0].rstrip("."), own) from error
                if time.monotonic() - start >= self._timeout:
                    _kill(own)
                    raise EnvironmentFault(
                        f"no batch of {self._names} within {self._timeout:g} s: a loader process hangs (slow "
                        "or lost storage?). Raise --set worker_timeout=… or lower --workers."
                    ) from None

    @property
    def _names(self) -> str:
        return ", ".join(part.name for part in self._dataset.pool.parts)

    def _lost(self, reason: str, own: Collection[Any]) -> EnvironmentFault:
        """What to say of a process that is gone; the others are killed."""
        gone = wait(
            [process.sentinel for process in own], timeout=1
        )  # the connection breaks before it is dead
        for process in (process for process in own if process.sentinel in gone):
            process.join(1)  # and its sentinel before there is an exit code
        crashed = any(process.exitcode == -signal.SIGSEGV for process in own)
        _kill(own)
        hint = _CRASHED if crashed else _OUT_OF_MEMORY
        return EnvironmentFault(f"a loader process of {self._names} was lost ({reason}). {hint}")


def _checked(batch: Any) -> dict[str, Any]:
    if isinstance(batch, _Fault):
        raise batch.error
    return batch


class _Flag:
    """An event without a lock: whoever is killed while looking at it would leave that held for ever.

    torch asks it about a process that died, and sets it at the end, so that a run would hang.
    """

    def __init__(self, context: Any) -> None:
        self._value = context.RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        """Whether it was set."""
        return bool(self._value.value)

    def set(self) -> None:
        """Set it, for all processes."""
        self._value.value = True


def _context() -> Any:
    """The usual way to start processes, with events that no dead process can hold."""
    context = copy.copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Event = partial(_Flag, context)  # type: ignore[method-assign,assignment]
    return context


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
    """Loader of training views, with all that is to be learned of them."""
    return Loader(pool, view, targets=True, **options)
