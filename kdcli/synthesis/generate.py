"""The loop that makes new pictures: in batches, committed in parts, resumed at the first missing one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from kdcli.artifacts import dataset
from kdcli.artifacts.store import Output
from kdcli.console import Console
from kdcli.engine.machines import pictures_go_on
from kdcli.engine.runtime import Runtime, Stop, watching
from kdcli.errors import Preempted
from kdcli.synthesis.draws import Draw, Make
from kdcli.synthesis.sheet import png

_COMMIT_SECONDS = 60.0
_ENCODERS = 2  # threads that write PNG while the next batch is made


class Wanted(Protocol):
    """What is to be made.

    Attributes:
        numbers: of the pictures of this artifact.
    """

    numbers: range

    @property
    def batch(self) -> int:
        """Pictures that are made at a time by each process."""

    @property
    def commit_images(self) -> int:
        """Pictures after which a part is committed (or after a minute)."""

    @property
    def features(self) -> Any:
        """``datasets.Features`` of all columns."""

    def draw(self, number: int) -> Draw:
        """Sources and noise of a picture."""

    def columns(self, draws: list[Draw]) -> dict[str, list[Any]]:
        """The values of all columns but ``image``."""


def generate(
    wanted: Wanted,
    make: Make,
    output: Output,
    runtime: Runtime,
    console: Console,
    stop: Stop | None = None,
) -> float:
    """Make the pictures that the partial output lacks; returns pictures per second, of all processes.

    Each process takes a range of batches. Whatever ends it, the pictures that are ready are committed.

    Args:
        wanted: numbers, draws, columns.
        make: draws of one block of ``wanted.batch`` numbers to pictures (PIL), in their order.
        output: to be filled.
        runtime: the processes.
        console: shows progress.
        stop: set when a signal asks to stop.

    Raises:
        Preempted: a signal came, here or at another process; the same command goes on.
        EnvironmentFault: the disk refuses.
    """
    folder = output.partial
    if runtime.main:
        dataset.remove_drafts(folder)
    runtime.barrier()
    missing = dataset.missing(folder, wanted.numbers)
    runtime.barrier()  # or a quick process would commit before a slow one has looked
    total, world = len(wanted.numbers), runtime.world_size
    blocks = list(batches(missing, wanted.batch))
    mine = blocks[runtime.rank * len(blocks) // world : (runtime.rank + 1) * len(blocks) // world]
    done = total - len(missing)
    if missing and runtime.main and (told := pictures_go_on(folder, runtime.describe(), done)):
        console.warn(told)
    stopped = False
    with watching(stop), console.progress("pictures", total, "images", start=done) as bar:
        with _Writer(folder, wanted) as writer:
            for numbers in mine:
                draws = [wanted.draw(number) for number in numbers]
                try:
                    if stop is not None and stop.requested:
                        raise Preempted(stop.requested)
                    pictures = make(draws)
                except Preempted:  # all processes stop together, below
                    stopped = True
                    break
                writer.add(draws, pictures)
                bar.update(min(bar.done + len(draws) * world, total))
        stopped = runtime.largest([float(stopped)])[0] > 0
    if stopped:
        signal = stop.requested if stop is not None else None
        raise Preempted(f"{signal or 'stopped'}; run the same command again.")
    return bar.rate


def batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Those of ``numbers`` that lie in the same block 0 … size − 1, size … 2 size − 1, …

    So a number's place in its batch is always the same, whatever was made before.
    """
    return (list(block) for _, block in groupby(numbers, key=lambda number: number // size))


class _Writer:
    """Encodes pictures in threads, while the next ones are made, and commits them in parts."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder, self.wanted = folder, wanted
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
        if len(self.waiting) >= self.wanted.commit_images or time.monotonic() - self.since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what there is, a part for each run of consecutive numbers."""
        waiting, self.waiting, self.since = self.waiting, [], time.monotonic()
        while waiting:
            first = waiting[0][0].number
            count = next((i for i, (d, _) in enumerate(waiting) if d.number != first + i), len(waiting))
            part, waiting = waiting[:count], waiting[count:]
            images = [{"bytes": encoded.result(), "path": None} for _, encoded in part]
            columns = {"image": images, **self.wanted.columns([draw for draw, _ in part])}
            dataset.write_part(self.folder, first, columns, self.wanted.features)


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
