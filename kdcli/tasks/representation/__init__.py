"""Representation: features of pictures, learned without labels, which measure them if there are any.

What is trained is a backbone without a classifier: a student of any other task, or the teacher of a probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from kdcli.errors import UsageError
from kdcli.words import Term

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.metrics.calibration import Calibration
    from kdcli.models.protocol import Model
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks import Evaluation
    from kdcli.tasks.judging import Judge
    from kdcli.tasks.settings import EvalOptions, ProbeOptions, Probing, Validation


def _refuse_heads() -> NoReturn:
    raise UsageError(
        "data.task=representation has no head to fit: probe the backbone on the task that it is for, or "
        "measure it as it is with kdcli eval --set data.task=representation."
    )


@dataclass(frozen=True)
class Representation:
    """The task of pictures whose labels nobody learns from.

    Attributes:
        classes: of the labels, if there are any: of neighbours, not of logits.
        selection: empty: no label chooses a step, the last one is taken.
    """

    classes: tuple[str, ...] = ()
    name: str = "representation"
    selection: str = ""
    group: int = 1
    leaves_unused: bool = False

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Representation:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        return cls(tuple(data.classes or ()))

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """The backbone alone."""
        if kind is not None:
            raise UsageError(f"head={kind}: a backbone has no head.")
        return {"classes": [], "task": self.name}

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Nothing: no label is learned from."""
        return ()

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """Raises UsageError: networks answer nothing here."""
        raise UsageError("pictures without labels have no answers to soften: take a method of features.")

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Which rows have a label."""
        from kdcli.tasks.representation.target import Unread

        return Unread()

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """No labels."""
        import torch

        return {"y": torch.full((rows,), -1)}

    # -- fitting and measuring: see kdcli.tasks.Task
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Nothing to match: features have no order of classes."""

    def features(self, network: Model) -> list[str]:
        """Those of the network."""
        return network.feature_names()

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Raises UsageError: a head is fitted on labels."""
        _refuse_heads()

    def fit(self, probing: Probing) -> list[HeadResult]:
        """Raises UsageError, as :meth:`heads` does before."""
        _refuse_heads()

    def attach(self, network: Model, result: HeadResult) -> None:
        """Raises UsageError, as :meth:`heads` does before."""
        _refuse_heads()

    def judge(self) -> Judge | None:
        """None: a teacher answers nothing here that could be right."""
        return None

    def calibration(self, measuring: Measuring, network: Model) -> Calibration | None:
        """None: no answers to soften."""
        return None

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Neighbours and a quick linear probe, where there are labels."""
        from kdcli.tasks.representation.evaluate import metrics

        return metrics(measuring, network)

    def wants_validation(self, models: Sequence[str]) -> bool:
        """True: neighbours are looked for among training pictures (``Entry.beside``)."""
        return True

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """Neighbours and a linear probe."""
        from kdcli.tasks.representation.evaluate import Evaluation

        return Evaluation.of(options, validation)
