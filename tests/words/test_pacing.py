"""Weights that count steps, told how long their phase is."""

from __future__ import annotations

import pytest

from kdcli.words import Call, Linear, Method, Party, Phase, Term, Turn, Warmup
from kdcli.words.analysis import calls_made
from kdcli.words.pacing import paced, unfinished


def _loss(*_: object) -> None: ...


def method(*weights: object, shares: tuple[float, ...] = (1.0,)) -> Method:
    terms = tuple(Term(f"term{i}", _loss, ("s.logits",), weight) for i, weight in enumerate(weights))
    taught = Term("taught", _loss, ("t.logits",), Warmup(0.1, 10))
    calls = (Call("s", "student"), Call("t", "teacher"))
    turn = Turn("only", ("student",), calls, (*terms, taught))
    parties = (Party("student", "trained", "student"), Party("teacher", "frozen", "teacher"))
    phases = tuple(Phase((turn,), f"phase{i}", share) for i, share in enumerate(shares))
    return Method("toy", parties, phases)


def test_it_grows_step_by_step_and_stays() -> None:
    weight = Warmup(0.1, 500, 2000)
    steps = (0, 1, 250, 500, 501, 1999)
    assert [weight(step / 2000) for step in steps] == pytest.approx([0, 0.0002, 0.05, 0.1, 0.1, 0.1])
    assert weight(1.0) == 0.1
    assert str(weight) == "0.1, from 0 over 500 steps"


def test_a_phase_of_unknown_length_and_no_steps_at_all_are_the_whole_weight() -> None:
    assert (Warmup(0.1, 500)(0.0), Warmup(0.1, 500)(1.0)) == (0.1, 0.1)
    assert Warmup(0.1, 0, 2000)(0.0) == 0.1


def test_every_phase_has_a_length_of_its_own_and_other_weights_stay() -> None:
    made = paced(method(1.0, Linear(0, 1), shares=(0.25, 0.75)), 400)
    weights = [[term.weight for term in turn.terms] for turn in made.turns]
    assert weights == [[1.0, Linear(0, 1), Warmup(0.1, 10, length)] for length in (100, 300)]
    assert [phase.name for phase in made.phases] == ["phase0", "phase1"]


def test_a_method_without_any_is_left_as_it_is() -> None:
    turn = Turn("only", (), (), (Term("term", _loss, ("s.logits",), Linear(0, 1)),))
    plain = Method("toy", (), (Phase((turn,)),))
    assert paced(plain, 100) is plain
    assert list(unfinished(plain)) == []


def test_what_weighs_nothing_in_the_first_step_is_not_computed_then() -> None:
    turn = paced(method(1.0), 20).turns[0]
    assert calls_made(turn, 20, 20) == {"s": 20, "t": 19}
    assert calls_made(method(1.0).turns[0], 20, 20) == {"s": 20, "t": 20}


@pytest.mark.parametrize(("steps", "wanted"), [(9, ["taught"]), (10, []), (11, [])])
def test_a_phase_that_is_too_short_is_found(steps: int, wanted: list[str]) -> None:
    assert [term.name for term, _ in unfinished(paced(method(1.0), steps))] == wanted
