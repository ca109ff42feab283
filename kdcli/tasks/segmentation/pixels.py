"""A segmentation network over a whole split: logits of every pixel of every picture, and what they add up to.

A picture is squashed to the network's input and its logits are brought back to the picture's own size; or a
window slides over it at its own size, and logits are averaged where windows overlap. Either way every pixel
of the picture is judged, at the resolution of its mask. One picture is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.data.batches import Loader
from kdcli.data.order import Pool, in_order
from kdcli.data.views import WholeCut
from kdcli.engine.inference import Measuring
from kdcli.engine.runtime import Runtime
from kdcli.errors import NotFinite
from kdcli.metrics.efficiency import evaluating
from kdcli.metrics.segmentation import FOLLOWS, pixel_agreement, pixel_confusion
from kdcli.models.protocol import Model


@dataclass(frozen=True)
class Window:
    """A window that slides over pictures at their own size.

    Attributes:
        side: in pixels of the picture.
        stride: pixels between windows, at most the side; None for two thirds of it.
    """

    side: int
    stride: int | None = None

    @property
    def step(self) -> int:
        """Pixels between windows."""
        return self.stride or max(1, 2 * self.side // 3)


@dataclass
class Tally:
    """What a network's predictions add up to over a split.

    Attributes:
        confusion: [C, C] pixels, rows truth.
        follows: sums of :func:`kdcli.metrics.segmentation.pixel_agreement`, where there is a teacher.
        shown: predictions uint8 [H, W] of the pictures that a report shows, by index.
    """

    confusion: Tensor
    follows: Tensor = field(default_factory=lambda: torch.zeros(len(FOLLOWS), dtype=torch.float64))
    shown: dict[int, np.ndarray] = field(default_factory=dict)


def tallies(
    networks: Mapping[str, Model],
    classes: int,
    measuring: Measuring,
    window: Window | None = None,
    *,
    teacher: str | None = None,
    shown: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tally]:
    """Judge networks side by side, the same on every process.

    Args:
        networks: by name, on the device.
        classes: C.
        measuring: pictures, and processes; each takes every n-th picture.
        window: that slides over a picture; None for the whole picture at once.
        teacher: the name of the one that the others are compared with.
        shown: predictions kept, of the first pictures of the first process.
        progress: is told how many pictures are done.
    """
    samples, runtime = measuring.samples, measuring.runtime
    found = {name: Tally(torch.zeros(classes, classes, dtype=torch.int64)) for name in networks}
    streams = [pixel_logits(network, measuring, window) for network in networks.values()]
    mine = range(runtime.rank, len(samples), runtime.world_size)
    for done, (index, *rows) in enumerate(zip(mine, *streams), start=1):
        logits: dict[str, Tensor] = dict(zip(networks, rows))
        height, width = rows[0].shape[-2:]
        truth = samples.beside(index, (width, height), measuring.reading["max_pixels"])
        mask = truth.as_subclass(Tensor).to(runtime.device)
        for name, tally in found.items():
            if not bool(logits[name].isfinite().all()):
                raise NotFinite(f"{name}: {samples.where(index)} is answered with NaN or Inf")
            prediction = logits[name].argmax(0)
            tally.confusion += pixel_confusion(prediction, mask, classes).cpu()
            if teacher is not None:
                tally.follows += pixel_agreement(logits[name], logits[teacher], mask)
            if len(tally.shown) < shown and runtime.main:
                tally.shown[index] = prediction.byte().cpu().numpy()
        if progress:
            progress(min(done * runtime.world_size, len(samples)))
    for tally in found.values():
        tally.confusion, tally.follows = runtime.sum(tally.confusion), runtime.sum(tally.follows)
    return found


@torch.inference_mode()
def pixel_logits(network: Model, measuring: Measuring, window: Window | None = None) -> Iterator[Tensor]:
    """Logits [C, H, W] (fp32, on the device) at each picture's own size: this process's pictures in order."""
    if window is not None:
        yield from _windowed(network, measuring, window)
        return
    samples, runtime = measuring.samples, measuring.runtime
    loader = Loader(Pool((samples,)), WholeCut(network.spec), **measuring.reading)
    batches = in_order(len(samples), measuring.batch_size, runtime.rank, runtime.world_size)
    for keys, batch in zip(batches, loader(batches)):
        logits = _forward(network, runtime, batch["x"])
        for (index, _), grid in zip(keys, logits):
            width, height = samples.size(index, measuring.reading["max_pixels"])
            yield _resized(grid[None], (height, width))[0]


def _windowed(network: Model, measuring: Measuring, window: Window) -> Iterator[Tensor]:
    samples, runtime = measuring.samples, measuring.runtime
    forward = partial(_forward, network, runtime)
    for index in range(runtime.rank, len(samples), runtime.world_size):
        picture = np.array(samples.picture(index, measuring.reading["max_pixels"]))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)
        yield slid(forward, pixels, window.side, window.step, measuring.batch_size)


def slid(
    forward: Callable[[Tensor], Tensor], picture: Tensor, window: int, stride: int, batch_size: int
) -> Tensor:
    """Logits [C, H, W] of a picture, averaged over the windows that see a pixel.

    Windows stand every ``stride`` pixels; the last one of a row or column is moved back to end at the edge. A
    picture whose shorter side is below the window is enlarged to it first.

    Args:
        forward: views uint8 [B, 3, window, window] to logits [B, C, h, w] of any grid.
        picture: uint8 [3, H, W].
        window: side of a window.
        stride: between windows, at most ``window``.
        batch_size: windows per forward.
    """
    own = picture.shape[-2:]
    if min(own) < window:
        factor = window / min(own)
        size = [max(window, round(side * factor)) for side in own]
        grown = F.interpolate(picture[None].float(), size, mode="bicubic", align_corners=False)
        picture = grown[0].round().clamp(0, 255).byte()
    height, width = picture.shape[-2:]
    places = [(y, x) for y in _starts(height, window, stride) for x in _starts(width, window, stride)]
    total = count = torch.zeros(())
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        views = torch.stack([picture[:, y : y + window, x : x + window] for y, x in some])
        logits = _resized(forward(views), (window, window))
        if total.ndim == 0:
            total = logits.new_zeros(logits.shape[1], height, width)
            count = logits.new_zeros(height, width)
        for (y, x), part in zip(some, logits):
            total[:, y : y + window, x : x + window] += part
            count[y : y + window, x : x + window] += 1
    return _resized((total / count)[None], (own[0], own[1]))[0]


def _starts(length: int, window: int, stride: int) -> list[int]:
    count = math.ceil((length - window) / stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def _forward(network: Model, runtime: Runtime, x: Tensor) -> Tensor:
    """Logits [B, C, h, w] in fp32, of a network in eval mode."""
    with evaluating(network), torch.inference_mode(), runtime.accelerator.autocast():
        return network(x.to(runtime.device, non_blocking=True)).float()


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
