"""What a method's data says that cannot be kept: refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.errors import UsageError
from kdcli.words.analysis import has_rows, states, views_used
from kdcli.words.data import Method, State, Turn


def refuse_faulty(method: Method) -> None:
    """Raise UsageError for the first thing in a method that would not be done as it is written."""
    trained = {party.name for party in method.parties if party.role == "trained"}
    seen: dict[str, State] = {}
    for turn in method.turns:
        faults = [*_of_training(turn, trained), *_of_derives(turn), *_of_terms(turn)]
        for state in states(turn):
            if seen.setdefault(state.name, state) != state:
                faults.append(f"state '{state.name}' is written in two ways: name one State in both places")
        for fault in faults:
            raise UsageError(f"method {method.name}, turn {turn.name}: {fault}.")
    for name in views_used(method):
        kind = name.removeprefix("x@")
        if kind != "plain" and not (kind.isdecimal() and kind.isascii() and int(kind) > 0):
            raise UsageError(
                f"method {method.name}: no view '{name}': there are x, x@plain (the un-augmented cut), and "
                "x@1, x@2, … (other training views)."
            )


def _of_training(turn: Turn, trained: set[str]) -> Iterator[str]:
    """Parties that are trained, edited or grouped, and are not what that needs."""
    for name in turn.trains:
        if name not in trained:
            yield f"it trains '{name}', which is no party with the role 'trained'"
    for name in turn.groups:
        if name.partition(":")[0] not in turn.trains:
            yield f"groups name '{name}', which it does not train"
    names = [edit.name for edit in turn.edits]
    for edit in turn.edits:
        if edit.party not in turn.trains:
            yield f"edit {edit.name} is of '{edit.party}', which it does not train"
        if edit.on not in ("gradient", "weights"):
            yield f"edit {edit.name} is on '{edit.on}', not on gradient or weights"
        if not edit.parameters:
            yield f"edit {edit.name} names no parameters"
        if names.count(edit.name) > 1:
            yield f"two edits are named {edit.name}"


def _of_derives(turn: Turn) -> Iterator[str]:
    """Derives whose value, or whose state, would not be the same on all processes."""
    together = {derive.out for derive in turn.derives if derive.scope == "batch"}
    for derive in turn.derives:
        rows = [a for a in derive.args if has_rows(turn, a)]
        if derive.state is not None and derive.scope != "batch" and rows:
            yield (
                f"derive {derive.out} updates state '{derive.state.name}' from rows of the batch "
                f"({', '.join(rows)}), which differ between processes: its scope must be 'batch'"
            )
    readers = [(f"term {term.name}", term.args) for term in turn.terms if term.scope != "batch"]
    readers += [(f"derive {d.out}", d.args) for d in turn.derives if d.scope != "batch"]
    readers += [(f"call {call.name}", call.inputs) for call in turn.calls]
    for who, references in readers:
        for reference in references:
            if reference in together:
                yield (
                    f"{who} reads '{reference}', a derive of scope 'batch', whose gradient goes to the rows "
                    f"of one process: read it detached ('~{reference}'), or with scope 'batch'"
                )


def _of_terms(turn: Turn) -> Iterator[str]:
    """Rows that are selected by what nobody counts."""
    for term in turn.terms:
        if term.rows not in (None, "labelled"):
            yield (
                f"term {term.name} selects rows by '{term.rows}', and only those of 'labelled' are counted "
                "over processes and micro-batches: select others inside a loss of scope 'batch'"
            )
