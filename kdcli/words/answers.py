"""What a teacher answers where it teaches: its logits by reference, and a temperature that divides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdcli.words.analysis import references, split_reference
from kdcli.words.data import Derive, Method, Turn

_ENDING = "_calibrated"


def divided(logits: Any, *, temperature: float) -> Any:
    """Logits of any shape over a temperature, in fp32: softmax of them is that of the calibrated network."""
    return logits.float() / temperature


def calibrated(method: Method, party: str, temperature: float) -> Method:
    """The method with a party's logits divided by a temperature wherever the exported party learns from them.

    Terms and derives of the turns that train it read ``t_calibrated`` in place of ``t.logits``. The method's
    own temperature comes on top of it, and caches keep the logits as they are. Other turns, a generator's for
    instance, see what they saw before. A temperature of 1 changes nothing.
    """
    if temperature == 1:
        return method

    def changed(turn: Turn) -> Turn:
        return _divided(turn, party, temperature) if method.export in turn.trains else turn

    phases = tuple(replace(phase, turns=tuple(map(changed, phase.turns))) for phase in method.phases)
    return replace(method, phases=phases)


def answers(turn: Turn, party: str, inputs: Sequence[str]) -> str:
    """The reference of a party's logits for one of these inputs, as the turn reads them; empty for none."""
    for call in turn.calls:
        if call.party == party and len(call.inputs) == 1 and call.inputs[0] in inputs:
            read = {reference.removeprefix("~") for reference in references(turn)}
            known = (f"{call.name}{_ENDING}", f"{call.name}.logits")
            return next((name for name in known if name in read), "")
    return ""


def _divided(turn: Turn, party: str, temperature: float) -> Turn:
    read = references(turn)
    derives = []
    for call in (call for call in turn.calls if call.party == party):
        logits = f"{call.name}.logits"
        uses = {reference for reference in read if reference.removeprefix("~") == logits}
        if uses:
            source = logits if logits in uses else f"~{logits}"
            out = f"{call.name}{_ENDING}"
            derives.append(Derive(out, divided, (source,), {"temperature": temperature}))
    names = {split_reference(d.args[0])[1]: d.out for d in derives}

    def renamed(args: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_renamed(reference, names) for reference in args)

    return replace(
        turn,
        calls=tuple(replace(call, inputs=renamed(call.inputs)) for call in turn.calls),
        terms=tuple(replace(term, args=renamed(term.args)) for term in turn.terms),
        derives=(*derives, *(replace(derive, args=renamed(derive.args)) for derive in turn.derives)),
    )


def _renamed(reference: str, names: dict[str, str]) -> str:
    detached, call, kind, name = split_reference(reference)
    if kind != "." or name != "logits" or call not in names:
        return reference
    return f"{'~' if detached else ''}{names[call]}"
