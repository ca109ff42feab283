"""``--method auto``: short runs say whether a teacher helps on these pictures, and which method goes on.

Each method is trained with the same seeds as plain training is, for a small part of the steps, and compared
with it seed by seed on validation pictures. Where these are carved from train, every seed holds out others,
so that the interval of the mean difference (Student's t over the seeds) has both in it: what chance does to a
training, and what it does to the choice of pictures. The method of the largest mean goes on, if it is above
plain training's; else labels alone do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from kdcli import methods
from kdcli.artifacts import manifest as manifests
from kdcli.config import above, as_default
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.runs import Result, places
from kdcli.studies import Stage
from kdcli.studies.sections import PilotSection, SearchSection

if TYPE_CHECKING:
    from kdcli.engine.runtime import Stop

PLAIN, PLACE = "supervised", "--method auto"
_EVALUATIONS = 3  # of a run of a pilot
_T = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)  # 95 % quantiles, 1 to 10 degrees


@dataclass(frozen=True)
class Way:
    """One of the ways that are compared.

    Attributes:
        text: as it was written, ``kd,teacher_view=plain``.
        values: by key of the configuration.
    """

    text: str
    values: dict[str, Any]

    @property
    def folder(self) -> str:
        """A name for its runs."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", self.text).strip("-")


def way(text: str) -> Way:
    """``METHOD,key=value,…`` as values. Raises UsageError for what is neither."""
    name, *rest = (part.strip() for part in re.split(r",(?![^\[]*\])", text))
    methods.refuse_other_stage(name, methods.METHODS)
    values: dict[str, Any] = {"method.name": name}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"pilot.ways: '{part}' of '{text}' is no KEY=VALUE.")
        values[key] = yaml.safe_load(value)
    return Way(text, values)


@dataclass(frozen=True)
class Verdict:
    """What the runs of a way say of it, beside plain training.

    Attributes:
        way: as it was written.
        values: its figure on validation pictures, by seed.
        differences: to plain training, by seed.
    """

    way: str
    values: tuple[float, ...]
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the differences."""
        return fmean(self.differences)

    @property
    def margin(self) -> float:
        """Half of the 90 % interval of the mean; infinite for one seed."""
        count = len(self.differences)
        if count < 2:
            return math.inf
        quantile = _T[min(count - 1, len(_T)) - 1]
        return quantile * stdev(self.differences) / math.sqrt(count)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        margin = None if math.isinf(self.margin) else self.margin
        return {"values": list(self.values), "difference": self.mean, "margin": margin}


def verdicts(values: dict[str, Sequence[float]]) -> list[Verdict]:
    """Verdicts of all ways, of their figures by seed; plain training is among them."""
    plain = values[PLAIN]
    return [
        Verdict(name, tuple(own), tuple(a - b for a, b in zip(own, plain, strict=True)))
        for name, own in values.items()
    ]


def winner(found: Sequence[Verdict]) -> Verdict:
    """The way of the largest mean; plain training where none is above it."""
    return max(found, key=lambda one: (one.mean, one.way == PLAIN))


def said(chosen: Verdict, found: Sequence[Verdict], selection: str) -> str:
    """The choice in a sentence or two, with how sure it is."""
    others = [one for one in found if one.way != PLAIN]
    best = max(others, key=lambda one: one.mean)
    interval = f"{best.mean:+.4f} ± {best.margin:.4f} of {selection} (90 %, {len(best.values)} seeds)"
    if chosen.way == PLAIN:
        return (
            f"no teacher helps here: of {len(others)} ways with one the best, {best.way}, is {interval} from "
            "labels alone, which go on"
        )
    sure = "surely" if best.mean > best.margin else "perhaps"
    return f"{best.way} is {sure} better than labels alone, {interval}, and goes on"


@dataclass
class Pilot:
    """A pilot, checked.

    Attributes:
        config: of the stage.
        base: plan of plain training to the end.
        stage: plans and makes runs.
        ways: that are compared, plain training first.
        left_out: ways that these data or networks do not allow, with the reason.
    """

    config: Any
    base: Any
    stage: Stage
    ways: list[Way]
    left_out: dict[str, str]

    @property
    def section(self) -> PilotSection:
        """What the user wants of the pilot."""
        return self.config.pilot

    @property
    def steps(self) -> int:
        """Of each run of the pilot."""
        return max(1, min(math.ceil(self.section.share * self.base.material.steps), self.section.most))

    @property
    def cost(self) -> int:
        """Steps of the whole pilot."""
        return len(self.ways) * self.section.seeds * self.steps

    @cached_property
    def folder(self) -> Path:
        """Of the pilot's runs."""
        if self.config.search.study:
            return Path(self.config.search.study)
        if self.config.out:
            return Path(f"{self.config.out}-pilot")
        made = manifests.digest([self.base.target.identity, self.section.ways, self.steps])
        return Path("runs", f"pilot-{made[:10]}")

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {**self.base.to_json(), "pilot": self._facts()}

    def _facts(self) -> dict[str, Any]:
        own = {"steps": self.steps, "seeds": self.section.seeds, "cost": self.cost}
        return {"folder": str(self.folder), **own, "left_out": self.left_out}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        self.base.describe(console)
        whole = self.cost / self.base.material.steps
        console.note(
            f"pilot    {len(self.ways)} ways x {self.section.seeds} seeds x {self.steps:,} steps = "
            f"{self.cost:,} steps, {whole:.0%} of the training, in {self.folder}"
        )
        for one in self.ways:
            console.note(f"  {one.text}")
        for text, why in self.left_out.items():
            console.note(f"  without {text}: {why}")

    def run(self, console: Console, *, stop: Stop | None, command: str) -> Result:
        """Make the short runs, choose, and make the run that goes on.

        Raises:
            Preempted: a signal came; the same command goes on.
        """
        selection = self.base.task.selection
        values: dict[str, Sequence[float]] = {}
        for one in self.ways:
            own = [self._short(one, number, console, stop, command) for number in range(self.section.seeds)]
            values[one.text] = own
            console.note(f"pilot    {one.text}: {selection} {fmean(own):.4f} over {len(own)} seeds")
        found = verdicts(values)
        chosen = winner(found)
        text = said(chosen, found, selection)
        console.note(f"pilot    {text}")
        way_on = next(one for one in self.ways if one.text == chosen.way)
        last = self.stage.plan(_of_way(self.config, way_on), console, unless_complete=True)
        if isinstance(last, Result):
            return last
        last.more["pilot"] = {
            **self._facts(),
            "chosen": chosen.way,
            "said": text,
            "ways": {one.way: one.to_json() for one in found},
        }
        result: Result = self.stage.run(last, console, stop=stop, command=command)
        return result

    def _short(self, one: Way, number: int, console: Console, stop: Stop | None, command: str) -> float:
        """What a way comes to in a short run."""
        path = self.folder / f"{one.folder}-{number}"
        plan = self.stage.plan(_short(self, one, number, path), console, unless_complete=True)
        if not isinstance(plan, Result):
            self.stage.run(plan, console, stop=stop, command=command)
        metrics = manifests.read(path).facts["metrics"]
        return float(metrics[f"validation/{self.base.task.selection}"])


def plan(config: Any, stage: Stage, console: Console) -> Pilot:
    """Check a pilot: its ways, and the first of them to the end.

    Raises:
        UsageError: options that go with a method that is named; no teacher.
        InputError: what planning a run raises; data without validation pictures.
    """
    _refuse(config)
    ways = [way(text) for text in (PLAIN, *config.pilot.ways)]
    if len({one.text for one in ways}) < len(ways):
        raise UsageError(f"pilot.ways: a way is given twice ({', '.join(config.pilot.ways)}).")
    base = stage.plan(_of_way(config, ways[0]), console)
    if not base.task.selection or "validation" not in base.data.splits:
        raise UsageError(
            "--method auto chooses on validation pictures, and this run has nothing to choose by."
        )
    found = Pilot(config, base, stage, [ways[0]], {})
    places.check_around(config, found.folder)
    quiet = Console(silent=True)
    for one in ways[1:]:
        try:
            stage.plan(_short(found, one, 0, found.folder / f"{one.folder}-0"), quiet)
        except UsageError as error:
            found.left_out[one.text] = str(error)
        else:
            found.ways.append(one)
    if len(found.ways) == 1:
        whys = "; ".join(f"{text}: {why}" for text, why in found.left_out.items())
        raise UsageError(f"--method auto: no way is left to compare with labels alone. {whys}")
    return found


def _refuse(config: Any) -> None:
    """Raise UsageError for what means nothing while the method is yet to be chosen."""
    if not config.teacher:
        raise UsageError("--method auto compares labels alone with a teacher: give one (--teacher).")
    given = {
        "--search": config.search.trials,
        "--via": config.via,
        "--add": config.terms,
        "--recipe": config.recipe != "default",
        **{f"--{key}": getattr(config.method, key) is not None for key in ("alpha", "temperature")},
        **{f"method.{key}": True for key in config.method.model_extra or {}},
    }
    for flag, there in given.items():
        if there:
            raise UsageError(
                f"{flag} is for a method that is named, and --method auto chooses one: name it, or say it of "
                "a way (--set 'pilot.ways=[\"task-specific,method.alpha=0.9\"]')."
            )


def _of_way(config: Any, one: Way) -> Any:
    """The configuration of one run in a way; without a teacher, also without what only a teacher heeds."""
    update: dict[str, Any] = {"search": SearchSection(), "pilot": PilotSection()}
    ours = ["pilot.", "method.", "search."]
    if not methods.entry(one.values["method.name"]).teacher:
        fields = type(config).model_fields
        update |= {key: fields[key].default for key in fields if key.startswith("teacher_")}
        alone: dict[str, Any] = {"extra": [], "extra_ratio": None, "labelled_fraction": None}
        update |= {"teacher": [], "data": config.data.model_copy(update=alone)}
        ours += ["teacher", "views.store", *(f"data.{key}" for key in alone)]
    written = [name for name in config._written if name.startswith(tuple(ours))]
    return above(as_default(config.model_copy(update=update), *written), one.values, PLACE)


def _short(pilot: Pilot, one: Way, number: int, path: Path) -> Any:
    """The configuration of a short run."""
    config, data = pilot.config, pilot.base.data
    values: dict[str, Any] = {
        "out": str(path),
        "overwrite": False,
        "seed": config.seed + number,
        "optim.max_steps": pilot.steps,
        "optim.stop_epoch": None,
        "evaluate_steps": max(1, math.ceil(pilot.steps / _EVALUATIONS)),
    }
    if data.carved and config.data.labels_per_class is None:  # else other labels would be hidden
        values["data.split_seed"] = config.data.split_seed + number
    return above(_of_way(config, one), values, PLACE)
