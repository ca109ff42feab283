"""What a plan shows before anything runs: networks, splits and objective, for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcli.config import Section, leaves, origins
from kdcli.console import Console
from kdcli.runs.recipes import Choice
from kdcli.sections import OptimSection
from kdcli.words.recipes import as_yaml

if TYPE_CHECKING:
    from torch import nn

    from kdcli.data.samples import Data
    from kdcli.engine.assembly import Assembly
    from kdcli.models.protocol import Model
    from kdcli.words import Derive, Method

_LISTED = 8  # members from which on a list is shortened for people


def splits(data: Data) -> str:
    """The splits with their sizes, and how many of them are labelled where not all are."""
    shown = []
    for name, samples in data.splits.items():
        labels = int(samples.labelled().sum())
        shown.append(
            f"{name} {len(samples):,}" + ("" if labels == len(samples) else f" ({labels:,} labelled)")
        )
    return ", ".join(shown)


def network(console: Console, role: str, net: Model) -> None:
    """One line about a network."""
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    console.note(
        f"{role:8} {net.name}: {millions:.2f} M parameters, {net.trained} weights, {net.spec.size[0]} px"
    )
    notes(console, net)


def decisions(console: Console, networks: Mapping[str, Model]) -> None:
    """What was decided about networks while they were built, as a run says it that shows no plan."""
    for role, net in networks.items():
        for note in net.notes:
            console.note(f"{role}: {note}")


def notes(console: Console, net: Model) -> None:
    """What was decided about a network while it was built, a line each."""
    for note in net.notes:
        console.note(f"         {note}")


def temperatures(console: Console, fitted: Sequence[float], use: str) -> None:
    """One line about the temperatures that were fitted to teachers, where there are any."""
    shown = ", ".join(f"{value:g}" for value in fitted)
    if fitted and use == "fit":
        console.note(f"teaches  logits over {shown}, as fitted by probe, before the method's own temperature")
    elif fitted:
        console.note(f"teaches  raw logits: teacher_temperature={use} leaves out the fitted {shown}")


def answers(console: Console, found: Mapping[str, Any]) -> None:
    """What a teacher's answers are worth on the views that it teaches, where that is known yet."""
    if found:
        console.note(f"answers  {found['said']}")
    if "warning" in found:
        console.warn(found["warning"])


def clipping(optim: OptimSection, method: Method) -> dict[str, float | None]:
    """Largest norm of the gradient of each network, by turn; None where nothing is clipped."""
    return {turn.name: turn.optim.get("clip_grad", optim.clip_grad) for turn in method.turns}


def learning(console: Console, optim: OptimSection, method: Method, steps: int) -> None:
    """How gradients are clipped and weights averaged: a line about each, where it is done."""
    from kdcli.engine.average import said_of

    found = clipping(optim, method)
    if set(found.values()) == {optim.clip_grad} and optim.clip_grad:
        console.note(f"clips    each network's gradient at a norm of {optim.clip_grad:g} (optim.clip_grad)")
    elif own := [f"{limit:g} in turn {turn}" for turn, limit in found.items() if limit]:
        console.note(f"clips    each network's gradient at a norm of {', '.join(own)}")
    if optim.ema:
        console.note(f"averages {said_of(optim.ema, steps)} (optim.ema)")


def built(console: Console, parties: Mapping[str, nn.Module], networks: Mapping[str, Model]) -> None:
    """One line about what a method brings beside the networks."""
    brought = [f"{n} ({k:,})" for n, k in parameters(parties).items() if n not in networks]
    if brought:
        console.note(f"brings   {', '.join(brought)} parameters")


def grids(console: Console, method: Method, assembly: Assembly) -> None:
    """One line about each map that is brought to the grid of another."""
    from kdcli.models.feature_adapters import on_grid_of

    for derive in (d for turn in method.turns for d in turn.derives if d.function is on_grid_of):
        here, there = (assembly.seen.get(name, ()) for name in (derive.args[0].removeprefix("~"), derive.out))
        if here[1:] != there[1:]:
            sizes = ["x".join(map(str, shape[1:])) for shape in (here, there)]
            console.note(
                f"aligns   {derive.args[0].lstrip('~')}: its {sizes[0]} map is interpolated to {sizes[1]}"
            )


def parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Number of parameters of each network."""
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}


def settings(
    config: Section, sections: Sequence[str], parameters: Mapping[str, Any], choice: Choice
) -> list[dict[str, str]]:
    """Rows of key, value and origin: of all that is no default, and of what the user wrote.

    Args:
        config: of the run, its recipe beneath what the user wrote.
        sections: whose keys are shown, in this order; a key beside them stands for itself.
        parameters: of the method by dotted key, defaults filled in; they are shown in place of ``config``'s.
        choice: the run's recipe.
    """
    default, written, rows = type(config)(), origins(config), []
    keys = dict.fromkeys([*(key for key, _, _ in leaves(type(config))), *parameters])
    for key in (key for name in sections for key in keys if key == name or key.startswith(f"{name}.")):
        value = parameters[key] if key in parameters else _of(config, key)
        origin = _origin(key, written, choice)
        if origin is None and key not in parameters and value != _of(default, key):
            origin = "given"
        if origin is not None and not (value is None and _of(default, key) is None):
            rows.append({"key": key, "value": as_yaml(value), "from": origin})
    return rows


def _of(config: Section, key: str) -> Any:
    """The value behind a dotted key."""
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name, None)


def _origin(key: str, written: Mapping[str, str], choice: Choice) -> str | None:
    """Where a value comes from; None for a default."""
    settings = choice.recipe.settings
    if key in choice.applied:
        return f"recipe {choice.name}: {choice.recipe.source_of(key)}"
    if key in choice.of_task:
        return f"default of {choice.of_task[key]}"
    if key in written and key in settings:
        return f"{written[key]} (in the recipe {as_yaml(settings[key])})"
    return written.get(key)


def recipe(console: Console, choice: Choice) -> None:
    """What a recipe has beside its settings, and what could not be read of it."""
    if choice.recipe.left_out:
        console.note(f"recipe   also has {'; '.join(choice.recipe.left_out)}; kdcli does not do that")
    if choice.recipe.unknown:
        console.note(f"recipe   not published in what could be read: {', '.join(choice.recipe.unknown)}")


def objective(method: Method, shapes: Mapping[str, tuple[int, ...]], accumulate: int) -> list[dict[str, str]]:
    """Terms of a method as rows of a table.

    Args:
        method: whose.
        shapes: of one row of each tap, as far as they are known.
        accumulate: micro-batches of a step.
    """
    related = "the whole batch" if accumulate == 1 else f"each of {accumulate} micro-batches"
    return [
        {
            "turn": turn.name if phase.name == "train" else f"{phase.name} ({phase.share:.0%}): {turn.name}",
            "term": term.name,
            "loss": term.loss.__name__,
            "taps": ", ".join(_tap(reference, shapes) for reference in term.args),
            "rows": term.rows or "all",
            "weight": str(term.weight) if callable(term.weight) else f"{term.weight:g}",
            "with": ", ".join(f"{k}={v}" for k, v in term.keywords.items()),
            "sees": "each row" if term.scope == "sample" else related,
        }
        for phase in method.phases
        for turn in phase.turns
        for term in turn.terms
    ]


def table(console: Console, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows as a table, where there are any; of long lists the first and the last member, and how many."""
    if rows:
        console.table(list(rows[0]), [[_shortened(text) for text in row.values()] for row in rows], title)


def _shortened(text: str) -> str:
    parts = re.split(r", (?![^[]*\])", text)  # not within a shape
    shown = f"{parts[0]}, …, {parts[-1]} ({len(parts)})"
    return text if len(parts) < _LISTED or len(text) < len(shown) else shown


def turns(method: Method, assembly: Assembly) -> list[dict[str, Any]]:
    """What each turn of a method trains, calls and edits, for ``--json``.

    ``rows`` of a call are those of its output per sample; None where it was not run for the plan.
    """
    from kdcli.engine.edits import edited

    return [
        {
            "phase": phase.name,
            "turn": turn.name,
            "trains": list(turn.trains),
            "optim": turn.optim,
            "groups": turn.groups,
            "calls": [
                {
                    "call": call.name,
                    "party": call.party,
                    "inputs": list(call.inputs),
                    "rows": assembly.rows.get((turn.name, call.name)),
                }
                for call in turn.calls
            ],
            "derives": [_derive(derive) for derive in turn.derives],
            "edits": [
                {
                    "edit": edit.name,
                    "on": edit.on,
                    "party": edit.party,
                    "parameters": list(edited(edit, assembly.parties[edit.party])),
                    "state": edit.state.name if edit.state else None,
                }
                for edit in turn.edits
            ],
        }
        for phase in method.phases
        for turn in phase.turns
    ]


def _derive(derive: Derive) -> dict[str, Any]:
    state = derive.state.name if derive.state else None
    return {"out": derive.out, "reads": list(derive.args), "scope": derive.scope, "state": state}


def states(assembly: Assembly) -> dict[str, dict[str, list[int]]]:
    """Shapes of the tensors of every state."""
    return {
        state: {name: list(tensor.shape) for name, tensor in own.items()}
        for state, own in assembly.states.items()
    }


def beyond_the_table(console: Console, method: Method, assembly: Assembly) -> None:
    """A line about each call on more or less than one view, or of more rows, each group, edit and state."""
    from kdcli.engine.edits import edited

    for turn in method.turns:
        for call in turn.calls:
            rows = assembly.rows.get((turn.name, call.name), 1.0)
            if rows != 1 or len(call.inputs) != 1 or call.inputs[0].startswith("x@"):
                many = "" if rows == 1 else f", {rows:g} rows per sample"
                inputs = ", ".join(call.inputs) or "nothing"
                console.note(f"calls    {call.name}: {call.party} on {inputs}{many}")
        for party, fields in turn.groups.items():
            own = ", ".join(f"{name} {value:g}" for name, value in fields.items())
            console.note(f"group    {party} in turn {turn.name}: {own}")
        for edit in turn.edits:
            count = len(edited(edit, assembly.parties[edit.party]))
            console.note(f"edits    {edit.name}: {edit.on} of {edit.party}, {count} parameters, in each step")
    for name, shapes in states(assembly).items():
        kept = ", ".join(f"{tensor} {shape}" for tensor, shape in shapes.items())
        console.note(f"keeps    {name}: {_shortened(kept)}")


def _tap(reference: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A tap with its shape, ``s.stage3 [256, 4, 4]``."""
    shape = shapes.get(reference.removeprefix("~"))
    return f"{reference} {list(shape)}" if shape else reference


def views(counts: Sequence[int | None]) -> str:
    """Views of a picture in words; ``counts`` are those of the one stream of pictures, or of both."""
    if counts[0] is None:
        return "a new view each epoch"
    first, *rest = dict.fromkeys(counts)
    text = f"{first} fixed views per picture"
    return f"{text} that fills a fixed part of batches, {rest[0]} of the others" if rest else text
