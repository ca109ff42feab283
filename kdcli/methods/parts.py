"""What methods are put together from: the usual parties, a turn that learns from labels and teacher, and
parts that can be added to any method (``--add``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.models.taps import as_map_tap
from kdcli.sections import LARGEST
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, Term, Turn, Weight
from kdcli.words.analysis import split_reference

Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Few = Annotated[int, Field(ge=1, le=64)]  # runs, one after another
Several = Annotated[int, Field(ge=2, le=64)]  # networks

STUDENT, TEACHER = Party("student", "trained", "student"), Party("teacher", "frozen", "teacher")
S, T = Call("s", "student"), Call("t", "teacher")

STAGES = ("stage1", "stage2", "stage3", "stage4")  # maps at the ends of a network's quarters

Layout = Literal["branches", "networks"]


@dataclass(frozen=True)
class Part:
    """Terms, with what only they need beside student and teacher (calls ``s`` and ``t``)."""

    terms: tuple[Term, ...]
    parties: tuple[Party, ...] = ()
    calls: tuple[Call, ...] = ()
    derives: tuple[Derive, ...] = ()


def labels(task: Task, weight: Weight = 1.0, call: Call = S) -> tuple[Term, ...]:
    """The task's terms that learn from labels, over a call, with a weight; named after it."""
    return tuple(
        replace(term, name=named(term.name, call), weight=weight) for term in task.supervised(call.name)
    )


def labels_and_teacher(
    task: Task, *, ce: Weight, kd: Weight, temperature: float, t_squared: bool = True
) -> tuple[Term, ...]:
    """What labels teach of labelled rows, and what the teacher's answers do of all, with their weights."""
    teach = task.taught("s", "t", temperature=temperature, t_squared=t_squared)
    return *labels(task, ce), replace(teach, weight=kd)


def by_level(
    name: str,
    loss: Callable[..., Any],
    weight: float,
    student: tuple[str, ...],
    teacher: tuple[str, ...],
) -> Part:
    """A loss between maps of student and teacher, pair by pair. Raises UsageError for a map too many."""
    if len(student) != len(teacher):
        raise UsageError(f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher.")
    pairs = [(f"s.{as_map_tap(a)}", f"~t.{as_map_tap(b)}") for a, b in zip(student, teacher)]
    return Part(tuple(Term(f"{name}{i}", loss, pair, weight) for i, pair in enumerate(pairs, 1)))


def student_turn(*parts: Part, teacher: bool = True) -> Turn:
    """One turn that trains the student and whatever the parts bring to train."""
    brought = tuple(party for part in parts for party in part.parties)
    return Turn(
        "student",
        trains=("student", *(party.name for party in brought if party.role == "trained")),
        calls=(S, *((T,) if teacher else ()), *(call for part in parts for call in part.calls)),
        terms=tuple(term for part in parts for term in part.terms),
        derives=tuple(derive for part in parts for derive in part.derives),
    )


def one_turn(name: str, *parts: Part, teacher: bool = True, recipes: tuple[Recipe, ...] = ()) -> Method:
    """The method of one phase and one turn: a student, perhaps a teacher, and what the parts bring."""
    brought = tuple(party for part in parts for party in part.parties)
    parties = (STUDENT, *((TEACHER,) if teacher else ()), *brought)
    phases = (Phase((student_turn(*parts, teacher=teacher),)),)
    return Method(name, parties, phases, recipes=recipes)


def peers(count: int, layout: Layout, trunk: str, name: str) -> tuple[tuple[Party, ...], tuple[Call, ...]]:
    """The student and its peers: branches on its trunk, or networks of their own.

    Args:
        count: of all, the student (call ``s``) among them; the others are called ``b2``, ``b3``, …
        layout: which of the two.
        trunk: the tap of the block that a trunk ends with.
        name: of a peer, before its number.
    """
    tail, inputs = (trunk, (f"s.{trunk}",)) if layout == "branches" else ("", ("x",))
    others = [Party(f"{name}{i}", "trained", "student", seed=i - 1, tail=tail) for i in range(2, count + 1)]
    calls = [Call(f"b{i}", party.name, inputs) for i, party in enumerate(others, 2)]
    return (STUDENT, *others), (S, *calls)


def named(term: str, call: Call) -> str:
    """A term's name for the network of ``call``: ``ce`` of the student, ``ce-b2`` of the call ``b2``."""
    return term if call.name == S.name else f"{term}-{call.name}"


def labels_of(task: Task, calls: Sequence[Call]) -> tuple[Term, ...]:
    """The supervised terms of each call."""
    return tuple(term for call in calls for term in labels(task, call=call))


def stacked(*rows: Tensor) -> Tensor:
    """[B, M, …] of M tensors [B, …]."""
    return torch.stack(rows, dim=1)


def added(method: Method, parts: Sequence[Part]) -> Method:
    """A method with more terms in the last of its turns that trains the student.

    The student's call there is ``s``; a teacher's call ``t`` is added where there is none.

    Raises:
        UsageError: two terms of one name, or a term that reads labels row by row where the student sees
            other rows.
    """
    phases = list(method.phases)
    turns = list(phases[-1].turns)
    at = max(i for i, turn in enumerate(turns) if method.export in turn.trains)
    turn, parties = turns[at], {party.name: party for party in method.parties}
    calls = {call.name: call for call in turn.calls}
    other_rows = calls.get("s", S).inputs != S.inputs
    for part in parts:
        for term in part.terms:
            if term.name in {other.name for other in turn.terms}:
                raise UsageError(
                    f"--add: the objective has a term '{term.name}' already; as=NAME calls a second one "
                    "otherwise."
                )
            if other_rows and term.rows is not None:
                raise UsageError(
                    f"--add {term.name} reads a label for every row, and the student of {method.name} sees "
                    "other rows than those: several views of each, or generated pictures."
                )
        read = [reference for term in part.terms for reference in term.args]
        read += [reference for derive in part.derives for reference in derive.args]
        read += [reference for call in part.calls for reference in call.inputs]
        if "t" in {split_reference(reference)[1] for reference in read}:
            calls.setdefault("t", T)
            parties.setdefault("teacher", TEACHER)
        parties |= {party.name: party for party in part.parties}
        calls |= {call.name: call for call in part.calls}
        turn = replace(
            turn,
            trains=(*turn.trains, *(p.name for p in part.parties if p.role == "trained")),
            terms=(*turn.terms, *part.terms),
            derives=(*turn.derives, *part.derives),
        )
    turns[at] = replace(turn, calls=tuple(calls.values()))
    phases[-1] = replace(phases[-1], turns=tuple(turns))
    return replace(method, parties=tuple(parties.values()), phases=tuple(phases))
