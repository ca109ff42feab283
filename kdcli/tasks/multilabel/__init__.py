"""Several labels for each picture: binary cross-entropy, mean average precision for selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.errors import UsageError
from kdcli.tasks.whole import WholePicture
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.engine.grid import HeadResult
    from kdcli.engine.inference import Measuring
    from kdcli.models.protocol import Model
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks import Evaluation
    from kdcli.tasks.settings import EvalOptions, Probing, Validation


@dataclass(frozen=True)
class MultiLabel(WholePicture):
    """The task of one set of labels, any number of which a picture may have.

    Attributes:
        weights: factors of the answer yes for each label (class balance in the loss), or None.
    """

    name: str = "multi-label"
    selection: str = "mean_ap"
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> MultiLabel:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        if section.class_balance == "sampler":
            raise UsageError(
                "--class-balance sampler draws pictures by their class, and these have several labels; loss "
                "weighs the answers."
            )
        if section.labels_per_class is not None:
            raise UsageError(
                "--labels-per-class keeps so many pictures of each class, and these have several. To hide "
                "answers, leave them empty (null) in the data."
            )
        if views is not None and views.store.startswith("top"):
            raise UsageError(
                "multi-label has no views.store=topK: the rest of its logits is no distribution."
            )
        weights = None
        if section.class_balance == "loss" and "train" in data.splits:
            weights = answer_weights(data.splits["train"].targets)
        smoothing = optim.label_smoothing if optim else 0.0
        return cls(tuple(data.classes or ()), smoothing, weights=weights)

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Binary cross-entropy of the answered labels of the labelled rows of a batch."""
        from kdcli.losses.multilabel import binary_cross_entropy

        weight = ("label_weight",) if self.weights else ()
        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "target", *weight)
        return (Term("bce", binary_cross_entropy, taps, keywords=keywords, rows="labelled"),)

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """Binary KL of every label, on all rows of a batch."""
        from kdcli.losses.multilabel import binary_kl_divergence

        keywords = {"temperature": temperature, "t_squared": t_squared}
        taps = (f"{student}.logits", f"~{teacher}.logits")
        return Term("kl", binary_kl_divergence, taps, keywords=keywords)

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Answers, with factors that even out yes and no where asked for."""
        import torch

        from kdcli.tasks.multilabel.target import AnswerColumns

        return AnswerColumns(None if self.weights is None else torch.tensor(self.weights))

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """Every other label."""
        import torch

        answers = (torch.arange(rows)[:, None] + torch.arange(len(self.classes))) % 2
        return {"y": torch.arange(rows) % len(self.classes), "answers": answers.float()}

    # -- fitting and measuring: see kdcli.tasks.Task
    def fit(self, probing: Probing) -> list[HeadResult]:
        """All of them together, on cached or live features."""
        from kdcli.tasks.multilabel.probe import fit

        return fit(probing, len(self.classes))

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Mean average precision, F1 and likelihood."""
        from kdcli.tasks.multilabel.evaluate import metrics

        return metrics(measuring, network)

    def wants_validation(self, models: Sequence[str]) -> bool:
        """True: thresholds are chosen there."""
        return True

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """Precision and F1 by label, agreement with a teacher."""
        from kdcli.tasks.multilabel.evaluate import Evaluation

        return Evaluation.of(self.classes, options, validation)


def answer_weights(targets: Any) -> tuple[float, ...]:
    """For each label how many answers no there are for one yes: with it both weigh the same in the loss."""
    yes, no = ((targets.answers == answer).sum(axis=0) for answer in (1, 0))
    return tuple((no / np.maximum(yes, 1)).tolist())
