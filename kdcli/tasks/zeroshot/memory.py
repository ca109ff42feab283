"""Few-shot pictures as a memory beside texts: what a network does with them without a training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdcli.data.samples import Samples
from kdcli.data.views import TrainingView
from kdcli.engine.inference import Measuring, collected
from kdcli.metrics.classification import classification_metrics
from kdcli.metrics.support import supported_logits
from kdcli.models.protocol import Model
from kdcli.sections import ViewSection

VIEWS = 10  # of each picture: as it is, and moved by RandAugment(2, 9) nine times, as in the authors' code
_POLICY = "rand-m9-n2"
_KEPT = ("top1", "mean_per_class")


def remembered(network: Model, samples: Samples, measuring: Measuring, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings [M·VIEWS, D] of views of the pictures of a memory, and their class numbers.

    Args:
        network: on the device.
        samples: M pictures, whose labels number its candidates.
        measuring: says how pictures are read.
        seed: of the views.
    """
    own = replace(measuring, samples=samples)
    section = ViewSection(count="live", scale=(1.0, 1.0), hflip=0.0, auto_augment=_POLICY)
    cut = TrainingView(section, network.spec.size[0], seed)

    def embedding(x: Tensor, _: list[int]) -> Tensor:
        return network.call([x], ["embedding"])["embedding"]

    parts = [collected(network, embedding, own)]
    parts += [collected(network, embedding, own, cut=cut, view=view) for view in range(1, VIEWS)]
    return torch.cat(parts), torch.from_numpy(samples.labels).repeat(VIEWS)


def figures(embedding: Tensor, bank: Tensor, memory: tuple[Tensor, Tensor], y: Tensor) -> dict[str, float]:
    """Accuracy with a memory, of embeddings [N, D] of pictures with class numbers [N]."""
    measured = classification_metrics(supported_logits(embedding, bank, *memory), y)
    return {name: measured[name] for name in _KEPT if name in measured}
