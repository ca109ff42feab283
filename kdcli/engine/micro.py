"""Micro-batches of one step: columns on the device, and each one's share of the rows of the global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcli.data.mixing import both_labelled, mixed
from kdcli.data.order import Order
from kdcli.data.targets import TargetColumns
from kdcli.engine.runtime import Runtime
from kdcli.engine.values import each
from kdcli.sections import OptimSection
from kdcli.seeds import seed_of

_MIXING = 7  # keeps the seeds of mixing apart from others made of the same numbers


@dataclass(frozen=True)
class MicroBatches:
    """Splits a process's part of a batch.

    Attributes:
        order: which samples each step holds.
        optim: batch size, accumulation, mixing.
        targets: makes the columns that losses read.
        seed: of mixing.
    """

    order: Order
    optim: OptimSection
    targets: TargetColumns
    seed: int

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed."""
        return bool(self.optim.mixup or self.optim.cutmix)

    def __call__(
        self, batch: dict[str, Any], step: int, runtime: Runtime
    ) -> list[tuple[dict[str, Any], Tensor]]:
        """Columns and shares of each micro-batch.

        Args:
            batch: this process's columns, [B / processes, …], or lists with an entry per row.
            step: for seeds and for the rows of the global batch.
            runtime: device, rank and number of processes.

        Returns:
            (columns, shares [2]) each: rows and labelled rows here over those of the global batch, times the
            number of processes, because gradients are averaged over processes.
        """
        size = len(batch["y"]) // self.optim.accumulate
        labelled_in_all = max(self._labelled_in(step, size), 1)
        parts = []
        for i in range(self.optim.accumulate):
            rows = slice(i * size, (i + 1) * size)
            part = {name: _moved(column[rows], runtime) for name, column in batch.items()}
            part |= self._columns(part, seed_of(self.seed, step, runtime.rank, i, _MIXING))
            counts = [size / self.optim.batch_size, float(part["labelled"].sum()) / labelled_in_all]
            parts.append((part, torch.tensor(counts, device=runtime.device) * runtime.world_size))
        return parts

    def _columns(self, part: dict[str, Any], seed: int) -> dict[str, Any]:
        """Columns that losses read: mixed views where asked for, targets, and which rows have them."""
        if not self.mixes:
            return self.targets.plain(part)
        x, share = mixed(part["x"], mixup=self.optim.mixup, cutmix=self.optim.cutmix, seed=seed)
        return {"x": x, **self.targets.mixed(part, share)}

    def _labelled_in(self, step: int, size: int) -> int:
        """Labelled rows of the global batch, known to every process without asking the others."""
        if not self.mixes:
            return self.order.labelled_in(step)
        labels = torch.tensor([self.order.labels[index] >= 0 for index, _ in self.order.keys(step)])
        return int(sum(both_labelled(part).sum() for part in labels.split(size)))


def _moved(rows: Any, runtime: Runtime) -> Any:
    """Rows on the device: a tensor, or a list with an entry, of tensors, for each."""
    return each(rows, lambda tensor: tensor.to(runtime.device, non_blocking=True))
