"""The words a method is written in: parties, calls, derives, terms, edits, turns, phases. Data, no torch.

Tap references: ``s.logits`` is a tap of call ``s``; ``~t.logits`` the same, detached; ``t:head.weight`` a
parameter or buffer of the party behind call ``t``; a bare name is a batch column (``x``, ``y``) or the
output of a derive. Of the pictures of a batch there are several columns: ``x``, the training view of each;
``x@plain``, its un-augmented cut, the same in every epoch; ``x@1``, ``x@2``, …, other training views.
``index`` numbers each sample among those that are learned from, the same in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcli.words.recipes import Recipe
from kdcli.words.schedules import Weight


@dataclass(frozen=True)
class Party:
    """A network in a run.

    Attributes:
        name: unique in the method.
        role: ``trained``, or ``frozen`` (eval mode, no gradient to its parameters), built or not.
        source: which network it is: ``student`` or ``teacher`` as configured (``teacher:2``, the second of
            several, by itself), or any model's name; empty for one that ``build`` makes.
        build: a function of the shapes [...] of one row of each of ``reads`` to a module.
        reads: tap references; of a parameter, which has no rows, it is the whole shape.
        seed: added to the run's, so that peers start apart.
        tail: a tap of a block; the party is what follows it in the source (a branch on another's trunk).
        prepare: what is done to the network of a source once it is built, before anything is trained.
    """

    name: str
    role: Literal["trained", "frozen"]
    source: str = ""
    build: Callable[..., Any] | None = None
    reads: tuple[str, ...] = ()
    seed: int = 0
    tail: str = ""
    prepare: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Call:
    """One application of a party to named inputs, if any: batch columns, derives, taps of earlier calls.

    What it returns has as many rows as the batch, or several per sample.
    """

    name: str
    party: str
    inputs: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class State:
    """Named tensors that derives and edits update: a queue, a memory bank, a cumulative mask.

    They last for the whole run, through all phases, and are saved and restored bit for bit. Several derives
    and edits may name the same state; where they are written, they are the same :class:`State`.

    Attributes:
        name: unique in the method.
        build: a function of the shapes [...] of one row of each of ``reads`` to the first tensors by name;
            they keep their names, shapes and types. What it draws is seeded.
        reads: tap references; of a parameter, which has no rows, it is the whole shape.
        of_samples: whether it keeps something of every sample that is learned from. Then ``build`` is given,
            before the shapes, their class numbers [N], -1 for unlabelled, in the order of ``index``.
    """

    name: str
    build: Callable[..., Any]
    reads: tuple[str, ...] = ()
    of_samples: bool = False


@dataclass(frozen=True)
class Derive:
    """A named tensor computed from taps by a pure function.

    Attributes:
        out: its name.
        function: of the values of ``args`` and ``keywords``. With a state it is one of (tensors of the state
            by name, values…, keywords…) to (value, those tensors that change, by name): it changes nothing
            itself. They are replaced after the forward of each micro-batch, in training only; until then
            all who read the state see what it was.
        args: tap references.
        keywords: of the function.
        scope: ``sample``, or ``batch``: rows among ``args`` are those of all processes, in their order, with
            a gradient to those of this one. What comes out has no rows of the batch: who is not of scope
            ``batch`` reads it detached (``~bank``).
        state: what it updates. If rows are among ``args``, its scope is ``batch``, so that all processes
            have the same. A derive with a state is computed in every step of its turn, also where no term
            reads it.
    """

    out: str
    function: Callable[..., Any]
    args: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    scope: Literal["sample", "batch"] = "sample"
    state: State | None = None


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
        rows: ``labelled``, to select the rows that have a label; the mean divides by their global count, and
            a relation is one between those of all processes. A choice that depends on the rows beside it is
            made inside a loss of scope ``batch``.
        watched: whether it is computed for the log where it weighs nothing.
        derives: what it reads that is made for it: every turn that has the term has these too.
    """

    name: str
    loss: Callable[..., Any]
    args: tuple[str, ...]
    weight: Weight = 1.0
    keywords: dict[str, Any] = field(default_factory=dict)
    scope: Literal["sample", "batch"] = "sample"
    rows: str | None = None
    watched: bool = False
    derives: tuple[Derive, ...] = ()


@dataclass(frozen=True)
class Edit:
    """A change of gradients or weights that no loss makes: a mask, a reset, a penalty, a projection.

    Attributes:
        name: in plans and messages.
        on: ``gradient``, of all micro-batches and processes, unscaled, before it is clipped; or ``weights``,
            after the optimiser's step, before they are averaged.
        party: whose; one that the turn trains.
        parameters: patterns (``*.weight``) over the names of the party's parameters. Those that have no
            gradient in a step are left out of an edit of gradients.
        function: of ``(gradients, weights, **keywords)``, or of ``(weights, **keywords)``, each a tensor by
            the parameter's name, to those that change, by name. With a state it is one of (tensors of the
            state by name, …) to (what changes, those tensors of the state that change), as a derive's is. It
            changes nothing itself.
        keywords: of the function.
        state: what it reads or updates.
    """

    name: str
    on: Literal["gradient", "weights"]
    party: str
    parameters: tuple[str, ...]
    function: Callable[..., Any]
    keywords: dict[str, Any] = field(default_factory=dict)
    state: State | None = None


@dataclass(frozen=True)
class Turn:
    """One graph of calls, one scalar, one backward, one optimiser step for the parties it trains.

    Attributes:
        name: in logs and plans.
        trains: names of parties.
        calls: of parties.
        terms: of the scalar.
        derives: what terms, calls and other derives read beside taps and columns; those that terms bring
            are added where none of that name is there.
        optim: fields of the optimiser section that differ in this turn.
        edits: in their order.
        groups: by trained party, or by ``PARTY:PATTERN`` for those of its parameters that a pattern fits,
            ``lr``, ``weight_decay``, ``momentum`` and ``layer_decay`` where they differ for it. Its learning
            rate goes the course of the turn's, so many times higher or lower.
    """

    name: str
    trains: tuple[str, ...]
    calls: tuple[Call, ...]
    terms: tuple[Term, ...]
    derives: tuple[Derive, ...] = ()
    optim: dict[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {derive.out: derive for derive in self.derives}
        for term in self.terms:
            found |= {derive.out: derive for derive in term.derives if derive.out not in found}
        object.__setattr__(self, "derives", tuple(found.values()))


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
        recipes: published trainings of it, the paper's first.
    """

    name: str
    parties: tuple[Party, ...]
    phases: tuple[Phase, ...]
    export: str = "student"
    beside: tuple[str, ...] = ()
    recipes: tuple[Recipe, ...] = ()

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
