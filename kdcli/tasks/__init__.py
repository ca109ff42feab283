"""Tasks: what is learned. A task owns columns, head, supervised loss, predictions and metrics."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.sections import DataSection, OptimSection, ViewSection
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
