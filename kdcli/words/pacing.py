"""Schedules that count steps, told how many their phase has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kdcli.words.data import Method, Phase, Term, Turn
from kdcli.words.schedules import Warmup


def paced(method: Method, steps: int) -> Method:
    """The method with the length of its phase in every weight that counts steps.

    Args:
        method: perhaps with a :class:`~kdcli.words.schedules.Warmup` somewhere.
        steps: that the run's schedules are made for.
    """
    if not any(isinstance(term.weight, Warmup) for turn in method.turns for term in turn.terms):
        return method
    lengths = {id(span.phase): span.length for span in method.spans(steps, steps)}
    return replace(method, phases=tuple(_of_phase(p, lengths.get(id(p), 0)) for p in method.phases))


def unfinished(method: Method) -> Iterator[tuple[Term, Warmup]]:
    """Terms of a paced method whose phase ends before they weigh what they should, with their weights."""
    for term in (term for turn in method.turns for term in turn.terms):
        weight = term.weight
        if isinstance(weight, Warmup) and 0 < weight.phase < weight.steps:
            yield term, weight


def _of_phase(phase: Phase, length: int) -> Phase:
    return replace(phase, turns=tuple(_of_turn(turn, length) for turn in phase.turns))


def _of_turn(turn: Turn, length: int) -> Turn:
    return replace(turn, terms=tuple(_of_term(term, length) for term in turn.terms))


def _of_term(term: Term, length: int) -> Term:
    if isinstance(term.weight, Warmup):
        return replace(term, weight=replace(term.weight, phase=length))
    return term
