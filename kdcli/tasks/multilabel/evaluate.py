"""What is measured of networks for several labels: precision, and F1 at thresholds chosen on validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.metrics.multilabel import agreement, average_precision, counts, f1, multilabel_metrics, thresholds
from kdcli.models.protocol import Model
from kdcli.tasks import analyses
from kdcli.tasks.analyses import Analyses, Quality
from kdcli.tasks.multilabel.probe import answers
from kdcli.tasks.settings import EvalOptions, Measured, Validation, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.data.samples import Samples
    from kdcli.report.panels import Panel

_REASONS = {
    **dict.fromkeys(("window", "stride"), "only masks are judged by sliding windows"),
    "exit_slack": "early exit stops at the largest probability of one class",
    "effects_mix": "the effects of a teacher are measured of classifiers with one class a picture",
}


def metrics(measuring: Measuring, network: Model) -> dict[str, float]:
    """Figures of one network, by which the best step is selected; F1 at probabilities of one half."""
    return multilabel_metrics(inference.outputs(network, measuring), answers(measuring.samples))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of networks for several labels, its options checked.

    Attributes:
        classes: names of the labels.
        validation: pictures to choose thresholds on, or None.
        lacking: why there are none.
        analyses: that were asked for.
    """

    classes: Sequence[str]
    validation: Samples | None
    lacking: str
    analyses: Analyses

    @classmethod
    def of(cls, classes: Sequence[str], options: EvalOptions, validation: Validation) -> Evaluation:
        """Check the options; see :meth:`kdcli.tasks.Task.evaluation`."""
        refuse_unheeded(options, analyses.HEEDED, "multi-label", _REASONS)
        return cls(classes, validation.samples, validation.lacking, Analyses.of(options))

    def describe(self) -> list[str]:
        """Lines of the plan."""
        how = "said from a probability of one half on"
        if self.validation is not None:
            how = f"thresholds chosen on {len(self.validation):,} validation pictures"
        return [f"labels   {len(self.classes)}, {how}", *self.analyses.describe()]

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it; see :class:`kdcli.tasks.Evaluation`."""
        y = answers(measuring.samples)
        found = {name: self._answers(measuring, net, name, console) for name, net in networks.items()}
        taught = next((found[name] for name, net in networks.items() if net is teacher), None)
        if teacher is not None and taught is None:
            taught = self._answers(measuring, teacher, "teacher", console)
        parts: dict[str, dict[str, Any]] = {}
        for name, (logits, cuts) in found.items():
            parts[name] = {
                "metrics": multilabel_metrics(logits, y, cuts),
                "labels": by_label(logits, y, cuts),
            }
            if teacher is not None and taught is not None:
                follows = agreement(logits, taught[0], y, cuts, taught[1])
                parts[name]["teacher"] = {"name": teacher.name, **follows}
        notes = [f"No thresholds were chosen, each is one half: {self.lacking}"] if self.lacking else []
        further = self.analyses.measure(measuring, networks, teacher, _quality(parts, y), console)
        for name, part in further.models.items():
            parts[name] |= part
        return Measured(parts, further.together, [*notes, *further.notes])

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.multilabel.report import panels

        return panels(report)

    def _answers(
        self, measuring: Measuring, network: Model, name: str, console: Console
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, L] of a network, and its thresholds [L]."""
        network = network.to(measuring.runtime.device)
        with console.progress(name, len(measuring.samples), "pictures") as bar:
            logits = inference.outputs(network, measuring, bar.update)
        if self.validation is None:
            return logits, torch.zeros(logits.shape[1], dtype=torch.float64)
        with console.progress(f"{name}, validation", len(self.validation), "pictures") as bar:
            seen = inference.outputs(network, replace(measuring, samples=self.validation), bar.update)
        return logits, thresholds(seen, answers(self.validation))


def _quality(parts: Mapping[str, dict[str, Any]], y: Tensor) -> Quality:
    """Mean average precision; that of guessing is the mean share of pictures with a label."""
    shares = (y == 1).sum(0) / (~y.isnan()).sum(0)
    return Quality(
        "mean_ap",
        keep=lambda logits, _: logits,
        of=lambda logits: float(average_precision(logits, y).nanmean()),
        chance=float(shares[shares > 0].double().mean()),
        plain={name: part["metrics"]["mean_ap"] for name, part in parts.items()},
    )


def by_label(logits: Tensor, y: Tensor, cuts: Tensor) -> list[dict[str, float | None]]:
    """Of each label how many pictures have it and how well it is found; None where that means nothing.

    Args:
        logits: [N, L].
        y: answers [N, L].
        cuts: thresholds [L], logits.

    Returns:
        ``positives`` and ``answered`` pictures, average precision ``ap``, ``f1``, ``precision``, ``recall``,
        and ``threshold``, a probability.
    """
    found = counts(logits.double() >= cuts, y)
    hits, false, missed = found.double()
    columns = {
        "positives": (y == 1).sum(0),
        "answered": (~y.isnan()).sum(0),
        "ap": average_precision(logits, y),
        "f1": f1(found),
        "precision": hits / (hits + false),
        "recall": hits / (hits + missed),
        "threshold": cuts.sigmoid(),
    }
    rows = zip(*(column.tolist() for column in columns.values()))
    return [{key: None if math.isnan(value) else value for key, value in zip(columns, row)} for row in rows]
