"""Detection: boxes of objects and their classes, COCO's average precision for selection, classes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kdcli.errors import UsageError, refuse_missing
from kdcli.tasks.detection.boxes import refuse_nothing
from kdcli.tasks.matching import bring_into_order
from kdcli.words import Derive, Term

if TYPE_CHECKING:
    import numpy as np

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
class Detection:
    """The task of one set of class names.

    Attributes:
        classes: names by class number.
        head: a fresh detector's kind.
    """

    classes: tuple[str, ...]
    name: str = "detection"
    head: str = "rtdetr"
    selection: str = "ap"
    leaves_unused: bool = True
    group: int = 1

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Detection:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        refused = {
            "optim.mixup and optim.cutmix": optim is not None and bool(optim.mixup or optim.cutmix),
            "optim.label_smoothing": optim is not None and bool(optim.label_smoothing),
            "views.store=topK": views is not None and views.store.startswith("top"),
            "views.auto_augment": views is not None and bool(views.auto_augment),
        }
        if section.class_balance != "none":
            raise UsageError(
                "--class-balance evens out pictures by their class; here they have many objects."
            )
        if odd := [option for option, given in refused.items() if given]:
            raise UsageError(f"detection has no {odd[0]}: it learns boxes, each of one class.")
        refuse_missing(("pycocotools", "scipy"), "detection", "boxes are learned and measured with them")
        for name, samples in data.splits.items():
            refuse_nothing(samples, name, trained=name == "train")
        return cls(tuple(data.classes or ()))

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """A detector on three maps, of any kind unless one is asked for."""
        from kdcli.models.detectors import KINDS, described, parsed

        if kind is not None:
            if kind.partition(",")[0] not in KINDS:
                raise UsageError(f"head={kind}: detection has {', '.join(KINDS)}.")
            kind = described(*parsed(kind))
        return {"classes": list(self.classes), "task": self.name, "head": kind or self.head, "kind": kind}

    def supervised(self, call: str) -> tuple[Term, ...]:
        """The detector's own losses, of classes and of boxes, for each object of the whole batch."""
        from kdcli.losses.detection import mean_count, per_object

        mean = Derive("objects_a_picture", mean_count, ("objects", "labelled"), scope="batch")
        return tuple(
            Term(name, per_object, (f"{call}.loss_{name}", f"~{mean.out}"), rows="labelled", derives=(mean,))
            for name in ("class", "box")
        )

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """The teacher's queries, each by the student's that is most like it, of all pictures."""
        from kdcli.tasks.detection.matching import query_terms

        return query_terms(student, teacher, temperature=temperature, t_squared=t_squared)

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Which pictures were looked through, and how many objects they have."""
        from kdcli.tasks.detection.target import BoxColumns

        return BoxColumns()

    def example(self, rows: int, side: int) -> dict[str, Any]:
        """One object on each picture but the last, which has none."""
        import torch

        boxes = [torch.tensor([[0.5, 0.5, 0.4, 0.3]])] * (rows - 1) + [torch.zeros(0, 4)]
        classes = [torch.zeros(len(found), dtype=torch.int64) for found in boxes]
        return {"y": torch.zeros(rows, dtype=torch.int64), "boxes": boxes, "classes": classes}

    # -- fitting and measuring: see kdcli.tasks.Task
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Put a network's logits into the order of the classes, by their names."""
        bring_into_order(network, self.classes, order, who)

    def features(self, network: Model) -> list[str]:
        """The three maps of a detector, together."""
        return ["maps"]

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """One detector, by AdamW.

        Raises:
            UsageError: several of them, or options of linear heads.
        """
        from kdcli.engine.grid import HeadSpec

        grid = options.grid
        if options.protocol != "cached" or options.statistics.record:
            raise UsageError("detection has no --protocol dinov2 and no --statistics.")
        if len(grid.lr or ()) > 1 or len(grid.weight_decay) > 1:
            raise UsageError("a detector is trained once: one grid.lr and one grid.weight_decay.")
        rates = grid.lr or [0.0]  # with --finetune it is optim.lr that counts
        return [HeadSpec(feature, rates[0], grid.weight_decay[0], "adamw") for feature in features]

    def fit(self, probing: Probing) -> list[HeadResult]:
        """Raises ValueError: a detector learns step by step (``Entry.by_steps``)."""
        raise ValueError("a detector is not fitted on cached features")

    def attach(self, network: Model, result: HeadResult) -> None:
        """Raises ValueError, as :meth:`fit` does."""
        raise ValueError("a detector is not fitted on cached features")

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """COCO's average precision and recall."""
        from kdcli.tasks.detection.evaluate import metrics

        return metrics(measuring, network, len(self.classes))

    def judge(self) -> Judge | None:
        """None: what a teacher's boxes are worth on views is not measured."""
        return None

    def calibration(self, measuring: Measuring, network: Model) -> None:
        """None: no temperature is fitted to detectors, which answer by a sigmoid for each class."""

    def wants_validation(self, models: Sequence[str]) -> bool:
        """False: nothing is chosen."""
        return False

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """Precision and recall, by class and size, pictures with boxes."""
        from kdcli.tasks.detection.evaluate import Evaluation

        return Evaluation.of(self.classes, options)
