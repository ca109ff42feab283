"""What stands between a student's features and those of each of several teachers: adapters, grids, scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from kdcli.losses import representation as losses
from kdcli.methods.parts import STUDENT, Part, S
from kdcli.models import feature_adapters as adapters
from kdcli.models.feature_adapters import Adapter, Align
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, State, Term, Turn

Standard = Literal["scale", "none"]


@dataclass(frozen=True)
class Teacher:
    """One of several teachers: its party, its call, names of what stands between it and the student."""

    number: int

    @property
    def ending(self) -> str:
        """Of names: empty for the first."""
        return "" if self.number == 1 else str(self.number)

    @property
    def party(self) -> Party:
        """The network."""
        return Party(f"teacher{self.ending}", "frozen", f"teacher:{self.number}")

    @property
    def call(self) -> Call:
        """On the same views."""
        return Call(f"t{self.ending}", self.party.name)

    def tap(self, name: str) -> str:
        """A tap of it."""
        return f"{self.call.name}.{name}"

    def between(self, name: str, build: Any, student: str, teacher: str) -> tuple[Party, Call]:
        """A trained party that reads a tap of the student and is made to fit one of the teacher's."""
        party = Party(f"{name}{self.ending}", "trained", build=build, reads=(student, teacher))
        return party, Call(party.name, party.name, (student,))


def matched(
    name: str, teachers: int, of: Callable[[Teacher], Sequence[Part]], recipes: tuple[Recipe, ...] = ()
) -> Method:
    """The method of one turn that trains the student and what stands between it and each teacher.

    Args:
        name: of the method.
        teachers: how many there are.
        of: parts for one of them; what two share has one name.
        recipes: of the method.
    """
    its = [Teacher(number) for number in range(1, teachers + 1)]
    parts = [part for teacher in its for part in of(teacher)]
    parties = {party.name: party for part in parts for party in part.parties}
    calls = {call.name: call for part in parts for call in part.calls}
    derives = {derive.out: derive for part in parts for derive in part.derives}
    turn = Turn(
        "student",
        trains=("student", *parties),
        calls=(S, *(teacher.call for teacher in its), *calls.values()),
        terms=tuple(term for part in parts for term in part.terms),
        derives=tuple(derives.values()),
    )
    networks = (STUDENT, *(teacher.party for teacher in its), *parties.values())
    return Method(name, networks, (Phase((turn,)),), recipes=recipes)


def target(teacher: Teacher, tap: str, standard: Standard) -> tuple[str, tuple[Derive, ...]]:
    """A reference of the teacher's features, as they are or at mean 0 and one scale, and what it takes.

    Mean and scale are those of all features so far, of a few places of each map, the same on all processes.
    """
    own = f"~{teacher.tap(tap)}"
    if standard == "none":
        return own, ()
    name = f"{tap}{teacher.ending}"
    state = State(f"scale-{name}", adapters.scale_state, reads=(teacher.tap(tap),))
    few, scale = Derive(f"few-{name}", adapters.some_places, (own,)), f"scale-{name}"
    seen = Derive(scale, adapters.scale_of, (f"~few-{name}",), scope="batch", state=state)
    return f"~{name}-scaled", (few, seen, Derive(f"{name}-scaled", adapters.scaled, (own, f"~{scale}")))


def pooled(
    teacher: Teacher, weight: float, loss: Any, *, adapter: Adapter | Literal["head"], standard: Standard
) -> Part:
    """Pooled features through an adapter."""
    party, call = teacher.between(
        "pooled-adapter",
        partial(adapters.TokenAdapter, kind=adapter),
        "s.backbone",
        teacher.tap("backbone"),
    )
    wanted, derives = target(teacher, "backbone", standard)
    term = Term(f"pooled{teacher.ending}", loss, (f"{call.name}.out", wanted), weight)
    return Part((term,), (party,), (call,), derives)


def on_one_grid(
    name: str, mine: str, wanted: str, align: Align
) -> tuple[tuple[str, str], tuple[Derive, ...]]:
    """References of two maps on one grid, the teacher's or the student's, and what it takes."""
    if align == "student":
        made = Derive(f"{name}-on-student", adapters.on_grid_of, (wanted, f"~{mine}"))
        return (mine, f"~{made.out}"), (made,)
    made = Derive(f"{name}-on-teacher", adapters.on_grid_of, (mine, wanted))
    return (made.out, wanted), (made,)


def patches(
    teacher: Teacher,
    weight: float,
    loss: Any,
    keywords: dict[str, Any],
    *,
    adapter: Adapter,
    align: Align,
    standard: Standard,
) -> Part:
    """Maps through an adapter, on one grid."""
    build = partial(adapters.map_adapter, kind=adapter, align=align)
    party, call = teacher.between("grid-adapter", build, "s.grid", teacher.tap("grid"))
    wanted, derives = target(teacher, "grid", standard)
    args, aligned = on_one_grid(f"grid{teacher.ending}", f"{call.name}.out", wanted, align)
    term = Term(f"patches{teacher.ending}", loss, args, weight, keywords)
    return Part((term,), (party,), (call,), (*derives, *aligned))


def relations(teacher: Teacher, weight: float, align: Align) -> Part:
    """How alike the places of a picture are, on one grid, without an adapter."""
    name = f"relations{teacher.ending}"
    args, aligned = on_one_grid(name, "s.grid", f"~{teacher.tap('grid')}", align)
    return Part((Term(name, losses.token_relations, args, weight),), derives=aligned)
