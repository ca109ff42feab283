"""What a student learns from: the pictures, their order, the views of them, the networks in their roles."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.console import Console, size
from kdcli.data.cache import Store
from kdcli.data.order import Order, Pool
from kdcli.data.other_views import PLAIN
from kdcli.data.samples import Data
from kdcli.data.targets import TargetColumns
from kdcli.data.views import TrainingView
from kdcli.engine.assembly import Assembly
from kdcli.engine.budget import affordable_views, stream_views
from kdcli.engine.cache import Caching
from kdcli.errors import UsageError
from kdcli.models.branches import Tail
from kdcli.models.build import Wanted, build
from kdcli.models.ensemble import Ensemble
from kdcli.models.protocol import Model
from kdcli.runs import frame
from kdcli.runs.caching import caching, only_plain, row_size
from kdcli.runs.captions import captioned
from kdcli.runs.pools import pool_of, share_of, streams_of
from kdcli.runs.refusals import (
    refuse_box_views,
    refuse_lessons,
    refuse_options,
    refuse_pyramid_pooling,
    refuse_to_split,
    refuse_unlike_inputs,
    warn_of_long_queues,
    warn_of_points,
    warn_of_signs,
    warn_of_warmups,
)
from kdcli.runs.rehearsal import rehearsed
from kdcli.sections import MOST_STEPS, OptimSection, StudentSection
from kdcli.tasks import TASKS, Task
from kdcli.words import Method
from kdcli.words.analysis import (
    cacheable_calls,
    calls_made,
    is_cacheable,
)
from kdcli.words.answers import calibrated, mended, shown_whole
from kdcli.words.given import given
from kdcli.words.pacing import paced


@dataclass(frozen=True)
class Lesson:
    """A method, for a task, on some data.

    Attributes:
        config: all that decides how it goes.
        data: splits and classes.
        extra: unlabelled pictures.
        task: whose classes the networks tell apart.
        method: whose parties they are.
    """

    config: StudentSection
    data: Data
    extra: Sequence[Data]
    task: Task
    method: Method


@dataclass
class Material:
    """Everything that training reads.

    Attributes:
        lesson: what it is for.
        pool: the training pictures of all sources.
        order: which of them each step holds, in which view.
        view: cuts the views.
        targets: makes the columns that losses read.
        networks: parties that are known by a name: ``student``, perhaps ``teacher`` and peers.
        assembly: these and what the method builds beside them.
        steps: of training.
        schedule_steps: that the schedules are made for; more where the run is truncated.
        row_bytes: of one cached view.
        caching: what of frozen parties is read from caches.
    """

    lesson: Lesson
    pool: Pool
    order: Order
    view: TrainingView
    targets: TargetColumns
    networks: dict[str, Model]
    assembly: Assembly
    steps: int
    schedule_steps: int
    row_bytes: int
    caching: Caching

    @property
    def method(self) -> Method:
        """What is learned from what."""
        return self.lesson.method

    @property
    def cached(self) -> bool:
        """Whether teacher outputs come from the cache."""
        return any(self.caching.rows(self.method, t) and self.live_forwards.get(t) for t in self.teachers)

    @property
    def teachers(self) -> list[str]:
        """Names of the frozen networks."""
        return [p.name for p in self.method.parties if p.role == "frozen" and p.name in self.networks]

    @cached_property
    def live_forwards(self) -> dict[str, int]:
        """Pictures that each network sees in training where nothing is cached, by name."""
        return self._forwards(())

    def _forwards(self, cached: Collection[str]) -> dict[str, int]:
        """Pictures that each network sees in training, but for the calls that are cached."""
        found = dict.fromkeys(self.networks, 0.0)
        for span in self.method.spans(self.schedule_steps, self.steps):
            for turn in span.phase.turns:
                times = calls_made(turn, span.end - span.begin, span.length)
                for call in (c for c in turn.calls if c.party in found and c.name not in cached):
                    rows = self.assembly.rows.get((turn.name, call.name), 1.0)
                    found[call.party] += times[call.name] * rows
        return {name: round(batches * self.order.batch_size) for name, batches in found.items()}

    @cached_property
    def forwards(self) -> dict[str, int]:
        """Pictures that each network sees in training; frozen ones, to fill caches where there are any."""
        if not self.cached:
            return self.live_forwards
        return {
            name: seen + self.caching.rows(self.method, name)
            for name, seen in self._forwards(self.caching.calls).items()
        }

    @property
    def labelled_part(self) -> float:
        """Of each batch that has labels, where that is fixed; else 0, and all pictures are drawn alike."""
        lesson, order = self.lesson, self.order
        by_labels = lesson.config.data.extra_ratio is None and not len(lesson.data.shots)
        return float(order.share) if by_labels and len(order.streams[0]) < len(order.labels) else 0.0

    @property
    def temperatures(self) -> list[float]:
        """Those that were fitted to the teachers; empty where there is none."""
        own = [value for name in self.teachers for value in self.networks[name].temperatures]
        return [value for value in own if value != 1]

    @property
    def teacher_forwards(self) -> int:
        """Pictures that the teachers see: to fill the cache, or live."""
        return sum(self.forwards.get(name, 0) for name in self.teachers)

    @property
    def cache_bytes(self) -> int:
        """Size of the teacher cache."""
        rows = max((self.caching.rows(self.method, name) for name in self.teachers), default=0)
        return rows * self.row_bytes if self.cached else 0


def gather(lesson: Lesson, console: Console, networks: dict[str, Model] | None = None) -> Material:
    """Build the networks, lay the sources side by side and choose views and steps.

    Args:
        lesson: what they are for.
        console: warns.
        networks: by role, where they stand already.

    Raises:
        UsageError: ``--extra`` for an objective without a teacher; options that contradict one another.
        InputError: networks that cannot be built or know other classes.
    """
    config, method = lesson.config, lesson.method
    optim = config.optim
    refuse_options(config, method)
    refuse_box_views(config.views, lesson.task)
    frame.refuse_cut_groups(optim, config.processes, lesson.task.group)
    taught = "teacher" in {party.name for party in method.parties}
    pool = pool_of(lesson.data, lesson.extra, lesson.method)
    targets = lesson.task.target_columns(pool.labels)
    bank = getattr(lesson.task, "bank", None)
    targets = captioned(targets, pool, config.data.captions, method, bank, Path(config.cache), console)
    parties: Mapping[str, nn.Module] = networks or _parties(lesson, console)
    networks = {name: party for name, party in parties.items() if isinstance(party, Model)}
    if taught:
        method = _lessons(lesson, networks["teacher"].temperature)
    row = TASKS.get(lesson.task.name)
    planned = planned_steps(optim, len(pool))
    method = paced(given(method, () if row is None else row.given), planned)
    warn_of_warmups(method, console)
    lesson = replace(lesson, method=method)
    refuse_pyramid_pooling(config, method, networks)
    refuse_unlike_inputs(method, networks)
    largest = max(network.spec.size[0] for network in networks.values())
    view = TrainingView(config.views, config.views.size or largest, config.seed)
    assembly = rehearsed(lesson, pool.labels, targets, parties, view.size)
    if optim.auto_batch:
        refuse_to_split(optim, method, assembly.parties)
    warn_of_points(method, assembly, console)
    warn_of_signs(method, assembly, console)
    warn_of_long_queues(method, assembly, len(pool), console)
    store = Store(config.views.store)
    features = config.views.count.isdigit()  # asked for by number, caches keep what takes much room too
    row_bytes = row_size(method, networks, assembly, store, features=features)
    steps = planned
    if optim.stop_epoch is not None:
        steps = min(planned, math.ceil(optim.stop_epoch * len(pool) / optim.batch_size))
    affordable = affordable_views(Path(config.cache), len(pool), row_bytes)
    mixes = bool(optim.mixup or optim.cutmix or config.views.iou_crop)  # by other pictures, or by boxes
    share = share_of(method, lesson.task, config, lesson.data, pool)
    views = stream_views(
        config.views.count,
        streams_of(pool, share, steps * optim.batch_size),
        teacher=taught and not only_plain(method, features=features),
        cacheable=is_cacheable(method, features=features) and not mixes,
        affordable=max(affordable - (PLAIN in cacheable_calls(method, features=features).values()), 0),
    )
    balanced = config.data.class_balance == "sampler"
    order = Order(
        pool.labels,
        optim.batch_size,
        config.seed,
        views,
        share,
        balanced,
        per_label=lesson.task.group,
    )
    live = mixes or config.views.count == "live" or (config.views.count == "auto" and not affordable)
    cached = Caching() if live else caching(method, order, view, steps, features=features)
    if features and cached.calls and isinstance(views, int) and views > affordable:
        needed = size(views * len(pool) * row_bytes)
        console.warn(
            f"{views} views of all pictures take {needed}, more than 80 % of what is free for "
            f"--cache {config.cache}, unless they are there already: fewer --views, or --views live."
        )
    return Material(lesson, pool, order, view, targets, networks, assembly, steps, planned, row_bytes, cached)


def _lessons(lesson: Lesson, temperature: float) -> Method:
    """The method with what its teacher is shown, and what is taught of the answers.

    Raises:
        UsageError: options that the method, or the task, cannot heed.
    """
    config, method = lesson.config, lesson.method
    refuse_lessons(config, method, lesson.task)
    if config.teacher_view == "plain":
        method = shown_whole(method, "teacher")
    if config.teacher_temperature == "fit":
        method = calibrated(method, "teacher", temperature)
    return mended(method, "teacher", config.teacher_errors)


def planned_steps(optim: OptimSection, pictures: int) -> int:
    """Steps of a training. Raises UsageError for more than any has."""
    planned = optim.max_steps or math.ceil(optim.epochs * pictures / optim.batch_size)
    if planned > MOST_STEPS:
        raise UsageError(
            f"optim.epochs={optim.epochs:g} takes {planned:,} steps, more than {MOST_STEPS:,}: lower it, "
            "or raise optim.batch_size."
        )
    return planned


def _parties(lesson: Lesson, console: Console) -> dict[str, nn.Module]:
    """The parties that a name stands for: student, teacher, peers of the student's or of another kind."""
    found: dict[str, nn.Module] = {}
    config = lesson.config
    for party in lesson.method.parties:
        if party.build is not None:
            continue
        if party.source == "teacher":
            found[party.name] = _teacher(lesson, console)
            continue
        if party.source.startswith("teacher:"):
            name = config.teacher[int(party.source.removeprefix("teacher:")) - 1]
            found[party.name] = frame.teacher(name, lesson.task, config.data.class_order)
            continue
        update: dict[str, Any] = {"seed": config.seed + party.seed}
        if party.source != "student":
            update |= {"student": party.source, "weights": None}
        network = build_student(config.model_copy(update=update), lesson.task)
        if party.prepare is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed + party.seed)
                party.prepare(network)
        found[party.name] = Tail(network, party.tail) if party.tail else network
    return found


def build_student(config: StudentSection, task: Task) -> Model:
    """The student before training. Raises InputError if it cannot be built."""
    wanted = Wanted(**task.wanted(config.head), order=config.data.class_order)
    return build(
        str(config.student),
        wanted,
        pretrained=not config.from_scratch,
        weights=config.weights,
        size=config.image_size,
        drop_path=config.drop_path,
        seed=config.seed,
    )


def _teacher(lesson: Lesson, console: Console) -> Model:
    """The teacher, or several as one, with the classes in the data's order.

    Probabilities are averaged as the terms that read them soften them.
    """
    config, task = lesson.config, lesson.task
    for name in config.teacher if task.selection else ():
        frame.warn_of_other_validation(name, lesson.data, console)
    teachers = [frame.teacher(name, task, config.data.class_order) for name in config.teacher]
    if len(teachers) == 1:
        return teachers[0]
    temperatures = {
        float(term.keywords.get("temperature", 1.0))
        for turn in lesson.method.turns
        for term in turn.terms
        if "~t.logits" in term.args
    }
    if TASKS[task.name].provides.isdisjoint(("picture", "pixel")):
        raise UsageError(
            f"{len(teachers)} teachers have no mean for {task.name}: each answers about objects of its own. "
            "Give one --teacher."
        )
    if config.teacher_mean == "probabilities" and "class" not in TASKS[task.name].provides:
        raise UsageError(
            "teacher_mean=probabilities averages those of one class a picture, and these data are for "
            f"{task.name}."
        )
    if len(temperatures) > 1 and config.teacher_mean == "probabilities":
        raise UsageError(
            f"terms soften the teachers by {', '.join(f'{t:g}' for t in sorted(temperatures))}, and "
            "teacher_mean=probabilities averages them at one temperature."
        )
    own = [t.temperature if config.teacher_temperature == "fit" else 1.0 for t in teachers]
    return Ensemble(teachers, config.teacher_mean, min(temperatures, default=1.0), own).eval()
