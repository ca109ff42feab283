"""Tasks: what is learned. A task owns targets, head, terms, predictions and metrics.

The table imports without torch, and so do the readers that it names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from kdcli.errors import UsageError, nearest
from kdcli.tasks.matching import beyond
from kdcli.tasks.table import TASKS, Entry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kdcli.console import Console
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Data
    from kdcli.data.tables import Kept
    from kdcli.data.targets import Reader, TargetColumns
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.metrics.calibration import Calibration
    from kdcli.models.protocol import Model
    from kdcli.report.figures import Figure
    from kdcli.report.panels import Panel
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks.judging import Judge
    from kdcli.tasks.settings import EvalOptions, Measured, ProbeOptions, Probing, Validation
    from kdcli.words import Term


class Task(Protocol):
    """What methods and stages ask of a task.

    A new one is a folder ``kdcli/tasks/NAME/`` and a row of :data:`kdcli.tasks.table.TASKS`; nothing else
    names it. It provides:

    1. In ``target.py``, which imports without torch, a :class:`kdcli.data.targets.Reader`: which tables it
       claims, which columns it reads, the targets of a split, the names of the classes and what contradicts
       them, and what training cannot use.
    2. There too the kind of its :class:`kdcli.data.targets.Targets`, where more is known of a picture than a
       class number: the stratum by which splits are carved and batches balanced (``labels``), what enters
       the fingerprint (``hashes``), what is cut with the picture (``read``) and what becomes a column of a
       batch (``columns``); how it is subset (``take``) and what it is of unlabelled pictures (``blank``).
    3. Its :class:`kdcli.data.targets.TargetColumns`: what losses read of these columns, which rows have a
       target (``labelled``), and the targets of mixed pictures, or why pictures are not mixed.
    4. In ``figures.py``, which imports without torch too, the figures of its metrics: their names in gates,
       columns, explanations, and the one that plots of quality against cost have for an axis.
    5. In ``evaluate.py`` and ``report.py`` its :class:`Evaluation`, and what ``metrics`` measures for
       selection; in ``probe.py`` the heads that a probe tries: a task with one row of logits a picture has
       :mod:`kdcli.tasks.linear` fit them by an :class:`kdcli.engine.grid.Objective`.
    6. In ``__init__.py``, which imports without torch too, this protocol, frozen, with a class method ``of``
       that takes what :func:`task_of` is given and refuses the options that the task has not: the network
       that it wants (a head of :mod:`kdcli.models.heads`, or timm's own), the terms over its logits and
       columns, made-up columns for the dry step of a plan.
    """

    @property
    def name(self) -> str:
        """A key of ``TASKS``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""

    @property
    def selection(self) -> str:
        """The metric that model selection goes by; empty where the last step is taken."""

    @property
    def group(self) -> int:
        """Pictures of one label that stand together in a batch; 1 for none."""

    @property
    def leaves_unused(self) -> bool:
        """Whether its fresh head leaves what the network's own would read without a gradient."""

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """Keywords of :func:`kdcli.models.build.build` for a network of this task.

        Args:
            kind: of its head, or None for any.

        Raises:
            UsageError: no such head.
        """

    def supervised(self, call: str) -> tuple[Term, ...]:
        """The terms that learn from labels, over what ``call`` gives; of one class a picture a single one."""

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """The term that learns from the logits of the call ``teacher``, over those of ``student``."""

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """What makes the columns that losses read, of batches of pictures with these labels [N]."""

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """Columns of a made-up batch beside ``x``: ``y`` and what targets add to views of ``side``.

        Of ``rows`` labelled pictures, or fewer where they are large.
        """

    # -- fitting and measuring
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Bring a network's logits into the order of this task's classes.

        Raises:
            InputError: it knows others, or none; ``who`` is how the message calls it.
        """

    def features(self, network: Model) -> list[str]:
        """Names of what the heads of a probe can read of a backbone."""

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """The heads that a probe tries on some features.

        Raises:
            UsageError: an option of ``probe`` that this task has not.
            InputError: classes that no head can learn.
        """

    def fit(self, probing: Probing) -> list[HeadResult]:
        """Results of these heads, in their order, the same on every process.

        Raises:
            Diverged: all of them did.
            Preempted: a signal came; what is in the cache stays.
        """

    def attach(self, network: Model, result: HeadResult) -> None:
        """Make a fitted head the network's own."""

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Figures of one network, ``selection`` among them."""

    def judge(self) -> Judge | None:
        """What is measured of a teacher's answers while it teaches; None for nothing."""

    def calibration(self, measuring: Measuring, network: Model) -> Calibration | None:
        """How a network's answers are softened to be likely, fitted on these pictures; None for not at all.

        The head that :meth:`fit` ranks first has its own.
        """

    def wants_validation(self, models: Sequence[str]) -> bool:
        """Whether an evaluation of models (paths or names) needs labelled pictures that it does not measure.

        To choose something on validation pictures, or to compare with those of the split ``Entry.beside``.
        """

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """What is going to be measured of models.

        Args:
            options: of ``eval``.
            models: paths or names, by the name that the report gives each.
            validation: pictures to choose by, where :meth:`wants_validation` says so.

        Raises:
            UsageError: an option that this task does not heed.
            InputError: a model that cannot be measured.
        """


class Evaluation(Protocol):
    """What a task measures of networks for a report, and how the page shows it."""

    def describe(self) -> list[str]:
        """Lines of the plan, beside those that every evaluation has."""

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it.

        Args:
            measuring: on what.
            networks: by the name that the report gives each.
            teacher: that they are compared with; it may be one of them, the same object.
            console: shows progress.
        """

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The task's panels of the finished report, and of what else was kept for them."""


def entry(name: str) -> Entry:
    """Row of the table. Raises UsageError with the nearest name."""
    if name not in TASKS:
        known = ", ".join(f"{key} ({found.help})" for key, found in TASKS.items())
        raise UsageError(f"data.task: no task '{name}'.{nearest(name, ('auto', *TASKS))} Tasks: {known}.")
    return TASKS[name]


def providing(what: str) -> str:
    """Name of the first task that provides something: ``features`` or ``text``, which a single one does."""
    return next(name for name, row in TASKS.items() if what in row.provides)


def of_features() -> str:
    """Name of the task whose networks answer nothing: backbones, learned of pictures alone."""
    return providing("features")


def task_of(
    data: Data, section: DataSection, optim: OptimSection | None = None, views: ViewSection | None = None
) -> Task:
    """The task of some data.

    Args:
        data: opened; names the task.
        section: how it was opened.
        optim: of a training.
        views: of a training.

    Raises:
        UsageError: an option that this task has not.
    """
    return cast(Task, _loaded(entry(data.task).target).of(data, section, optim, views))


def open_task_data(config: DataSection, *splits: str, kept: Kept | None = None) -> Data:
    """Open splits of a source with the labels of the task that ``data.task`` names, or that claims them.

    Raises:
        UsageError: no such task, or an option of another.
        InputError: what :func:`kdcli.data.sources.open_data` raises.
    """
    from kdcli.data.sources import open_data

    if config.task != "auto":
        entry(config.task)
    return open_data(config, _reader, need=splits, kept=kept)


def _reader(raw: Raw, config: DataSection) -> Reader:
    """The reader of a source."""
    name = config.task
    if name == "auto":
        table = next(iter(raw.tables.values()))
        name = next(key for key, one in TASKS.items() if _loaded(one.reader).claims(table, config))
    own = TASKS[name]
    fields = type(config).model_fields
    for option in dict.fromkeys(option for row in TASKS.values() for option in row.options):
        if getattr(config, option) != fields[option].default and option not in own.options:
            able = " or ".join(key for key, row in TASKS.items() if option in row.options)
            raise UsageError(f"data.{option} is for {able}, and {config.source} is opened for {name}.")
    return cast("Reader", _loaded(own.reader)(raw, config))


def _loaded(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def task_named(name: str, classes: Sequence[str]) -> Task:
    """A task without data: what a network does, with the classes that it knows."""
    return cast(Task, _loaded(TASKS[name].target)(tuple(classes)))


def covering(
    task: Task, networks: Mapping[str, Model], order: Literal["names", "same"]
) -> tuple[Task, tuple[str, ...]]:
    """The task of some data, with the classes behind its own that the data lack and networks know.

    Args:
        task: of the data.
        networks: that are to be measured, by how messages call them.
        order: how classes match.

    Returns:
        The task, and the names of those classes.

    Raises:
        InputError: see :func:`kdcli.tasks.matching.beyond`.
    """
    if not entry(task.name).subsets:
        return task, ()
    known = {name: network.classes for name, network in networks.items() if network.bank is None}
    absent = tuple(beyond(task.classes, known, order))
    return (replace(cast(Any, task), classes=(*task.classes, *absent)) if absent else task), absent


def figures(task: str | None = None) -> list[Figure]:
    """The figures that a report can have: those of a task, then those that any task can have.

    Imports no torch.

    Args:
        task: its name; None for all tasks, each figure once.
    """
    from kdcli.report.figures import FOLLOWING, GENERAL

    found: dict[str, Figure] = {}
    for name in reversed(TASKS) if task is None else (task,):  # the commonest first
        for figure in _loaded(TASKS[name].figures):
            found.setdefault(figure.name, figure)
    row = None if task is None else TASKS.get(task)
    left = {f.name for f in FOLLOWING} - set(row.follows) if row is not None else set()
    return [*found.values(), *(f for f in GENERAL if f.name not in (*found, *left))]
