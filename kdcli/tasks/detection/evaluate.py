"""What is measured of detectors over a split: COCO's precision and recall, at the pictures' own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.data.samples import Samples
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.metrics.detection import Truth, agreement, coco_metrics
from kdcli.models.protocol import Model
from kdcli.tasks import analyses
from kdcli.tasks.detection import overlays
from kdcli.tasks.matching import unseen
from kdcli.tasks.settings import EvalOptions, Measured, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.report.panels import Panel

SHOWN = 4  # pictures in a report
_NUMBERS = 6  # of a detection
_REASONS = {
    "exit_slack": "detectors have no exits",
    "effects_mix": "the effects of a teacher are measured of classifiers of whole pictures",
    **dict.fromkeys(("window", "stride"), "only masks are judged by sliding windows"),
    **analyses.OTHERS,
}


def detections(measuring: Measuring, network: Model, progress: Any = None) -> np.ndarray:
    """Detections [N, K, 6] of all pictures, in their own pixels, on every process; see ``Truth``."""
    samples, most = measuring.samples, measuring.reading["max_pixels"]
    sides = sizes(samples, most)

    def answer(x: Tensor, indices: list[int]) -> Tensor:
        found = network(x).float()
        scale = sides[indices].to(found.device)
        return torch.cat([found[..., :4] * scale[:, None], found[..., 4:]], dim=2)

    rows = inference.collected(network, answer, measuring, progress)
    return rows.view(len(samples), -1, _NUMBERS).numpy()


def sizes(samples: Samples, most: int) -> Tensor:
    """[N, 4] width, height, width, height of the pictures."""
    return torch.tensor([2 * samples.size(i, most) for i in range(len(samples))], dtype=torch.float32)


def truths(samples: Samples) -> list[Truth]:
    """What is on the pictures."""
    targets: Any = samples.targets
    return [Truth(*targets.truth(i)) for i in range(len(samples))]


def metrics(measuring: Measuring, network: Model, classes: int) -> dict[str, float]:
    """Figures of one network, by which the best step is selected."""
    return coco_metrics(truths(measuring.samples), detections(measuring, network), classes).metrics


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of detectors, its options checked.

    Attributes:
        classes: names by class number.
        absent: number of classes, the last ones, that the data lack.
    """

    classes: Sequence[str]
    absent: int = 0

    @classmethod
    def of(cls, classes: Sequence[str], options: EvalOptions) -> Evaluation:
        """Check the options; see :meth:`kdcli.tasks.Task.evaluation`."""
        refuse_unheeded(options, (), "detection", _REASONS)
        return cls(classes, len(options.absent))

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
        together = dict(networks)
        if teacher is not None and all(network is not teacher for network in networks.values()):
            together["teacher (compared with)"] = teacher
        found: dict[str, np.ndarray] = {}
        count = len(measuring.samples)
        with console.progress("pictures", count * len(together), "pictures") as bar:
            for number, (name, network) in enumerate(together.items()):
                network.to(measuring.runtime.device)
                found[name] = detections(
                    measuring, network, lambda done, before=number * count: bar.update(before + done)
                )
        taught = next((found[name] for name, net in together.items() if net is teacher), None)
        truth, there = truths(measuring.samples), len(self.classes) - self.absent
        parts: dict[str, dict[str, Any]] = {}
        for name in networks:
            quality = coco_metrics(truth, found[name], there)
            parts[name] = {"metrics": quality.metrics, "classes": quality.per_class}
            if teacher is not None and taught is not None:
                parts[name]["teacher"] = {"name": teacher.name, **agreement(found[name], taught)}
        boxes = np.bincount(np.concatenate([t.classes[~t.ignored] for t in truth]), minlength=there)
        shown = self._overlays(measuring, truth, {name: found[name] for name in networks})
        return Measured(parts, notes=unseen(self.classes[:there], boxes.tolist(), "box"), shown=shown)

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.detection.report import panels

        return panels(report, shown)

    def _overlays(
        self, measuring: Measuring, truth: Sequence[Truth], found: Mapping[str, np.ndarray]
    ) -> dict[int, list[tuple[str, str]]]:
        """Truth and detections on the first pictures that have objects, by row of the data."""
        samples, most = measuring.samples, measuring.reading["max_pixels"]
        rows = [i for i, one in enumerate(truth) if len(one.boxes)] or list(range(len(truth)))
        shown = {}
        for index in rows[:SHOWN]:
            picture = samples.picture(index, most)
            ones = {name: rows_of[index] for name, rows_of in found.items()}
            shown[int(samples.rows[index])] = overlays.panels(picture, truth[index], ones, self.classes)
        return shown
