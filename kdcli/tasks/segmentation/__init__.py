"""Semantic segmentation: a class for every pixel, mean IoU for selection, classes matched by name."""

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
class Segmentation:
    """The task of one set of class names.

    Attributes:
        classes: names by the mask's values.
        label_smoothing: of the supervised loss.
        head: the feature that a fresh linear head reads.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    name: str = "segmentation"
    head: str = "grid4"
    selection: str = "miou"
    leaves_unused: bool = True

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

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """A head on a grid of features, of any kind unless one is asked for."""
        return {"classes": list(self.classes), "task": self.name, "head": self.head, "kind": kind}

    def supervised(self, call: str) -> Term:
        """Cross-entropy of the non-void pixels of the labelled rows of a batch."""
        from kdcli.losses.pixels import pixel_cross_entropy

        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "mask")
        return Term("ce", pixel_cross_entropy, taps, keywords=keywords, rows="labelled")

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """KL of the non-void pixels of all rows; of an unlabelled picture, all pixels."""
        from kdcli.losses.pixels import pixel_kl_divergence

        keywords = {"temperature": temperature, "t_squared": t_squared}
        taps = (f"{student}.logits", f"~{teacher}.logits", "mask")
        return Term("kl", pixel_kl_divergence, taps, keywords=keywords)

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Which pictures have a mask."""
        from kdcli.tasks.segmentation.target import PixelColumns

        return PixelColumns()

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """One mask of the first class: logits at the size of more would fill a small machine's memory."""
        import torch

        mask = torch.zeros(1, side, side, dtype=torch.uint8)
        return {"y": torch.zeros(1, dtype=torch.int64), "mask": mask}
