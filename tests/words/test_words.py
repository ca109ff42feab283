"""The words a method is written in: references, what is used, and dropping terms of weight zero."""

import subprocess
import sys

import pytest

from kdcli.words import Call, Derive, Edit, Method, Party, Phase, State, Term, Turn
from kdcli.words.analysis import (
    cacheable_calls,
    calls_made,
    has_rows,
    is_cacheable,
    leaves_unused,
    split_reference,
    states_of,
    taps_used,
    used_by,
    views_used,
    without_zero_terms,
)


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


# -- states and edits ----------------------------------------------------------------------------------------

QUEUE, MASK = State("queue", loss, ("t.pooled",)), State("mask", loss, ("s:head.weight",))
KEPT = Term("ce", loss, ("s.logits", "y"))


def stateful(*terms: Term, edits: tuple[Edit, ...] = (), **more: tuple[str, ...]) -> Turn:
    derives = (
        Derive("bank", loss, ("~t.pooled",), scope="batch", state=QUEUE),
        Derive("marks", loss, ("~t.tokens",), scope="batch", state=MASK),
    )
    return Turn("student", ("student",), CALLS, terms, derives, edits=edits, **more)


def left_of(turn: Turn) -> Turn:
    found = without_zero_terms(Method("m", method().parties, (Phase((turn,)),)))
    return found.phases[0].turns[0]


def test_what_updates_a_state_goes_where_nobody_reads_it() -> None:
    left = left_of(stateful(KEPT))
    assert (left.derives, [c.name for c in left.calls]) == ((), ["s"])


def test_what_updates_the_state_of_an_edit_stays_with_its_calls() -> None:
    edit = Edit("prune", "gradient", "student", ("*",), loss, state=MASK)
    left = left_of(stateful(KEPT, edits=(edit,)))
    assert [d.out for d in left.derives] == ["marks"]
    assert [c.name for c in left.calls] == ["s", "t"]
    assert left.edits == (edit,)
    assert list(states_of(Method("m", (), (Phase((left,)),)))) == ["mask"]


def test_what_updates_the_state_of_a_derive_that_is_read_stays() -> None:
    """In another turn too."""
    reading = Turn(
        "generator",
        ("generator",),
        (Call("fake", "generator", ("z",)),),
        (Term("far", loss, ("fake.out", "~known")),),
        (Derive("known", loss, ("z",), scope="batch", state=QUEUE),),
    )
    found = without_zero_terms(Method("m", method().parties, (Phase((stateful(KEPT), reading)),)))
    first, second = found.phases[0].turns
    assert [d.out for d in first.derives] == ["bank"]
    assert [d.out for d in second.derives] == ["known"]


def test_an_edit_goes_with_the_terms_that_train_its_party() -> None:
    edit = Edit("clamp", "weights", "generator", ("*",), loss)
    zero = Term("z", loss, ("fake.out",), 0.0)
    turn = Turn(
        "both", ("student", "generator"), CALLS, (KEPT, zero), edits=(edit,), groups={"generator": {}}
    )
    left = left_of(turn)
    assert (left.edits, left.trains, left.groups) == ((), ("student",), {})


def test_a_derive_with_a_state_is_computed_in_every_step() -> None:
    late = Term("late", loss, ("s.logits", "~bank"), lambda done: float(done >= 0.5))
    turn = stateful(KEPT, late)
    assert used_by(turn, [KEPT]) == ({"s", "t"}, {"bank", "marks"})
    assert calls_made(turn, 10, 10)["t"] == 10


def test_a_derive_with_a_state_may_leave_parameters_without_gradient() -> None:
    plain = Turn("student", ("student",), CALLS, (KEPT,))
    for turn, may in ((plain, False), (stateful(KEPT), True)):
        assert leaves_unused(Method("m", method().parties, (Phase((turn,)),))) is may


@pytest.mark.parametrize(
    ("reference", "rows"),
    [
        ("y", True),
        ("~s.logits", True),
        ("s:head.weight", False),
        ("gate", True),
        ("bank", False),
        ("norm", False),
        ("free.out", False),
        ("of_bank.out", False),
    ],
)
def test_what_has_rows_of_the_batch(reference: str, rows: bool) -> None:
    derives = (
        *DERIVES,
        Derive("bank", loss, ("~t.pooled",), scope="batch"),
        Derive("norm", loss, ("s:head.weight",)),
    )
    calls = (*CALLS, Call("free", "generator", ()), Call("of_bank", "generator", ("~bank",)))
    assert has_rows(Turn("student", ("student",), calls, (), derives), reference) is rows


# -- views ---------------------------------------------------------------------------------------------------


def seeing(*inputs: str, tap: str = "logits") -> Turn:
    calls = tuple(Call(f"t{i}", "teacher", (read,)) for i, read in enumerate(inputs))
    terms = (KEPT, *(Term(f"kl{i}", loss, (f"~t{i}.{tap}",)) for i in range(len(inputs))))
    return Turn("student", ("student",), (Call("s", "student"), *calls), terms)


@pytest.mark.parametrize(
    ("turn", "served", "cacheable"),
    [
        (seeing("x"), {"t0": "x"}, True),
        (seeing("x@plain"), {"t0": "x@plain"}, True),
        (seeing("x", "x@plain"), {"t0": "x", "t1": "x@plain"}, True),
        (seeing("x", "x@2"), {"t0": "x"}, False),
        (seeing("x@plain", tap="pooled"), {}, False),
        (seeing("s.logits"), {}, False),
    ],
)
def test_caches_answer_calls_on_views_and_on_plain_cuts(
    turn: Turn, served: dict[str, str], cacheable: bool
) -> None:
    found = Method("m", method().parties, (Phase((turn,)),))
    assert cacheable_calls(found) == served
    assert is_cacheable(found) is cacheable


def test_one_name_for_two_calls_is_not_cached() -> None:
    found = Method("m", method().parties, (Phase((seeing("x"), seeing("x@plain"))),))
    assert cacheable_calls(found) == {}
    assert not is_cacheable(found)


def test_views_that_are_read() -> None:
    found = Method("m", method().parties, (Phase((seeing("x", "x@plain", "x@2"),)),))
    assert views_used(found) == ["x@2", "x@plain"]
    assert views_used(found, answered={"t1"}) == ["x@2"]
