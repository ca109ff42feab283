"""Features of a frozen backbone for probing: cached once over fixed views, or live on augmented ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.batches import training_loader
from kdcli.data.cache import Store
from kdcli.data.order import Order, Pool
from kdcli.data.samples import Samples
from kdcli.data.views import TrainingView
from kdcli.engine.cache import Filling, Request, fill
from kdcli.errors import UsageError
from kdcli.metrics.efficiency import evaluating
from kdcli.models.heads import FEATURES
from kdcli.models.protocol import Model


def cached_features(
    root: Path,
    network: Model,
    names: Sequence[str],
    samples: Samples,
    cut: Any,
    views: int,
    filling: Filling,
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of labelled samples, computed where the cache lacks them.

    Args:
        root: folder of caches.
        network: the frozen backbone.
        names: features of ``FEATURES``.
        samples: N pictures with labels.
        cut: makes the views.
        views: V per sample.
        filling: device, batch and loaders.

    Returns:
        ``{name: [N·V, D]}`` (fp32) and the labels [N·V], view by view.
    """
    request = Request(
        network=network,
        taps=tuple(dict.fromkeys(part for name in names for part in FEATURES[name])),
        compute=lambda x: network.features(x, names),
        cut=cut,
        recipe=cut.recipe(),
        views=views,
        store=Store("fp32"),
    )
    cache = fill(root, request, Pool((samples,)), filling, f"features of {samples.name}")
    parts = cache.read([(int(i), view) for view in range(views) for i in samples.ids])
    return assembled(parts, names), torch.from_numpy(samples.labels).repeat(views)


def live_features(
    network: Model,
    names: Sequence[str],
    samples: Samples,
    view: TrainingView,
    steps: int,
    filling: Filling,
    seed: int,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """``steps`` batches of features of new augmented views, with their labels (DINOv2's protocol).

    Raises:
        UsageError: on several processes.
    """
    if filling.runtime.world_size > 1:
        raise UsageError("--protocol dinov2 runs on one process; the cached protocol runs on many.")
    order = Order(samples.labels, filling.batch_size, seed, views=None)
    loader = training_loader(Pool((samples,)), view, **filling.reading)
    device = filling.runtime.device
    with filling.console.progress("heads", steps, "steps") as bar, evaluating(network):
        for step, batch in enumerate(loader([order.keys(k) for k in range(steps)])):
            with torch.inference_mode(), filling.runtime.accelerator.autocast():
                parts = network.features(batch["x"].to(device), names)
            yield assembled(parts, names), batch["y"].to(device)
            bar.update(step + 1)


def assembled(parts: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Features [N, D] by laying their parts side by side."""
    return {name: torch.cat([parts[part] for part in FEATURES[name]], dim=1) for name in names}
