"""What the loop is given and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdcli.engine import state
from kdcli.engine.feed import Batches
from kdcli.engine.observe import Watch
from kdcli.engine.states import States
from kdcli.sections import OptimSection
from kdcli.words import Method


@dataclass
class Job:
    """Everything the loop needs, and nothing it has to look up.

    Attributes:
        method: as pruned by the plan.
        parties: its networks by name, on the device.
        batches: what each step learns from.
        optim: optimiser, schedule, batch.
        steps: in all.
        schedule_steps: that the schedules are made for; more where a run is truncated.
        evaluate: metrics of the exported network, or None without a validation split.
        selection: the metric that chooses the best step; empty to take the last one.
        judges_start: whether the network as it is before the first step may be the best.
        evaluate_every: steps between evaluations.
        rate: learning rate of step k of a phase of n, in place of the section's schedule.
        looks: whether every step waits for its loss, so that the state before a bad one can be kept; else
            only steps that are logged do.
        save_steps: commit state every so many steps; None to go by time.
        save_minutes: commit state so often.
        save_ends: whether the state at the end of a phase is committed.
        log_every: steps between rows of the log.
        track: receives each log row.
        states: first tensors of what derives and edits update, by state and name.
        watch: what is observed beside the terms; needs ``looks``.
        ends: asked after every evaluation of a step, with its number and the best value so far: why the
            training ends there, empty to go on. The same values have to get the same answer.
        seed: of everything random.
        label: of the progress that is shown; empty for none.
        remedy: what a message advises where the loss is no number.
    """

    method: Method
    parties: dict[str, nn.Module]
    batches: Batches
    optim: OptimSection
    steps: int
    schedule_steps: int
    seed: int
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    selection: str = ""
    judges_start: bool = False
    evaluate_every: float = math.inf
    rate: Callable[[int, int], float] | None = None
    looks: bool = True
    save_steps: int | None = None
    save_minutes: float = 5.0
    save_ends: bool = True
    log_every: int = 10
    track: Callable[[dict[str, Any]], None] | None = None
    states: States = field(default_factory=dict)
    watch: Watch | None = None
    ends: Callable[[int, float], str] | None = None
    label: str = "train"
    remedy: str = (
        "Lower --lr, raise optim.warmup or clip with optim.clip_grad, and start anew with --overwrite."
    )


@dataclass
class Outcome:
    """What training left: the exported network's weights at the last and (on the first process) best step,

    and those of the parties that are written beside it, at the best step or else the last.
    """

    progress: state.Progress
    last: dict[str, Tensor]
    best: dict[str, Tensor] | None
    beside: dict[str, dict[str, Tensor]]
    rate: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Those on validation of the best step, or of the last where there is no best."""
        chosen = self.progress.best["metrics"] if self.progress.best else self.progress.last
        return {f"validation/{name}": value for name, value in chosen.items()}

    @property
    def selection(self) -> str:
        """How those weights were chosen."""
        best, steps = self.progress.best, self.progress.step
        if best is None:
            return f"last step ({steps})"
        start = "" if best["step"] else ", as it was before"
        return f"best on validation, step {best['step']} of {steps}{start}"

    @property
    def clipping(self) -> dict[str, dict[str, Any]]:
        """How many steps of each network were clipped, and at what norms; empty where nothing is."""
        return {name: clipped.facts() for name, clipped in self.progress.clipping.items()}


def outcome_of(
    method: Method, progress: state.Progress, result: nn.ModuleDict, best: Mapping[str, Tensor] | None
) -> Outcome:
    """What a training has left.

    Args:
        method: says which parties are written.
        progress: at the end.
        result: those parties as they are now.
        best: their tensors at the best step, by ``party.name``; None where there is none, or it is not read.
    """
    last = {name: state.clone_to_cpu(party) for name, party in result.items()}
    chosen = {name: {key: best[f"{name}.{key}"] for key in last[name]} for name in last} if best else {}
    beside = {name: (chosen or last)[name] for name in method.beside}
    rate = progress.step / max(progress.seconds, 1e-9)
    return Outcome(progress, last[method.export], chosen.get(method.export), beside, rate=rate)
