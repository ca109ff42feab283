"""What a student learns from: the pictures, their order, the views of them, the networks in their roles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.console import Console
from kdcli.data.cache import Store
from kdcli.data.order import Order, Pool
from kdcli.data.samples import Data
from kdcli.data.views import TrainingView
from kdcli.engine.assembly import Assembly, assemble
from kdcli.engine.budget import affordable_views, bytes_per_view, fixed_views
from kdcli.errors import UsageError
from kdcli.models.branches import Tail
from kdcli.models.build import build
from kdcli.models.ensemble import Ensemble
from kdcli.models.timm import Network
from kdcli.runs import frame
from kdcli.runs.refusals import (
    refuse_options,
    refuse_pyramid_pooling,
    refuse_to_split,
    refuse_unlike_inputs,
    warn_of_points,
    warn_of_signs,
)
from kdcli.sections import StudentSection
from kdcli.tasks import Task
from kdcli.words import Method
from kdcli.words.analysis import calls_made, is_cacheable, needs_labels, taps_used

_ROWS = 4  # of the dry step


@dataclass
class Material:
    """Everything that training reads.

    Attributes:
        pool: the training pictures of all sources.
        order: which of them each step holds, in which view.
        view: cuts the views.
        method: what is learned from what.
        networks: parties that are known by a name: ``student``, perhaps ``teacher`` and peers.
        assembly: these and what the method builds beside them.
        steps: of training.
        schedule_steps: that the schedules are made for; more where the run is truncated.
        row_bytes: of one cached view.
    """

    pool: Pool
    order: Order
    view: TrainingView
    method: Method
    networks: dict[str, Network]
    assembly: Assembly
    steps: int
    schedule_steps: int
    row_bytes: int

    @property
    def cached(self) -> bool:
        """Whether teacher outputs come from the cache."""
        return self.order.views is not None and self.live_forwards.get("teacher", 0) > 0

    @cached_property
    def live_forwards(self) -> dict[str, int]:
        """Pictures that each network sees in training where nothing is cached, by name."""
        found = dict.fromkeys(self.networks, 0.0)
        for span in self.method.spans(self.schedule_steps, self.steps):
            for turn in span.phase.turns:
                times = calls_made(turn, span.end - span.begin, span.length)
                for call in (call for call in turn.calls if call.party in found):
                    rows = self.assembly.rows.get((turn.name, call.name), 1.0)
                    found[call.party] += times[call.name] * rows
        return {name: round(batches * self.order.batch_size) for name, batches in found.items()}

    @cached_property
    def forwards(self) -> dict[str, int]:
        """Pictures that each network sees in training; the teacher, to fill its cache where there is one."""
        cached = {"teacher": int(self.order.used(self.steps).sum())} if self.cached else {}
        return {**self.live_forwards, **cached}

    @property
    def teacher_forwards(self) -> int:
        """Pictures that the teacher sees: to fill the cache, or live."""
        return self.forwards.get("teacher", 0)

    @property
    def cache_bytes(self) -> int:
        """Size of the teacher cache."""
        return self.teacher_forwards * self.row_bytes if self.cached else 0


def gather(
    config: StudentSection,
    data: Data,
    extra: Sequence[Data],
    task: Task,
    method: Method,
    console: Console,
    networks: dict[str, Network] | None = None,
) -> Material:
    """Build the networks, lay the sources side by side and choose views and steps.

    Args:
        config: all that decides them.
        data: splits and classes.
        extra: unlabelled pictures.
        task: whose classes the networks tell apart.
        method: whose parties they are.
        console: warns.
        networks: by role, where they stand already.

    Raises:
        UsageError: ``--extra`` for an objective without a teacher; options that contradict one another.
        InputError: networks that cannot be built or know other classes.
    """
    optim = config.optim
    row_weight = task.row_weight(data.split("train").labels)
    refuse_options(config, task, method, row_weight is not None)
    taught = "teacher" in {party.name for party in method.parties}
    pool = _pool(data, extra, method)
    parties: Mapping[str, nn.Module] = networks or _parties(config, method, task, data, console)
    networks = {name: party for name, party in parties.items() if isinstance(party, Network)}
    refuse_pyramid_pooling(config, method, networks)
    refuse_unlike_inputs(method, networks)
    largest = max(network.spec.size[0] for network in networks.values())
    view = TrainingView(config.views, config.views.size or largest, config.seed)
    assembly = _assembly(config, method, task, parties, view.size)
    if optim.auto_batch:
        refuse_to_split(optim, method, assembly.parties)
    warn_of_points(method, assembly, console)
    warn_of_signs(method, assembly, console)
    store = Store(config.views.store)
    row_bytes = bytes_per_view(networks["teacher" if taught else "student"].logit_count, store)
    planned = optim.max_steps or math.ceil(optim.epochs * len(pool) / optim.batch_size)
    steps = planned
    if optim.stop_epoch is not None:
        steps = min(planned, math.ceil(optim.stop_epoch * len(pool) / optim.batch_size))
    views = fixed_views(
        config.views.count,
        teacher=taught,
        cacheable=is_cacheable(method) and not (optim.mixup or optim.cutmix),
        epochs=steps * optim.batch_size / len(pool),
        affordable=affordable_views(Path(config.cache), len(pool), row_bytes),
    )
    balanced = config.data.class_balance == "sampler"
    order = Order(
        pool.labels,
        optim.batch_size,
        config.seed,
        views,
        config.data.labelled_fraction,
        balanced,
        extra_ratio=config.data.extra_ratio,
        real=len(pool.parts[0]),
    )
    return Material(pool, order, view, method, networks, assembly, steps, planned, row_bytes)


def _parties(
    config: StudentSection, method: Method, task: Task, data: Data, console: Console
) -> dict[str, nn.Module]:
    """The parties that a name stands for: student, teacher, peers of the student's or of another kind."""
    found: dict[str, nn.Module] = {}
    for party in method.parties:
        if party.build is not None:
            continue
        if party.source == "teacher":
            found[party.name] = _teacher(config, method, task, data, console)
            continue
        update: dict[str, Any] = {"seed": config.seed + party.seed}
        if party.source != "student":
            update |= {"student": party.source, "weights": None}
        network = build_student(config.model_copy(update=update), task)
        found[party.name] = Tail(network, party.tail) if party.tail else network
    return found


def _assembly(
    config: StudentSection, method: Method, task: Task, parties: Mapping[str, nn.Module], side: int
) -> Assembly:
    """The parties, fitted to one another, after one step on a few made-up rows.

    Where only the logits of a network are read, made-up ones stand for them, so that a large teacher is not
    run here.
    """
    rows = min(_ROWS, config.optim.batch_size // config.optim.accumulate)
    draw = torch.Generator().manual_seed(0)
    classes = len(task.classes)
    y = torch.arange(rows) % classes
    batch: dict[str, Tensor] = {
        "x": torch.randint(256, (rows, 3, side, side), generator=draw, dtype=torch.uint8),
        "y": y,
        "target": y,
        "labelled": torch.ones(rows, dtype=torch.bool),
        "row_weight": torch.ones(rows),
        "mask": torch.zeros(rows, side, side, dtype=torch.uint8),
    }
    if task.name == "segmentation":  # its methods read logits only
        return Assembly(dict(parties), {}, {})
    for turn in method.turns:
        for call in turn.calls:
            whole = isinstance(parties.get(call.party), Network) and call.inputs == ("x",)
            if whole and taps_used(turn)[call.name] == ("logits",):
                batch[f"{call.name}.logits"] = torch.randn(rows, classes, generator=draw)
    return assemble(method, parties, batch, config.seed)


def _pool(data: Data, extra: Sequence[Data], method: Method) -> Pool:
    train = data.split("train")
    if needs_labels(method):
        if extra:
            raise UsageError(f"method {method.name} reads the labels of all pictures: it has no --extra.")
        return Pool((train.take(train.labelled()),))
    if any(term.rows != "labelled" for turn in method.turns for term in turn.terms):
        return Pool((train, *(samples for more in extra for samples in more.splits.values())))
    if extra:
        raise UsageError("--extra pictures enter the teacher term only, and this objective has none.")
    return Pool((train.take(train.labelled()),))  # no term would see the others


def build_student(config: StudentSection, task: Task) -> Network:
    """The student before training. Raises InputError if it cannot be built."""
    return build(
        str(config.student),
        classes=list(task.classes),
        task=task.name,
        head=task.head,
        kind=config.head,
        pretrained=not config.from_scratch,
        weights=config.weights,
        size=config.image_size,
        drop_path=config.drop_path,
        seed=config.seed,
    )


def _teacher(config: StudentSection, method: Method, task: Task, data: Data, console: Console) -> Network:
    """The teacher, or several as one, with the classes in the data's order.

    Probabilities are averaged as the terms that read them soften them.
    """
    for name in config.teacher:
        if frame.split_hash(name, "validation") not in ("", data.split("validation").fingerprint):
            console.warn(f"{name} was chosen on other validation samples than this run selects by.")
    classes, order = list(task.classes), config.data.class_order
    teachers = [frame.teacher(name, classes, order, task.name) for name in config.teacher]
    if len(teachers) == 1:
        return teachers[0]
    temperatures = {
        float(term.keywords.get("temperature", 1.0))
        for turn in method.turns
        for term in turn.terms
        if "~t.logits" in term.args
    }
    if len(temperatures) > 1 and config.teacher_mean == "probabilities":
        raise UsageError(
            f"terms soften the teachers by {', '.join(f'{t:g}' for t in sorted(temperatures))}, and "
            "teacher_mean=probabilities averages them at one temperature."
        )
    return Ensemble(teachers, config.teacher_mean, min(temperatures, default=1.0)).eval()
