"""What a plan says of how gradients are clipped and weights averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcli.console import Console
from kdcli.sections import OptimSection

if TYPE_CHECKING:
    from kdcli.words import Method


def limits(optim: OptimSection, method: Method) -> dict[str, float | None]:
    """Largest norm of the gradient of each network, by turn; None where nothing is clipped."""
    return {turn.name: turn.optim.get("clip_grad", optim.clip_grad) for turn in method.turns}


def describe(console: Console, optim: OptimSection, method: Method, steps: int) -> None:
    """A line about each, where it is done."""
    from kdcli.engine.average import said_of

    found = limits(optim, method)
    if set(found.values()) == {optim.clip_grad} and optim.clip_grad:
        console.note(f"clips    each network's gradient at a norm of {optim.clip_grad:g} (optim.clip_grad)")
    elif own := [f"{limit:g} in turn {turn}" for turn, limit in found.items() if limit]:
        console.note(f"clips    each network's gradient at a norm of {', '.join(own)}")
    if optim.ema:
        console.note(f"averages {said_of(optim.ema, steps)} (optim.ema)")
