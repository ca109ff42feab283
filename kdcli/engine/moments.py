"""Moments of a network's activations over labelled pictures, class by class: recorded, written and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.model import find, read_tensors
from kdcli.artifacts.store import write_tensors
from kdcli.console import Console
from kdcli.console import size as shown
from kdcli.data.batches import evaluation_loader
from kdcli.data.order import in_order
from kdcli.data.samples import Samples
from kdcli.engine.runtime import Runtime
from kdcli.errors import InputError
from kdcli.metrics.efficiency import evaluating
from kdcli.models.protocol import Model

FILE = "statistics.safetensors"


@dataclass(frozen=True)
class Moments:
    """Means and spreads of activations by class.

    Attributes:
        classes: numbers of the K classes that are recorded, [K].
        counts: pictures of each, [K].
        means: by tap, [K, D].
        spreads: by tap, covariances [K, D, D] or standard deviations [K, D].
        hash: sha256 of the file that they were read from.
    """

    classes: Tensor
    counts: Tensor
    means: dict[str, Tensor]
    spreads: dict[str, Tensor]
    hash: str = ""

    def write(self, path: Path) -> None:
        """Write as a safetensors file."""
        tensors = {"classes": self.classes, "counts": self.counts}
        for tap, mean in self.means.items():
            kind = "covariance" if self.spreads[tap].ndim == 3 else "deviation"
            tensors |= {f"{tap}/mean": mean, f"{tap}/{kind}": self.spreads[tap]}
        write_tensors(path, tensors)


def read_moments(teacher: str) -> Moments:
    """What probe recorded of a model artifact.

    Raises:
        InputError: no artifact, or one without a record, or a damaged one.
    """
    root = find(teacher)
    manifest = manifests.read(root) if root is not None else None
    if root is None or manifest is None or FILE not in manifest.files:
        raise InputError(
            f"{teacher} has no record of its activations. Record it where its training pictures are: kdcli "
            "probe --statistics."
        )
    manifests.verify(root, manifest, [FILE])
    tensors = read_tensors(root / FILE)
    classes, counts = tensors.pop("classes"), tensors.pop("counts")
    kinds = {name.rpartition("/")[::2]: tensor for name, tensor in tensors.items()}
    means = {tap: tensor for (tap, kind), tensor in kinds.items() if kind == "mean"}
    spreads = {tap: tensor for (tap, kind), tensor in kinds.items() if kind != "mean"}
    return Moments(classes, counts, means, spreads, manifest.files[FILE]["sha256"])


@dataclass(frozen=True)
class Recording:
    """What is to be recorded.

    Attributes:
        taps: of :mod:`kdcli.models.taps`, flattened to [B, D].
        classes: their number.
        min_count: of classes with fewer pictures nothing is kept.
        max_bytes: a tap whose covariances are larger gets standard deviations.
    """

    taps: Sequence[str]
    classes: int
    min_count: int
    max_bytes: float


def record(
    network: Model,
    samples: Samples,
    wanted: Recording,
    runtime: Runtime,
    console: Console,
    *,
    batch_size: int,
    **reading: Any,
) -> Moments:
    """Moments of taps over un-augmented pictures, the same on every process.

    Args:
        network: on the device.
        samples: labelled pictures.
        wanted: of which taps and classes.
        runtime: device and processes.
        console: told where covariances would be too large.
        batch_size: pictures at a time of all processes.
        reading: how pictures are read.
    """
    counts = torch.bincount(torch.from_numpy(samples.labels), minlength=wanted.classes)
    kept = torch.nonzero(counts >= max(wanted.min_count, 2)).flatten()
    place = torch.full((wanted.classes,), -1).index_put((kept,), torch.arange(len(kept)))
    totals: dict[str, list[Tensor]] = {}
    below = {tap: torch.zeros(()) for tap in wanted.taps}
    batches = in_order(len(samples), batch_size, runtime.rank, runtime.world_size)
    loader = evaluation_loader(samples, network.spec, **reading)
    with (
        evaluating(network),
        torch.inference_mode(),
        console.progress("statistics", len(samples), "images") as bar,
    ):
        for keys, batch in zip(batches, loader(batches)):
            with runtime.accelerator.autocast():
                found = network.call([batch["x"].to(runtime.device)], wanted.taps)
            rows = place[batch["y"]]
            for tap in wanted.taps:
                values = found[tap].flatten(1).double().cpu()
                if tap not in totals:
                    totals[tap] = _empty(tap, len(kept), values.shape[1], wanted.max_bytes, console)
                below[tap] += (values < 0).sum()
                _add(totals[tap], rows, values)
            bar.update(min(bar.done + len(keys) * runtime.world_size, len(samples)))
    _warn_of_rectified([tap for tap, number in below.items() if not runtime.sum(number)], console)
    n = counts[kept].double()
    found = {tap: _moments(n, *(runtime.sum(tensor) for tensor in sums)) for tap, sums in totals.items()}
    means, spreads = ({tap: both[i] for tap, both in found.items()} for i in (0, 1))
    return Moments(kept, counts[kept], means, spreads)


def _empty(tap: str, classes: int, units: int, max_bytes: float, console: Console) -> list[Tensor]:
    """Sums of values, and of their products or squares."""
    needed = 4.0 * classes * units**2
    shape: tuple[int, ...] = (classes, units, units)
    if needed > max_bytes:
        console.note(f"covariances of {tap} would take {shown(needed)}: standard deviations are recorded")
        shape = (classes, units)
    return [torch.zeros(classes, units, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)]


def _warn_of_rectified(taps: Sequence[str], console: Console) -> None:
    """Warn of taps without a negative value: Lopes compares activations before the ReLU."""
    for tap in taps:
        console.warn(
            f"statistics.taps: {tap} is never negative, as what leaves a ReLU. --mixer lopes wants what "
            "enters one (in a ResNet layer4.1.act2.in), or logits."
        )


def _add(sums: list[Tensor], rows: Tensor, values: Tensor) -> None:
    first, second = sums
    for k in rows.unique().tolist():
        if k >= 0:
            own = values[rows == k]
            first[k] += own.sum(dim=0)
            second[k] += own.mT @ own if second.ndim == 3 else (own**2).sum(dim=0)


def _moments(n: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [K, D] and covariance [K, D, D] or standard deviation [K, D] of the sums over ``n`` [K] rows."""
    mean = first / n[:, None]
    if second.ndim == 2:
        variance = (second - n[:, None] * mean**2) / (n[:, None] - 1)
        return mean.float(), variance.clamp(min=0).sqrt().float()
    outer = mean[:, :, None] * mean[:, None, :]
    return mean.float(), ((second - n[:, None, None] * outer) / (n[:, None, None] - 1)).float()
