"""Outputs of a frozen network over a whole split, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.data.batches import Loader, evaluation_loader
from kdcli.data.order import Pool, in_order
from kdcli.data.samples import Samples
from kdcli.engine.runtime import Runtime
from kdcli.errors import NotFinite
from kdcli.metrics.efficiency import evaluating
from kdcli.models.exits import WithExits
from kdcli.models.protocol import Model


@dataclass(frozen=True)
class Measuring:
    """On what networks are measured.

    Attributes:
        samples: N labelled pictures.
        runtime: device and processes.
        batch_size: of one process.
        reading: how loaders read pictures, as their keyword arguments.
        train: labelled training pictures, for what is measured by them.
    """

    samples: Samples
    runtime: Runtime
    batch_size: int
    reading: dict[str, Any]
    train: Samples | None = None


@contextmanager
def answering(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """A block that raises NotFinite, with its name, for a network that answers with NaN or Inf."""

    def look(name: str, module: nn.Module, inputs: Any, answer: Any) -> None:
        if isinstance(answer, Tensor) and not bool(answer.isfinite().all()):
            raise NotFinite(
                f"{name} answers pictures with NaN or Inf: some of its weights are damaged, or too large. "
                "Measure another."
            )

    hooks = [net.register_forward_hook(partial(look, name)) for name, net in networks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def outputs(
    network: Model | WithExits, measuring: Measuring, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Logits [N, C] (fp32, CPU) of un-augmented views of a split, in its order, on every process.

    What a network answers in more dimensions comes flattened to C.

    Args:
        network: on the device.
        measuring: of what.
        progress: is told how many pictures are done.
    """
    return collected(network, lambda x, _: network(x), measuring, progress)


def collected(
    network: Model | WithExits,
    answer: Callable[[Tensor, list[int]], Tensor],
    measuring: Measuring,
    progress: Callable[[int], None] | None = None,
    *,
    cut: Callable[..., Tensor] | None = None,
    view: int = 0,
) -> Tensor:
    """What is made of un-augmented views of a split, [N, C] (fp32, CPU), in its order, on every process.

    Args:
        network: on the device; says how views are cut.
        answer: of a batch of them (uint8, on the device) and their indices in the split, [B, …].
        measuring: of what.
        progress: is told how many pictures are done.
        cut: makes other views than these, of (picture, view number, sample id).
        view: number of these others.
    """
    samples, runtime = measuring.samples, measuring.runtime
    if cut is None:
        loader = evaluation_loader(samples, network.spec, **measuring.reading)
    else:
        loader = Loader(Pool((samples,)), cut, **measuring.reading)
    batches = in_order(len(samples), measuring.batch_size, runtime.rank, runtime.world_size)
    found: Tensor | None = None
    done = 0
    with evaluating(network), torch.inference_mode(), runtime.accelerator.autocast():
        for keys, batch in zip(batches, loader([[(index, view) for index, _ in keys] for keys in batches])):
            indices = [index for index, _ in keys]
            x = batch["x"].to(runtime.device, non_blocking=True)
            rows = answer(x, indices).float().flatten(1).cpu()
            if found is None:
                found = torch.zeros(len(samples), rows.shape[1])
            found[indices] = rows
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
