"""Outputs of a frozen network over a whole split, on one process or many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcli.data.batches import evaluation_loader
from kdcli.data.order import in_order
from kdcli.data.samples import Samples
from kdcli.engine.runtime import Runtime
from kdcli.metrics.efficiency import evaluating
from kdcli.models.exits import WithExits
from kdcli.models.protocol import Model


def outputs(
    network: Model | WithExits,
    samples: Samples,
    runtime: Runtime,
    *,
    batch_size: int,
    max_pixels: int,
    workers: int = 0,
    timeout: float = 300,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Logits [N, C] (fp32, CPU) of un-augmented views of a split, in its order, on every process.

    What a network answers in more dimensions comes flattened to C.
    """
    loader = evaluation_loader(samples, network.spec, max_pixels=max_pixels, workers=workers, timeout=timeout)
    batches = in_order(len(samples), batch_size, runtime.rank, runtime.world_size)
    found: Tensor | None = None
    done = 0
    with evaluating(network), torch.inference_mode(), runtime.accelerator.autocast():
        for keys, batch in zip(batches, loader(batches)):
            logits = network(batch["x"].to(runtime.device, non_blocking=True)).float().flatten(1).cpu()
            if found is None:
                found = torch.zeros(len(samples), logits.shape[1])
            found[[index for index, _ in keys]] = logits
            done += len(keys) * runtime.world_size
            if progress:
                progress(min(done, len(samples)))
    if runtime.world_size > 1:
        width = int(runtime.largest([0 if found is None else found.shape[1]])[0])
        whole = torch.zeros(len(samples), width) if found is None else found.clone()
        whole = whole.to(runtime.device)
        torch.distributed.all_reduce(whole)  # every row is non-zero on one process only
        return whole.cpu()
    assert found is not None
    return found
