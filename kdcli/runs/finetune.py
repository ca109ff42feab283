"""Train backbone and head of a probed teacher together: the finetuned teacher beside the probed one.

Marrie et al. 2024 (arXiv 2402.11305) compare the two as teachers. The head starts where probing left it
(linear probing, then finetuning: Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from typing import Any

from kdcli.artifacts.store import Output
from kdcli.console import Console
from kdcli.data.samples import Data
from kdcli.engine.job import Outcome
from kdcli.engine.loop import train
from kdcli.engine.runtime import Runtime
from kdcli.methods.supervised import supervised
from kdcli.models.timm import Network
from kdcli.runs.material import Lesson, gather
from kdcli.runs.training import training_job
from kdcli.sections import StudentSection
from kdcli.tasks import task_of


def finetune(
    network: Network,
    config: StudentSection,
    data: Data,
    output: Output,
    runtime: Runtime,
    console: Console,
    stop: Any,
) -> Outcome:
    """Train all of ``network``, which has its head, on the labels of ``data``; the best step is kept too.

    Raises:
        Diverged, Preempted: the last good state is kept, the same command continues from it.
    """
    task = task_of(data, config.data, config.optim, config.views)
    method = supervised(task)
    networks = {"student": network.requires_grad_(True)}
    material = gather(Lesson(config, data, (), task, method), console, networks)
    job = training_job(material, networks, runtime, console, stop)
    return train(job, output, runtime, console, stop)
