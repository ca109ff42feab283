"""Answers of a network to pictures of which more and more is hidden: :mod:`kdcli.metrics.occlusion`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcli.engine.inference import Measuring, collected
from kdcli.metrics.occlusion import RATIOS, hidden_pixels, hiding_order
from kdcli.models.protocol import Model

HIDDEN = RATIOS[1:]  # at 0 a network answers what it answers


def occluded(
    network: Model,
    grid: int,
    seed: int,
    keep: Callable[[Tensor, list[int]], Tensor],
    measuring: Measuring,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """What is kept of a network's answers at each ratio of ``HIDDEN``, [N, R, K] (fp32, CPU).

    All ratios are seen in one pass over the pictures, which are read once.

    Args:
        network: on the device.
        grid: cells along a side.
        seed: of which cells are hidden.
        keep: [B, K] of logits [B, C] and the pictures' indices.
        measuring: on what.
        progress: is told how many pictures are done.
    """
    ids = measuring.samples.ids

    def answer(x: Tensor, indices: list[int]) -> Tensor:
        x = network.prepare(x)
        order = hiding_order(seed, [int(ids[i]) for i in indices], grid).to(x.device)
        size = (x.shape[-2], x.shape[-1])
        found = [network(hide(x, hidden_pixels(order, ratio, size), network)) for ratio in HIDDEN]
        return torch.stack([keep(logits.float(), indices).float() for logits in found], dim=1)

    return collected(network, answer, measuring, progress).unflatten(1, (len(HIDDEN), -1))


def hide(x: Tensor, hidden: Tensor, network: Model) -> Tensor:
    """Prepared pictures [B, C, H, W] whose hidden pixels have the mean colour of the normalisation.

    That is 0 where they are normalised. Several networks as one take views (uint8), which each of them
    normalises by itself: these get the colour of the network's input specification.

    Args:
        x: what ``network.prepare`` gives.
        hidden: [B, 1, H, W], booleans.
        network: that is to see them.
    """
    if x.is_floating_point():
        return x.clone().masked_fill_(hidden, 0)  # in place, which keeps the memory format
    colour = torch.tensor(network.spec.mean, device=x.device).mul(255).round().to(x.dtype)
    return torch.where(hidden, colour[:, None, None], x)
