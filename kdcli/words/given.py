"""What networks in training are given beside pictures: detectors make queries of the objects."""

from __future__ import annotations

from dataclasses import replace

from kdcli.words.data import Method, Turn


def given(method: Method, columns: tuple[str, ...]) -> Method:
    """The method with columns behind the pictures of calls of networks that are trained.

    Those are calls on ``x`` alone of parties with a source: other views have other columns, and what a method
    builds takes what it is written for. Without columns nothing changes.
    """
    if not columns:
        return method
    trained = {party.name for party in method.parties if party.role == "trained" and party.source}

    def changed(turn: Turn) -> Turn:
        calls = tuple(
            replace(call, inputs=("x", *columns)) if call.party in trained and call.inputs == ("x",) else call
            for call in turn.calls
        )
        return replace(turn, calls=calls)

    phases = tuple(replace(phase, turns=tuple(map(changed, phase.turns))) for phase in method.phases)
    return replace(method, phases=phases)
