"""The words a method is written in: parties, calls, derives, terms, turns, phases. Data only, no torch.

Tap references: ``s.logits`` is a tap of call ``s``; ``~t.logits`` the same, detached; ``t:head.weight`` a
parameter or buffer of the party behind call ``t``; a bare name is a batch column (``x``, ``y``) or the
output of a derive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Weight = float | Callable[[float], float]
"""A number, or a schedule: a function of how much of its phase is done, from 0 to 1."""


@dataclass(frozen=True)
class Until:
    """The schedule that is ``value`` until a part of the phase is done, and ``after`` from there on."""

    value: float
    stop: float
    after: float = 0.0

    def __call__(self, done: float) -> float:
        """The weight."""
        return self.value if done < self.stop else self.after

    def __str__(self) -> str:
        return f"{self.value:g} until {self.stop:.0%}, then {self.after:g}"


@dataclass(frozen=True)
class Linear:
    """The schedule that goes from ``first`` to ``last`` while ``begin`` to ``end`` of the phase are done."""

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __call__(self, done: float) -> float:
        """The weight."""
        part = min(max((done - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.first + part * (self.last - self.first)

    def __str__(self) -> str:
        return f"{self.first:g} to {self.last:g}, from {self.begin:.0%} to {self.end:.0%}"


@dataclass(frozen=True)
class RampUp:
    """The schedule value·exp(−5·(1 − done/length)²), full from ``length`` on (Laine & Aila 2017).

    A length of 0 is the full value at once.
    """

    value: float
    length: float

    def __call__(self, done: float) -> float:
        """The weight."""
        part = min(done / self.length, 1.0) if self.length > 0 else 1.0
        return self.value * math.exp(-5.0 * (1.0 - part) ** 2)

    def __str__(self) -> str:
        return f"{self.value:g}, ramped up until {self.length:.0%}"


@dataclass(frozen=True)
class Party:
    """A network in a run.

    Attributes:
        name: unique in the method.
        role: ``trained``, or ``frozen`` (eval mode, no gradient to its parameters).
        source: which network it is: ``student`` or ``teacher`` as configured, or any model's name; empty for
            one that ``build`` makes.
        build: a function of the shapes [...] of one row of each of ``reads`` to a module.
        reads: tap references.
        seed: added to the run's, so that peers start apart.
        tail: a tap of a block; the party is what follows it in the source (a branch on another's trunk).
    """

    name: str
    role: Literal["trained", "frozen"]
    source: str = ""
    build: Callable[..., Any] | None = None
    reads: tuple[str, ...] = ()
    seed: int = 0
    tail: str = ""


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
        scope: ``sample`` (a mean over rows) or ``batch`` (a relation between rows, of all processes).
        rows: a batch column of booleans that selects rows; the mean divides by their global count. A choice
            that depends on the rows beside it is made inside a loss of scope ``batch``.
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
    """One graph of calls, one scalar, one backward, one optimiser step for the parties it trains.

    ``optim`` holds fields of the optimiser section that differ in this turn.
    """

    name: str
    trains: tuple[str, ...]
    calls: tuple[Call, ...]
    terms: tuple[Term, ...]
    derives: tuple[Derive, ...] = ()
    optim: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Turns repeated for ``share`` of the run's steps."""

    turns: tuple[Turn, ...]
    name: str = "train"
    share: float = 1.0


@dataclass(frozen=True)
class Span:
    """Steps ``begin`` to ``end`` of a run, in a phase that would be ``length`` steps long."""

    phase: Phase
    begin: int
    end: int
    length: int


@dataclass(frozen=True)
class Method:
    """What a method function returns.

    Attributes:
        name: as in the table of methods.
        parties: all networks.
        phases: in order; shares add up to 1.
        export: the party that becomes the artifact.
        beside: parties that are written beside it: exits, peers.
    """

    name: str
    parties: tuple[Party, ...]
    phases: tuple[Phase, ...]
    export: str = "student"
    beside: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Of all phases."""
        return tuple(turn for phase in self.phases for turn in phase.turns)

    def spans(self, schedule_steps: int, steps: int) -> list[Span]:
        """Where the phases lie in a run of ``steps`` whose schedules are made for ``schedule_steps``."""
        found, begin, share = [], 0, 0.0
        for phase in self.phases:
            share += phase.share
            end = round(schedule_steps * share)
            if min(end, steps) > begin:
                found.append(Span(phase, begin, min(end, steps), end - begin))
            begin = end
        return found

    @property
    def cacheable(self) -> bool:
        """Whether frozen parties answer to nothing but the view, and with logits: then a cache serves."""
        frozen = {party.name for party in self.parties if party.role == "frozen"}
        return all(
            call.inputs == ("x",) and taps_used(turn)[call.name] in ((), ("logits",))
            for turn in self.turns
            for call in turn.calls
            if call.party in frozen
        )

    @property
    def leaves_unused(self) -> bool:
        """Whether a step may leave parameters of a trained party without a gradient."""
        terms = [term for turn in self.turns for term in turn.terms]
        return (
            len(self.turns) > 1
            or any(party.build is not None or party.tail for party in self.parties)
            or any(callable(term.weight) for term in terms)
            or not any("s.logits" in term.args for term in terms)
        )

    @property
    def reads_labels(self) -> bool:
        """Whether something reads class numbers, which mixed pictures have not."""
        return "y" in {name for turn in self.turns for name in inputs_used(turn)}

    @property
    def needs_labels(self) -> bool:
        """Whether something reads the class numbers of all rows."""
        terms = [term for turn in self.turns for term in turn.terms]
        derives = [derive for turn in self.turns for derive in turn.derives]
        return any("y" in term.args and term.rows != "labelled" for term in terms) or any(
            "y" in derive.args for derive in derives
        )


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


def calls_made(turn: Turn, steps: int, length: int) -> Counter[str]:
    """How often each call runs in the first ``steps`` of a phase of ``length``.

    A call runs in the steps in which a term that needs it weighs something.
    """
    taps = taps_used(turn)
    scheduled = [t for t in turn.terms if callable(t.weight)]
    fixed = [t for t in turn.terms if not callable(t.weight) and t.weight]
    kinds = Counter(
        tuple(callable(t.weight) and bool(t.weight(step / length)) for t in scheduled)
        for step in range(steps if scheduled else 0)
    ) or Counter({(): steps})
    found: Counter[str] = Counter()
    for weighing, count in kinds.items():
        used, _ = used_by(turn, [*fixed, *(t for t, on in zip(scheduled, weighing) if on)])
        found.update({name: count for name in used if taps[name]})
    return found


def inputs_used(turn: Turn) -> set[str]:
    """Bare names that are read: batch columns and outputs of derives."""
    references = [a for term in turn.terms for a in term.args]
    references += [a for derive in turn.derives for a in derive.args]
    references += [a for call in turn.calls for a in call.inputs]
    return {name for _, _, kind, name in map(split_reference, references) if not kind}


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
            called = {call.party for call in calls}
            trains = tuple(name for name in turn.trains if name in called)
            turns.append(replace(turn, trains=trains, terms=terms, calls=calls, derives=derives))
        phases.append(replace(phase, turns=tuple(turns)))
    called = {c.party for p in phases for t in p.turns for c in t.calls} | {method.export}
    return replace(method, phases=tuple(phases), parties=tuple(p for p in method.parties if p.name in called))
