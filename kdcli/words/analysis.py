"""What a method reads, calls and leaves unused, found in its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from kdcli.words.data import Method, Term, Turn


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
    fixed = [t for t in turn.terms if not callable(t.weight) and (t.weight or t.watched)]
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
    """Drop terms of constant weight zero, then calls, derives and parties that only they used.

    Terms that are watched stay, where there are others beside them.
    """
    phases = []
    for phase in method.phases:
        turns = []
        for turn in phase.turns:
            weighing = any(callable(t.weight) or t.weight != 0 for t in turn.terms)
            terms = tuple(
                t for t in turn.terms if callable(t.weight) or t.weight != 0 or (t.watched and weighing)
            )
            used, derived = used_by(turn, terms)
            calls = tuple(c for c in turn.calls if c.name in used)
            derives = tuple(d for d in turn.derives if d.out in derived)
            called = {call.party for call in calls}
            trains = tuple(name for name in turn.trains if name in called)
            turns.append(replace(turn, trains=trains, terms=terms, calls=calls, derives=derives))
        phases.append(replace(phase, turns=tuple(turns)))
    called = {c.party for p in phases for t in p.turns for c in t.calls} | {method.export}
    return replace(method, phases=tuple(phases), parties=tuple(p for p in method.parties if p.name in called))


def is_cacheable(method: Method) -> bool:
    """Whether frozen parties answer to nothing but the view, and with logits: then a cache serves."""
    frozen = {party.name for party in method.parties if party.role == "frozen"}
    return all(
        call.inputs == ("x",) and taps_used(turn)[call.name] in ((), ("logits",))
        for turn in method.turns
        for call in turn.calls
        if call.party in frozen
    )


def leaves_unused(method: Method) -> bool:
    """Whether a step may leave parameters of a trained party without a gradient."""
    terms = [term for turn in method.turns for term in turn.terms]
    return (
        len(method.turns) > 1
        or any(party.build is not None or party.tail for party in method.parties)
        or any(callable(term.weight) for term in terms)
        or not any("s.logits" in term.args for term in terms)
    )


def reads_labels(method: Method) -> bool:
    """Whether something reads class numbers, which mixed pictures have not."""
    return "y" in {name for turn in method.turns for name in inputs_used(turn)}


def needs_labels(method: Method) -> bool:
    """Whether something reads the class numbers of all rows."""
    terms = [term for turn in method.turns for term in turn.terms]
    derives = [derive for turn in method.turns for derive in turn.derives]
    return any("y" in term.args and term.rows != "labelled" for term in terms) or any(
        "y" in derive.args for derive in derives
    )
