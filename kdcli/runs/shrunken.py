"""What is left of a network after its course: folded, measured, and written as an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcli import methods
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import Output
from kdcli.compression import budget
from kdcli.compression.rows import kept
from kdcli.compression.shrinking import SMALL
from kdcli.console import Console
from kdcli.engine.inference import Measuring
from kdcli.engine.job import Outcome
from kdcli.engine.loop import LOG
from kdcli.engine.runtime import Runtime
from kdcli.losses.compaction import row_norms
from kdcli.metrics.efficiency import evaluating
from kdcli.models.compactors import Compactor, compactors
from kdcli.models.folding import fold, zeroed
from kdcli.models.timm import TimmModel
from kdcli.runs import banks, deploying, frame
from kdcli.runs import targets as goals
from kdcli.runs.card import write_card
from kdcli.runs.compaction import Compacted

_LAST = "last step, folded"
_SAID = {
    "with_compactors": "with compactors",
    "rows_zeroed": "with their small rows at zero",
    "folded": "folded",
}


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
    chosen = budget.at_once(norms, of.cost, target)
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
        **banks.described(folded.network),
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
