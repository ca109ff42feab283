"""The words a method is written in: references, what is used, and dropping terms of weight zero."""

import subprocess
import sys

import pytest

from kdcli.words import Call, Derive, Method, Party, Phase, Term, Turn
from kdcli.words.analysis import split_reference, taps_used, used_by, without_zero_terms


def loss(*_: object) -> float:
    return 0.0


CALLS = (
    Call("s", "student"),
    Call("t", "teacher"),
    Call("fake", "generator", ("noise", "t.logits")),
    Call("t@fake", "teacher", ("fake.out",)),
)
DERIVES = (
    Derive("gate", loss, ("t.pooled", "y")),
    Derive("target", loss, ("gate", "~t.logits")),
    Derive("unused", loss, ("t@fake.tokens",)),
)


def turn(*terms: Term) -> Turn:
    return Turn("student", ("student",), CALLS, terms, DERIVES)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("y", (False, "", "", "y")),
        ("~gate", (True, "", "", "gate")),
        ("s.logits", (False, "s", ".", "logits")),
        ("~t.block4", (True, "t", ".", "block4")),
        ("t@fake.pooled", (False, "t@fake", ".", "pooled")),
        ("s.blocks.1.attn.in", (False, "s", ".", "blocks.1.attn.in")),
        ("t.BatchNorm2d.in", (False, "t", ".", "BatchNorm2d.in")),
        ("t:head.weight", (False, "t", ":", "head.weight")),
        ("~t:bn1.running_mean", (True, "t", ":", "bn1.running_mean")),
        ("s@x,noise.logits", (False, "s@x,noise", ".", "logits")),
    ],
)
def test_references(reference: str, parts: tuple[bool, str, str, str]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize(
    ("arguments", "calls", "derives"),
    [
        (("y",), set(), set()),
        (("s.logits", "y"), {"s"}, set()),
        (("~t:head.weight",), {"t"}, set()),
        (("s.logits", "target"), {"s", "t"}, {"target", "gate"}),
        (("~gate",), {"t"}, {"gate"}),
        (("fake.out",), {"fake", "t"}, set()),  # the generator's input is a tap of the teacher's call
        (("t@fake.logits",), {"t@fake", "fake", "t"}, set()),
    ],
)
def test_calls_and_derives_used(arguments: tuple[str, ...], calls: set[str], derives: set[str]) -> None:
    assert used_by(turn(), [Term("x", loss, arguments)]) == (calls, derives)


def test_a_tap_of_no_call_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"turn student: 'u\.logits' names no call"):
        used_by(turn(), [Term("x", loss, ("u.logits",))])


def test_taps_are_those_of_terms_derives_and_inputs() -> None:
    terms = Term("a", loss, ("s.logits", "~t.logits", "y")), Term("b", loss, ("s.block4", "t:head.weight"))
    assert taps_used(turn(*terms)) == {
        "s": ("logits", "block4"),
        "t": ("logits", "pooled"),
        "fake": ("out",),
        "t@fake": ("tokens",),
    }


def method(*terms: Term) -> Method:
    parties = (
        Party("student", "trained", "student"),
        Party("teacher", "frozen", "teacher"),
        Party("generator", "frozen", "generator"),
    )
    return Method("m", parties, (Phase((turn(*terms),)),))


def test_zero_terms_go_with_all_that_only_they_used() -> None:
    kept = Term("ce", loss, ("s.logits", "y"))
    found = without_zero_terms(
        method(
            kept, Term("kd", loss, ("s.logits", "target"), weight=0), Term("z", loss, ("t@fake.logits",), 0.0)
        )
    )
    (left,) = found.phases[0].turns
    assert left.terms == (kept,)
    assert [c.name for c in left.calls] == ["s"]
    assert left.derives == ()
    assert [p.name for p in found.parties] == ["student"]


def test_watched_terms_stay_beside_others() -> None:
    kept, watched = Term("ce", loss, ("s.logits", "y")), Term("w", loss, ("t.logits",), 0.0, watched=True)
    found = without_zero_terms(method(kept, watched))
    (left,) = found.phases[0].turns
    assert left.terms == (kept, watched)
    assert [p.name for p in found.parties] == ["student", "teacher"]
    (left,) = without_zero_terms(method(watched)).phases[0].turns
    assert left.terms == ()  # nothing would be learned


def test_scheduled_terms_stay_and_so_does_what_they_need() -> None:
    def schedule(_epoch: float) -> float:
        return 0.0

    found = without_zero_terms(method(Term("kd", loss, ("s.logits", "target"), weight=schedule)))
    (left,) = found.phases[0].turns
    assert [c.name for c in left.calls] == ["s", "t"]
    assert [d.out for d in left.derives] == ["gate", "target"]
    assert [p.name for p in found.parties] == ["student", "teacher"]


def test_trained_and_exported_parties_stay() -> None:
    found = without_zero_terms(method(Term("x", loss, ("t.logits",))))
    assert [p.name for p in found.parties] == ["student", "teacher"]


def test_the_words_import_without_torch() -> None:
    code = "import sys, kdcli.words, kdcli.methods; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
