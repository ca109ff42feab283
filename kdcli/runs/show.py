"""What a plan shows before anything runs: networks, splits and objective, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdcli.console import Console

if TYPE_CHECKING:
    from torch import nn

    from kdcli.data.samples import Data
    from kdcli.models.timm import Network
    from kdcli.words import Method


def splits(data: Data) -> str:
    """The splits with their sizes, and how many of them are labelled where not all are."""
    shown = []
    for name, samples in data.splits.items():
        labels = int(samples.labelled().sum())
        shown.append(
            f"{name} {len(samples):,}" + ("" if labels == len(samples) else f" ({labels:,} labelled)")
        )
    return ", ".join(shown)


def network(console: Console, role: str, net: Network) -> None:
    """One line about a network."""
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    console.note(
        f"{role:8} {net.name}: {millions:.2f} M parameters, {net.trained} weights, {net.spec.size[0]} px"
    )
    notes(console, net)


def notes(console: Console, net: Network) -> None:
    """What was decided about a network while it was built, a line each."""
    for note in net.notes:
        console.note(f"         {note}")


def built(console: Console, parties: Mapping[str, nn.Module], networks: Mapping[str, Network]) -> None:
    """One line about what a method brings beside the networks."""
    brought = [f"{n} ({k:,})" for n, k in parameters(parties).items() if n not in networks]
    if brought:
        console.note(f"brings   {', '.join(brought)} parameters")


def parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Number of parameters of each network."""
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}


def objective(method: Method, shapes: Mapping[str, tuple[int, ...]], accumulate: int) -> list[dict[str, str]]:
    """Terms of a method as rows of a table.

    Args:
        method: whose.
        shapes: of one row of each tap, as far as they are known.
        accumulate: micro-batches of a step.
    """
    related = "the whole batch" if accumulate == 1 else f"each of {accumulate} micro-batches"
    return [
        {
            "turn": turn.name if phase.name == "train" else f"{phase.name} ({phase.share:.0%}): {turn.name}",
            "term": term.name,
            "loss": term.loss.__name__,
            "taps": ", ".join(_tap(reference, shapes) for reference in term.args),
            "rows": term.rows or "all",
            "weight": str(term.weight) if callable(term.weight) else f"{term.weight:g}",
            "with": ", ".join(f"{k}={v}" for k, v in term.keywords.items()),
            "sees": "each row" if term.scope == "sample" else related,
        }
        for phase in method.phases
        for turn in phase.turns
        for term in turn.terms
    ]


def _tap(reference: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A tap with its shape, ``s.stage3 [256, 4, 4]``."""
    shape = shapes.get(reference.removeprefix("~"))
    return f"{reference} {list(shape)}" if shape else reference
