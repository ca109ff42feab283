"""A method's parties put together: those that it builds to fit the others, and one dry step of all turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.graph import Graph
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError
from kdcli.seeds import seed_of
from kdcli.words import Method, Turn
from kdcli.words.analysis import split_reference

_BUILDING = 11  # keeps the seeds of built parties apart from others made of the same numbers


@dataclass(frozen=True)
class Assembly:
    """What a method needs to run.

    Attributes:
        parties: all, by name.
        shapes: of one row of every tap that a term reads, by reference; those of lists are left out.
        rows: of a call's output over those of the batch, by turn and call, where it was run.
        signed: references of the taps that had negative values.
    """

    parties: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    rows: dict[tuple[str, str], float]
    signed: set[str] = field(default_factory=set)


def assemble(
    method: Method, networks: Mapping[str, nn.Module], batch: dict[str, Tensor], seed: int
) -> Assembly:
    """Build the parties that read shapes, then run every turn once in eval mode, without gradient.

    Args:
        method: its parties and turns.
        networks: the parties that have a source, by name.
        batch: a few rows with all columns; one named like a tap (``t.logits``) spares the call.
        seed: of the built parties' weights.

    Raises:
        InputError: a tap that a network has not, tensors that do not fit together, in the words of the term.
    """
    parties = dict(networks)
    for network in parties.values():
        network.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, party in enumerate(method.parties):
            if party.build is not None:
                shapes = [_shape(method, parties, reference, batch) for reference in party.reads]
                torch.manual_seed(seed_of(seed, index, _BUILDING) >> 1)
                try:
                    parties[party.name] = party.build(*shapes).eval()
                except ValueError as error:
                    raise InputError(f"method {method.name}: {party.name}: {error}") from error
        found = Assembly(parties, {}, {})
        for turn in method.turns:
            _dry_step(method, turn, parties, batch, found)
    return found


def _shape(
    method: Method, parties: Mapping[str, nn.Module], reference: str, batch: dict[str, Tensor]
) -> tuple[int, ...]:
    """The shape of one row of a column, or of a tap in the first turn that has the call."""
    _, call, _, tap = split_reference(reference)
    if not call:
        return tuple(batch[tap].shape[1:])
    turn = next(t for t in method.turns if call in {c.name for c in t.calls})
    graph = Graph(turn, parties.__getitem__)
    graph.taps[call] = (tap,)
    return tuple(graph.value(reference, dict(batch)).shape[1:])


def _dry_step(
    method: Method, turn: Turn, parties: Mapping[str, nn.Module], batch: dict[str, Tensor], found: Assembly
) -> None:
    module = TurnModule(turn, parties, shared=False).eval()
    values: dict[str, Any] = dict(batch)
    for term in turn.terms:
        try:
            module.term(term, values, torch.ones(2))
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"method {method.name}: {term.name}: {error}.") from error
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    read = {reference.removeprefix("~") for term in turn.terms for reference in term.args}
    found.shapes.update({name: tuple(tensors[name].shape[1:]) for name in read & tensors.keys()})
    found.signed.update(name for name in read & tensors.keys() if (tensors[name] < 0).any())
    for name, tensor in tensors.items():
        call = split_reference(name)[1]
        if call:
            found.rows[turn.name, call] = len(tensor) / len(batch["y"])
