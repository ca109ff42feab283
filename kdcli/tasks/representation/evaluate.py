"""What is measured of a backbone: the classes of its neighbours among training pictures, a quick probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcli.console import Console
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.errors import InputError, NotFinite
from kdcli.metrics.representation import neighbour_accuracy, ridge_accuracy
from kdcli.models.protocol import Model
from kdcli.tasks.analyses import Analyses
from kdcli.tasks.settings import EvalOptions, Measured, Validation, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.data.samples import Samples
    from kdcli.report.panels import Panel

BANK = 10_000
"""Training pictures at most that neighbours are looked for among: those at even steps."""

_REASONS = {
    "occlusion": "patches are hidden from networks that name classes of whole pictures",
    "occlusion_grid": "patches are hidden from networks that name classes of whole pictures",
    **dict.fromkeys(("window", "stride"), "only masks are judged by sliding windows"),
    "exit_slack": "a backbone has no exits",
    "effects_mix": "the effects of a teacher are measured of classifiers with one class a picture",
    "rerank": "only searches by identity are ranked again",
}


class Pooled(nn.Module):
    """A network that answers with its pooled features [B, D], whatever it was trained for."""

    def __init__(self, network: Model) -> None:
        super().__init__()
        self.network, self.spec, self.name = network, network.spec, network.name

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] of views."""
        return torch.cat(list(self.network.features(x, ["pooled"]).values()), dim=1)


def banked(samples: Samples) -> Samples:
    """Labelled pictures of a split, :data:`BANK` of them at most, at even steps."""
    found = samples.take(samples.labelled())
    if len(found) <= BANK:
        return found
    return found.take(np.linspace(0, len(found) - 1, BANK).round().astype(int))


def metrics(measuring: Measuring, network: Model) -> dict[str, float]:
    """Figures of one network on labelled pictures, by the training pictures that come with them."""
    if measuring.train is None:
        return {}
    return _measured(measuring, banked(measuring.train), network)


def _measured(measuring: Measuring, bank: Samples, network: Model) -> dict[str, float]:
    """``knn`` and ``linear_probe``. Raises NotFinite for features that are no numbers."""
    pooled: Any = Pooled(network)
    features = inference.outputs(pooled, measuring)
    known = inference.outputs(pooled, replace(measuring, samples=bank))
    if not bool(features.isfinite().all() and known.isfinite().all()):
        raise NotFinite(f"{network.name} gives features with NaN or Inf: some of its weights are damaged.")
    y, labels = (torch.from_numpy(s.labels) for s in (measuring.samples, bank))
    arguments = (features, y, known, labels)
    return {"knn": neighbour_accuracy(*arguments), "linear_probe": ridge_accuracy(*arguments)}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of backbones, its options checked.

    Attributes:
        bank: training pictures.
        analyses: that were asked for: CKA.
    """

    bank: Samples
    analyses: Analyses

    @classmethod
    def of(cls, options: EvalOptions, validation: Validation) -> Evaluation:
        """Check the options; see :meth:`kdcli.tasks.Task.evaluation`."""
        refuse_unheeded(options, ("cka",), "representation", _REASONS)
        if validation.samples is None:
            raise InputError(
                f"neighbours are looked for among labelled training pictures: {validation.lacking}"
            )
        return cls(banked(validation.samples), Analyses.of(options))

    def describe(self) -> list[str]:
        """Lines of the plan."""
        return [f"compares with {len(self.bank):,} labelled training pictures", *self.analyses.describe()]

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it; see :class:`kdcli.tasks.Evaluation`."""
        shown = dict(networks)
        if teacher is not None and all(net is not teacher for net in networks.values()):
            shown["teacher"] = teacher
        found: dict[str, dict[str, float]] = {}
        with console.progress("backbones", len(shown), "networks") as bar:
            for name, network in shown.items():
                found[name] = _measured(measuring, self.bank, network.to(measuring.runtime.device))
                bar.update(len(found))
        notes = [f"Neighbours are looked for among {len(self.bank):,} labelled training pictures."]
        if "teacher" in found and "teacher" not in networks:
            its = found["teacher"]
            notes.append(f"The teacher: kNN {its['knn']:.1%}, linear {its['linear_probe']:.1%}.")
        further = self.analyses.measure(measuring, networks, teacher, None, console)
        parts = {name: {"metrics": found[name], **further.models[name]} for name in networks}
        return Measured(parts, further.together, [*notes, *further.notes])

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """How alike blocks are to the teacher's, where that was asked for."""
        from kdcli.report import alike

        asked = alike.panel(report)
        return [] if asked is None else [asked]
