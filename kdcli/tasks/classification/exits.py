"""What an evaluation says of a network's exits: each of them, all together, and early exit.

The threshold of early exit is chosen on validation, and never on pictures that are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kdcli.artifacts import model as artifacts
from kdcli.data.samples import Samples
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.engine.runtime import Runtime
from kdcli.errors import InputError
from kdcli.metrics.efficiency import flops, latency
from kdcli.metrics.exits import choose, early_exit_curve, exit_metrics
from kdcli.models.exits import ExitHead, WithExits, load_exits
from kdcli.models.protocol import Model
from kdcli.tasks.matching import permutation


@dataclass(frozen=True)
class Exits:
    """A model's exits, and how they are measured.

    Attributes:
        heads: by name, the shallowest first.
        validation: pictures to choose the threshold on, or None.
        slack: accuracy that early exit may lose there, as a fraction.
        repeats: timed forwards; 0 for no latency.
    """

    heads: dict[str, ExitHead]
    validation: Samples | None
    slack: float
    repeats: int


def load(name: str, classes: list[str], order: Literal["names", "same"]) -> dict[str, ExitHead]:
    """The exits of a model, their logits in the order of ``classes``; empty where it has none.

    Raises:
        InputError: damaged files, or exits of other classes.
    """
    heads = load_exits(name)
    if not heads:
        return {}
    known = artifacts.read(name).classes
    places = permutation(classes, known, order, name)
    for own, head in heads.items():
        if head.classes != len(classes):
            raise InputError(f"{name}: its exit {own} knows {head.classes} classes of {len(classes)}.")
        head.reorder(places)
    return heads


def outputs(
    network: Model, exits: Exits, measuring: Measuring, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Logits [N, E, C] of a split: of the exits, the shallowest first, and of the network."""
    both = WithExits(network, exits.heads).to(measuring.runtime.device)
    found = inference.outputs(both, measuring, progress)
    return found.unflatten(1, (len(exits.heads) + 1, -1))


def measure(network: Model, exits: Exits, logits: Tensor, measuring: Measuring) -> dict[str, Any]:
    """The part ``exits`` of a model's report (see :mod:`kdcli.tasks.classification.report`).

    Args:
        network: on the device.
        exits: of it.
        logits: of the measured pictures, [N, E, C].
        measuring: these pictures, and how others are read.
    """
    targets = torch.from_numpy(measuring.samples.labels)
    figures, together = exit_metrics(logits, targets)
    names = [*exits.heads, "network"]
    taps = [*(head.tap for head in exits.heads.values()), ""]
    costs, times = _costs(network, exits, measuring.runtime)
    rows: list[dict[str, Any]] = [
        {"name": name, "tap": tap, **own, "flops": cost}
        for name, tap, own, cost in zip(names, taps, figures, costs)
    ]
    for row, time in zip(rows, times):
        row["latency_ms"] = time
    curve = early_exit_curve(logits, targets, costs)
    found: dict[str, Any] = {"exits": rows, "ensemble": together, "curve": curve}
    if exits.validation is not None:
        seen = outputs(network, exits, replace(measuring, samples=exits.validation))
        tuned = early_exit_curve(seen, torch.from_numpy(exits.validation.labels), costs)
        best = choose(tuned, exits.slack)
        early = dict(curve[tuned.index(best)])
        if times:
            early["latency_ms"] = sum(p * t["median"] for p, t in zip(early["exits"], times))
        early["validation"] = {
            "samples": len(exits.validation),
            "top1": best["top1"],
            "last": tuned[-1]["top1"],
            "slack": exits.slack,
        }
        found["early"] = early
    return found


def _costs(network: Model, exits: Exits, runtime: Runtime) -> tuple[list[int], list[dict[str, float]]]:
    """FLOPs and latency (where asked for) of the way to each exit, the exits before it included."""
    shape = (1, 3, *network.spec.size)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    ways = [WithExits(network, exits.heads, n + 1).to(runtime.device) for n in range(len(exits.heads) + 1)]
    with runtime.accelerator.autocast():
        costs = [flops(way, example) for way in ways]
        times = [latency(way, example, exits.repeats, 5) for way in ways] if exits.repeats else []
    return costs, times
