"""Semantic segmentation: a class for every pixel, mean IoU for selection, classes matched by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.losses.pixels import pixel_cross_entropy, pixel_kl_divergence
from kdcli.words import Term

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.sections import DataSection, OptimSection, ViewSection


@dataclass(frozen=True)
class Segmentation:
    """The task of one set of class names.

    Attributes:
        classes: names by the mask's values.
        label_smoothing: of the supervised loss.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    name: str = "segmentation"
    head: str = "grid4"
    selection: str = "miou"

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Segmentation:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        refused = {
            "optim.mixup and optim.cutmix": optim is not None and bool(optim.mixup or optim.cutmix),
            "views.store=topK": views is not None and views.store.startswith("top"),
            "views.auto_augment": views is not None and bool(views.auto_augment),
        }
        if section.class_balance != "none":
            raise UsageError("--class-balance evens out pictures by their class; a mask has many.")
        if odd := [option for option, given in refused.items() if given]:
            raise UsageError(f"segmentation has no {odd[0]}: pixels would part from their classes.")
        return cls(tuple(data.classes or ()), optim.label_smoothing if optim else 0.0)

    def supervised(self, call: str) -> Term:
        """Cross-entropy of the non-void pixels of the labelled rows of a batch."""
        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "mask")
        return Term("ce", pixel_cross_entropy, taps, keywords=keywords, rows="labelled")

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """KL of the non-void pixels of all rows; of an unlabelled picture, all pixels."""
        keywords = {"temperature": temperature, "t_squared": t_squared}
        taps = (f"{student}.logits", f"~{teacher}.logits", "mask")
        return Term("kl", pixel_kl_divergence, taps, keywords=keywords)

    def row_weight(self, labels: np.ndarray) -> Tensor | None:
        """None: pictures weigh the same."""
        return None
