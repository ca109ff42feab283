"""A turn as one ``nn.Module``: its trained parties are its children, the others are held outside.

``forward`` runs the calls, reads the taps and returns the terms and their scalar, so that accelerate can
prepare the turn as it stands. Row means divide by the global count of rows, so the gradient of a step does
not depend on how many processes or micro-batches share the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.models.network import Network
from kdcli.models.taps import tensor_of
from kdcli.words import Call, Term, Turn, split_reference, taps_used


class TurnModule(nn.Module):
    """Runs one turn.

    Args:
        turn: its calls, derives and terms.
        parties: every party of the method by name; a :class:`Network`, or any module whose output is tapped
            as ``.out``.
    """

    def __init__(self, turn: Turn, parties: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.turn = turn
        self.trained = nn.ModuleDict({name: parties[name] for name in turn.trains})
        # Held in a tuple, so outside the module tree: neither wrapped, saved nor put into train mode.
        self._held = ({c.party: parties[c.party] for c in turn.calls if c.party not in turn.trains},)
        self._taps = taps_used(turn)
        self._detached = _only_detached(turn)
        for module in self._held[0].values():
            module.eval()

    def party(self, name: str) -> nn.Module:
        """The network behind a party's name."""
        return self.trained[name] if name in self.trained else self._held[0][name]

    def forward(self, batch: dict[str, Tensor], share: Tensor, epoch: float) -> dict[str, Tensor]:
        """The terms and their weighted sum.

        Args:
            batch: columns; ``x`` are views, ``labelled`` selects rows. A column named like a tap
                (``t.logits``) stands for the tap, and its call is not run.
            share: [1 + number of row masks] factors: rows here / rows of the global batch, times the number
                of processes; first for all rows, then for ``labelled``.
            epoch: for scheduled weights.

        Returns:
            ``loss``, and each term under its name (unweighted, with its share), all scalars.
        """
        values: dict[str, Any] = dict(batch)
        for call in self.turn.calls:
            wanted = [tap for tap in self._taps[call.name] if f"{call.name}.{tap}" not in values]
            if wanted:
                values |= self._run(call, wanted, values)
        for derive in self.turn.derives:
            arguments = [self._value(a, values) for a in derive.args]
            values[derive.out] = derive.function(*arguments, **derive.keywords)
        results: dict[str, Tensor] = {}
        loss = share.new_zeros(())
        for term in self.turn.terms:
            value = self._term(term, values, share)
            weight = term.weight(epoch) if callable(term.weight) else term.weight
            loss = loss + weight * value
            results[term.name] = value.detach()
        return {"loss": loss, **results}

    def _run(self, call: Call, wanted: list[str], values: dict[str, Any]) -> dict[str, Any]:
        party = self.party(call.party)
        inputs = [self._value(name, values) for name in call.inputs]
        frozen = call.name in self._detached or not any(
            _needs_gradient(t) for t in (*party.parameters(), *inputs)
        )
        with torch.no_grad() if frozen else contextlib.nullcontext():
            found = party.taps(inputs[0], wanted) if isinstance(party, Network) else {"out": party(*inputs)}
        return {f"{call.name}.{tap}": tensor for tap, tensor in found.items()}

    def _value(self, reference: str, values: dict[str, Any]) -> Any:
        detached, call, kind, name = split_reference(reference)
        if kind == ":":
            party: Any = self.party(next(c.party for c in self.turn.calls if c.name == call))
            found: Any = tensor_of(party, name)
        else:
            found = values[reference.removeprefix("~")]
        return _each(found, Tensor.detach) if detached else found

    def _term(self, term: Term, values: dict[str, Any], share: Tensor) -> Tensor:
        arguments = [self._value(a, values) for a in term.args]
        if term.rows is None:
            return term.loss(*arguments, **term.keywords) * share[0]
        mask = values[term.rows]
        if not mask.any():  # nothing selected here: zero, with a zero gradient so that every process has one
            return sum((a.sum() * 0.0 for a in arguments if _needs_gradient(a)), share.new_zeros(()))
        if not mask.all():
            arguments = [_each(a, lambda tensor: tensor[mask]) for a in arguments]
        return term.loss(*arguments, **term.keywords) * share[1]

    def train(self, mode: bool = True) -> TurnModule:
        """Train mode for the trained parties only; the others stay in eval mode."""
        super().train(mode)
        for module in self._held[0].values():
            module.eval()
        return self


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply to a tensor, or to every tensor of the list that a pattern of taps yields."""
    return [function(tensor) for tensor in value] if isinstance(value, list) else function(value)


def _needs_gradient(value: Any) -> bool:
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
