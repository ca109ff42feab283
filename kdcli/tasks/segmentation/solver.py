"""Many segmentation heads on one frozen backbone, trained together.

As in DINOv2's linear segmentation (arXiv 2304.07193): batch norm and a 1×1 convolution on patch tokens, by
AdamW. Each head has an optimiser of its own, its rate falls to 0 by a cosine, and it is what it would be if
trained alone. The backbone runs once over fixed views. Its maps are kept in the cache at the size of their
grid, in fp16 (``views.store``): 0.8 MB a view for four blocks of a ViT-S/14 at 224 pixels, too much for
memory and little for a disk, from which they are read batch by batch. The pictures are opened again with each
batch, because a mask is cut together with its picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.batches import training_loader
from kdcli.data.cache import Columns, Store
from kdcli.data.order import Key, Order, Pool, in_order
from kdcli.data.samples import Samples
from kdcli.engine.cache import Filling, Request, fill
from kdcli.engine.heads import HeadSpec
from kdcli.engine.runtime import watching
from kdcli.engine.state import clone_to_cpu
from kdcli.errors import Preempted
from kdcli.losses.pixels import at_size, pixel_cross_entropy
from kdcli.metrics.segmentation import pixel_confusion, segmentation_metrics
from kdcli.models.heads import GRIDS, Head
from kdcli.models.timm import Network
from kdcli.seeds import seed_of

_FROM = "frozen"


@dataclass(frozen=True)
class DenseResult:
    """A trained head with the weights of its best epoch on the validation part."""

    spec: HeadSpec
    state: dict[str, Tensor]
    miou: float  # over the pixels of the validation views; NaN for a head that diverged at once
    epoch: int

    @property
    def diverged(self) -> bool:
        """Whether it never had a finite loss to the end of an epoch."""
        return not math.isfinite(self.miou)

    @property
    def rank(self) -> tuple[float, ...]:
        """The smallest is the best."""
        return (-self.miou,)

    @property
    def metrics(self) -> dict[str, float]:
        """On the validation part; the first one selects."""
        return {"miou": self.miou}

    def attach(self, network: Network, classes: list[str]) -> None:
        """Make it the network's head."""
        head = network.fresh_head(self.spec.feature, len(classes))
        head.load_state_dict(self.state)
        network.attach(head, classes, "segmentation")


@dataclass(frozen=True)
class Part:
    """Views of labelled pictures and their cached maps.

    Attributes:
        samples: N pictures with masks.
        cut: makes their views.
        views: V per picture.
    """

    samples: Samples
    cut: Any
    views: int


@dataclass
class _Trained:
    """One head on its way."""

    spec: HeadSpec
    head: Head
    optimizer: torch.optim.Optimizer
    best: DenseResult
    frozen: bool = False


def train_dense_heads(
    root: Path,
    network: Network,
    train: Part,
    validation: Part,
    specs: Sequence[HeadSpec],
    classes: int,
    filling: Filling,
    *,
    store: Store,
    epochs: int,
    batch_size: int,
    patience: int | None,
    seed: int,
) -> list[DenseResult]:
    """Train a grid of heads; each is scored by mIoU over the pixels of the validation views every epoch.

    Args:
        root: folder of caches.
        network: the frozen backbone, on the device.
        train: what is learned.
        validation: what selects.
        specs: the grid; results come in its order. Features are names of ``GRIDS``.
        classes: C.
        filling: device, loaders, progress.
        store: how maps are kept.
        epochs: passes over the training pictures.
        batch_size: pictures in a step.
        patience: epochs without a better score after which a head is frozen; None for never.
        seed: of initial weights, order and dropout.

    Raises:
        Preempted: a signal came; the cached maps are kept.
    """
    names = list(dict.fromkeys(spec.feature for spec in specs))
    learning = _Maps(root, network, names, train, filling, store)
    judging = _Maps(root, network, names, validation, filling, store)
    order = Order(train.samples.labels, batch_size, seed, train.views)
    steps = math.ceil(epochs * order.steps_per_epoch)
    trained = [_begin(network, spec, classes, seed) for spec in specs]
    with watching(filling.stop), filling.console.progress("heads", steps, "steps") as bar:
        for step, (grids, mask) in enumerate(learning.batches([order.keys(k) for k in range(steps)])):
            rate = (1 + math.cos(math.pi * step / steps)) / 2
            for one in (t for t in trained if not t.frozen):
                torch.manual_seed(seed_of(seed, step, 17) >> 1)  # of dropout: no head depends on the others
                _step(one, grids[one.spec.feature], mask, rate)
            bar.update(step + 1)
            if filling.stop is not None and filling.stop.requested:
                raise Preempted(f"{filling.stop.requested} while training heads; run the same command again.")
            epoch = math.floor((step + 1) / order.steps_per_epoch)
            if step + 1 == steps or epoch > math.floor(step / order.steps_per_epoch):
                _score([t for t in trained if not t.frozen], judging, classes, epoch, patience or epochs)
                if all(t.frozen for t in trained):
                    break
    return [one.best for one in trained]


def _begin(network: Network, spec: HeadSpec, classes: int, seed: int) -> _Trained:
    """A head as it starts: its weights depend on the seed and the feature."""
    torch.manual_seed(seed_of(seed, GRIDS[spec.feature], 19) >> 1)
    head = network.fresh_head(spec.feature, classes).to(next(network.parameters()).device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    return _Trained(spec, head, optimizer, DenseResult(spec, {}, math.nan, 0))


def _step(one: _Trained, grid: Tensor, mask: Tensor, rate: float) -> None:
    """One AdamW step of a head; a head whose loss is not finite is frozen as it was at its best."""
    one.head.train()
    loss = pixel_cross_entropy(one.head(grid), mask)
    if not torch.isfinite(loss):
        one.frozen = True
        return
    one.optimizer.zero_grad()
    loss.backward()
    for group in one.optimizer.param_groups:
        group["lr"] = one.spec.lr * rate
    one.optimizer.step()


@torch.no_grad()
def _score(trained: Sequence[_Trained], judging: _Maps, classes: int, epoch: int, patience: int) -> None:
    """mIoU of every head on the validation part; keeps each at its best, freezes those of NaN or Inf."""
    for one in trained:
        one.frozen = not all(bool(p.isfinite().all()) for p in one.head.parameters())
    trained = [one for one in trained if not one.frozen]
    found = [torch.zeros(classes, classes, dtype=torch.int64) for _ in trained]
    for one in trained:
        one.head.eval()
    for grids, mask in judging.batches(in_order(len(judging.part.samples), judging.batch_size)):
        for one, confusion in zip(trained, found):
            prediction = at_size(one.head(grids[one.spec.feature]), mask).argmax(1)
            confusion += pixel_confusion(prediction, mask, classes).cpu()
    for one, confusion in zip(trained, found):
        miou = segmentation_metrics(confusion)["miou"]
        if one.best.diverged or miou > one.best.miou:
            one.best = DenseResult(one.spec, clone_to_cpu(one.head), miou, epoch)
        elif epoch - one.best.epoch >= patience:
            one.frozen = True


class _Maps:
    """Cached maps of a part, and the views of its masks."""

    def __init__(
        self, root: Path, network: Network, names: Sequence[str], part: Part, filling: Filling, store: Store
    ) -> None:
        self.network, self.names, self.part, self.device = network, names, part, filling.runtime.device
        self.batch_size = filling.batch_size
        deepest = max(names, key=lambda name: GRIDS[name])
        self.taps = tuple(f"map{i}" for i in range(network.map_count(deepest)))
        request = Request(
            network=network,
            taps=self.taps,
            compute=lambda x: dict(zip(self.taps, network.maps(x, deepest))),
            cut=part.cut,
            recipe=part.cut.recipe(),
            views=part.views,
            store=store,
        )
        pool = Pool((part.samples,))
        cache = fill(root, request, pool, filling, f"maps of {part.samples.name}")
        self.loader = training_loader(pool, part.cut, columns=Columns({_FROM: cache}), **filling.reading)

    def batches(self, keys: Sequence[list[Key]]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Grids [B, D, h, w] by feature, and the views' masks [B, S, S], on the device."""
        for batch in self.loader(keys):
            maps = [batch[f"{_FROM}.{tap}"].to(self.device, non_blocking=True) for tap in self.taps]
            grids = {name: self.network.assembled(maps[-GRIDS[name] :]) for name in self.names}
            yield grids, batch["mask"].to(self.device, non_blocking=True)
