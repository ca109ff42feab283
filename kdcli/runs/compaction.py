"""``kdcli compress`` around its training: a network with compactors, what its course promises, the fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import Output
from kdcli.compression.rows import kept
from kdcli.compression.shrinking import Compaction
from kdcli.console import Console
from kdcli.engine.inference import Measuring
from kdcli.engine.job import Outcome
from kdcli.engine.loop import LOG
from kdcli.engine.runtime import Runtime
from kdcli.losses.compaction import row_norms
from kdcli.metrics.efficiency import evaluating
from kdcli.models.compactors import compactors, insert
from kdcli.models.costs import cost_of, parameters_of
from kdcli.models.folding import fold, zeroed
from kdcli.models.protocol import Model
from kdcli.models.sites import Found, sites_of
from kdcli.models.timm import TimmModel
from kdcli.runs import frame
from kdcli.runs.material import build_student, planned_steps

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.tasks import Task

_LISTED = 40  # layers of a plan, and of what is refused


@dataclass(frozen=True)
class Compacted:
    """A network with compactors, beside its teacher.

    Attributes:
        networks: ``student``, and ``teacher`` where there is one.
        found: where compactors stand, and where none can.
        of: what a method is made for.
    """

    networks: Mapping[str, Model]
    found: Found
    of: Compaction

    @cached_property
    def flops(self) -> Any:
        """FLOPs of one picture at widths of the sites."""
        return cost_of(self._student, self.found.sites)

    @cached_property
    def parameters(self) -> Any:
        """Parameters at widths of the sites."""
        return parameters_of(self._student, self.found.sites)

    @property
    def _student(self) -> TimmModel:
        student = self.networks["student"]
        assert isinstance(student, TimmModel)
        return student

    def to_json(self) -> dict[str, Any]:
        """What a plan says of it to programs."""
        return {
            "channels": {site.name: site.width for site in self.found.sites},
            "refused": self.found.refused,
            "flops": self.flops(self.of.widths),
            "parameters": self.parameters(self.of.widths),
            "least": self.least,
        }

    @property
    def least(self) -> dict[str, float]:
        """What is left, as parts, where each site keeps one channel."""
        ones = [1] * len(self.of.widths)
        costs = {"flops": self.flops, "params": self.parameters}
        return {kind: round(cost(ones) / cost(self.of.widths), 4) for kind, cost in costs.items()}

    def describe(self, console: Console) -> None:
        """What a plan says of it to people."""
        rows = [[s.name, s.kind, str(s.width), s.producer] for s in self.found.sites[:_LISTED]]
        more = len(self.found.sites) - len(rows)
        rows += [[f"and {more} more", "", "", ""]] if more else []
        console.table(["site", "kind", "channels", "of"], rows, title="what can be removed")
        for path, why in list(self.found.refused.items())[:_LISTED]:
            console.note(f"keeps    {path}: {why}")
        if (more := len(self.found.refused) - _LISTED) > 0:
            console.note(f"keeps    {more} more layers (--json lists them)")
        least = self.least
        console.note(
            f"removes  up to {1 - least['flops']:.0%} of {self.flops(self.of.widths) / 1e9:.3f} GFLOPs and "
            f"{1 - least['params']:.0%} of {self.parameters(self.of.widths) / 1e6:.2f} M parameters, where "
            "each site keeps one channel"
        )


def compact(config: Any, student: str, task: Task, data: Data, which: Any, kind: str) -> Compacted:
    """Build the networks, and put compactors into the student.

    Args:
        config: of ``compress``.
        student: the name of what is made smaller.
        task: of the data.
        data: with its training split.
        which: layers of a block, see :func:`kdcli.models.sites.sites`.
        kind: of cost: ``flops`` or ``params``.

    Raises:
        InputError: a network that cannot be built, is none of timm's, or has nothing that can be removed.
    """
    own = build_student(config.model_copy(update={"student": student}), task)
    found = sites_of(own, which)
    assert isinstance(own, TimmModel)
    networks: dict[str, Model] = {"student": insert(own, found.sites)}
    alike = answers = False
    if config.teacher:
        teacher = frame.teacher(config.teacher[0], task, config.data.class_order)
        networks["teacher"] = teacher
        alike = _channels(teacher, which) == {site.name: site.width for site in found.sites}
        answers = bool(own.classes) and own.classes == teacher.classes and len(teacher.logit_shape) == 1
    pictures = len(data.split("train"))
    cost = (cost_of if kind == "flops" else parameters_of)(own, found.sites)
    of = Compaction(
        sites=tuple(site.name for site in found.sites),
        widths=tuple(site.width for site in found.sites),
        diagonal=tuple(site.diagonal for site in found.sites),
        cost=cost,
        steps=planned_steps(config.optim, pictures),
        batch=config.optim.batch_size,
        pictures=pictures,
        taught=bool(config.teacher),
        alike=alike,
        answers=answers,
    )
    return Compacted(networks, found, of)


def _channels(network: Model, which: Any) -> dict[str, int]:
    from kdcli.errors import InputError

    try:
        return {site.name: site.width for site in sites_of(network, which).sites}
    except InputError:
        return {}


# -- the fold ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folded:
    """A network without its compactors, and what became of it.

    Attributes:
        network: the smaller one.
        facts: for the manifest.
    """

    network: TimmModel
    facts: dict[str, Any]


def shrunk(student: TimmModel, threshold: float, plan: Any, measuring: Measuring) -> Folded:
    """Remove the rows below a threshold and fold the rest.

    Args:
        student: trained, with compactors, on the device.
        threshold: of a row's norm.
        plan: of ``compress``.
        measuring: validation pictures.
    """
    own = compactors(student)
    masks = {name: kept(compactor.weight, threshold) for name, compactor in own.items()}
    task, compacted = plan.task, plan.compacted
    zero, smaller = zeroed(student, masks), fold(student, masks)
    device = next(student.parameters()).device
    smaller.to(device).eval()
    widths = [int(mask.sum()) for mask in masks.values()]
    measured = {
        "with_compactors": task.metrics(measuring, student),
        "rows_zeroed": task.metrics(measuring, zero.to(device)),
        "folded": task.metrics(measuring, smaller),
    }
    costs = {"flops": compacted.flops, "parameters": compacted.parameters}
    facts = {
        "widths": {name: [len(mask), width] for (name, mask), width in zip(masks.items(), widths)},
        "removed": sum(map(len, masks.values())) - sum(widths),
        **{name: [cost(compacted.of.widths), cost(widths)] for name, cost in costs.items()},
        "metrics": measured,
        "fold_difference": _difference(zero, smaller),
        "norms": {name: _quantiles(compactor.weight) for name, compactor in own.items()},
    }
    return Folded(smaller, facts)


@torch.no_grad()
def _difference(one: TimmModel, other: TimmModel) -> float:
    """Largest difference of two networks' answers to made-up pictures, over the largest answer."""
    device = next(one.parameters()).device
    shape = (4, one.spec.channels, *one.spec.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(one), evaluating(other):
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def _quantiles(weight: Tensor) -> list[float]:
    """Smallest, median and largest norm of a compactor's rows."""
    norms = row_norms(weight.detach()).sort().values
    return [float(norms[0]), float(norms[len(norms) // 2]), float(norms[-1])]


def export(
    plan: Any,
    parties: Mapping[str, nn.Module],
    outcome: Outcome,
    output: Output,
    runtime: Runtime,
    console: Console,
    command: str,
) -> None:
    """Fold the student as it is after the last step, measure it, write it and commit; main process only."""
    if not runtime.main:
        return
    config, material = plan.config, plan.material
    student: Any = parties[plan.method.export]
    student.load_state_dict(outcome.last)
    validation = plan.data.split("validation")
    measuring = Measuring(
        validation.take(validation.labelled()),
        runtime.alone(),
        config.optim.batch_size,
        frame.reading(config, config.data),
    )
    folded = shrunk(student, config.threshold, plan, measuring)
    facts, task = folded.facts, plan.task
    _tell(plan, facts, console)
    keep = folded.network.save(output.partial)
    manifest = Manifest("model", "compress", plan.target.identity, plan.target.parents)
    manifest.facts = frame.facts(
        config,
        command,
        task=task.name,
        layout=folded.network.layout,
        classes=folded.network.classes,
        metrics={f"validation/{key}": value for key, value in facts["metrics"]["folded"].items()},
        selection=f"last step ({outcome.progress.step}), folded",
        compression=facts,
        data=plan.data.describe(),
        method={"name": plan.method.name, **plan.arguments},
        recipe=plan.recipe.to_json(),
        views=material.order.views or "live",
        global_batch=config.optim.batch_size,
        lr=config.optim.lr,
        steps=outcome.progress.step,
        seconds=round(outcome.progress.seconds, 4),
        clipping=outcome.clipping,
        machines=outcome.progress.machines,
        cost={"student_steps": outcome.progress.step, "forwards": material.forwards},
        **runtime.describe(),
    )
    output.commit(manifest, [*keep, LOG])


def _tell(plan: Any, facts: Mapping[str, Any], console: Console) -> None:
    """What was removed, and what that did on validation pictures."""
    selection, found = plan.task.selection, facts["metrics"]
    parts = {name: facts[name][1] / facts[name][0] for name in ("flops", "parameters")}
    console.note(
        f"removed  {facts['removed']:,} channels: {parts['flops']:.1%} of the FLOPs and "
        f"{parts['parameters']:.1%} of the parameters are left"
    )
    console.note(
        f"validation {selection} {found['with_compactors'][selection]:.4f} with compactors, "
        f"{found['rows_zeroed'][selection]:.4f} with their small rows at zero, "
        f"{found['folded'][selection]:.4f} folded"
    )
    if not facts["removed"]:
        console.warn(
            f"no row of a compactor is below threshold={plan.config.threshold:g}: nothing was removed. Train "
            "longer, or raise method.strength."
        )
