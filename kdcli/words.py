"""The words a method is written in: parties, calls, derives, terms, turns, phases. Data only, no torch.

Tap references: ``s.logits`` is a tap of call ``s``; ``~t.logits`` the same, detached; ``t:head.weight`` a
parameter or buffer of the party behind call ``t``; a bare name is a batch column (``x``, ``y``) or the
output of a derive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Weight = float | Callable[[float], float]
"""A number, or a function of the epoch (fractional, from 0)."""


@dataclass(frozen=True)
class Party:
    """A network in a run.

    Attributes:
        name: unique in the method.
        role: ``trained``, or ``frozen`` (eval mode, no gradient to its parameters).
        source: which configured network it is: ``student``, ``teacher``.
    """

    name: str
    role: Literal["trained", "frozen"]
    source: str


@dataclass(frozen=True)
class Call:
    """One application of a party to named inputs; ``inputs`` are batch columns or taps of earlier calls."""

    name: str
    party: str
    inputs: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Derive:
    """A named tensor computed from taps by a pure function."""

    out: str
    function: Callable[..., Any]
    args: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One weighted loss.

    Attributes:
        name: in logs and plans.
        loss: a pure function to a scalar: a mean over rows for scope ``sample``.
        args: tap references.
        weight: factor in the objective; a term of constant weight 0 is dropped with parties that only it
            used.
        keywords: of the loss.
        scope: ``sample`` (a mean over rows) or ``batch`` (a relation between rows).
        rows: a batch column of booleans that selects rows; the mean divides by their global count.
    """

    name: str
    loss: Callable[..., Any]
    args: tuple[str, ...]
    weight: Weight = 1.0
    keywords: dict[str, Any] = field(default_factory=dict)
    scope: Literal["sample", "batch"] = "sample"
    rows: str | None = None


@dataclass(frozen=True)
class Turn:
    """One graph of calls, one scalar, one backward, one optimiser step for the parties it trains."""

    name: str
    trains: tuple[str, ...]
    calls: tuple[Call, ...]
    terms: tuple[Term, ...]
    derives: tuple[Derive, ...] = ()


@dataclass(frozen=True)
class Phase:
    """Turns repeated for ``share`` of the run's steps."""

    turns: tuple[Turn, ...]
    name: str = "train"
    share: float = 1.0


@dataclass(frozen=True)
class Method:
    """What a method function returns.

    Attributes:
        name: as in the table of methods.
        parties: all networks.
        phases: in order; shares add up to 1.
        export: the party that becomes the artifact.
        cacheable: whether frozen parties see nothing but the view, so that their outputs may come from the
            cache.
    """

    name: str
    parties: tuple[Party, ...]
    phases: tuple[Phase, ...]
    export: str = "student"
    cacheable: bool = True


def split_reference(reference: str) -> tuple[bool, str, str, str]:
    """Parse a tap reference into (detached, call, kind, tap); kind is ``.``, ``:`` or empty."""
    detached = reference.startswith("~")
    text = reference.removeprefix("~")
    call, colon, name = text.partition(":")
    if colon and "." not in call:
        return detached, call, ":", name
    call, dot, name = text.partition(".")
    return (detached, call, ".", name) if dot else (detached, "", "", text)


def used_by(turn: Turn, terms: Iterable[Term]) -> tuple[set[str], set[str]]:
    """Names of calls and of derives' outputs that terms need, through derives and other calls' inputs."""
    by_out = {d.out: d for d in turn.derives}
    by_name = {c.name: c for c in turn.calls}
    wanted = [a for term in terms for a in term.args]
    calls: set[str] = set()
    derives: set[str] = set()
    while wanted:
        reference = wanted.pop()
        _, call, kind, name = split_reference(reference)
        if kind:
            if call not in by_name:
                raise KeyError(f"turn {turn.name}: '{reference}' names no call")
            if call not in calls:
                calls.add(call)
                wanted += by_name[call].inputs
        elif name in by_out and name not in derives:
            derives.add(name)
            wanted += by_out[name].args
    return calls, derives


def taps_used(turn: Turn) -> dict[str, tuple[str, ...]]:
    """For each call, the taps that terms, derives and other calls' inputs read."""
    references = [a for term in turn.terms for a in term.args]
    references += [a for derive in turn.derives for a in derive.args]
    references += [a for call in turn.calls for a in call.inputs]
    found: dict[str, dict[str, None]] = {call.name: {} for call in turn.calls}
    for reference in references:
        _, call, kind, name = split_reference(reference)
        if kind == ".":
            found[call][name] = None
    return {call: tuple(names) for call, names in found.items()}


def without_zero_terms(method: Method) -> Method:
    """Drop terms of constant weight zero, then calls, derives and parties that only they used."""
    phases = []
    for phase in method.phases:
        turns = []
        for turn in phase.turns:
            terms = tuple(t for t in turn.terms if callable(t.weight) or t.weight != 0)
            used, derived = used_by(turn, terms)
            calls = tuple(c for c in turn.calls if c.name in used)
            derives = tuple(d for d in turn.derives if d.out in derived)
            turns.append(replace(turn, terms=terms, calls=calls, derives=derives))
        phases.append(replace(phase, turns=tuple(turns)))
    called = {c.party for p in phases for t in p.turns for c in t.calls} | {method.export}
    called |= {name for p in phases for t in p.turns for name in t.trains}
    return replace(method, phases=tuple(phases), parties=tuple(p for p in method.parties if p.name in called))
