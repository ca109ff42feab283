"""The words a method is written in: parties, calls, derives, terms, turns, phases. Data only, no torch.

Tap references: ``s.logits`` is a tap of call ``s``; ``~t.logits`` the same, detached; ``t:head.weight`` a
parameter or buffer of the party behind call ``t``; a bare name is a batch column (``x``, ``y``) or the
output of a derive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcli.words.schedules import Weight


@dataclass(frozen=True)
class Party:
    """A network in a run.

    Attributes:
        name: unique in the method.
        role: ``trained``, or ``frozen`` (eval mode, no gradient to its parameters).
        source: which network it is: ``student`` or ``teacher`` as configured, or any model's name; empty for
            one that ``build`` makes.
        build: a function of the shapes [...] of one row of each of ``reads`` to a module.
        reads: tap references.
        seed: added to the run's, so that peers start apart.
        tail: a tap of a block; the party is what follows it in the source (a branch on another's trunk).
    """

    name: str
    role: Literal["trained", "frozen"]
    source: str = ""
    build: Callable[..., Any] | None = None
    reads: tuple[str, ...] = ()
    seed: int = 0
    tail: str = ""


@dataclass(frozen=True)
class Call:
    """One application of a party to named inputs; ``inputs`` are batch columns or taps of earlier calls."""

    name: str
    party: str
    inputs: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Derive:
    """A named tensor computed from taps by a pure function."""

    out: str
    function: Callable[..., Any]
    args: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One weighted loss.

    Attributes:
        name: in logs and plans.
        loss: a pure function to a scalar: a mean over rows for scope ``sample``.
        args: tap references.
        weight: factor in the objective; a term of constant weight 0 is dropped with parties that only it
            used.
        keywords: of the loss.
        scope: ``sample`` (a mean over rows) or ``batch`` (a relation between rows, of all processes).
        rows: a batch column of booleans that selects rows; the mean divides by their global count. A choice
            that depends on the rows beside it is made inside a loss of scope ``batch``.
        watched: whether it is computed for the log where it weighs nothing.
    """

    name: str
    loss: Callable[..., Any]
    args: tuple[str, ...]
    weight: Weight = 1.0
    keywords: dict[str, Any] = field(default_factory=dict)
    scope: Literal["sample", "batch"] = "sample"
    rows: str | None = None
    watched: bool = False


@dataclass(frozen=True)
class Turn:
    """One graph of calls, one scalar, one backward, one optimiser step for the parties it trains.

    ``optim`` holds fields of the optimiser section that differ in this turn.
    """

    name: str
    trains: tuple[str, ...]
    calls: tuple[Call, ...]
    terms: tuple[Term, ...]
    derives: tuple[Derive, ...] = ()
    optim: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Turns repeated for ``share`` of the run's steps."""

    turns: tuple[Turn, ...]
    name: str = "train"
    share: float = 1.0


@dataclass(frozen=True)
class Span:
    """Steps ``begin`` to ``end`` of a run, in a phase that would be ``length`` steps long."""

    phase: Phase
    begin: int
    end: int
    length: int


@dataclass(frozen=True)
class Method:
    """What a method function returns.

    Attributes:
        name: as in the table of methods.
        parties: all networks.
        phases: in order; shares add up to 1.
        export: the party that becomes the artifact.
        beside: parties that are written beside it: exits, peers.
    """

    name: str
    parties: tuple[Party, ...]
    phases: tuple[Phase, ...]
    export: str = "student"
    beside: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Of all phases."""
        return tuple(turn for phase in self.phases for turn in phase.turns)

    def spans(self, schedule_steps: int, steps: int) -> list[Span]:
        """Where the phases lie in a run of ``steps`` whose schedules are made for ``schedule_steps``."""
        found, begin, share = [], 0, 0.0
        for phase in self.phases:
            share += phase.share
            end = round(schedule_steps * share)
            if min(end, steps) > begin:
                found.append(Span(phase, begin, min(end, steps), end - begin))
            begin = end
        return found
