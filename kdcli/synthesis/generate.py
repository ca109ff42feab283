"""The loop that makes new pictures: in batches, committed in parts, resumed at the first missing one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kdcli.artifacts import dataset
from kdcli.artifacts.store import Output
from kdcli.console import Console
from kdcli.engine.runtime import Runtime, watching
from kdcli.errors import Preempted
from kdcli.synthesis.draws import Draw
from kdcli.synthesis.sheet import png

_COMMIT_SECONDS = 60.0
_ENCODERS = 2  # threads that write PNG while the next batch is made


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
        numbers: of the pictures of this artifact.
        draw: number to sources and noise.
        make: draws of one block of ``batch_size`` numbers to pictures (PIL), in their order.
        columns: draws to the values of all columns but ``image``.
        features: of all columns.
        batch_size: pictures that are made at a time by each process.
        commit_images: pictures after which a part is committed (or after a minute).
    """

    numbers: range
    draw: Callable[[int], Draw]
    make: Callable[[list[Draw]], Sequence[Any]]
    columns: Callable[[list[Draw]], dict[str, list[Any]]]
    features: Any
    batch_size: int
    commit_images: int


def generate(job: Job, output: Output, runtime: Runtime, console: Console, stop: Any = None) -> float:
    """Make the pictures that the partial output lacks; returns the job's pictures per second.

    Each process takes a range of batches. Whatever ends it, the pictures that are ready are committed.

    Raises:
        Preempted: a signal came, here or at another process; the same command goes on.
        EnvironmentFault: the disk refuses.
    """
    folder = output.partial
    if runtime.main:
        dataset.remove_drafts(folder)
    runtime.barrier()
    missing = dataset.missing(folder, job.numbers)
    runtime.barrier()  # or a quick process would commit before a slow one has looked
    total, world = len(job.numbers), runtime.world_size
    blocks = list(batches(missing, job.batch_size))
    mine = blocks[runtime.rank * len(blocks) // world : (runtime.rank + 1) * len(blocks) // world]
    done = total - len(missing)
    stopped = False
    with watching(stop), console.progress("pictures", total, "images", start=done) as bar:
        with _Writer(folder, job) as writer:
            for numbers in mine:
                draws = [job.draw(number) for number in numbers]
                try:
                    if stop is not None and stop.requested:
                        raise Preempted(stop.requested)
                    pictures = job.make(draws)
                except Preempted:  # all processes stop together, below
                    stopped = True
                    break
                writer.add(draws, pictures)
                bar.update(min(bar.done + len(draws) * world, total))
        stopped = runtime.largest([float(stopped)])[0] > 0
    if stopped:
        raise Preempted(f"{getattr(stop, 'requested', None) or 'stopped'}; run the same command again.")
    return bar.rate


def batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Those of ``numbers`` that lie in the same block 0 … size − 1, size … 2 size − 1, …

    So a number's place in its batch is always the same, whatever was made before.
    """
    return (list(block) for _, block in groupby(numbers, key=lambda number: number // size))


class _Writer:
    """Encodes pictures in threads, while the next ones are made, and commits them in parts."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.job = folder, job
        self.pool = ThreadPoolExecutor(_ENCODERS)
        self.waiting: list[tuple[Draw, Future[bytes]]] = []
        self.since = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            self.pool.shutdown()

    def add(self, draws: Sequence[Draw], pictures: Sequence[Any]) -> None:
        """Add a batch; commits when there is enough."""
        self.waiting += [(draw, self.pool.submit(png, picture)) for draw, picture in zip(draws, pictures)]
        if len(self.waiting) >= self.job.commit_images or time.monotonic() - self.since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what there is, a part for each run of consecutive numbers."""
        waiting, self.waiting, self.since = self.waiting, [], time.monotonic()
        while waiting:
            first = waiting[0][0].number
            count = next((i for i, (d, _) in enumerate(waiting) if d.number != first + i), len(waiting))
            part, waiting = waiting[:count], waiting[count:]
            images = [{"bytes": encoded.result(), "path": None} for _, encoded in part]
            columns = {"image": images, **self.job.columns([draw for draw, _ in part])}
            dataset.write_part(self.folder, first, columns, self.job.features)


def features(target: bool = False) -> Any:
    """``datasets.Features`` of a synthetic dataset: what a picture is made of, no labels.

    Args:
        target: whether pictures were made for a class of the teacher's.
    """
    import datasets

    text, number = datasets.Value("string"), datasets.Value("int64")
    columns = {"source_ids": datasets.List(text), "mixer": text, "seed": number, "number": number}
    if target:
        columns["target"] = number
    return datasets.Features({"image": datasets.Image(), **columns})
