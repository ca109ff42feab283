"""Semantic segmentation: a class for every pixel, mean IoU for selection, classes matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.errors import UsageError
from kdcli.tasks.matching import bring_into_order, refuse_one_class
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.models.protocol import Model
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks import Evaluation
    from kdcli.tasks.judging import Judge
    from kdcli.tasks.settings import EvalOptions, ProbeOptions, Probing, Validation


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
    group: int = 1

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
        from kdcli.models.heads import DECODERS, Head

        if kind not in (None, Head.kind, *DECODERS):
            raise UsageError(f"head={kind}: segmentation has {', '.join([Head.kind, *DECODERS])}.")
        return {"classes": list(self.classes), "task": self.name, "head": self.head, "kind": kind}

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Cross-entropy of the non-void pixels of the labelled rows of a batch."""
        from kdcli.losses.pixels import pixel_cross_entropy

        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        taps = (f"{call}.logits", "mask")
        return (Term("ce", pixel_cross_entropy, taps, keywords=keywords, rows="labelled"),)

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

    # -- fitting and measuring: see kdcli.tasks.Task
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Put a network's logits into the order of the classes, by their names."""
        bring_into_order(network, self.classes, order, who)

    def features(self, network: Model) -> list[str]:
        """Grids of the last n ∈ {1, 4} blocks or stages."""
        from kdcli.models.heads import GRIDS

        return list(GRIDS)

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Linear heads by AdamW."""
        from kdcli.tasks.segmentation.probe import specs

        refuse_one_class(self.classes)
        return specs(options, features)

    def fit(self, probing: Probing) -> list[HeadResult]:
        """All of them together, on cached maps."""
        from kdcli.tasks.segmentation.probe import fit

        return fit(probing, len(self.classes))

    def attach(self, network: Model, result: HeadResult) -> None:
        """Make a linear head on a feature grid the network's."""
        head = network.fresh_head(result.spec.feature, len(self.classes))
        head.load_state_dict(dict(result.tensors))
        network.attach(head, list(self.classes), self.name)

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Mean IoU, pixel accuracy and mean accuracy."""
        from kdcli.tasks.segmentation.evaluate import metrics

        return metrics(measuring, network, len(self.classes))

    def judge(self) -> Judge:
        """Right pixels and likelihood on labelled views."""
        from kdcli.tasks.segmentation.teaching import JUDGE

        return JUDGE

    def calibration(self, measuring: Measuring, network: Model) -> None:
        """None: no temperature is fitted to pixels; a teacher of masks teaches by its logits as they are."""

    def wants_validation(self, models: Sequence[str]) -> bool:
        """False: nothing is chosen."""
        return False

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """IoU by class, accuracies, agreement with a teacher, pictures."""
        from kdcli.tasks.segmentation.evaluate import Evaluation

        return Evaluation.of(self.classes, options)
