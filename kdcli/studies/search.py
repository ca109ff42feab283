"""``--search``: settings are tried on validation pictures, and the best student is what the run writes.

Settings come from Optuna (Akiba et al. 2019, arXiv 1907.10902), and weak trials end early by successive
halving (:mod:`kdcli.studies.halving`). Every trial is an ordinary run, with its artifact below the study's
folder; trials read one cache of teacher outputs. The same command, started several times, works at one study.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import methods
from kdcli.artifacts import manifest as manifests
from kdcli.config import above, as_default, full_name
from kdcli.console import Console
from kdcli.errors import Diverged, InputError, Preempted, UsageError, is_out_of_memory
from kdcli.launch import world_size
from kdcli.methods import spaces
from kdcli.runs import Result, places
from kdcli.studies import Stage, halving, winner
from kdcli.studies.journal import TRIALS, Claim, Journal
from kdcli.studies.sections import SearchSection
from kdcli.words.analysis import taps_used
from kdcli.words.recipes import as_yaml
from kdcli.words.space import Choice, Dimension, Space, Span, dimension

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from kdcli.engine.runtime import Stop

PLACE = "--search"
_POLL_S = 1.0
_FAILURES = 3  # trials in a row from the first on, after which there is something wrong with all


@dataclass
class Search:
    """A search, checked.

    Attributes:
        config: of the stage, with what the user wrote of the search.
        base: plan of a run with the settings that the search begins with.
        stage: plans and makes runs.
        space: what is tried.
    """

    config: Any
    base: Any
    stage: Stage
    space: Space = field(default_factory=dict)

    @property
    def section(self) -> SearchSection:
        """What the user wants of the search."""
        return self.config.search

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the study what it is; the number of trials does not."""
        found = {key: own.said() for key, own in self.space.items()}
        rules = {"space": found, "halving": self.section.halving, "rungs": self.section.rungs}
        return {**self.base.target.identity, "search": rules}

    @property
    def folder(self) -> Path:
        """Of the study."""
        return Path(self.section.study or Path("runs", f"study-{manifests.digest(self.identity)[:10]}"))

    @property
    def rungs(self) -> list[int]:
        """Of a run of as many steps as the base."""
        return halving.rungs(self.base.material.steps, self.section.rungs, self.section.halving)

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        rules = {"trials": self.section.trials, "study": str(self.folder), "rungs": self.rungs}
        return {**self.base.to_json(), "search": {**rules, **self.identity["search"]}}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        self.base.describe(console)
        most = self.section.trials * self.base.material.steps
        console.note(f"searches {self.section.trials} trials in {self.folder}, {most:,} steps at most")
        if self.rungs:
            steps = ", ".join(f"{rung:,}" for rung in self.rungs)
            console.note(f"halving  after {steps} steps one trial in {self.section.halving} goes on")
        for key, own in self.space.items():
            console.note(f"  {key:<24} {own.said()}")

    def run(self, console: Console, *, stop: Stop | None, command: str) -> Result:
        """Work at the study until all of its trials are done, then hand over the best student.

        Raises:
            Preempted: a signal came; the same command goes on.
            InputError: no trial could be made.
        """
        most, waiting = self.section.trials, False
        journal = Journal(self.folder, self.identity, self.config.seed, self.space)
        while journal.left(most):
            if stop is not None and stop.requested:
                raise Preempted(f"{stop.requested}; run the same command again.")
            with journal.claim(most) as claim:
                if claim is not None:
                    _try(self, journal, claim, console, stop, command)
                    _refuse_all_failed(journal.trials())
                    waiting = False
                    continue
            if not waiting:
                console.note(f"{self.folder}: other processes are at the last trials; waiting for them")
            waiting = True
            time.sleep(_POLL_S)
        with journal.alone():  # all who worked at it come to its end together
            return winner.hand_over(self, journal.trials()[:most], console, command)


def plan(config: Any, stage: Stage, console: Console) -> Search:
    """Check a search: its first run, what is tried, and where.

    Raises:
        UsageError: options that do not go together; a key or value that cannot be tried.
        InputError: what planning the run raises; data without validation pictures.
    """
    if config.processes > 1 or world_size() > 1:
        raise UsageError(
            "--search tries settings in one process: start the same command several times, on any GPU or "
            "machine that sees the folder, and all work at one study."
        )
    alone = without_search(config)
    base = stage.plan(alone, console)
    if not hasattr(base, "material"):
        raise UsageError("--search tries single runs: no --via, no method.generations.")
    if not base.task.selection or "validation" not in base.data.splits:
        raise UsageError("--search chooses on validation pictures, and this run has nothing to choose by.")
    found = Search(config, base, stage, _space(config, base))
    if not found.space:
        raise UsageError("--search: nothing is tried. Name a key: --set 'search.optim.lr=[1e-4, 1e-2, log]'.")
    places.check_around(config, found.folder)
    return found


def without_search(config: Any) -> Any:
    """The configuration of one run of a search."""
    written = [name for name in config._written if name.partition(".")[0] == "search"]
    return as_default(config.model_copy(update={"search": SearchSection()}), *written)


def _space(config: Any, base: Any) -> Space:
    """The method's own space, but for what the user fixed, and what the user names in the place of it."""
    from kdcli.tasks import TASKS

    named = {full_name(type(config), key): value for key, value in (config.search.model_extra or {}).items()}
    own = {key: _dimension(key, value) for key, value in named.items()}
    found: dict[str, Any] = {}
    if config.search.space == "default":
        taught = any(taps_used(turn).get("t", ()) == ("logits",) for turn in base.material.method.turns)
        provides = TASKS[base.task.name].provides
        found |= spaces.of_training(base.config, taught, provides)
        tried = own.get("method.name")
        for name in tried.values if isinstance(tried, Choice) else (base.method.name,):
            found |= spaces.of_method(name, methods.arguments(name, {}))
        found = {key: one for key, one in found.items() if key not in config._written}
    found = {key: one for key, one in {**found, **own}.items() if one is not None}
    _refuse_untriable(found, config)
    return dict(sorted(found.items()))


def _dimension(key: str, value: Any) -> Dimension | None:
    """What the user wrote of a key. Raises UsageError for what says nothing."""
    try:
        return dimension(value)
    except ValueError as error:
        raise UsageError(f"search.{key}: {error}.") from None


def _refuse_untriable(space: Space, config: Any) -> None:
    """Raise UsageError for a key that makes trials incomparable, or a value that no run could have."""
    for key in space:
        if key.partition(".")[0] in ("data", "seed", "out", "cache", "search", "teacher", "student"):
            raise UsageError(f"search.{key}: trials are compared on the same pictures and networks.")
    for key, own in space.items():
        ends = (own.low, own.high) if isinstance(own, Span) else own.values
        for value in ends:
            above(without_search(config), {key: value}, f"search.{key}:")


def _try(
    plan: Search, journal: Journal, claim: Claim, console: Console, stop: Stop | None, command: str
) -> None:
    """Make one trial, and note what it is worth."""
    number, values = claim.number, relevant(claim.values, plan.base.method.name)
    out = plan.folder / TRIALS / f"{number:04d}"
    shown = ", ".join(f"{key}={as_yaml(value)}" for key, value in values.items())
    console.note(f"trial {number + 1} of {plan.section.trials}: {shown}")
    try:
        config = above(without_search(plan.config), {**values, "out": str(out), "overwrite": False}, PLACE)
        one = plan.stage.plan(config, console, unless_complete=True)
        if not isinstance(one, Result):
            ends = _ends(plan, journal, number, one.material)
            plan.stage.run(one, console, stop=stop, command=command, ends=ends)
    except (Diverged, UsageError, InputError) as error:
        console.warn(f"trial {number + 1} failed: {error}")
        journal.fail(number, str(error))
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        console.warn(f"trial {number + 1} failed: out of memory")
        journal.fail(number, "out of memory")
        return
    facts = manifests.read(out).facts
    value = facts["metrics"][f"validation/{plan.base.task.selection}"]
    kept = {str(key): facts[key] for key in ("steps", "seconds", "cost", "views", "ended") if key in facts}
    journal.finish(number, value, "ended" in facts, kept)


def relevant(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings without parameters that the method of these settings has not."""
    known = methods.parameters(str(values.get("method.name", method)))
    return {
        key: value
        for key, value in values.items()
        if not key.startswith("method.") or key == "method.name" or key.removeprefix("method.") in known
    }


def _ends(plan: Search, journal: Journal, number: int, material: Any) -> Callable[[int, float], str]:
    """Whether a trial ends after an evaluation: a function of what trials had, however often it is asked."""
    section, config = plan.section, material.lesson.config
    rungs = halving.rungs(material.steps, section.rungs, section.halving)
    every = config.evaluate_steps or config.evaluate_every * material.order.steps_per_epoch

    def ends(step: int, best: float) -> str:
        for rung in (rung for rung in rungs if _previous(step, every) < rung <= step):
            others = journal.reached(number, rung, best)
            if not halving.goes_on(best, others, section.halving):
                return (
                    f"halved after step {step} of {material.steps}: not among the best of {len(others) + 1}"
                )
        return ""

    return ends


def _previous(step: int, every: float) -> int:
    """The evaluation before that of ``step``; 0 where there is none."""
    before = step - 1
    while before > 0 and math.floor(before / every) == math.floor((before - 1) / every):
        before -= 1
    return before


def _refuse_all_failed(trials: list[FrozenTrial]) -> None:
    """Raise InputError where the first trials all failed: there is something wrong with all of them."""
    done = [trial for trial in trials if trial.state.is_finished()]
    whys = [trial.user_attrs["why"] for trial in done if "why" in trial.user_attrs]
    if len(whys) == len(done) >= _FAILURES:
        raise InputError(f"all {len(done)} trials so far failed, the last one so: {whys[-1]}")
