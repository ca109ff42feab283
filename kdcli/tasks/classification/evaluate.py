"""What is measured of classifiers over a split: quality, calibration, exits, a teacher's effects, peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.errors import UsageError
from kdcli.metrics.agreement import agreement
from kdcli.metrics.calibration import Calibration, calibrate, figures
from kdcli.metrics.classification import classification_metrics, confused, confusion, per_class, reliability
from kdcli.metrics.effects import effects
from kdcli.metrics.peers import peers
from kdcli.models.protocol import Model
from kdcli.tasks import analyses
from kdcli.tasks.analyses import Analyses, Quality
from kdcli.tasks.classification import exits
from kdcli.tasks.classification.exits import Exits
from kdcli.tasks.matching import unseen
from kdcli.tasks.settings import EvalOptions, Measured, Validation, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.report.panels import Panel

_HEEDED = ("exit_slack", "effects_mix", *analyses.HEEDED)
_WINDOWS = "only masks are judged by sliding windows"
MATRIX = 1000  # up to so many classes a report has the whole confusion matrix
CONFUSED = 100  # pairs of classes that it keeps instead


def metrics(measuring: Measuring, network: Model) -> dict[str, float]:
    """Figures of one network, by which the best step is selected."""
    logits = inference.outputs(network, measuring)
    return classification_metrics(logits, torch.from_numpy(measuring.samples.labels))


def calibration(measuring: Measuring, network: Model) -> Calibration:
    """The temperature that makes a network's answers likely on these pictures, and what it does there."""
    logits = inference.outputs(network, measuring)
    return calibrate(logits, torch.from_numpy(measuring.samples.labels))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of classifiers, its options checked.

    Attributes:
        classes: names by class number.
        exits: of the models that have some, by the models' names.
        mix: λ of :func:`kdcli.metrics.effects.effects`.
        seed: of its permutations.
        lacking: why there are no validation pictures, where exits want some.
        there: number of classes, the first ones, that the data have.
        analyses: that were asked for.
    """

    classes: Sequence[str]
    exits: Mapping[str, Exits]
    mix: float
    seed: int
    lacking: str
    there: int
    analyses: Analyses

    @classmethod
    def of(
        cls, classes: Sequence[str], options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Self:
        """Check options and load exits; see :meth:`kdcli.tasks.Task.evaluation`."""
        refuse_unheeded(options, _HEEDED, "classification", dict.fromkeys(("window", "stride"), _WINDOWS))
        found = {name: exits.load(path, list(classes), options.class_order) for name, path in models.items()}
        own = {
            name: Exits(heads, validation.samples, options.exit_slack, options.repeats)
            for name, heads in found.items()
            if heads
        }
        if "exit_slack" in options.given and not own:
            raise UsageError("exit_slack: no model has exits.")
        if "effects_mix" in options.given and options.teacher is None:
            raise UsageError("effects_mix: it weighs a teacher; give --teacher.")
        there = len(classes) - len(options.absent)
        asked = Analyses.of(options)
        return cls(classes, own, options.effects_mix, options.seed, validation.lacking, there, asked)

    def describe(self) -> list[str]:
        """Lines of the plan."""
        lines = []
        for name, own in self.exits.items():
            how = f"{len(own.validation):,} validation pictures" if own.validation else "no validation"
            lines.append(f"exits    {name}: {', '.join(own.heads)}; early exit chosen on {how}")
        return [*lines, *self.analyses.describe()]

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it; see :class:`kdcli.tasks.Evaluation`."""
        y = torch.from_numpy(measuring.samples.labels)
        answers = {name: self._logits(measuring, net, name, console) for name, net in networks.items()}
        found = {name: logits[:, -1] for name, logits in answers.items()}
        taught = next((found[name] for name, net in networks.items() if net is teacher), None)
        if teacher is not None and taught is None:
            taught = self._logits(measuring, teacher, "teacher", console)[:, -1]
        parts: dict[str, dict[str, Any]] = {}
        for name, logits in found.items():
            parts[name] = {
                "metrics": classification_metrics(logits, y),
                "reliability": reliability(logits, y),
                **self._confusions(logits, y),
            }
            if teacher is not None and taught is not None:
                parts[name] |= self._compared(networks[name], logits, teacher, taught, y)
            if networks[name].temperature != 1:
                parts[name]["calibrated"] = figures(logits / networks[name].temperature, y)
            if own := self.exits.get(name):
                parts[name]["exits"] = exits.measure(networks[name], own, answers[name], measuring)
        further = self.analyses.measure(measuring, networks, teacher, self._quality(parts, y), console)
        for name, part in further.models.items():
            parts[name] |= part
        together = {**({"peers": peers(found, y)} if len(found) > 1 else {}), **further.together}
        notes = unseen(
            self.classes[: self.there], torch.bincount(y, minlength=self.there).tolist(), "picture"
        )
        notes += [f"No threshold was chosen for early exit: {self.lacking}"] if self.lacking else []
        notes += [_softened(name, net, parts[name]) for name, net in networks.items() if net.temperature != 1]
        return Measured(parts, together, [*notes, *further.notes])

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.classification.report import panels  # with matplotlib, which training has no use for

        return panels(report)

    def _logits(self, measuring: Measuring, network: Model, name: str, console: Console) -> Tensor:
        """Logits [N, E, C]: of the network's exits, if it has any, and last of the network."""
        with console.progress(name, len(measuring.samples), "pictures") as bar:
            network = network.to(measuring.runtime.device)
            if (own := self.exits.get(name)) is not None:
                return exits.outputs(network, own, measuring, bar.update)
            return inference.outputs(network, measuring, bar.update)[:, None]

    def _quality(self, parts: Mapping[str, dict[str, Any]], y: Tensor) -> Quality:
        """Accuracy, of which it is kept which answers are right."""
        return Quality(
            "accuracy",
            keep=lambda logits, rows: (logits.argmax(dim=1).cpu() == y[rows])[:, None],
            of=lambda right: float(right.double().mean()),
            chance=1 / len(self.classes),
            plain={name: part["metrics"]["top1"] for name, part in parts.items()},
        )

    def _confusions(self, logits: Tensor, y: Tensor) -> dict[str, Any]:
        """The confusion matrix; of many classes, whose matrix nobody reads, its largest cells and sums."""
        if len(self.classes) <= MATRIX:
            return {"confusion": confusion(logits, y, len(self.classes)).tolist()}
        return {"confused": confused(logits, y, CONFUSED), "per_class": per_class(logits, y)}

    def _compared(
        self, network: Model, logits: Tensor, teacher: Model, taught: Tensor, y: Tensor
    ) -> dict[str, Any]:
        """How a network follows its teacher, and what the teacher's answers had to offer it."""
        follows = {"teacher": {"name": teacher.name, **agreement(logits, taught, y)}}
        if network is teacher:
            return follows
        rows = network.class_rows(), teacher.class_rows()
        weights = None if rows[0] is None or rows[1] is None else (_cpu(rows[0]), _cpu(rows[1]))
        found = effects(logits, taught, y, weights=weights, mix=self.mix, seed=self.seed)
        return {**follows, "effects": found}


def _softened(name: str, network: Model, part: Mapping[str, Any]) -> str:
    """What NLL and ECE are measured of, where the network teaches by other logits than it answers with."""
    own, soft = part["metrics"], part["calibrated"]
    return (
        f"{name}: NLL {own['nll']:.3f} and ECE {own['ece']:.1%} are those of its logits as they are. Where "
        f"it teaches, they are divided by the temperature {network.temperature:g} that probe fitted on "
        f"validation pictures, which gives NLL {soft['nll']:.3f} and ECE {soft['ece']:.1%} here."
    )


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
