"""A method's parties put together: those that it builds to fit the others, and one dry step of all turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.dry import dry_edits, dry_step, kind_of
from kdcli.engine.graph import Graph
from kdcli.engine.states import States
from kdcli.errors import InputError, UsageError
from kdcli.seeds import seed_of
from kdcli.words import Method, Turn
from kdcli.words.analysis import split_reference, states_of
from kdcli.words.checks import refuse_faulty

_BUILDING, _STATES = (
    11,
    13,
)  # keep the seeds of built parties and states apart from others of the same numbers


@dataclass(frozen=True)
class Assembly:
    """What a method needs to run.

    Attributes:
        parties: all, by name.
        shapes: of one row of every tap that a term reads, by reference; those of lists are left out.
        seen: the same of every tap and derive that was computed.
        rows: of a call's output over those of the batch, by turn and call, where it was run.
        signed: references of the taps that had negative values.
        states: first tensors by state and name.
    """

    parties: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    rows: dict[tuple[str, str], float]
    signed: set[str] = field(default_factory=set)
    states: States = field(default_factory=dict)
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict)


def assemble(
    method: Method,
    networks: Mapping[str, nn.Module],
    batch: dict[str, Any],
    seed: int,
    labels: Tensor | None = None,
) -> Assembly:
    """Build parties and states that read shapes, then run every turn once in eval mode, without gradient.

    Args:
        method: its parties and turns.
        networks: the parties that have a source, by name; frozen ones are frozen here.
        batch: a few rows with all columns; one named like a tap (``t.logits``) spares the call.
        seed: of the built parties' weights, and of what states draw.
        labels: [N] class numbers of the samples that are learned from, for states of them.

    Raises:
        UsageError: a method that would not be done as it is written.
        InputError: a tap that a network has not, tensors that do not fit together, in the words of the term.
    """
    refuse_faulty(method)
    parties = dict(networks)
    found = Assembly(parties, {}, {})
    for network in parties.values():
        network.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, party in enumerate(method.parties):
            if party.build is not None:
                who = f"method {method.name}: {party.name}", seed_of(seed, index, _BUILDING)
                parties[party.name] = _built(party.build, party.reads, who, method, found, batch).eval()
            if party.role == "frozen" and party.name in parties:
                parties[party.name].requires_grad_(False)
        for index, (name, state) in enumerate(states_of(method).items()):
            who = f"method {method.name}: state {name}", seed_of(seed, index, _STATES)
            if state.of_samples and labels is None:
                raise UsageError(
                    f"{who[0]} keeps something of every sample, and nothing is learned from samples."
                )
            build = partial(state.build, labels) if state.of_samples else state.build
            found.states[name] = _built(build, state.reads, who, method, found, batch)
        for turn in method.turns:
            where = f"method {method.name}"
            values = dry_step(where, turn, parties, found.states, batch)
            dry_edits(where, turn, parties, found.states)
            _note(turn, values, len(batch["y"]), found)
    return found


def _built(
    build: Callable[..., Any],
    reads: Sequence[str],
    who: tuple[str, int],
    method: Method,
    found: Assembly,
    batch: dict[str, Any],
) -> Any:
    """A party or a state made to fit the shapes of what it reads; ``who`` names it, and seeds it."""
    name, seed = who
    try:
        shapes = [_shape(method, found.parties, reference, batch, name) for reference in reads]
        torch.manual_seed(seed >> 1)
        return build(*shapes)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def _shape(
    method: Method, parties: Mapping[str, nn.Module], reference: str, batch: dict[str, Any], name: str
) -> tuple[int, ...]:
    """The shape of one row of a column, or of a tap or derive in the first turn that has it.

    A parameter has no rows: its whole shape.
    """
    _, call, kind, tap = split_reference(reference)
    if not call and tap in batch:
        return tuple(batch[tap].shape[1:])
    owners = {c.name: turn for turn in reversed(method.turns) for c in turn.calls}
    if not call:
        owners = {d.out: turn for turn in reversed(method.turns) for d in turn.derives}
    turn = owners[call or tap]
    graph = Graph(turn, parties.__getitem__)
    if call:
        graph.taps[call] = (tap,)
    value = graph.value(reference, dict(batch))
    if not isinstance(value, Tensor):
        raise InputError(f"{name} wants the shape of '{reference}', which is {kind_of(value)}.")
    return tuple(value.shape if kind == ":" else value.shape[1:])


def _note(turn: Turn, values: dict[str, Any], rows: int, found: Assembly) -> None:
    """Keep what a dry step has shown of the taps."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    read = {reference.removeprefix("~") for term in turn.terms for reference in term.args}
    found.shapes.update({name: tuple(tensors[name].shape[1:]) for name in read & tensors.keys()})
    found.seen.update({name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()})
    found.signed.update(name for name in read & tensors.keys() if (tensors[name] < 0).any())
    for name, tensor in tensors.items():
        call = split_reference(name)[1]
        if call:
            found.rows[turn.name, call] = len(tensor) / rows
