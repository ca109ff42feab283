"""The moving average of weights: timm's, with its warm-up, so that a short run is not judged by its start."""

from __future__ import annotations

from typing import Any

from torch import nn

_POWER = 2 / 3


def average_of(module: nn.Module, decay: float) -> Any:
    """timm's average of a module's weights and buffers; it is given the number of each update, from 1 on."""
    from timm.utils import ModelEmaV3

    return ModelEmaV3(module, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=_POWER)


def decay_at(decay: float, update: int) -> float:
    """Decay of an update: min(decay, 1 - update^(-2/3)).

    The first one takes the weights as they are, so nothing is left of the start; from then on the average
    spans about update^(2/3) steps, until the decay asked for is reached (0.999 after 31,623 updates).

    Args:
        decay: that was asked for.
        update: its number, from 1 on.
    """
    return min(decay, 1 - update**-_POWER)


def said_of(decay: float, updates: int) -> str:
    """What a plan says of the average after so many updates."""
    last = decay_at(decay, updates)
    if last >= decay:
        return f"weights with decay {decay:g}, warmed up"
    return (
        f"weights with decay {decay:g}, which {updates:,} steps are too few for: warmed up it is {last:.3g} "
        f"in the last step, a mean of about the last {max(1, round(1 / (1 - last))):,} steps"
    )
