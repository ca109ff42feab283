"""What turns draws into pictures: a function of source pixels, or a diffusion model fed with embeddings.

The libraries of diffusion models are imported only where one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from kdcli.data.cache import Cache, Store
from kdcli.data.order import Pool
from kdcli.data.samples import Samples
from kdcli.engine.cache import Filling, Request, fill
from kdcli.synthesis.draws import Draw, Make
from kdcli.synthesis.sampling import SamplingSection
from kdcli.synthesis.weights import Weights

_THREADS = 2  # Pillow and numpy release the interpreter's lock
_ENCODED = 32  # pictures at a time


def from_pixels(
    mixer: Callable[..., Any], samples: Samples, *, max_pixels: int, side: int | None, alpha: float
) -> Make:
    """Draws to pictures by a mixer of pixels.

    Args:
        mixer: K pictures and a seed to a picture.
        samples: the sources.
        max_pixels: of a source.
        side: of the result; None for the first source's width and height.
        alpha: of the mixer's distribution.
    """
    size = (side, side) if side else None

    def one(draw: Draw) -> Any:
        return mixer(
            [samples.picture(i, max_pixels) for i in draw.sources], draw.noise, size=size, alpha=alpha
        )

    def make(draws: list[Draw]) -> Sequence[Any]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(one, draws))

    return make


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model and how it is sampled.

    Attributes:
        weights: of encoder and model.
        sampling: strengths, padding, guidance, solver.
        resolution: side of the result in pixels.
        batch_size: B.
    """

    weights: Weights
    sampling: SamplingSection
    resolution: int
    batch_size: int


def from_tokens(
    mixer: Callable[[Tensor], Tensor],
    samples: Samples,
    draws: Iterable[Draw],
    diffusion: Diffusion,
    cache: Path,
    filling: Filling,
) -> Make:
    """Draws to pictures by a diffusion model, every source encoded once.

    A batch always has the same shape, and a number always the same place in it: so a picture does not depend
    on which others are made beside it.

    Args:
        mixer: embeddings [B, K, D] to tokens [B, T, D].
        samples: the sources.
        draws: all that will be asked for.
        diffusion: the model, and how it is sampled.
        cache: folder of caches, where the embeddings are kept.
        filling: device, precision and loaders.

    Raises:
        Preempted: a signal came while the sources were encoded.
    """
    from kdcli.synthesis import pipeline
    from kdcli.synthesis.clip import TAP
    from kdcli.synthesis.imagemixer import padded, scaled

    weights, sampling, batch_size = diffusion.weights, diffusion.sampling, diffusion.batch_size
    embeddings = embedded(weights, samples, draws, cache, filling)
    device, dtype = filling.runtime.device, pipeline.DTYPES[filling.runtime.accelerator.mixed_precision]
    model = pipeline.load(weights.folder, sampling.scheduler, dtype, device)

    def make(draws: list[Draw]) -> Sequence[Any]:
        batch = [draws[0]] * batch_size
        for draw in draws:
            batch[draw.number % batch_size] = draw
        keys = [(int(samples.ids[i]), 0) for draw in batch for i in draw.sources]
        found = embeddings.read(keys)[TAP].unflatten(0, (batch_size, -1))
        pixels = pipeline.sample(
            model,
            padded(mixer(scaled(found, sampling.strengths)), sampling.pad_tokens or 0),
            [draw.noise for draw in batch],
            resolution=diffusion.resolution,
            steps=sampling.steps,
            guidance=sampling.guidance,
        )
        return [Image.fromarray(pixels[draw.number % batch_size]) for draw in draws]

    return make


def embedded(
    weights: Weights, samples: Samples, draws: Iterable[Draw], cache: Path, filling: Filling
) -> Cache:
    """The image embeddings of all sources that the draws name, computed where the cache lacks them."""
    from kdcli.synthesis import clip

    filling = replace(filling, batch_size=_ENCODED * filling.runtime.world_size)
    used = np.zeros((1, len(samples)), bool)
    used[0, [i for draw in draws for i in draw.sources]] = True
    encoder = clip.load_encoder(weights.folder, weights.name, weights.hash).to(filling.runtime.device)
    cut = clip.cut(weights.image_size, squash=not weights.image_mixer)
    compute = partial(clip.embed, encoder, batch_size=_ENCODED)
    request = Request(encoder, (clip.TAP,), compute, cut, cut.recipe(), 1, Store("fp32"))
    return fill(cache, request, Pool((samples,)), filling, "image embeddings", used)
