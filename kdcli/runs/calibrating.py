"""How a fitted classifier's answers are softened where it teaches: found, said, and put down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcli.console import Console
from kdcli.data.samples import Data
from kdcli.engine.grid import HeadResult
from kdcli.engine.inference import Measuring
from kdcli.engine.job import Outcome
from kdcli.engine.runtime import Runtime
from kdcli.metrics.calibration import Calibration
from kdcli.models.protocol import Model
from kdcli.runs import frame
from kdcli.sections import StudentSection
from kdcli.tasks import Task


def recalibrated(
    network: Model, outcome: Outcome, config: StudentSection, data: Data, task: Task, runtime: Runtime
) -> Calibration | None:
    """The calibration, on validation pictures, of what is written of a finetuned network; None for none.

    It is loaded into the network, and measured on this process alone: the others have no best step.
    """
    network.load_state_dict(outcome.best or outcome.last)
    held = data.split("validation")
    reading = frame.reading(config, config.data)
    measuring = Measuring(held.take(held.labelled()), runtime.alone(), config.optim.batch_size, reading)
    return task.calibration(measuring, network)


def kept(name: str) -> dict[str, Any]:
    """The calibration of a model whose classifier is kept as it is; empty where it has none."""
    return dict(frame.model_facts(name).get("calibration") or {})


def say_winner(console: Console, winner: HeadResult, results: Sequence[HeadResult]) -> None:
    """The head that is taken, and how it stands to the others."""
    metric, value = next(iter(winner.metrics.items()))
    text = f"best of {len(results)} heads: {winner.spec.name}, validation {metric} {value:.4f}"
    top = max(next(iter(result.metrics.values())) for result in results if not result.diverged)
    if value < top:
        text += f" (the likeliest of those within one standard error of the best {metric}, {top:.4f})"
    console.note(text)


def say_calibration(console: Console, found: Calibration | None) -> None:
    """The temperature; a warning from the one on that is called overconfident."""
    if found is None:
        return
    console.note(f"calibrated: {found}")
    if found.overconfident:
        console.warn(
            f"the classifier is overconfident: {found}. Where it teaches, its logits are divided by that; "
            "kdcli eval measures them as they are."
        )
