"""What is measured of segmentation networks over a split, pixel by pixel, at the pictures' own size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcli.console import Console
from kdcli.engine.inference import Measuring
from kdcli.metrics.segmentation import FOLLOWS, class_iou, segmentation_metrics
from kdcli.models.protocol import Model
from kdcli.tasks import analyses
from kdcli.tasks.matching import unseen
from kdcli.tasks.segmentation import overlays
from kdcli.tasks.segmentation.pixels import Tally, Window, tallies
from kdcli.tasks.settings import EvalOptions, Measured, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.report.panels import Panel

SHOWN = 4  # pictures in a report


def metrics(measuring: Measuring, network: Model, classes: int) -> dict[str, float]:
    """Figures of one network, by which the best step is selected."""
    return segmentation_metrics(tallies({"it": network}, classes, measuring)["it"].confusion)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of segmentation networks, its options checked.

    Attributes:
        classes: names by the masks' values.
        window: that slides over pictures, if one does.
        absent: number of classes, the last ones, that the data lack.
    """

    classes: Sequence[str]
    window: Window | None
    absent: int = 0

    @classmethod
    def of(cls, classes: Sequence[str], options: EvalOptions) -> Evaluation:
        """Check the options; see :meth:`kdcli.tasks.Task.evaluation`."""
        reasons = {
            "exit_slack": "networks for masks have no exits",
            "effects_mix": "the effects of a teacher are measured of classifiers of whole pictures",
            **analyses.OTHERS,
        }
        refuse_unheeded(options, ("window", "stride"), "segmentation", reasons)
        window = None if options.window is None else Window(options.window, options.stride)
        return cls(classes, window, len(options.absent))

    def describe(self) -> list[str]:
        """Lines of the plan."""
        return []

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it; see :class:`kdcli.tasks.Evaluation`."""
        names = {id(network): name for name, network in networks.items()}
        taught = None if teacher is None else names.get(id(teacher), "teacher (compared with)")
        together = {**networks, **({taught: teacher} if taught and teacher is not None else {})}
        for network in together.values():
            network.to(measuring.runtime.device)
        with console.progress("pictures", len(measuring.samples), "pictures") as bar:
            found = tallies(
                together,
                len(self.classes),
                measuring,
                self.window,
                teacher=taught,
                shown=SHOWN,
                progress=bar.update,
            )
        there = len(self.classes) - self.absent
        parts = {name: _part(found[name], teacher, there) for name in networks}
        shown = self._overlays(measuring, {name: found[name].shown for name in networks})
        pixels = next(iter(found.values())).confusion.sum(1).tolist()
        return Measured(parts, notes=unseen(self.classes[:there], pixels, "pixel"), shown=shown)

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.segmentation.report import panels

        return panels(report, shown)

    def _overlays(
        self, measuring: Measuring, shown: Mapping[str, Mapping[int, Any]]
    ) -> dict[int, list[tuple[str, str]]]:
        """Truth and predictions over the pictures that were kept, by row of the data."""
        samples, most = measuring.samples, measuring.reading["max_pixels"]
        found = {}
        for index in next(iter(shown.values())):
            picture = samples.picture(index, most)
            predictions = {name: masks[index] for name, masks in shown.items()}
            truth = samples.beside(index, picture.size, most).numpy()
            found[int(samples.rows[index])] = overlays.panels(picture, truth, predictions, len(self.classes))
        return found


def _part(tally: Tally, teacher: Model | None, there: int) -> dict[str, Any]:
    """A model's part of the report; only the first ``there`` classes have an IoU."""
    iou = class_iou(tally.confusion).tolist()
    part: dict[str, Any] = {
        "metrics": segmentation_metrics(tally.confusion, there),
        "iou": [None if math.isnan(value) or i >= there else value for i, value in enumerate(iou)],
        "pixels": tally.confusion.sum(1).tolist(),
    }
    if teacher is not None:
        means = (tally.follows / tally.confusion.sum()).tolist()
        part["teacher"] = {"name": teacher.name, **dict(zip(FOLLOWS, means))}
    return part
