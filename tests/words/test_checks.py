"""What a method says that would not be done as it is written is refused, by its words alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdcli.errors import UsageError
from kdcli.words import Call, Derive, Edit, Method, Party, Phase, State, Term, Turn
from kdcli.words.checks import refuse_faulty


def loss(*_: object) -> float:
    return 0.0


def other(*_: object) -> float:
    return 1.0


QUEUE = State("queue", loss)
BANK = Derive("bank", loss, ("~t.logits",), scope="batch", state=QUEUE)
EDIT = Edit("prune", "gradient", "student", ("*.weight",), loss)
SOUND = Turn(
    "student",
    ("student",),
    (Call("s", "student"), Call("t", "teacher", ("x@plain",)), Call("u", "student", ("x@12",))),
    (
        Term("ce", loss, ("s.logits", "y"), rows="labelled"),
        Term("far", loss, ("u.logits", "~bank")),
        Term("cc", loss, ("u.logits", "bank"), scope="batch"),
    ),
    (BANK, Derive("norm", loss, ("s:head.weight",), state=State("norms", loss))),
    edits=(EDIT,),
    groups={"student": {"lr": 1.0}},
)


def method(**more: Any) -> Method:
    parties = (Party("student", "trained", "student"), Party("teacher", "frozen", "teacher"))
    return Method("m", parties, (Phase((replace(SOUND, **more),)),))


def test_a_sound_method_passes() -> None:
    refuse_faulty(method())


def terms(*added: Term) -> dict[str, Any]:
    return {"terms": (*SOUND.terms, *added)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"trains": ("student", "teacher")}, "trains 'teacher', which is no party with the role 'trained'"),
        ({"groups": {"adapter": {"lr": 1.0}}}, "groups name 'adapter', which it does not train"),
        ({"edits": (replace(EDIT, party="teacher"),)}, "edit prune is of 'teacher', which it does not train"),
        ({"edits": (replace(EDIT, on="gradients"),)}, "edit prune is on 'gradients', not on gradient or"),
        ({"edits": (replace(EDIT, parameters=()),)}, "edit prune names no parameters"),
        ({"edits": (EDIT, EDIT)}, "two edits are named prune"),
        (
            {"derives": (replace(BANK, scope="sample"),)},
            r"derive bank updates state 'queue' from rows of the batch \(~t.logits\), .* must be 'batch'",
        ),
        (
            {"edits": (replace(EDIT, state=State("queue", other)),)},
            "state 'queue' is written in two ways: name one State in both places",
        ),
        (terms(Term("far2", loss, ("bank",))), r"term far2 reads 'bank', .* read it detached \('~bank'\)"),
        ({"derives": (BANK, Derive("far3", loss, ("s.logits", "bank")))}, "derive far3 reads 'bank'"),
        ({"calls": (*SOUND.calls, Call("v", "student", ("bank",)))}, "call v reads 'bank'"),
        (
            terms(Term("some", loss, ("s.logits",), rows="chosen")),
            "term some selects rows by 'chosen', and only",
        ),
        (
            {"calls": (*SOUND.calls, Call("v", "student", ("x@view2",)))},
            "no view 'x@view2': there are x, x@plain",
        ),
        ({"calls": (*SOUND.calls, Call("v", "student", ("x@0",)))}, "no view 'x@0'"),
    ],
)
def test_refusals(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^method m.*{message}"):
        refuse_faulty(method(**more))
