"""What the plan finds out before a step: what does not fit is bad input, what is broken stays our fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.assembly import Assembly, assemble
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError, UsageError
from kdcli.models.timm import TimmModel
from kdcli.words import Call, Derive, Edit, Method, Party, Phase, State, Term, Turn

ROWS = 4


def batch() -> dict[str, Any]:
    return {
        "x": torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)),
        "y": torch.arange(ROWS) % 2,
        "labelled": torch.ones(ROWS, dtype=torch.bool),
        "boxes": [torch.zeros(n, 4) for n in (2, 0, 1, 3)],
    }


def mean(*tensors: Tensor) -> Tensor:
    return sum((t.float().mean() for t in tensors), torch.zeros(()))


def turn(*terms: Term, **more: Any) -> Turn:
    calls = more.pop("calls", (Call("s", "student"),))
    return Turn("student", ("student",), calls, terms, **more)


def put_together(made: Turn, *parties: Party, **columns: Any) -> Assembly:
    method = Method("m", (Party("student", "trained", "student"), *parties), (Phase((made,)),))
    return assemble(method, {"student": nn.Linear(3, 2)}, {**batch(), **columns}, 0)


# -- errors --------------------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., Tensor]:
    def loss(*_: Tensor) -> Tensor:
        raise error

    return loss


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unsupported operand"),
        AttributeError("'NoneType' object has no attribute 'shape'"),
        KeyError("temperature"),
        IndexError("list index out of range"),
        RuntimeError("element 0 of tensors does not require grad"),
        NotImplementedError("no such size"),
        AssertionError("never"),
    ],
)
def test_a_fault_of_our_own_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        put_together(turn(Term("broken", raising(error), ("s.out",))))
    assert caught.value is error


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (lambda s: s * math.log(-1.0), ValueError),
        (lambda s: s * len(b"\xff".decode()), UnicodeDecodeError),
        (lambda s: s * int("seven"), ValueError),
        (raising(UnicodeError("no text")), UnicodeError),
    ],
)
def test_a_fault_that_python_finds_in_our_code_stays_ours(
    loss: Callable[..., Tensor], error: type[Exception]
) -> None:
    """It is a ValueError too, and nobody says by it that tensors do not fit."""
    with pytest.raises(error):
        put_together(turn(Term("broken", loss, ("s.out",))))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (raising(ValueError("at least 3 rows are needed")), r"m: unfit: at least 3 rows are needed\."),
        (lambda s: s @ s, "m: unfit: mat1 and mat2 shapes cannot be multiplied"),
        (lambda s: s + torch.zeros(7), "m: unfit: The size of tensor a"),
        (lambda s: s.flatten(2), "m: unfit: Dimension out of range"),
        (lambda s: s[:, :, 0], "m: unfit: too many indices for tensor"),
        (
            lambda s: nn.functional.conv2d(s, torch.zeros(1, 1, 1, 1)),
            "m: unfit: Expected 3D .* input to conv2d",
        ),
        (
            lambda s: nn.functional.cross_entropy(s, torch.zeros(9).long()),
            "m: unfit: Expected input batch_size",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_bad_input(loss: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        put_together(turn(Term("unfit", loss, ("s.out",))))


def test_a_pattern_where_one_tensor_is_wanted_is_bad_input() -> None:
    body = timm.create_model("test_resnet", num_classes=3)
    network = TimmModel(body, InputSpec((32, 32)), ["a", "b", "c"], name="toy")
    x = torch.zeros(ROWS, 3, 32, 32, dtype=torch.uint8)
    made = turn(Term("unfit", lambda t: t.mean(), ("s.BatchNorm2d.in",)))
    method = Method("m", (Party("student", "trained", "student"),), (Phase((made,)),))
    with pytest.raises(InputError, match=r"m: unfit: 's\.BatchNorm2d\.in' is \d+ layers, not one tensor"):
        assemble(method, {"student": network}, {**batch(), "x": x}, 0)
    flat = Derive("flat", lambda t: t.flatten(1), ("s.BatchNorm2d.in",))
    derived = turn(Term("unfit", mean, ("flat",)), derives=(flat,))
    with pytest.raises(
        InputError, match=r"m: unfit: derive flat: 's\.BatchNorm2d\.in' is \d+ layers, not one"
    ):
        assemble(replace(method, phases=(Phase((derived,)),)), {"student": network}, {**batch(), "x": x}, 0)
    reads = Party("adapter", "trained", build=nn.Linear, reads=("s.BatchNorm2d.in",))
    method = Method("m", (*method.parties, reads), (Phase((made,)),))
    with pytest.raises(
        InputError, match=r"adapter wants the shape of 's\.BatchNorm2d\.in', which is \d+ layers"
    ):
        assemble(method, {"student": network}, {**batch(), "x": x}, 0)


def test_a_module_that_returns_no_tensor_is_bad_input() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"map": {"deep": x}}

    made = turn(
        Term("unfit", lambda t: t.mean(), ("n.map",)),
        calls=(Call("s", "student"), Call("n", "named", ("s.out",))),
    )
    with pytest.raises(InputError, match=r"m: unfit: 'n\.map' is a dict, not one tensor"):
        put_together(made, Party("named", "frozen", build=Named))


# -- calls ---------------------------------------------------------------------------------------------------


def test_a_network_takes_one_input() -> None:
    body = timm.create_model("test_resnet", num_classes=3)
    network = TimmModel(body, InputSpec((32, 32)), ["a", "b", "c"], name="toy")
    for inputs, count in {("x", "y"): 2, (): 0}.items():
        made = turn(Term("l", mean, ("s.logits",)), calls=(Call("s", "student", inputs),))
        method = Method("m", (Party("student", "trained", "student"),), (Phase((made,)),))
        with pytest.raises(InputError, match=f"toy takes one input, pictures, and a call gives it {count}"):
            assemble(method, {"student": network}, batch(), 0)


def test_modules_take_several_inputs_and_none() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b}

    class Nothing(nn.Module):
        def forward(self) -> Tensor:
            return torch.ones(1, 2)

    calls = (Call("s", "student"), Call("p", "pair", ("s.out", "n.out")), Call("n", "nothing", ()))
    parties = (Party("pair", "frozen", build=Pair), Party("nothing", "frozen", build=Nothing))
    found = put_together(turn(Term("l", mean, ("p.sum",)), calls=calls), *parties)
    assert found.shapes == {"p.sum": (2,)}


def test_a_built_party_that_is_frozen_is_frozen() -> None:
    calls = (Call("s", "student"), Call("j", "judge", ("s.out",)))
    judge = Party("judge", "frozen", build=lambda shape: nn.Linear(*shape, 2), reads=("s.out",))
    made = turn(Term("l", mean, ("j.out",)), calls=calls)
    found = put_together(made, judge)
    module = TurnModule(made, found.parties).train()
    module(batch(), torch.ones(2), 0.0)["loss"].backward()
    assert not any(p.requires_grad or p.grad is not None for p in found.parties["judge"].parameters())
    assert not found.parties["judge"].training
    assert all(p.grad is not None for p in found.parties["student"].parameters())


def test_a_given_party_that_is_frozen_is_frozen() -> None:
    method = Method("m", (Party("student", "frozen", "student"),), ())
    student = nn.Linear(3, 2)
    assemble(method, {"student": student}, batch(), 0)
    assert not any(p.requires_grad for p in student.parameters())


# -- rows ----------------------------------------------------------------------------------------------------


def test_rows_per_sample_are_noted_and_a_mask_of_samples_does_not_select_among_them() -> None:
    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x])

    views = {"derives": (Derive("both", twice, ("x",)),), "calls": (Call("s", "student", ("both",)),)}
    found = put_together(turn(Term("l", mean, ("s.out",)), **views))
    assert found.rows == {("student", "s"): 2.0}
    with pytest.raises(
        InputError,
        match=r"m: l: rows='labelled' selects among the 4 samples of a batch, and 's.out' has 8 rows",
    ):
        put_together(turn(Term("l", mean, ("s.out",), rows="labelled"), **views))


def test_parameters_have_no_rows_to_select() -> None:
    found = put_together(turn(Term("l", mean, ("s.out", "s:weight"), rows="labelled")))
    assert "s.out" in found.shapes


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            turn(Term("l", mean, ("s.out", "boxes"), scope="batch")),
            "m: l: .* 'boxes' is a list with an entry per",
        ),
        (
            turn(
                Term("l", mean, ("s.out", "~size"), scope="batch"),
                derives=(Derive("size", lambda x: x.mean(), ("x",)),),
            ),
            "m: l: .* '~size' is a single number, which processes cannot gather",
        ),
        (
            turn(
                Term("l", mean, ("s.out", "~count")),
                derives=(Derive("count", lambda boxes: torch.zeros(len(boxes)), ("boxes",), scope="batch"),),
            ),
            "derive count: .* 'boxes' is a list",
        ),
    ],
)
def test_what_processes_could_not_gather_is_refused(made: Turn, message: str) -> None:
    with pytest.raises(InputError, match=message):
        put_together(made)


def test_a_list_of_rows_is_no_list_of_layers() -> None:
    """Its entries are selected with the rows, in a step as in the plan."""
    seen: list[list[int]] = []

    def boxes_loss(logits: Tensor, boxes: list[Tensor], kept: list[Tensor]) -> Tensor:
        seen.append([len(b) for b in boxes])
        assert len(logits) == len(boxes) == len(kept)
        return logits.mean()

    keep = Derive("kept", lambda boxes: [b[:1] for b in boxes], ("~boxes",))
    made = turn(Term("l", boxes_loss, ("s.out", "boxes", "kept"), rows="labelled"), derives=(keep,))
    found = put_together(made)
    columns = {**batch(), "labelled": torch.tensor([True, False, False, True])}
    TurnModule(made, found.parties)(columns, torch.ones(2), 0.0)["loss"].backward()
    assert seen == [[2, 0, 1, 3], [2, 3]]


# -- states and edits ----------------------------------------------------------------------------------------


def counter() -> State:
    return State("counter", lambda: {"n": torch.zeros((), dtype=torch.long), "m": torch.zeros(2)})


def counting(changes: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Turn:
    def update(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return state["n"], changes(state)

    derive = Derive("count", update, ("x",), scope="batch", state=counter())
    return turn(Term("l", mean, ("s.out", "~count")), derives=(derive,))


def in_place(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"n": state["n"].add_(1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda state: {"k": state["n"]}, "derive count updates 'k' of state 'counter', which has n, m"),
        (
            lambda state: {"m": torch.zeros(3)},
            r"derive count makes 'm' of state 'counter' \[3\], and it is \[2\]",
        ),
        (
            lambda state: {"n": state["n"] + 0.5},
            "makes 'n' of state 'counter' torch.float32, and it is torch.int64",
        ),
        (in_place, "turn student: a derive or an edit changes its state in place"),
    ],
)
def test_faulty_updates_of_states_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        put_together(counting(changes))


def test_two_derives_do_not_update_one_tensor_from_the_same_values() -> None:
    def update(state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return state["n"], {"n": state["n"] + 1}

    one = counter()
    derives = tuple(Derive(name, update, (), state=one) for name in "ab")
    with pytest.raises(
        InputError, match="derive b updates 'n' of state 'counter', and so does a derive before"
    ):
        put_together(turn(Term("l", mean, ("s.out",)), derives=derives))


def test_states_are_updated_in_training_only() -> None:
    made = counting(lambda state: {"n": state["n"] + 1})
    found = put_together(made)
    assert int(found.states["counter"]["n"]) == 0  # of the dry step nothing is left
    module = TurnModule(made, found.parties, states=found.states)
    module.eval()(batch(), torch.ones(2), 0.0)
    assert int(found.states["counter"]["n"]) == 0
    for _ in range(2):
        module.train()(batch(), torch.ones(2), 0.0)
    assert int(found.states["counter"]["n"]) == 2


def test_readers_of_a_state_see_it_as_it_was_before_the_step() -> None:
    one = counter()

    def add(state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return state["n"], {"n": state["n"] + 1}

    def look(state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return state["n"].clone(), {}

    derives = (Derive("added", add, (), state=one), Derive("seen", look, (), state=one))
    made = turn(
        Term("first", mean, ("s.out", "added")), Term("second", mean, ("added", "seen")), derives=derives
    )
    found = put_together(made)
    module = TurnModule(made, found.parties, states=found.states).train()
    second = [float(module(batch(), torch.ones(2), 0.0)["second"]) for _ in range(3)]
    assert second == [0.0, 2.0, 4.0]


def test_a_state_that_is_a_parameter_is_a_copy_of_it() -> None:
    def remember(state: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return weight, {"last": weight}

    last = State("last", lambda shape: {"last": torch.zeros(shape)}, ("s:weight",))
    derive = Derive("weight", remember, ("~s:weight",), state=last)
    made = turn(Term("l", mean, ("s.out",)), derives=(derive,))
    found = put_together(made)
    assert found.states["last"]["last"].shape == (2, 3)
    TurnModule(made, found.parties, states=found.states).train()(batch(), torch.ones(2), 0.0)
    student: Any = found.parties["student"]
    before = student.weight.detach().clone()
    with torch.no_grad():
        student.weight.add_(1)
    assert torch.equal(found.states["last"]["last"], before)


def test_a_state_may_read_columns_taps_and_derives() -> None:
    shapes: list[tuple[int, ...]] = []

    def build(*rows: tuple[int, ...]) -> dict[str, Tensor]:
        shapes.extend(rows)
        return {"rows": torch.zeros(1)}

    seen = State("seen", build, ("x", "s.out", "wide", "s:bias"))
    derives = (
        Derive("wide", lambda x: torch.cat([x, x], dim=1), ("s.out",)),
        Derive("d", lambda state: (state["rows"], {}), (), state=seen),
    )
    put_together(turn(Term("l", mean, ("s.out", "wide", "d")), derives=derives))
    assert shapes == [(3,), (2,), (4,), (2,)]


def test_states_are_drawn_from_the_seed_alone() -> None:
    drawn = State("drawn", lambda: {"rows": torch.randn(3)})
    derive = Derive("d", lambda state: (state["rows"], {}), (), state=drawn)
    method = Method(
        "m",
        (Party("student", "trained", "student"),),
        (Phase((turn(Term("l", mean, ("s.out", "d")), derives=(derive,)),)),),
    )
    found = [assemble(method, {"student": nn.Linear(3, 2)}, batch(), seed).states for seed in (0, 0, 1)]
    rows = [states["drawn"]["rows"] for states in found]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_a_state_of_samples_is_built_of_their_labels() -> None:
    given: list[Any] = []

    def build(labels: Tensor, *shapes: tuple[int, ...]) -> dict[str, Tensor]:
        given.extend((labels.tolist(), *shapes))
        return {"bank": torch.zeros(len(labels), *shapes[0])}

    bank = State("bank", build, ("s.out",), of_samples=True)
    made = turn(
        Term("l", mean, ("s.out", "d")),
        derives=(Derive("d", lambda state: (state["bank"], {}), (), state=bank),),
    )
    method = Method("m", (Party("student", "trained", "student"),), (Phase((made,)),))
    network = {"student": nn.Linear(3, 2)}
    found = assemble(method, network, batch(), 0, torch.tensor([1, 0, -1, 1, 2]))
    assert given == [[1, 0, -1, 1, 2], (2,)]
    assert found.states["bank"]["bank"].shape == (5, 2)
    message = "method m: state bank keeps something of every sample, and nothing is learned from samples"
    with pytest.raises(UsageError, match=message):
        assemble(method, network, batch(), 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            Edit("e", "gradient", "student", ("weights",), lambda g, w: {}),
            "edit e: student has no trained parameter 'weights'. Did you mean 'weight'",
        ),
        (
            Edit("e", "weights", "student", ("*",), lambda w: {"bias": torch.zeros(3)}),
            r"edit e makes 'bias' \[3\], and it is \[2\]",
        ),
        (
            Edit("e", "weights", "student", ("bias",), lambda w: {"weight": torch.zeros(2, 3)}),
            "edit e changes 'weight', which it was not given",
        ),
    ],
)
def test_faulty_edits_are_refused_by_the_plan(edit: Edit, message: str) -> None:
    with pytest.raises(InputError, match=message):
        put_together(turn(Term("l", mean, ("s.out",)), edits=(edit,)))


def test_the_plan_changes_no_weight() -> None:
    edit = Edit("e", "weights", "student", ("*",), lambda w: {name: t.mul_(0) for name, t in w.items()})
    found = put_together(turn(Term("l", mean, ("s.out",)), edits=(edit,)))
    assert all(p.abs().sum() > 0 for p in found.parties["student"].parameters())
