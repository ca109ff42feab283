"""Several labels for each picture: binary cross-entropy, mean average precision for selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.errors import UsageError
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.sections import DataSection, OptimSection, ViewSection


@dataclass(frozen=True)
class MultiLabel:
    """The task of one set of labels, any number of which a picture may have.

    Attributes:
        classes: names by number.
        label_smoothing: of the supervised loss.
        weights: factors of the answer yes for each label (class balance in the loss), or None.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    name: str = "multi-label"
    selection: str = "map"
    leaves_unused: bool = False

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
        if views is not None and views.store.startswith("top"):
            raise UsageError(
                "multi-label has no views.store=topK: the rest of its logits is no distribution."
            )
        weights = None
        if section.class_balance == "loss" and "train" in data.splits:
            weights = answer_weights(data.splits["train"].targets)
        return cls(tuple(data.classes or ()), optim.label_smoothing if optim else 0.0, weights)

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """The network's own pooled classifier."""
        if kind is not None:
            raise UsageError(f"head={kind}: {self.name} has one head only, the student's own.")
        return {"classes": list(self.classes), "task": self.name}

    def supervised(self, call: str) -> Term:
        """Binary cross-entropy of the answered labels of the labelled rows of a batch."""
        from kdcli.losses.multilabel import binary_cross_entropy

        weight = ("label_weight",) if self.weights else ()
        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "target", *weight)
        return Term("bce", binary_cross_entropy, taps, keywords=keywords, rows="labelled")

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


def answer_weights(targets: Any) -> tuple[float, ...]:
    """For each label how many answers no there are for one yes: with it both weigh the same in the loss."""
    yes, no = ((targets.answers == answer).sum(axis=0) for answer in (1, 0))
    return tuple((no / np.maximum(yes, 1)).tolist())
