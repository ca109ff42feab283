"""What a method reads, calls and leaves unused, found in its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from kdcli.words.data import Call, Method, State, Term, Turn

_ANSWERS = (set[str](), {"logits"}, {"embedding"}, {"logits", "boxes"})  # taps that a cache can keep
_FEATURES = frozenset(
    ("logits", "embedding", "pooled", "backbone", "grid")
)  # and those that it keeps where it is asked to


@lru_cache(maxsize=4096)  # the same few are asked for again and again
def split_reference(reference: str) -> tuple[bool, str, str, str]:
    """Parse a tap reference into (detached, call, kind, tap); kind is ``.``, ``:`` or empty."""
    detached = reference.startswith("~")
    text = reference.removeprefix("~")
    call, colon, name = text.partition(":")
    if colon and "." not in call:
        return detached, call, ":", name
    call, dot, name = text.partition(".")
    return (detached, call, ".", name) if dot else (detached, "", "", text)


def references(turn: Turn) -> list[str]:
    """Everything that terms, derives and calls of a turn read."""
    found = [name for term in turn.terms for name in term.args]
    found += [name for derive in turn.derives for name in derive.args]
    return found + [name for call in turn.calls for name in call.inputs]


def used_by(turn: Turn, terms: Iterable[Term]) -> tuple[set[str], set[str]]:
    """Names of calls and of derives' outputs that terms need, through derives and other calls' inputs.

    Derives with a state, and what they need, are among them: they are computed in every step.
    """
    standing = [derive.out for derive in turn.derives if derive.state is not None]
    return reached(turn, [*(a for term in terms for a in term.args), *standing])


def reached(turn: Turn, wanted: Iterable[str]) -> tuple[set[str], set[str]]:
    """Names of calls and of derives' outputs behind references."""
    by_out = {d.out: d for d in turn.derives}
    by_name = {c.name: c for c in turn.calls}
    left, calls, derives = list(wanted), set[str](), set[str]()
    while left:
        reference = left.pop()
        _, call, kind, name = split_reference(reference)
        if kind:
            if call not in by_name:
                raise KeyError(f"turn {turn.name}: '{reference}' names no call")
            if call not in calls:
                calls.add(call)
                left += by_name[call].inputs
        elif name in by_out and name not in derives:
            derives.add(name)
            left += by_out[name].args
    return calls, derives


def has_rows(turn: Turn, reference: str) -> bool:
    """Whether what a reference names has rows of the batch, one or several per sample.

    A parameter has none, nor has what is made of none, nor a derive of scope ``batch``.
    """
    _, call, kind, name = split_reference(reference)
    if kind == ":":
        return False
    if kind:
        return any(has_rows(turn, i) for c in turn.calls if c.name == call for i in c.inputs)
    derive = next((d for d in turn.derives if d.out == name), None)
    if derive is None:
        return True
    return derive.scope == "sample" and any(has_rows(turn, a) for a in derive.args)


def states(turn: Turn) -> list[State]:
    """States that derives and edits of a turn name."""
    found = [derive.state for derive in turn.derives] + [edit.state for edit in turn.edits]
    return [state for state in found if state is not None]


def states_of(method: Method) -> dict[str, State]:
    """States of a method by name."""
    return {state.name: state for turn in method.turns for state in states(turn)}


def taps_used(turn: Turn) -> dict[str, tuple[str, ...]]:
    """For each call, the taps that terms, derives and other calls' inputs read."""
    found: dict[str, dict[str, None]] = {call.name: {} for call in turn.calls}
    for reference in references(turn):
        _, call, kind, name = split_reference(reference)
        if kind == ".":
            found[call][name] = None
    return {call: tuple(names) for call, names in found.items()}


def calls_made(turn: Turn, steps: int, length: int) -> Counter[str]:
    """How often each call runs in the first ``steps`` of a phase of ``length``.

    A call runs in the steps in which a term that needs it weighs something, or in all for a derive with a
    state.
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
    return {name for _, _, kind, name in map(split_reference, references(turn)) if not kind}


def views_used(method: Method, answered: Collection[str] = ()) -> list[str]:
    """Columns ``x@…`` that are read beside ``x``, where a cache answers the calls of these names."""
    names: set[str] = set()
    for turn in method.turns:
        calls = tuple(call for call in turn.calls if call.name not in answered)
        names |= inputs_used(replace(turn, calls=calls))
    return sorted(name for name in names if name.startswith("x@"))


def without_zero_terms(method: Method) -> Method:
    """Drop terms of constant weight zero, then calls, derives, edits and parties that only they used.

    Terms that are watched stay, where there are others beside them. An edit stays where its party is still
    trained, and a derive that no term reads where it updates a state that an edit, or a derive that stays,
    names too.
    """
    terms = [tuple(_weighing(turn)) for turn in method.turns]
    wanted = [[a for term in kept for a in term.args] for kept in terms]
    edits = []
    for turn, names in zip(method.turns, wanted):
        called = {call.party for call in turn.calls if call.name in reached(turn, names)[0]}
        edits.append(tuple(edit for edit in turn.edits if edit.party in called))
    _want_states(method, wanted, [edit.state for kept in edits for edit in kept])
    turns = iter(
        _reduced(turn, names, terms=kept, edits=kept_edits)
        for turn, names, kept, kept_edits in zip(method.turns, wanted, terms, edits)
    )
    phases = tuple(replace(p, turns=tuple(next(turns) for _ in p.turns)) for p in method.phases)
    called = {c.party for p in phases for t in p.turns for c in t.calls} | {method.export}
    return replace(method, phases=phases, parties=tuple(p for p in method.parties if p.name in called))


def _weighing(turn: Turn) -> list[Term]:
    """Terms that weigh something at some time, with those that are watched beside them."""
    kept = [term for term in turn.terms if callable(term.weight) or term.weight != 0]
    return [term for term in turn.terms if term in kept or (term.watched and kept)]


def _want_states(method: Method, wanted: list[list[str]], named: Iterable[State | None]) -> None:
    """Add to what each turn is wanted for what updates, or is read to build, the states that are named."""
    needed = {state.name for state in named if state is not None}
    grows = True
    while grows:
        before = len(needed)
        for turn, names in zip(method.turns, wanted):
            for derive in turn.derives:
                if derive.state is None:
                    continue
                if derive.state.name in needed or derive.out in reached(turn, names)[1]:
                    needed.add(derive.state.name)
                    names.append(derive.out)
        grows = len(needed) > before
    for turn, names in zip(method.turns, wanted):
        calls = {call.name for call in turn.calls}
        for state in states(turn):
            if state.name in needed:
                names += [read for read in state.reads if split_reference(read)[1] in calls]


def _reduced(turn: Turn, wanted: Iterable[str], **kept: Any) -> Turn:
    """A turn with the calls and derives that are wanted, and what else is kept."""
    used, derived = reached(turn, wanted)
    calls = tuple(c for c in turn.calls if c.name in used)
    called = {call.party for call in calls}
    return replace(
        turn,
        trains=tuple(name for name in turn.trains if name in called),
        calls=calls,
        derives=tuple(d for d in turn.derives if d.out in derived),
        groups={name: fields for name, fields in turn.groups.items() if name.partition(":")[0] in called},
        **kept,
    )


def cacheable_calls(method: Method, *, features: bool = False) -> dict[str, str]:
    """Calls of frozen parties whose answers a cache can keep, and what they read: ``x`` or ``x@plain``.

    The same name stands for the same call in all turns. With ``features`` it keeps pooled features and maps
    too, which are a hundred times as large as answers.
    """
    frozen = {party.name for party in method.parties if party.role == "frozen"}
    found: dict[str, str] = {}
    unlike: set[str] = set()
    uses: dict[str, Call] = {}
    for turn in method.turns:
        for call in turn.calls:
            same = uses.setdefault(call.name, call) == call
            taps = taps_used(turn)[call.name]
            kept = set(taps) in _ANSWERS or (features and _FEATURES.issuperset(taps))
            served = call.inputs in (("x",), ("x@plain",)) and kept
            if call.party in frozen and served and same:
                found[call.name] = call.inputs[0]
            else:
                unlike.add(call.name)
    return {name: read for name, read in found.items() if name not in unlike}


def is_cacheable(method: Method, *, features: bool = False) -> bool:
    """Whether frozen parties answer to nothing but the view or the plain cut, with what caches can keep."""
    frozen = {party.name for party in method.parties if party.role == "frozen"}
    served = cacheable_calls(method, features=features)
    return all(call.name in served for t in method.turns for call in t.calls if call.party in frozen)


def leaves_unused(method: Method) -> bool:
    """Whether a step may leave parameters of a trained party without a gradient."""
    terms = [term for turn in method.turns for term in turn.terms]
    return (
        len(method.turns) > 1
        or any(party.build is not None or party.tail for party in method.parties)
        or any(callable(term.weight) for term in terms)
        or any(derive.state is not None for turn in method.turns for derive in turn.derives)  # unread, maybe
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
