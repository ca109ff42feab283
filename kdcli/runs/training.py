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
from kdcli.data.other_views import other_views
from kdcli.engine.cache import Filling, fill_calls
from kdcli.engine.feed import Loaded
from kdcli.engine.inference import Measuring
from kdcli.engine.job import Job
from kdcli.engine.micro import MicroBatches
from kdcli.engine.runtime import Runtime, Stop
from kdcli.models.protocol import Model
from kdcli.runs import frame
from kdcli.runs.material import Lesson, Material
from kdcli.runs.teaching import Lessons
from kdcli.words.analysis import views_used


def training_job(
    material: Material,
    parties: Mapping[str, nn.Module],
    runtime: Runtime,
    console: Console,
    stop: Stop | None,
    *,
    owner: str = "",
    ends: Callable[[int, float], str] | None = None,
) -> Job:
    """Everything the loop needs; fills the teacher's cache where the material says so.

    Args:
        material: pictures, order, views, and the lesson.
        parties: the material's, on the device.
        runtime: device and processes.
        console: shows progress.
        stop: set when a signal asks to stop.
        owner: of the run, by which caches know what it put there.
        ends: see :class:`kdcli.engine.job.Job`.

    Raises:
        Preempted: a signal came while the cache was filled.
    """
    config, lessons = material.lesson.config, Lessons.of(material)
    if runtime.world_size > 1 and runtime.device.type == "cuda":
        for party in parties.values():
            if isinstance(party, Model):
                party.synchronise()
    reading = frame.reading(config, config.data)
    filling = Filling(runtime, console, config.optim.batch_size, stop=stop, owner=owner, **reading)
    return Job(
        method=material.method,
        parties=dict(parties),
        batches=_batches(material, parties, filling),
        optim=config.optim,
        steps=material.steps,
        schedule_steps=material.schedule_steps,
        seed=config.seed,
        evaluate=_evaluation(material.lesson, runtime, reading),
        selection=material.lesson.task.selection,
        evaluate_every=config.evaluate_steps or config.evaluate_every * material.order.steps_per_epoch,
        save_steps=config.save_steps,
        save_minutes=config.save_minutes,
        log_every=config.log_every,
        states=material.assembly.states,
        watch=None if lessons is None else lessons.watch(console),
        ends=ends,
    )


def _batches(material: Material, parties: Mapping[str, nn.Module], filling: Filling) -> Loaded:
    """What a training learns from: views, and the teacher's answers to them where these are cached."""
    config, pool, method = material.lesson.config, material.pool, material.method
    columns, answered = None, material.caching.calls if material.cached else ()
    if material.cached:
        store = Store(config.views.store)
        columns = fill_calls(Path(config.cache), method, parties, pool, material.caching, store, filling)
    loader = training_loader(
        pool,
        material.view,
        columns=columns,
        pin=filling.runtime.device.type == "cuda",
        others=other_views(material.view, views_used(method, answered)),
        **frame.reading(config, config.data),
    )
    micro = MicroBatches(material.order, config.optim, material.targets, config.seed)
    return Loaded(material.order, loader, micro)


def _evaluation(
    lesson: Lesson, runtime: Runtime, reading: dict[str, Any]
) -> Callable[[Any], dict[str, float]] | None:
    """Measures a network on the validation split, which selects the best step; None without such pictures."""
    if "validation" not in lesson.data.splits:
        return None
    validation, train = (lesson.data.split(name) for name in ("validation", "train"))
    validation, train = validation.take(validation.labelled()), train.take(train.labelled())
    if not len(validation) or not len(train):
        return None
    batch = max(1, lesson.config.optim.batch_size // runtime.world_size)
    return partial(lesson.task.metrics, Measuring(validation, runtime, batch, reading, train))
