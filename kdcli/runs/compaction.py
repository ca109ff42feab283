"""``kdcli compress`` before its training: a network with compactors, and what it costs at any widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdcli import methods, tasks
from kdcli.compression import budget, magnitude, taylor
from kdcli.compression.shrinking import Compaction
from kdcli.console import Console
from kdcli.models.compactors import filters, insert
from kdcli.models.costs import cost_of, parameters_of
from kdcli.models.folding import fold
from kdcli.models.protocol import Model
from kdcli.models.sites import Found, sites_of
from kdcli.models.timing import latency_of
from kdcli.models.timm import TimmModel
from kdcli.runs import deploying, frame, latency
from kdcli.runs import targets as goals
from kdcli.runs.gates import gates
from kdcli.runs.material import Lesson, build_student, planned_steps

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


def narrowed(
    compacted: Compacted, lesson: Lesson, arguments: Mapping[str, Any], console: Console
) -> Compacted:
    """Without the channels that a target leaves out, by the network's own weights or by gradients.

    Args:
        compacted: with compactors, which are the identity.
        lesson: what the network is to learn.
        arguments: of the method.
        console: says what takes a while.
    """
    student, of = compacted.networks["student"], compacted.of
    assert isinstance(student, TimmModel)
    if methods.entry(lesson.method.name).before == "weights":
        scores = magnitude.importance(filters(student, compacted.found.sites))
    else:
        pictures = arguments["pictures"]
        console.note(f"looking for channels that the loss can do without, on {pictures:,} pictures")
        scores = taylor.importance(gates(student, of.sites, lesson, pictures))
    kept = dict(zip(of.sites, budget.at_once(scores, of.cost, arguments["target"])))
    return replace(compacted, networks={**compacted.networks, "student": fold(student, kept)}, kept=kept)


def _channels(network: Model, which: Any) -> dict[str, int]:
    from kdcli.errors import InputError

    try:
        return {site.name: site.width for site in sites_of(network, which).sites}
    except InputError:
        return {}
