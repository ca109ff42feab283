"""Tasks: what is learned. A task owns columns, head, supervised loss, predictions and metrics."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kdcli.console import Console
    from kdcli.data.samples import Data
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.models.timm import Network
    from kdcli.report.figures import Figure
    from kdcli.report.panels import Panel
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks.settings import EvalOptions, Measured, ProbeOptions, Probing, Validation
    from kdcli.words import Term

TASKS = {
    "classification": "kdcli.tasks.classification:Classification",
    "segmentation": "kdcli.tasks.segmentation:Segmentation",
}


class Task(Protocol):
    """What methods and stages ask of a task."""

    @property
    def name(self) -> str:
        """A key of ``TASKS``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""

    @property
    def head(self) -> str:
        """The feature that a fresh head reads; empty for the network's own pooled classifier."""

    @property
    def selection(self) -> str:
        """The metric that model selection goes by."""

    def supervised(self, call: str) -> Term:
        """The term that learns from labels, over the logits of ``call``."""

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """The term that learns from the logits of the call ``teacher``, over those of ``student``."""

    def row_weight(self, labels: np.ndarray) -> Tensor | None:
        """[C] factors of rows by their class in the supervised term, or None."""

    # -- fitting and measuring
    def match(self, network: Network, order: Literal["names", "same"], who: str) -> None:
        """Bring a network's logits into the order of this task's classes.

        Raises:
            InputError: it knows others, or none; ``who`` is how the message calls it.
        """

    def features(self, network: Network) -> list[str]:
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

    def attach(self, network: Network, result: HeadResult) -> None:
        """Make a fitted head the network's own."""

    def metrics(self, measuring: Measuring, network: Network) -> dict[str, float]:
        """Figures of one network, ``selection`` among them."""

    def wants_validation(self, models: Sequence[str]) -> bool:
        """Whether an evaluation of models (paths or names) chooses anything on validation pictures."""

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
        networks: Mapping[str, Network],
        teacher: Network | None,
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
    module, _, name = TASKS[data.task].partition(":")
    kind: Any = getattr(importlib.import_module(module), name)
    return cast(Task, kind.of(data, section, optim, views))


def task_named(name: str, classes: Sequence[str]) -> Task:
    """A task without data: what a network does, with the classes that it knows."""
    module, _, kind = TASKS[name].partition(":")
    return cast(Task, getattr(importlib.import_module(module), kind)(tuple(classes)))


def figures(task: str | None = None) -> list[Figure]:
    """The figures that a report can have: those of a task, then those that any task can have.

    Imports no torch.

    Args:
        task: its name; None for all tasks, each figure once.
    """
    from kdcli.report.figures import GENERAL

    found: dict[str, Figure] = {}
    for name in TASKS if task is None else (task,):
        module = TASKS[name].partition(":")[0]
        for figure in importlib.import_module(f"{module}.figures").FIGURES:
            found.setdefault(figure.name, figure)
    return [*found.values(), *(figure for figure in GENERAL if figure.name not in found)]
