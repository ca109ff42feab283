"""Gram matrices of the blocks of networks, and how alike these are: :mod:`kdcli.metrics.cka`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcli.data.batches import evaluation_loader
from kdcli.engine.inference import Measuring
from kdcli.engine.runtime import Runtime
from kdcli.metrics.cka import LEAST, cka, gram, hsic_parts
from kdcli.metrics.efficiency import evaluating
from kdcli.models.protocol import Model
from kdcli.seeds import seed_of

MINIBATCH = 256  # pictures of one estimate of HSIC, whatever the batch size
MOST = 2048  # pictures in all
_DRAWN = 11  # tells this use of a seed from others


def minibatches(ids: np.ndarray, seed: int) -> list[list[int]]:
    """Indices of the pictures that blocks are compared on, minibatch by minibatch.

    They are drawn, by the seed and the sample ids: neighbours in a data set are of one class. A last
    minibatch of fewer than ``LEAST`` is left out.
    """
    drawn = sorted(range(len(ids)), key=lambda i: (seed_of(seed, int(ids[i]), _DRAWN), int(ids[i])))[:MOST]
    parts = [drawn[i : i + MINIBATCH] for i in range(0, len(drawn), MINIBATCH)]
    return [part for part in parts if len(part) >= LEAST]


@dataclass(frozen=True)
class Blocks:
    """What a network's blocks make of pictures.

    Attributes:
        taps: P names.
        grams: Gram matrices [P, n, n] (fp64, CPU), one for each minibatch of this process.
    """

    taps: Sequence[str]
    grams: Sequence[Tensor]


def run(
    network: Model,
    parts: Sequence[list[int]],
    measuring: Measuring,
    progress: Callable[[int], None] | None = None,
) -> Blocks:
    """What a network's blocks make of minibatches; of each all activations are held at once.

    Args:
        network: on the device.
        parts: the minibatches of all processes, indices of pictures.
        measuring: on what; batches of its size go through the network.
        progress: is told how many pictures are done.
    """
    taps = network.block_taps()
    runtime, size = measuring.runtime, measuring.batch_size
    mine = parts[runtime.rank :: runtime.world_size]
    chunks = [(part[k : k + size], k + size >= len(part)) for part in mine for k in range(0, len(part), size)]
    loader = evaluation_loader(measuring.samples, network.spec, **measuring.reading)
    batches = loader([[(index, 0) for index in rows] for rows, _ in chunks])
    found: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    done, total = 0, sum(map(len, parts))
    with evaluating(network), torch.inference_mode(), runtime.accelerator.autocast():
        for (rows, last), batch in zip(chunks, batches):
            x = batch["x"].to(runtime.device, non_blocking=True)
            for tap, activations in network.call([x], taps).items():
                seen[tap].append(activations)
            if last:
                found.append(torch.stack([_gram(seen.pop(tap)) for tap in taps]))
                seen = {tap: [] for tap in taps}
            done += len(rows) * runtime.world_size
            if progress:
                progress(min(done, total))
    return Blocks(taps, found)


def _gram(activations: Sequence[Tensor]) -> Tensor:
    whole = torch.cat(list(activations))
    return gram(whole.cpu() if whole.device.type == "mps" else whole).cpu()  # which has no fp64


def alike(first: Blocks, second: Blocks, runtime: Runtime) -> list[list[float | None]]:
    """CKA of every block of one network with every block of another, over the minibatches of all processes.

    Returns:
        P rows of Q values; None where one of the two gives the same for all pictures.
    """
    sums = torch.zeros(len(first.taps) + 1, len(second.taps) + 1, dtype=torch.float64)
    for one, other in zip(first.grams, second.grams):
        sums += hsic_parts(one, other)
    rows = cka(runtime.sum(sums)).tolist()
    return [[None if math.isnan(value) else value for value in row] for row in rows]
