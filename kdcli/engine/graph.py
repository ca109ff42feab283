"""A turn's graph: calls and derives, each run once, when something first asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.models.protocol import Model
from kdcli.words import Call, Turn
from kdcli.words.analysis import split_reference, taps_used


class Graph:
    """What a turn computes.

    Args:
        turn: its calls and derives.
        party: name to network; a :class:`Model`, or a module that returns a tensor, tapped as ``.out``, or
            a dictionary of them.
    """

    def __init__(self, turn: Turn, party: Callable[[str], nn.Module]) -> None:
        self.party = party
        self.calls = {call.name: call for call in turn.calls}
        self.derives = {derive.out: derive for derive in turn.derives}
        self.taps = taps_used(turn)
        self.detached = _only_detached(turn)

    def value(self, reference: str, values: dict[str, Any]) -> Any:
        """A tensor, or the list of them that a pattern of taps yields.

        Args:
            reference: a tap reference.
            values: batch columns, and whatever was found so far; what is found is added.

        Raises:
            KeyError: a reference to nothing.
        """
        detached, call, kind, name = split_reference(reference)
        if kind == ":":
            model: Any = self.party(self.calls[call].party)
            found: Any = model.tensor(name)
        else:
            key = reference.removeprefix("~")
            if key not in values:
                self._find(key, call, values)
            found = values[key]
        return each(found, Tensor.detach) if detached else found

    def _find(self, key: str, call: str, values: dict[str, Any]) -> None:
        if call:
            wanted = [t for t in self.taps[call] if f"{call}.{t}" not in values] or [key.partition(".")[2]]
            values |= self._run(self.calls[call], wanted, values)
        else:
            derive = self.derives[key]
            arguments = [self.value(a, values) for a in derive.args]
            values[key] = derive.function(*arguments, **derive.keywords)

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


def each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply to a tensor, or to every tensor of a list."""
    return [function(tensor) for tensor in value] if isinstance(value, list) else function(value)


def needs_gradient(value: Any) -> bool:
    """Whether it is a tensor that a gradient goes to."""
    return isinstance(value, Tensor) and value.requires_grad


def _only_detached(turn: Turn) -> set[str]:
    """Calls whose every use is detached: they run without gradient."""
    uses: dict[str, list[bool]] = {}
    references = [a for t in turn.terms for a in t.args] + [a for d in turn.derives for a in d.args]
    references += [a for c in turn.calls for a in c.inputs]
    for reference in references:
        detached, call, kind, _ = split_reference(reference)
        if kind:
            uses.setdefault(call, []).append(detached)
    return {call for call, flags in uses.items() if all(flags)}
