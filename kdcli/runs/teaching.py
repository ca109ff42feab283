"""A teacher's answers on the labelled views that it teaches: watched over one epoch, said, and put down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from kdcli.console import Console
from kdcli.data.other_views import PLAIN
from kdcli.engine.job import Outcome
from kdcli.engine.observe import Watch
from kdcli.runs.material import Material
from kdcli.tasks.judging import VIEWS, Judge
from kdcli.words.answers import answers

_TEACHER = "teacher"
_PREFIX = f"{_TEACHER}/"


@dataclass(frozen=True)
class Lessons:
    """What is to be learned of a teacher's answers.

    Attributes:
        judge: the task's.
        turns: that train the student by them, and what they call them there.
        labelled: [N] which of the training pictures have a label.
    """

    judge: Judge
    turns: Mapping[str, str]
    labelled: np.ndarray

    @classmethod
    def of(cls, material: Material) -> Lessons | None:
        """None where the student learns from no answers on training pictures, or nothing can be compared."""
        method, judge = material.method, material.lesson.task.judge()
        labelled = material.order.labels >= 0
        turns = {
            turn.name: answers(turn, _TEACHER, ("x", PLAIN))
            for turn in method.turns
            if method.export in turn.trains
        }
        turns = {name: reference for name, reference in turns.items() if reference}
        return cls(judge, turns, labelled) if judge is not None and turns and labelled.any() else None

    def watch(self, console: Console) -> Watch:
        """What the loop observes: as many views as there are labelled pictures."""
        observed = {name: partial(_sums, self.judge, reference) for name, reference in self.turns.items()}
        return Watch(
            observed, _PREFIX, f"{_PREFIX}{VIEWS}", int(self.labelled.sum()), partial(self._tell, console)
        )

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """Figures and what is said of them, for the manifest; empty where no view was seen."""
        quiet = Console(silent=True)
        figures = _named(self.watch(quiet).means(outcome.progress.observed))
        if not figures:
            return {}
        warning = self._warning(figures)
        return {**figures, "said": self.judge.said(figures), **({"warning": warning} if warning else {})}

    def _tell(self, console: Console, means: Mapping[str, float]) -> None:
        figures = _named(means)
        console.note(self.judge.said(figures))
        if warning := self._warning(figures):
            console.warn(warning)

    def _warning(self, figures: Mapping[str, float]) -> str:
        return self.judge.warning(figures, float(self.labelled.mean()))


def _named(means: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(_PREFIX): value for name, value in means.items()}


def _sums(judge: Judge, reference: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a batch whose terms have read the answers; empty of one where they weigh nothing."""
    if reference not in values:
        return {}
    return {f"{_PREFIX}{name}": value for name, value in judge.sums(values[reference], values).items()}
