"""What the loop is given and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdcli.data.batches import Loader
from kdcli.data.order import Order
from kdcli.engine import state
from kdcli.sections import OptimSection
from kdcli.words import Method


@dataclass
class Job:
    """Everything the loop needs, and nothing it has to look up.

    Attributes:
        method: as pruned by the plan.
        parties: its networks by name, on the device.
        order: which samples each step holds.
        loader: makes batches of keys.
        optim: optimiser, schedule, batch.
        steps: in all.
        schedule_steps: that the schedules are made for; more where a run is truncated.
        classes: number of classes, for mixed targets.
        evaluate: metrics of the exported network, or None without a validation split.
        selection: the metric that chooses the best step.
        evaluate_every: steps between evaluations.
        row_weight: [C] factors of the supervised loss per class, or None.
        save_steps: commit state every so many steps; None to go by time.
        save_minutes: commit state so often.
        log_every: steps between rows of the log.
        track: receives each log row.
        seed: of everything random.
    """

    method: Method
    parties: dict[str, nn.Module]
    order: Order
    loader: Loader
    optim: OptimSection
    steps: int
    schedule_steps: int
    classes: int
    seed: int
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    selection: str = ""
    evaluate_every: float = math.inf
    row_weight: Tensor | None = None
    save_steps: int | None = None
    save_minutes: float = 5.0
    log_every: int = 10
    track: Callable[[dict[str, Any]], None] | None = None


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
        return f"best on validation, step {best['step']} of {steps}" if best else f"last step ({steps})"
