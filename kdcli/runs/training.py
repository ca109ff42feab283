"""From material to the loop's job: loader, teacher's cache, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.data.cache import Store
from kdcli.data.samples import Data
from kdcli.engine.cache import Filling, fill_calls
from kdcli.engine.job import Job
from kdcli.engine.runtime import Runtime
from kdcli.models.timm import Network
from kdcli.runs import assess, frame
from kdcli.runs.material import Material
from kdcli.sections import StudentSection
from kdcli.tasks import Task
from kdcli.words import Method


def training_job(
    config: StudentSection,
    material: Material,
    method: Method,
    parties: Mapping[str, nn.Module],
    task: Task,
    data: Data,
    runtime: Runtime,
    console: Console,
    stop: Any,
) -> Job:
    """Everything the loop needs; fills the teacher's cache where the material says so.

    Args:
        config: optimiser, cadence, loaders.
        material: pictures, order, views.
        method: what is learned from what.
        parties: the material's, on the device.
        task: of the supervised term and of the evaluation.
        data: its validation split selects the best step.
        runtime: device and processes.
        console: shows progress.
        stop: set when a signal asks to stop.

    Raises:
        Preempted: a signal came while the cache was filled.
    """
    pool, classes = material.pool, len(task.classes)
    if runtime.world_size > 1 and runtime.device.type == "cuda":
        for party in parties.values():
            if isinstance(party, Network):
                party.synchronise()
    reading = frame.reading(config, config.data)
    columns = None
    if material.cached:
        columns = fill_calls(
            Path(config.cache),
            method,
            parties,
            pool,
            material.view,
            material.order.used(material.steps),
            Store(config.views.store),
            Filling(runtime, console, config.optim.batch_size, stop=stop, **reading),
        )
    return Job(
        method=method,
        parties=dict(parties),
        order=material.order,
        loader=training_loader(
            pool, material.view, columns=columns, pin=runtime.device.type == "cuda", **reading
        ),
        optim=config.optim,
        steps=material.steps,
        schedule_steps=material.schedule_steps,
        classes=classes,
        seed=config.seed,
        evaluate=_evaluation(config, task, data, runtime, reading),
        selection=task.selection,
        evaluate_every=config.evaluate_steps or config.evaluate_every * material.order.steps_per_epoch,
        row_weight=task.row_weight(pool.labels),
        save_steps=config.save_steps,
        save_minutes=config.save_minutes,
        log_every=config.log_every,
    )


def _evaluation(
    config: StudentSection, task: Task, data: Data, runtime: Runtime, reading: dict[str, Any]
) -> Callable[[Any], dict[str, float]]:
    validation = data.split("validation")
    validation = validation.take(validation.labelled())
    batch = max(1, config.optim.batch_size // runtime.world_size)
    return partial(assess.metrics, assess.Setting(task, validation, runtime, batch, reading))
