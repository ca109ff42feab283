"""Features of a frozen backbone for probing: cached once over fixed views, or live on augmented ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Backbone:
    """What gives features.

    Attributes:
        network: frozen, on the device.
        names: features of ``FEATURES``.
        root: folder of caches.
        filling: device, batch and loaders.
    """

    network: Model
    names: Sequence[str]
    root: Path
    filling: Filling

    def cached(self, samples: Samples, cut: Any, views: int) -> dict[str, Tensor]:
        """Features of samples, computed where the cache lacks them.

        Args:
            samples: N pictures.
            cut: makes the views.
            views: V per sample.

        Returns:
            ``{name: [N·V, D]}`` (fp32), view by view.
        """
        request = Request(
            network=self.network,
            taps=tuple(dict.fromkeys(part for name in self.names for part in FEATURES[name])),
            compute=lambda x: self.network.features(x, self.names),
            cut=cut,
            recipe=cut.recipe(),
            views=views,
            store=Store("fp32"),
        )
        label = f"features of {samples.name}"
        cache = fill(self.root, request, Pool((samples,)), self.filling, label)
        return self._assembled(cache.read([(int(i), view) for view in range(views) for i in samples.ids]))

    def live(
        self, samples: Samples, view: TrainingView, steps: int, seed: int
    ) -> Iterator[tuple[dict[str, Tensor], Mapping[str, Tensor]]]:
        """``steps`` batches of features [B, D] of new augmented views, with what was read beside the views.

        Raises:
            UsageError: on several processes.
        """
        runtime = self.filling.runtime
        if runtime.world_size > 1:
            raise UsageError("--protocol dinov2 runs on one process; the cached protocol runs on many.")
        order = Order(samples.labels, self.filling.batch_size, seed, views=None)
        loader = training_loader(Pool((samples,)), view, **self.filling.reading)
        with self.filling.console.progress("heads", steps, "steps") as bar, evaluating(self.network):
            for step, batch in enumerate(loader([order.keys(k) for k in range(steps)])):
                with torch.inference_mode(), runtime.accelerator.autocast():
                    parts = self.network.features(batch["x"].to(runtime.device), self.names)
                yield self._assembled(parts), batch
                bar.update(step + 1)

    def _assembled(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features by laying their parts side by side."""
        return {name: torch.cat([parts[part] for part in FEATURES[name]], dim=1) for name in self.names}
