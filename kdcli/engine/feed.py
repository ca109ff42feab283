"""What the loop draws batches from: pictures in an order, or columns that are made for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kdcli.data.batches import Loader
from kdcli.data.order import Key, Order
from kdcli.engine.micro import MicroBatches
from kdcli.engine.runtime import Runtime

Columns = dict[str, Tensor]


class Batches(Protocol):
    """The batch of each step, a function of the step alone."""

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every sample is seen once; infinite where there are no samples."""

    def read(self, first: int, end: int, runtime: Runtime) -> Iterator[Columns]:
        """This process's part of the batches of steps ``first`` to ``end`` − 1, one after another."""

    def parts(self, batch: Columns, step: int, runtime: Runtime) -> list[tuple[Columns, Tensor]]:
        """Micro-batches on the device, each with its shares [2] of the rows of the global batch.

        The shares are those that a turn multiplies its terms by: of all rows, and of labelled ones.
        """

    def split(self, accumulate: int) -> Batches:
        """The same batches in so many micro-batches."""

    def names(self, step: int) -> str:
        """What a message calls the batch of a step; it follows "in step 7"."""


@dataclass(frozen=True)
class Loaded:
    """Views of pictures, read by a loader.

    Attributes:
        order: which samples each step holds.
        loader: makes batches of keys.
        micro: splits a process's part, and adds the columns that losses read.
    """

    order: Order
    loader: Loader
    micro: MicroBatches

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are drawn as there are."""
        return self.order.steps_per_epoch

    def read(self, first: int, end: int, runtime: Runtime) -> Iterator[Columns]:
        """Views and what is known of them."""
        per = self.order.batch_size // runtime.world_size
        start = per * runtime.rank
        keys: Any = _Lazy(lambda: (self.order.keys(k)[start : start + per] for k in range(first, end)))
        return self.loader(keys)

    def parts(self, batch: Columns, step: int, runtime: Runtime) -> list[tuple[Columns, Tensor]]:
        """See :class:`MicroBatches`."""
        return self.micro(batch, step, runtime)

    def split(self, accumulate: int) -> Loaded:
        """The same batches in so many micro-batches."""
        optim = self.micro.optim.model_copy(update={"accumulate": accumulate})
        return replace(self, micro=replace(self.micro, optim=optim))

    def names(self, step: int) -> str:
        """A few of its samples."""
        indices = [index for index, _ in self.order.keys(step)[:4]]
        return f"(samples {indices} and others of its batch)"


@dataclass(frozen=True)
class Made:
    """Columns that a function makes for each step: noise, targets, shifts. They are not divided.

    Attributes:
        columns: of a step, on the device.
        name: what a message calls them.
    """

    columns: Callable[[int], Columns]
    name: str = ""

    @property
    def steps_per_epoch(self) -> float:
        """No epoch ends."""
        return math.inf

    def read(self, first: int, end: int, runtime: Runtime) -> Iterator[Columns]:
        """The columns of each step; every process makes its own."""
        return map(self.columns, range(first, end))

    def parts(self, batch: Columns, step: int, runtime: Runtime) -> list[tuple[Columns, Tensor]]:
        """The whole batch, which has all rows that there are."""
        return [(batch, torch.ones(2, device=runtime.device))]

    def split(self, accumulate: int) -> Made:
        """Raises ValueError: not every column has a row for each picture."""
        raise ValueError("batches that are made for a step are not divided")

    def names(self, step: int) -> str:
        """Their name."""
        return self.name


class _Lazy:
    """An iterable made anew each time; loaders iterate their batches once per pass."""

    def __init__(self, make: Callable[[], Iterator[list[Key]]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[Key]]:
        return self._make()
