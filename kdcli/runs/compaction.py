"""``kdcli compress`` around its training: a network with compactors, what its course promises, the fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcli import methods, tasks
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import Output
from kdcli.compression import budget, magnitude, taylor
from kdcli.compression.rows import kept
from kdcli.compression.shrinking import SMALL, Compaction
from kdcli.console import Console
from kdcli.engine.inference import Measuring
from kdcli.engine.job import Outcome
from kdcli.engine.loop import LOG
from kdcli.engine.runtime import Runtime
from kdcli.losses.compaction import row_norms
from kdcli.metrics.efficiency import evaluating
from kdcli.models.compactors import Compactor, compactors, filters, insert
from kdcli.models.costs import cost_of, parameters_of
from kdcli.models.folding import fold, zeroed
from kdcli.models.protocol import Model
from kdcli.models.sites import Found, sites_of
from kdcli.models.timing import latency_of
from kdcli.models.timm import TimmModel
from kdcli.runs import deploying, frame, latency
from kdcli.runs import targets as goals
from kdcli.runs.card import write_card
from kdcli.runs.gates import gates
from kdcli.runs.material import Lesson, build_student, planned_steps

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.tasks import Task

_LISTED = 40  # layers of a plan, and of what is refused
_LAST = "last step, folded"
_SAID = {
    "with_compactors": "with compactors",
    "rows_zeroed": "with their small rows at zero",
    "folded": "folded",
}


@dataclass(frozen=True)
class Compacted:
    """A network with compactors, beside its teacher.

    Attributes:
        networks: ``student``, and ``teacher`` where there is one.
        found: where compactors stand, and where none can.
        of: what a method is made for.
        costs: by what the manifest calls them, at widths of the sites: FLOPs of one picture, parameters, and
            where a target is of it the milliseconds that a table of blocks foretells.
        kept: channels that stay, by site, of a network that has lost the others already; None of one that has
            compactors instead.
    """

    networks: Mapping[str, Model]
    found: Found
    of: Compaction
    costs: Mapping[str, Callable[[Sequence[int]], float]]
    kept: Mapping[str, Tensor] | None = None

    def rehearse_export(self, config: Any) -> None:
        """Write the forms that are asked for of the untrained network, to be refused now if at all."""
        student = self.networks["student"]
        assert isinstance(student, TimmModel)
        plain = student if self.kept is not None else fold(student, {})
        deploying.rehearse(plain, config)

    def to_json(self) -> dict[str, Any]:
        """What a plan says of it to programs."""
        return {
            "channels": {site.name: site.width for site in self.found.sites},
            "refused": self.found.refused,
            **{name: cost(self.of.widths) for name, cost in self.costs.items()},
            "least": self.least,
        }

    @property
    def least(self) -> dict[str, float]:
        """What is left, as parts, where each site keeps one channel."""
        ones = [1] * len(self.of.widths)
        costs = {kind: self.costs[name] for kind, name in goals.FACTS.items() if name in self.costs}
        return {kind: round(cost(ones) / cost(self.of.widths), 4) for kind, cost in costs.items()}

    def widths_left(self, masks: Mapping[str, Tensor]) -> list[int]:
        """Widths of the sites where these channels stay."""
        return [int(masks[site.name].sum()) for site in self.found.sites]

    def facts(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Widths and costs before and after, for the manifest."""
        widths, before = self.widths_left(masks), self.of.widths
        return {
            "widths": {site.name: [site.width, w] for site, w in zip(self.found.sites, widths)},
            "removed": sum(before) - sum(widths),
            **{name: [cost(before), cost(widths)] for name, cost in self.costs.items()},
        }

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
        amounts = [
            f"{1 - part:.0%} of {goals.amount(kind, self.costs[goals.FACTS[kind]](self.of.widths))}"
            for kind, part in self.least.items()
        ]
        console.note(f"removes  up to {', '.join(amounts)}, where each site keeps one channel")


def compact(
    config: Any, student: str, task: Task, data: Data, goal: goals.Goal, console: Console
) -> Compacted:
    """Build the networks, and put compactors into the student.

    Args:
        config: of ``compress``.
        student: the name of what is made smaller.
        task: of the data.
        data: with its training split.
        goal: whose kind of cost counts.
        console: says what takes a while.

    Raises:
        EnvironmentFault: times cannot be kept.
        InputError: a network that cannot be built, is none of timm's, or has nothing that can be removed.
    """
    entry = methods.entry(config.method.name)
    own = build_student(config.model_copy(update={"student": student}), task)
    found = sites_of(own, entry.which)
    assert isinstance(own, TimmModel)
    networks: dict[str, Model] = {"student": insert(own, found.sites)}
    alike = answers = False
    if config.teacher:
        teacher = frame.teacher(config.teacher[0], task, config.data.class_order)
        networks["teacher"] = teacher
        alike = _channels(teacher, entry.which) == {site.name: site.width for site in found.sites}
        row = tasks.entry(task.name)  # softmax over logits: of one class a picture, or of identities
        single = "class" in row.provides or row.embeds
        answers = single and bool(own.classes) and own.classes == teacher.classes
    pictures = len(data.split("train"))
    flops = cost_of(own, found.sites)
    costs: dict[str, Any] = {"flops": flops, "parameters": parameters_of(own, found.sites)}
    if goal.kind == "latency":
        times = latency.table(config, own, found.sites, console)
        costs[goals.FACTS["latency"]] = latency_of(times, found.sites, flops)
    of = Compaction(
        sites=tuple(site.name for site in found.sites),
        widths=tuple(site.width for site in found.sites),
        each=tuple(site.each for site in found.sites),
        cost=costs[goals.FACTS[goal.kind]],
        steps=planned_steps(config.optim, pictures),
        batch=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        pictures=pictures,
        taught=bool(config.teacher),
        alike=alike,
        answers=answers,
    )
    return Compacted(networks, found, of, costs)


def narrowed(compacted: Compacted, lesson: Lesson, arguments: Mapping[str, Any]) -> Compacted:
    """Without the channels that a target leaves out, by the network's own weights or by gradients.

    Args:
        compacted: with compactors, which are the identity.
        lesson: what the network is to learn.
        arguments: of the method.
    """
    student, of, target = compacted.networks["student"], compacted.of, arguments["target"]
    assert isinstance(student, TimmModel)
    if methods.entry(lesson.method.name).before == "weights":
        masks = magnitude.chosen(filters(student, compacted.found.sites), of.cost, target)
    else:
        scores = taylor.importance(gates(student, of.sites, lesson, arguments["pictures"]))
        masks = taylor.chosen(scores, of.cost, target)
    kept = dict(zip(of.sites, masks))
    return replace(compacted, networks={**compacted.networks, "student": fold(student, kept)}, kept=kept)


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
    masks, cut = _met(plan, own, masks)
    task = plan.task
    zero, smaller = zeroed(student, masks), fold(student, masks)
    device = next(student.parameters()).device
    smaller.to(device).eval()
    measured = {
        "with_compactors": task.metrics(measuring, student),
        "rows_zeroed": task.metrics(measuring, zero.to(device)),
        "folded": task.metrics(measuring, smaller),
    }
    facts = {
        **plan.compacted.facts(masks),
        **({"cut": cut} if cut else {}),
        "metrics": measured,
        "fold_difference": _difference(zero, smaller),
        "norms": {name: _quantiles(compactor.weight) for name, compactor in own.items()},
    }
    return Folded(smaller, facts)


def _met(
    plan: Any, own: Mapping[str, Compactor], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """The rows that stay where a target is to be met at the end, and how many large ones go for that."""
    target, of = plan.arguments.get("target"), plan.compacted.of
    whole, found = of.cost(of.widths), dict(masks)
    left = of.cost(plan.compacted.widths_left(found))
    if target is None or left <= target * whole or not methods.entry(plan.method.name).cuts:
        return found, 0
    norms = [row_norms(own[name].weight.detach()).masked_fill(~found[name], 0.0) for name in of.sites]
    chosen = budget.select(norms, of.cost, target=target, granularity=0, deactivated=None)
    met = {name: mask & found[name] for name, mask in zip(of.sites, chosen)}
    return met, sum(int(found[name].sum() - met[name].sum()) for name in met)


@torch.no_grad()
def _difference(one: TimmModel, other: TimmModel) -> float:
    """Largest difference of two networks' answers to made-up pictures, over the largest answer."""
    device = next(one.parameters()).device
    shape = (4, one.spec.channels, *one.spec.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(one), evaluating(other):
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def followed(
    evaluate: Callable[[Any], dict[str, float]], compacted: Compacted
) -> Callable[[Any], dict[str, float]]:
    """An evaluation that says too what would be left without the rows that are as good as gone.

    Args:
        evaluate: figures of a network with compactors.
        compacted: whose costs count.
    """

    def figures(network: Any) -> dict[str, float]:
        own = compactors(network)
        rows = [row_norms(own[site.name].weight.detach()) >= SMALL for site in compacted.found.sites]
        widths = [max(1, int(kept.sum())) for kept in rows]
        full = compacted.of.widths
        costs = {name.removesuffix("_ms"): cost for name, cost in compacted.costs.items()}
        left = {f"{name}_left": cost(widths) / cost(full) for name, cost in costs.items()}
        return {**evaluate(network), **left}

    return figures


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
    config, material, compacted = plan.config, plan.material, plan.compacted
    student: Any = parties[plan.method.export]
    student.load_state_dict(outcome.last if compacted.kept is None else outcome.best or outcome.last)
    validation = plan.data.split("validation")
    measuring = Measuring(
        validation.take(validation.labelled()),
        runtime.alone(),
        config.optim.batch_size,
        frame.reading(config, config.data),
    )
    if compacted.kept is None:
        folded, selection = shrunk(student, config.threshold, plan, measuring), _LAST
    else:
        found = {"folded": plan.task.metrics(measuring, student)}
        folded = Folded(student, {**compacted.facts(compacted.kept), "metrics": found})
        selection = outcome.selection
    facts, task = folded.facts, plan.task
    _tell(plan, facts, console)
    keep = folded.network.save(output.partial)
    figures = {f"validation/{key}": value for key, value in facts["metrics"]["folded"].items()}
    names, forms = deploying.written(
        folded.network, output.partial, config, plan.data.split("train"), console, metrics=figures
    )
    manifest = Manifest("model", "compress", plan.target.identity, plan.target.parents)
    manifest.facts = frame.facts(
        config,
        command,
        task=task.name,
        layout=folded.network.layout,
        classes=folded.network.classes,
        metrics=figures,
        **({"forms": forms} if forms else {}),
        selection=selection,
        compression=facts,
        **frame.decisions(material.networks),
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
    keep.append(write_card(folded.network, manifest, output.partial))
    output.commit(manifest, [*keep, *names, LOG])


def _tell(plan: Any, facts: Mapping[str, Any], console: Console) -> None:
    """What was removed, and what that did on validation pictures."""
    selection = plan.task.selection
    said = {key: f"{figures[selection]:.4f} {_SAID[key]}" for key, figures in facts["metrics"].items()}
    parts = {name: facts[name][1] / facts[name][0] for name in ("flops", "parameters")}
    console.note(
        f"removed  {facts['removed']:,} channels: {parts['flops']:.1%} of the FLOPs and "
        f"{parts['parameters']:.1%} of the parameters are left"
    )
    console.note(f"validation {selection} {', '.join(said.values())}")
    wanted, kind = plan.arguments.get("target"), plan.goal.kind
    left = facts[goals.FACTS[kind]]
    if wanted is not None and left[1] > 1.001 * wanted * left[0] and facts["removed"]:
        console.warn(
            f"{left[1] / left[0]:.1%} of the {goals.KINDS[kind]} are left, more than the target of "
            f"{wanted:.1%}: rows that were chosen are not below the threshold. Train longer, or raise "
            "method.strength."
        )
    if cut := facts.get("cut"):
        console.warn(
            f"{cut:,} rows above threshold={plan.config.threshold:g} were removed too, those of the least "
            "norm, to meet the target. Train longer, or raise method.strength."
        )
    if not facts["removed"]:
        console.warn(
            f"no row of a compactor is below threshold={plan.config.threshold:g}: nothing was removed. Train "
            "longer, or raise method.strength."
        )
