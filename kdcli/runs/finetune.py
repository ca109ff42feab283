"""Train backbone and head of a probed teacher together: the finetuned teacher beside the probed one.

Marrie et al. 2024 (arXiv 2402.11305) compare the two as teachers. The head starts where probing left it
(linear probing, then finetuning: Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdcli.artifacts.store import Output
from kdcli.console import Console
from kdcli.data.samples import Data
from kdcli.engine.job import Outcome
from kdcli.engine.loop import train
from kdcli.engine.norms import lone_values, named_in
from kdcli.engine.optim import refuse_settings
from kdcli.engine.runtime import Runtime, Stop
from kdcli.methods.supervised import supervised
from kdcli.models.protocol import Model
from kdcli.runs.material import Lesson, gather
from kdcli.runs.refusals import refuse_lone_values, rows_of_a_norm
from kdcli.runs.training import training_job
from kdcli.sections import StudentSection
from kdcli.tasks import task_of


def refuse_finetuning(network: Model, config: StudentSection) -> None:
    """Say before the heads are fitted what would stop the finetuning after them.

    Raises:
        UsageError: settings that the optimiser does not take; batches of one picture for batch norms.
    """
    refuse_settings(config.optim, "--finetune")
    if rows_of_a_norm(config, config.optim) == 1:
        side = config.views.size or network.spec.size[0]
        picture = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        with torch.no_grad(), lone_values() as found:
            network.eval().call([picture], ("pooled",))
        refuse_lone_values(named_in(found, {"teacher": network}))


@dataclass(frozen=True)
class Tuning:
    """How a network with its head is trained.

    Attributes:
        config: as of a student.
        whole: whether the backbone learns too; else it stays as it is, batch norms included.
        fitted: whether its head was fitted before, so that the network as it came may be the best.
    """

    config: StudentSection
    whole: bool = True
    fitted: bool = True


def finetune(
    network: Model,
    tuning: Tuning,
    data: Data,
    output: Output,
    runtime: Runtime,
    console: Console,
    stop: Stop | None,
) -> Outcome:
    """Train ``network``, which has its head, on the labels of ``data``.

    The best step is kept; the network as it came is one of those that are compared, if its head was fitted.

    Raises:
        Diverged, Preempted: the last good state is kept, the same command continues from it.
    """
    config = tuning.config
    task = task_of(data, config.data, config.optim, config.views)
    method = supervised(task)
    networks = {"student": network.requires_grad_(True)}
    if not tuning.whole:
        network.freeze_body()
    material = gather(Lesson(config, data, (), task, method), console, networks)
    job = training_job(material, networks, runtime, console, stop)
    job.judges_start = tuning.fitted
    outcome = train(job, output, runtime, console, stop)
    if outcome.progress.best and outcome.progress.best["step"] == 0:
        console.warn(
            f"--finetune: no step was better on validation than the fitted head ({task.selection} "
            f"{outcome.progress.best['value']:.4f}), which is written as it was."
        )
    return outcome
