"""What is measured of networks that compare pictures with texts: as classifiers, and their spaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.engine.inference import Measuring, collected
from kdcli.metrics import spaces
from kdcli.models.protocol import Model
from kdcli.tasks.classification import evaluate as of_classes
from kdcli.tasks.settings import Measured
from kdcli.tasks.zeroshot.memory import figures, remembered

if TYPE_CHECKING:
    from kdcli.data.samples import Samples
    from kdcli.report.panels import Panel


@dataclass(frozen=True)
class Evaluation(of_classes.Evaluation):
    """An evaluation of classifiers by texts, and of how their spaces lie to the teacher's.

    Attributes:
        embeddings: [N, D] of the networks that were run, by the names that they were run by.
        shots: few-shot pictures of the candidates, for a memory; None for none.
    """

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    shots: Samples | None = None

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Accuracy and calibration over the candidates, then spaces; see :class:`kdcli.tasks.Evaluation`."""
        found = super().measure(measuring, networks, teacher, console)
        for name, network in networks.items():
            if self.shots is not None and name in self.embeddings:
                memory = remembered(network, self.shots, measuring, self.seed)
                y = torch.from_numpy(measuring.samples.labels)
                found.models[name]["memory"] = figures(self.embeddings[name], _bank(network), memory, y)
        texts = {name: texts_of(net) for name, net in networks.items() if net.bank is not None}
        for name, part in texts.items():
            found.models[name]["texts"] = part
        if teacher is None:
            return found
        together, notes = self._beside(found.models, networks, teacher)
        return Measured(found.models, {**found.together, **together}, [*found.notes, *notes], found.shown)

    def _beside(
        self, parts: dict[str, dict[str, Any]], networks: Mapping[str, Model], teacher: Model
    ) -> tuple[dict[str, Any], list[str]]:
        """Put into each model's part how its space lies to the teacher's; what is said of all, and notes."""
        itself = next((name for name, network in networks.items() if network is teacher), "teacher")
        theirs = self.embeddings.get(itself)
        if theirs is None:
            return {}, []
        bank, notes = _bank(teacher), []
        for name, network in networks.items():
            ours = self.embeddings.get(name)
            if why := _apart(name, network, ours, theirs, teacher):
                notes.append(why)
            elif ours is not None:
                parts[name]["spaces"] = spaces.figures(ours, theirs, bank)
        if not any("spaces" in parts[name] for name in networks):
            return {}, notes
        return {"spaces": {"pictures": len(theirs), "chance": spaces.chance(len(theirs), len(bank))}}, notes

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.zeroshot.report import panels

        return [*panels(report), *super().panels(report, shown)]

    def _logits(self, measuring: Measuring, network: Model, name: str, console: Console) -> Tensor:
        """Logits [N, 1, C], made of the embeddings, which are kept."""
        if network.bank is None:  # an exported form answers with logits alone
            return super()._logits(measuring, network, name, console)
        with console.progress(name, len(measuring.samples), "pictures") as bar:
            network = network.to(measuring.runtime.device)
            rows = collected(
                network, lambda x, _: network.call([x], ["embedding"])["embedding"], measuring, bar.update
            )
        self.embeddings[name] = rows
        linear = network.linear
        with torch.inference_mode():
            return linear(rows.to(linear.weight.device)).cpu()[:, None]


def _apart(name: str, network: Model, ours: Tensor | None, theirs: Tensor, teacher: Model) -> str:
    """Why a network's space is not compared with the teacher's; empty where it is."""
    if ours is None:
        return f"{name} answers with logits alone: its space is not compared."
    if ours.shape != theirs.shape:
        return (
            f"{name} embeds pictures in {ours.shape[1]} numbers and the teacher in {theirs.shape[1]}: their "
            "spaces are not compared."
        )
    if _tower(network) != _tower(teacher):
        return f"{name} and the teacher embed pictures in spaces of other text towers: they are not compared."
    return ""


def _tower(network: Model) -> str:
    """Hash of the text tower in whose space a network embeds pictures; empty for none."""
    return "" if network.bank is None else network.bank.tower_hash


def _bank(network: Model) -> Tensor:
    return network.tensor("classifier").detach().cpu()


def texts_of(network: Model) -> dict[str, Any]:
    """How many texts a network's bank has, how unlike they are, and in how many ways."""
    rows = _bank(network)
    found: dict[str, Any] = {"count": len(rows), "width": rows.shape[1]}
    if len(rows) > 1:
        found |= {"spectrum": spaces.spectrum(rows).tolist(), "cosine": spaces.mean_cosine(rows)}
    return found
