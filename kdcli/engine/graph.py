"""A turn's graph: calls and derives, each run once, when something first asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.states import States, checked
from kdcli.engine.values import each, gathered, needs_gradient, tensors
from kdcli.models.protocol import Model
from kdcli.words import Call, Derive, Turn
from kdcli.words.analysis import has_rows, references, split_reference, taps_used


class Graph:
    """What a turn computes.

    Args:
        turn: its calls and derives.
        party: name to network; a :class:`Model`, or a module that returns a tensor, tapped as ``.out``, or
            a dictionary of them.
        states: of the derives, by name; read here, and left as they are.
        world: processes that share each batch.

    Attributes:
        updates: what derives made of their states since it was last emptied.
    """

    def __init__(
        self, turn: Turn, party: Callable[[str], nn.Module], states: States | None = None, world: int = 1
    ) -> None:
        self.party, self.states, self.world = party, states or {}, world
        self.calls = {call.name: call for call in turn.calls}
        self.derives = {derive.out: derive for derive in turn.derives}
        self.taps = taps_used(turn)
        self.detached = _only_detached(turn)
        self.rows = {reference: has_rows(turn, reference) for reference in references(turn)}
        self.updates: States = {}

    def value(self, reference: str, values: dict[str, Any]) -> Any:
        """A tensor, the :class:`~kdcli.models.taps.Layers` of a pattern of taps, or a list of rows.

        Args:
            reference: a tap reference.
            values: batch columns, and whatever was found so far; what is found is added.

        Raises:
            KeyError: a reference to nothing.
        """
        detached, call, kind, name = split_reference(reference)
        if kind == ":":
            found: Any = _held_by(self.party(self.calls[call].party), name)
        else:
            key = reference.removeprefix("~")
            if key not in values:
                self._find(key, call, values)
            found = values[key]
        return each(found, Tensor.detach) if detached else found

    def arguments(self, references: Sequence[str], scope: str, values: dict[str, Any]) -> list[Any]:
        """Values of references; for scope ``batch``, those that have rows with the rows of all processes."""
        found = [self.value(reference, values) for reference in references]
        if scope == "sample" or self.world == 1:
            return found
        return [gathered(v) if self.rows[reference] else v for reference, v in zip(references, found)]

    def _find(self, key: str, call: str, values: dict[str, Any]) -> None:
        if call:
            wanted = [t for t in self.taps[call] if f"{call}.{t}" not in values] or [key.partition(".")[2]]
            values |= self._run(self.calls[call], wanted, values)
            return
        derive = self.derives[key]
        arguments = self.arguments(derive.args, derive.scope, values)
        if derive.state is None:
            values[key] = derive.function(*arguments, **derive.keywords)
        else:
            values[key] = self._updating(derive, derive.state.name, arguments)

    def _updating(self, derive: Derive, state: str, arguments: list[Any]) -> Any:
        """The value of a derive with a state; what it makes of the state is kept for later."""
        own, who = self.states[state], f"derive {derive.out}"
        value, changes = derive.function(dict(own), *arguments, **derive.keywords)
        found = checked(own, changes, tensors(arguments), who, state)
        others = self.updates.setdefault(state, {})
        if twice := sorted(found.keys() & others.keys()):
            raise ValueError(f"{who} updates '{twice[0]}' of state '{state}', and so does a derive before it")
        others |= found
        return value

    def _run(self, call: Call, wanted: list[str], values: dict[str, Any]) -> dict[str, Any]:
        party = self.party(call.party)
        inputs = [self.value(name, values) for name in call.inputs]
        frozen = call.name in self.detached or not any(
            needs_gradient(t) for t in (*party.parameters(), *inputs)
        )
        with torch.no_grad() if frozen else contextlib.nullcontext():
            found = party.call(inputs, wanted) if isinstance(party, Model) else _named(party(*inputs))
        return {f"{call.name}.{tap}": tensor for tap, tensor in found.items()}


def _named(output: Any) -> Mapping[str, Any]:
    return output if isinstance(output, Mapping) else {"out": output}


def _held_by(party: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a model, or of another module."""
    if isinstance(party, Model):
        return party.tensor(name)
    try:
        return party.get_parameter(name)
    except AttributeError:
        return party.get_buffer(name)


def _only_detached(turn: Turn) -> set[str]:
    """Calls whose every use is detached: they run without gradient."""
    uses: dict[str, list[bool]] = {}
    for reference in references(turn):
        detached, call, kind, _ = split_reference(reference)
        if kind:
            uses.setdefault(call, []).append(detached)
    return {call for call, flags in uses.items() if all(flags)}
