"""Single-label classification: cross-entropy, top-1 for selection, labels matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.errors import InputError, UsageError
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.sections import DataSection, OptimSection, ViewSection


@dataclass(frozen=True)
class Classification:
    """The task of one set of class names.

    Attributes:
        classes: names by class number.
        label_smoothing: of the supervised loss.
        weighted: whether batches carry ``row_weight`` (class balance in the loss).
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    weighted: bool = False
    name: str = "classification"
    selection: str = "top1"
    leaves_unused: bool = False

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Classification:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        smoothing = optim.label_smoothing if optim else 0.0
        return cls(tuple(data.classes or ()), smoothing, section.class_balance == "loss")

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """The network's own pooled classifier."""
        if kind is not None:
            raise UsageError(f"head={kind}: {self.name} has one head only, the student's own.")
        return {"classes": list(self.classes), "task": self.name}

    def supervised(self, call: str) -> Term:
        """Cross-entropy on the labelled rows of a batch."""
        from kdcli.losses.logits import cross_entropy

        weight = ("row_weight",) if self.weighted else ()
        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return Term(
            "ce", cross_entropy, (f"{call}.logits", "target", *weight), keywords=keywords, rows="labelled"
        )

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


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """[C] factors N / (C · n_c) that give every class the same share of the loss."""
    import torch

    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return torch.tensor(counts.sum() / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def permutation(
    classes: Sequence[str], teacher: Sequence[str] | None, order: Literal["names", "same"], who: str
) -> list[int] | None:
    """Columns of the teacher's logits in the order of ``classes``; None if they already are.

    Raises:
        InputError: other names or another number of classes.
    """
    if teacher is None:
        raise InputError(f"{who} has no trained classifier; fit one with kdcli probe.")
    if list(teacher) == list(classes):
        return None
    if len(teacher) != len(classes):
        raise InputError(
            f"{who} knows {len(teacher)} classes, the data has {len(classes)}. Probe the teacher on this "
            "data first."
        )
    if order == "same":
        return None
    if twice := [name for name, count in Counter(teacher).items() if count > 1]:
        raise InputError(
            f"{who} has the class '{twice[0]}' more than once: no matching by name. If the order is the "
            "same, say --set data.class_order=same; else probe the teacher on this data."
        )
    if odd := sorted(set(teacher) ^ set(classes))[:4]:
        raise InputError(
            f"{who} and the data name their classes differently ({', '.join(odd)}, …). If the order is the "
            "same, say --set data.class_order=same; else probe the teacher on this data."
        )
    place = {name: i for i, name in enumerate(teacher)}
    return [place[name] for name in classes]
