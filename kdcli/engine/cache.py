"""Writer of the teacher cache: outputs per (teacher, preprocessing, sample id, view), computed once.

A cache is a directory of segments, each an artifact that is committed whole, so a filling that is cut off
keeps what it has. Its name is a hash of everything the outputs depend on: other weights, another recipe,
another precision is another cache; each segment says it, too. Two writers take turns.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.artifacts.files import naming, refuse_unusable
from kdcli.artifacts.leftovers import sweep_folder
from kdcli.artifacts.lock import LOCK, mark, take
from kdcli.artifacts.manifest import Manifest, digest, read
from kdcli.artifacts.store import open_output, write_bytes
from kdcli.console import Console
from kdcli.data.batches import Loader
from kdcli.data.cache import SEGMENT, Cache, Columns, Store
from kdcli.data.order import Key, Pool
from kdcli.data.other_views import PLAIN
from kdcli.engine.runtime import Runtime, Stop, watching
from kdcli.errors import Preempted
from kdcli.metrics.efficiency import evaluating
from kdcli.models.protocol import Model
from kdcli.words import Call, Method
from kdcli.words.analysis import taps_used

_SEGMENT_ROWS = 8192
_SEGMENT_SECONDS = 60.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Request:
    """What is to be cached.

    Attributes:
        network: the frozen network.
        taps: names of its outputs.
        compute: views (uint8, on the device) to ``{tap: [B, …]}``.
        cut: makes a view from (picture, view number, sample id).
        recipe: what decides the pixels of a view.
        views: number of views per sample.
        store: how outputs are kept.
    """

    network: Model
    taps: tuple[str, ...]
    compute: Callable[[Tensor], dict[str, Tensor]]
    cut: Callable[..., Tensor]
    recipe: dict[str, Any]
    views: int
    store: Store

    def key(self, precision: str) -> str:
        """Hash of everything the outputs depend on."""
        network = self.network
        return digest(
            {
                "weights": network.source,
                "classes": network.columns,
                "input": network.spec.to_json(),
                "taps": self.taps,
                "recipe": self.recipe,
                "store": self.store.name,
                "precision": precision,
                "format": 1,
            }
        )[:24]


@dataclass(frozen=True)
class Filling:
    """How caches are filled.

    Attributes:
        runtime: device, precision and processes.
        console: shows progress.
        batch_size: over all processes.
        max_pixels: of a picture.
        workers: loader processes.
        timeout: seconds after which a loader that hangs is an error.
        stop: set when a signal asks to stop.
        owner: of the run that fills them, in the manifests of what it writes; see :func:`filled_by`.
    """

    runtime: Runtime
    console: Console
    batch_size: int
    max_pixels: int
    workers: int = 0
    timeout: float = 300
    stop: Stop | None = None
    owner: str = ""

    @property
    def reading(self) -> dict[str, Any]:
        """How loaders read pictures."""
        return {"max_pixels": self.max_pixels, "workers": self.workers, "timeout": self.timeout}


def fill(
    root: Path,
    request: Request,
    pool: Pool,
    filling: Filling,
    label: str,
    used: np.ndarray | None = None,
) -> Cache:
    """Compute what the cache lacks, and open it.

    Args:
        root: folder of caches.
        request: what is to be cached.
        pool: N samples.
        filling: how.
        label: for progress and messages.
        used: [views, N] mask of the views that are wanted; None for all.

    Raises:
        Preempted: a signal came; the segments so far are kept.
    """
    runtime, console, stop = filling.runtime, filling.console, filling.stop
    batch_size = max(1, filling.batch_size // runtime.world_size)
    folder = root / request.key(runtime.accelerator.mixed_precision)
    if runtime.main:
        refuse_unusable("--cache", root)
        with naming("--cache", root):
            folder.mkdir(parents=True, exist_ok=True)
    with watching(stop), _turn(folder, runtime, console, stop):
        cache = Cache(folder, request.taps)
        ids = pool.ids
        wanted = np.ones((request.views, len(ids)), bool) if used is None else used
        lacking = ((view, cache.lacking(ids, view)) for view in range(request.views))
        missing = [(i, view) for view, rows in lacking for i in rows[wanted[view, rows]].tolist()]
        if not missing:
            return cache
        mine = missing[runtime.rank :: runtime.world_size]
        loader = Loader(pool, request.cut, **filling.reading)
        batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        total = int(wanted.sum())
        with console.progress(label, total, "views", start=total - len(missing)) as bar:
            writer = _Writer(folder, request, ids, filling.owner)
            with evaluating(request.network), torch.inference_mode(), runtime.accelerator.autocast():
                for keys, batch in zip(batches, loader(batches)):
                    found = request.compute(batch["x"].to(runtime.device, non_blocking=True))
                    writer.add(keys, {tap: t.float().cpu() for tap, t in found.items()})
                    bar.update(min(bar.done + len(keys) * runtime.world_size, total))
                    if stop is not None and stop.requested:
                        writer.commit()
                        raise Preempted(
                            f"{stop.requested} while caching {label}; run the same command again."
                        )
            writer.commit()
        runtime.barrier()
        return Cache(folder, request.taps)


class _Writer:
    """Collects rows and commits them as segments."""

    def __init__(self, folder: Path, request: Request, ids: np.ndarray, owner: str) -> None:
        self.folder, self.request, self.ids, self.owner = folder, request, ids, owner
        self._clear()

    def _clear(self) -> None:
        self.keys: list[Key] = []
        self.parts: list[dict[str, np.ndarray]] = []
        self.since = time.monotonic()

    def add(self, keys: Sequence[Key], found: dict[str, Tensor]) -> None:
        """Add a batch; commits when there is enough."""
        self.keys += keys
        self.parts.append(
            {k: v for tap in self.request.taps for k, v in self.request.store.pack(tap, found[tap]).items()}
        )
        if len(self.keys) >= _SEGMENT_ROWS or time.monotonic() - self.since > _SEGMENT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write a segment, if there is anything to write."""
        if not self.keys:
            return
        ids = np.array([self.ids[index] for index, _ in self.keys], np.uint64)
        views = np.array([view for _, view in self.keys], np.int32)
        arrays: dict[str, np.ndarray] = {"ids": ids, "views": views}
        arrays |= {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}
        identity = {"rows": digest([ids.tolist(), views.tolist()])}
        name = f"{SEGMENT}{identity['rows'][:16]}"
        with naming("--cache", self.folder.parent), open_output(self.folder / name, identity) as output:
            if output is not None:
                for key, array in arrays.items():
                    stream = io.BytesIO()
                    np.save(stream, array, allow_pickle=False)
                    write_bytes(output.partial / f"{key}.npy", stream.getvalue())
                facts = {"network": self.request.network.name, "key": self.folder.name, "by": self.owner}
                manifest = Manifest("cache", "distill", identity, facts=facts)
                output.commit(manifest, [f"{key}.npy" for key in arrays])
        self._clear()


@contextmanager
def _turn(folder: Path, runtime: Runtime, console: Console, stop: Stop | None) -> Iterator[None]:
    """One job fills a cache at a time; the first process takes the lock, the others wait for it."""
    lock = None

    def held(tries: int) -> None:
        if tries == 0:
            console.note(f"another run fills {folder}: waiting for it")
        if stop is not None and stop.requested:
            raise Preempted(f"{stop.requested}; run the same command again.")

    try:
        if runtime.main:
            with naming("--cache", folder.parent):
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            take(lock, _POLL_S, held)
            with naming("--cache", folder.parent):
                mark(lock)
                sweep_folder(folder, SEGMENT)
        runtime.barrier()
        yield
    finally:
        if lock is not None:
            os.close(lock)


@dataclass(frozen=True)
class Caching:
    """What of frozen parties a run reads from caches.

    Attributes:
        calls: that caches answer, with the column that each reads: ``x``, the fixed views, or ``x@plain``.
        cuts: of those columns.
        used: [views, N] masks of them: the views of the pool's samples that the run holds.
    """

    calls: Mapping[str, str] = field(default_factory=dict)
    cuts: Mapping[str, Any] = field(default_factory=dict)
    used: Mapping[str, np.ndarray] = field(default_factory=dict)

    def rows(self, method: Method, party: str) -> int:
        """Pictures that fill the caches of a party."""
        columns = {
            self.calls[c.name]
            for t in method.turns
            for c in t.calls
            if c.party == party and c.name in self.calls
        }
        return sum(int(self.used[column].sum()) for column in columns)


def requests(
    method: Method, parties: Mapping[str, Any], caching: Caching, store: Store
) -> Iterator[tuple[Call, Request]]:
    """The calls of frozen parties that are read from caches, each with what is to be cached of it."""
    for turn in method.turns:
        taps = taps_used(turn)
        for call in (c for c in turn.calls if c.name in caching.calls and taps[c.name]):
            network, names, column = parties[call.party], taps[call.name], caching.calls[call.name]
            cut, views = caching.cuts[column], len(caching.used[column])
            compute = partial(_tapped, network, names)
            yield call, Request(network, names, compute, cut, cut.recipe(), views, store)


def fill_calls(
    root: Path,
    method: Method,
    parties: Mapping[str, Any],
    pool: Pool,
    caching: Caching,
    store: Store,
    filling: Filling,
) -> Columns:
    """Cached outputs of calls of frozen parties of a method, as columns named ``call.tap``."""
    caches = {}
    for call, request in requests(method, parties, caching, store):
        used = caching.used[caching.calls[call.name]]
        caches[call.name] = fill(root, request, pool, filling, f"outputs of {call.party}", used)
    return Columns(caches, [name for name, column in caching.calls.items() if column == PLAIN])


def filled(root: Path, request: Request, precision: str) -> Cache | None:
    """The cache as it stands, None where there is none. Raises InputError for a damaged one."""
    folder = root / request.key(precision)
    return Cache(folder, request.taps) if folder.is_dir() else None


def filled_by(root: Path, request: Request, precision: str, owner: str) -> int:
    """Rows that a run has put into a cache; other runs may have put others there, and they share all."""
    segments = sorted((root / request.key(precision)).glob(f"{SEGMENT}*"))
    own = (path for path in segments if "." not in path.name and read(path).facts.get("by") == owner)
    return sum(len(np.load(path / "ids.npy", mmap_mode="r", allow_pickle=False)) for path in own)


def _tapped(network: Model, names: tuple[str, ...], x: Tensor) -> dict[str, Tensor]:
    return network.call([x], names)
