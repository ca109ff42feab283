"""Single-label classification: cross-entropy, top-1 for selection, labels matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcli.artifacts import model as artifacts
from kdcli.tasks.matching import refuse_one_class
from kdcli.tasks.whole import WholePicture
from kdcli.words import Term

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Classification(WholePicture):
    """The task of one set of class names.

    Attributes:
        weighted: whether batches carry ``row_weight`` (class balance in the loss).
    """

    name: str = "classification"
    selection: str = "top1"
    weighted: bool = False

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Classification:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        smoothing = optim.label_smoothing if optim else 0.0
        return cls(tuple(data.classes or ()), smoothing, weighted=section.class_balance == "loss")

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Cross-entropy on the labelled rows of a batch."""
        from kdcli.losses.logits import cross_entropy

        weight = ("row_weight",) if self.weighted else ()
        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "target", *weight)
        return (Term("ce", cross_entropy, taps, keywords=keywords, rows="labelled"),)

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """KL between softened logits, on all rows of a batch."""
        from kdcli.losses.logits import kl_divergence

        keywords = {"temperature": temperature, "t_squared": t_squared}
        return Term("kl", kl_divergence, (f"{student}.logits", f"~{teacher}.logits"), keywords=keywords)

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Class numbers, with factors that even out the classes where asked for."""
        from kdcli.tasks.classification.target import ClassColumns

        classes = len(self.classes)
        return ClassColumns(classes, class_weights(labels, classes) if self.weighted else None)

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """The classes in turn."""
        import torch

        return {"y": torch.arange(rows) % len(self.classes)}

    # -- fitting and measuring: see kdcli.tasks.Task
    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Linear classifiers, which have to have something to tell apart."""
        refuse_one_class(self.classes)
        return super().heads(options, features)

    def fit(self, probing: Probing) -> list[HeadResult]:
        """All of them together, on cached or live features."""
        from kdcli.tasks.classification.probe import fit

        return fit(probing, len(self.classes))

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Accuracy, likelihood and calibration."""
        from kdcli.tasks.classification.evaluate import metrics

        return metrics(measuring, network)

    def judge(self) -> Judge:
        """Right answers and likelihood on labelled views."""
        from kdcli.tasks.classification.teaching import JUDGE

        return JUDGE

    def calibration(self, measuring: Measuring, network: Model) -> Calibration | None:
        """One temperature for all logits."""
        from kdcli.tasks.classification.evaluate import calibration

        return calibration(measuring, network)

    def wants_validation(self, models: Sequence[str]) -> bool:
        """Where a model has exits: the threshold of early exit is chosen there."""
        return any(artifacts.find(n) and artifacts.EXITS[1] in artifacts.read(n).names for n in models)

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """Accuracy, likelihood, calibration and confusions, exits, effects of a teacher, peers."""
        from kdcli.tasks.classification.evaluate import Evaluation

        return Evaluation.of(self.classes, options, models, validation)


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """[C] factors N / (C · n_c) that give every class the same share of the loss."""
    import torch

    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return torch.tensor(counts.sum() / (classes * np.maximum(counts, 1)), dtype=torch.float32)
