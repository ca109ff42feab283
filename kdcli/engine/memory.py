"""How far a batch must be split to fit into memory, found by trial before the first step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import nn

from kdcli.engine.feed import Batches
from kdcli.engine.runtime import Runtime
from kdcli.errors import EnvironmentFault, is_out_of_memory
from kdcli.sections import OptimSection


def micro_batches_by_trial(
    batches: Batches, step: int, modules: Sequence[nn.Module], optim: OptimSection, runtime: Runtime
) -> int:
    """The least number of micro-batches of a step with which every turn gets through; no gradient is left.

    Args:
        batches: what it learns from.
        step: which one is tried.
        modules: the turns, prepared.
        optim: batch size, and the number to begin with.
        runtime: the processes.

    Raises:
        EnvironmentFault: not even one row at a time fits.
    """
    batch = next(batches.read(step, step + 1, runtime))

    def trial(accumulate: int) -> None:
        part, share = batches.split(accumulate).parts(batch, step, runtime)[0]
        try:
            for module, done in product(modules, (0.0, 1.0)):  # schedules may begin or end at 0
                with runtime.accelerator.no_sync(module):
                    runtime.accelerator.backward(module(part, share, done)["loss"])
        finally:
            for module in modules:
                module.zero_grad()

    return micro_batches_that_fit(trial, optim.accumulate, optim.batch_size // runtime.world_size, runtime)


def micro_batches_that_fit(trial: Callable[[int], None], accumulate: int, rows: int, runtime: Runtime) -> int:
    """The least number of micro-batches, from ``accumulate`` on, with which all processes get through.

    Args:
        trial: computes the gradients of one micro-batch where the batch is split into so many; it leaves
            nothing behind but them.
        accumulate: where to begin; from there on it is doubled, to the next divisor of ``rows``.
        rows: of a process's part of the batch.
        runtime: the processes, which agree after every trial.

    Raises:
        EnvironmentFault: not even one row at a time fits.
    """
    while not _all_fit(trial, accumulate, runtime):
        if accumulate >= rows:
            raise EnvironmentFault(
                "out of memory with one picture at a time. Smaller views (--set views.size=…), --precision "
                "bf16 or a smaller network help."
            )
        accumulate = next(n for n in range(min(2 * accumulate, rows), rows + 1) if rows % n == 0)
    return accumulate


def _all_fit(trial: Callable[[int], None], accumulate: int, runtime: Runtime) -> bool:
    lacking = _lacks_memory(trial, accumulate)
    gc.collect()  # what the failed trial held, now that its traceback has gone
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    return runtime.largest([float(lacking)])[0] == 0


def _lacks_memory(trial: Callable[[int], None], accumulate: int) -> bool:
    try:
        trial(accumulate)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False
