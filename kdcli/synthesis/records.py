"""Records the moments of a network's activations over labelled pictures, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.console import size as shown
from kdcli.data.batches import evaluation_loader
from kdcli.data.order import in_order
from kdcli.data.samples import Samples
from kdcli.engine.runtime import Runtime
from kdcli.metrics.efficiency import evaluating
from kdcli.models.timm import Network
from kdcli.synthesis.lopes import Records


def record(
    network: Network,
    samples: Samples,
    taps: Sequence[str],
    classes: int,
    runtime: Runtime,
    console: Console,
    *,
    batch_size: int,
    min_count: int,
    max_bytes: float,
    **reading: Any,
) -> Records:
    """Moments of taps over un-augmented pictures, the same on every process.

    Args:
        network: on the device.
        samples: labelled pictures.
        taps: of :mod:`kdcli.models.taps`, flattened to [B, D].
        classes: their number.
        runtime: device and processes.
        console: told where covariances would be too large.
        batch_size: pictures at a time of all processes.
        min_count: of classes with fewer pictures nothing is kept.
        max_bytes: a tap whose covariances are larger gets standard deviations.
        reading: how pictures are read.
    """
    counts = torch.bincount(torch.from_numpy(samples.labels), minlength=classes)
    kept = torch.nonzero(counts >= max(min_count, 2)).flatten()
    place = torch.full((classes,), -1).index_put((kept,), torch.arange(len(kept)))
    totals: dict[str, list[Tensor]] = {}
    batches = in_order(len(samples), batch_size, runtime.rank, runtime.world_size)
    loader = evaluation_loader(samples, network.spec, **reading)
    with (
        evaluating(network),
        torch.inference_mode(),
        console.progress("statistics", len(samples), "images") as bar,
    ):
        for keys, batch in zip(batches, loader(batches)):
            with runtime.accelerator.autocast():
                found = network.call([batch["x"].to(runtime.device)], taps)
            rows = place[batch["y"]]
            for tap in taps:
                values = found[tap].flatten(1).double().cpu()
                if tap not in totals:
                    totals[tap] = _empty(tap, len(kept), values.shape[1], max_bytes, console)
                _add(totals[tap], rows, values)
            bar.update(min(bar.done + len(keys) * runtime.world_size, len(samples)))
    n = counts[kept].double()
    means, spreads = {}, {}
    for tap, sums in totals.items():
        first, second = (runtime.sum(tensor) for tensor in sums)
        mean = first / n[:, None]
        means[tap] = mean.float()
        if second.ndim == 2:
            variance = (second - n[:, None] * mean**2) / (n[:, None] - 1)
            spreads[tap] = variance.clamp(min=0).sqrt().float()
        else:
            outer = mean[:, :, None] * mean[:, None, :]
            spreads[tap] = ((second - n[:, None, None] * outer) / (n[:, None, None] - 1)).float()
    return Records(kept, counts[kept], means, spreads)


def _empty(tap: str, classes: int, units: int, max_bytes: float, console: Console) -> list[Tensor]:
    """Sums of values, and of their products or squares."""
    needed = 4.0 * classes * units**2
    shape: tuple[int, ...] = (classes, units, units)
    if needed > max_bytes:
        console.note(f"covariances of {tap} would take {shown(needed)}: standard deviations are recorded")
        shape = (classes, units)
    return [torch.zeros(classes, units, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)]


def _add(sums: list[Tensor], rows: Tensor, values: Tensor) -> None:
    first, second = sums
    for k in rows.unique().tolist():
        if k >= 0:
            own = values[rows == k]
            first[k] += own.sum(dim=0)
            second[k] += own.mT @ own if second.ndim == 3 else (own**2).sum(dim=0)
