"""A teacher's answers on the labelled views that it teaches: watched over one epoch, said, and put down.

Where a cache of an earlier run holds them, the plan says it before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.data.cache import LOGITS, Store
from kdcli.data.other_views import PLAIN
from kdcli.engine.cache import filled, requests
from kdcli.engine.job import Outcome
from kdcli.engine.observe import Watch
from kdcli.runs.material import Material
from kdcli.tasks.judging import VIEWS, Judge
from kdcli.words import Turn
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
        return self._put(figures, "first epoch")

    def _put(self, figures: Mapping[str, float], where: str) -> dict[str, Any]:
        if not figures:
            return {}
        warning = self._warning(figures)
        said = self.judge.said(figures, where)
        return {**figures, "said": said, **({"warning": warning} if warning else {})}

    def remembered(self, material: Material) -> dict[str, Any]:
        """As :meth:`facts`, by a cache that stands before the run, from a view of each labelled picture.

        Empty where there is none, or it lacks views. Raises InputError for a damaged one.
        """
        if not material.cached or self.judge.cut:
            return {}
        config, method = material.lesson.config, material.method
        for call, request in requests(method, material.networks, material.caching, Store(config.views.store)):
            turn = next(turn for turn in method.turns if call in turn.calls)
            if call.party != _TEACHER or LOGITS not in request.taps or turn.name not in self.turns:
                continue
            used = material.caching.used[material.caching.calls[call.name]]
            rows = np.flatnonzero(self.labelled & used.any(axis=0))
            if not len(rows):
                return {}
            pairs = list(zip(material.pool.ids[rows].tolist(), used[:, rows].argmax(axis=0).tolist()))
            cache = filled(Path(config.cache), request, config.precision)
            if cache is not None and cache.holds(pairs):
                return self._put(
                    self._over(material, turn, rows, cache.read(pairs)[LOGITS]), "from the cache"
                )
        return {}

    def _over(self, material: Material, turn: Turn, rows: np.ndarray, logits: Tensor) -> dict[str, float]:
        """Means over rows of the pool, of these logits as the turn reads them."""
        derive = next((d for d in turn.derives if d.out == self.turns[turn.name]), None)
        taught = logits if derive is None else derive.function(logits, **derive.keywords)
        columns = {"y": torch.from_numpy(material.pool.labels[rows])}
        columns |= material.pool.columns(rows.tolist(), [None] * len(rows))
        sums = self.judge.sums(taught, {**columns, **material.targets.plain(columns)})
        found = {f"{_PREFIX}{name}": float(value) for name, value in sums.items()}
        return _named(self.watch(Console(silent=True)).means(found))

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
