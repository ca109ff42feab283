"""Columns that networks in training are given, and derives that terms bring along."""

from __future__ import annotations

from kdcli.words import Call, Derive, Method, Party, Phase, Term, Turn
from kdcli.words.given import given


def _loss(*_: object) -> None: ...


def method() -> Method:
    calls = (
        Call("s", "student"),
        Call("s2", "student", ("x@1",)),
        Call("t", "teacher"),
        Call("a", "adapter"),
    )
    turn = Turn("only", ("student", "adapter"), calls, (Term("loss", _loss, ("s.logits",)),))
    parties = (
        Party("student", "trained", "student"),
        Party("teacher", "frozen", "teacher"),
        Party("adapter", "trained", build=_loss),
    )
    return Method("toy", parties, (Phase((turn,)),))


def test_trained_networks_are_given_columns_beside_their_pictures_and_no_others_are() -> None:
    made = given(method(), ("boxes", "classes"))
    inputs = {call.name: call.inputs for turn in made.turns for call in turn.calls}
    assert inputs == {"s": ("x", "boxes", "classes"), "s2": ("x@1",), "t": ("x",), "a": ("x",)}
    assert given(method(), ()) == method()


def test_a_turn_has_the_derives_of_its_terms_once_and_its_own_instead_where_they_have_the_name() -> None:
    one, other = Derive("mean", _loss, ("s.logits",)), Derive("mean", _loss, ("t.logits",))
    terms = tuple(Term(name, _loss, ("~mean",), derives=(one,)) for name in "ab")
    assert Turn("turn", (), (), terms).derives == (one,)
    assert Turn("turn", (), (), terms, derives=(other,)).derives == (other,)
