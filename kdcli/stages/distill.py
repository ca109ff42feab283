"""Train a student, with or without a teacher.

One process:     kdcli distill --teacher runs/teacher --student dinov2_vits --data cars/ --out runs/student
Several GPUs:    kdcli distill -n 8 --precision bf16 --teacher runs/teacher --student dinov2_vits --data cars/
Tiny, on a CPU:  kdcli distill --method supervised --student test_vit --from-scratch \\
                     --data example:fashion-mnist --max-steps 20 --batch-size 32

The methods and their papers are in :mod:`kdcli.methods`; the default is "On Good Practices for Task-Specific
Distillation of Large Pretrained Visual Models" (arXiv 2402.11305).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, field_validator

from kdcli import methods
from kdcli.config import Section, inputs, method_option
from kdcli.console import Console, duration, size
from kdcli.runs import Result, banks, frame, idle, places, recipes, show
from kdcli.runs import objective as objectives
from kdcli.sections import LARGEST, StudentSection, TextSection
from kdcli.studies import Stage, Study, chains
from kdcli.studies.sections import PilotSection, SearchSection

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.engine.runtime import Stop
    from kdcli.runs.material import Material
    from kdcli.tasks import Task
    from kdcli.words import Method


_SHOWN = ("method", "teacher_temperature", "optim", "views")


class MethodSection(Section):
    """The method's name; all other keys are its parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    principal = "name"
    name: str = method_option("task-specific", "kd, …, auto; see --help --method NAME.", "--method")
    alpha: float | None = method_option(
        None, "Weight of the teacher (methods that have it).", "--alpha", ge=0, le=1
    )
    temperature: float | None = method_option(
        None, "Softening of logits (methods that have it).", "--temperature", gt=0, le=LARGEST
    )


class LearnedTexts(TextSection):
    """What a student learns to tell apart; without options of its own, since a teacher mostly has it."""

    flags: ClassVar[bool] = False


class Config(StudentSection):
    """Train a student, with or without a teacher."""

    via: list[str] = inputs(
        [], "Assistant on the way from teacher to student (repeatable).", "--via", max_length=64
    )
    texts: LearnedTexts = LearnedTexts()
    method: MethodSection = MethodSection()
    recipe: str = method_option(
        recipes.DEFAULT, "The training: default, paper, or a recipe by name.", "--recipe"
    )
    search: SearchSection = SearchSection()
    pilot: PilotSection = PilotSection()
    terms: list[str] = method_option([], "One more term, e.g. rkd=1 (repeatable).", "--add")

    @field_validator("terms", mode="before")
    @classmethod
    def _written_as_keys(cls, value: Any) -> Any:
        """``[{rkd: 1, student: pooled}]`` of a YAML file says the same as ``rkd=1,student=pooled``."""
        value = value if isinstance(value, list) else [value]
        return [methods.as_option(term) if isinstance(term, dict) else term for term in value]


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    target: frame.Target
    data: Data
    task: Task
    method: Method
    arguments: dict[str, Any]
    recipe: recipes.Choice
    material: Material
    more: dict[str, Any] = field(default_factory=dict)  # facts of the study that the run belongs to

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe(),
            "method": {"name": self.method.name, **self.arguments},
            "recipe": self.recipe.to_json(),
            "settings": self._settings(),
            "objective": self._objective(),
            "turns": show.turns(self.method, self.material.assembly),
            "states": show.states(self.material.assembly),
            "steps": self.material.steps,
            "clipping": show.clipping(self.config.optim, self.method),
            "views": self.material.order.views or "live",
            "teacher_temperature": {
                "use": self.config.teacher_temperature,
                "fitted": self.material.temperatures,
            },
            "teacher_answers": self._answers(),
            "teacher_forwards": self.material.teacher_forwards,
            "forwards": self.material.forwards,
            "cache_bytes": self.material.cache_bytes,
            "parameters": show.parameters(self.material.assembly.parties),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        material = self.material
        pictures = f"{show.splits(self.data)}; in all {len(material.pool):,} pictures to train on"
        console.note(f"reads    {self.config.data.source}: {pictures}")
        for name, net in material.networks.items():
            show.network(console, name, net)
        show.built(console, material.assembly.parties, material.networks)
        kind = show.views(material.order.counts)
        batch = f"{self.config.optim.batch_size} at {material.view.size} px"
        console.note(f"trains   {material.steps:,} steps of {batch}, {kind}")
        if part := material.labelled_part:
            console.note(f"batches  {part:.0%} of each have labels (data.labelled_fraction)")
        show.learning(console, self.config.optim, self.method, material.steps)
        if "teacher" in material.networks:
            live = sum(material.live_forwards[name] for name in material.teachers)
            cache = f"cache of {size(material.cache_bytes)}, live would be {live:,}"
            how = cache if material.cached else "live, no cache"
            console.note(f"teacher  {material.teacher_forwards:,} forwards ({how})")
            if self.task.selection:  # else no logits teach
                show.temperatures(console, material.temperatures, self.config.teacher_temperature)
            show.answers(console, self._answers())
        show.grids(console, self.method, self.material.assembly)
        show.table(console, "objective", self._objective())
        show.table(console, "settings", self._settings())
        show.beyond_the_table(console, self.method, self.material.assembly)
        show.recipe(console, self.recipe)
        console.note(f"writes   {self.target.path}")

    def _answers(self) -> dict[str, Any]:
        """What a teacher's answers are worth on the views that it teaches, if a cache tells already."""
        from kdcli.runs.teaching import Lessons

        lessons = Lessons.of(self.material)
        return {} if lessons is None else lessons.remembered(self.material)

    def _objective(self) -> list[dict[str, str]]:
        accumulate = self.config.optim.accumulate
        return show.objective(self.method, self.material.assembly.shapes, accumulate)

    def _settings(self) -> list[dict[str, str]]:
        parameters = {f"method.{name}": value for name, value in self.arguments.items()}
        return show.settings(self.config, _SHOWN, parameters, self.recipe)


def shares_work(config: Config) -> bool:
    """Whether processes that are started alike share the work, each alone, and are not one job."""
    return config.search.trials > 0


def refuse_unknown(config: Config) -> None:
    """Raise UsageError for a method that there is not; imports no torch."""
    if config.method.name != methods.AUTO:
        methods.refuse_other_stage(config.method.name, methods.METHODS)


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Study | Result:
    """Check everything that can be checked without a step: data, networks, classes, method, views.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option or parameter that does not exist or does not fit the method.
        InputError: data, artifacts or a combination of them that cannot be used.
    """
    from kdcli.data.duplicates import settle_extra
    from kdcli.data.sources import open_unlabelled

    frame.require(config.student, "--student")
    idle.refuse_idle(config, idle.of_distill(config))
    if config.method.name == methods.AUTO:
        from kdcli.studies import pilot

        return pilot.plan(config, Stage(plan, run), console)
    arguments = objectives.arguments(config)
    parts = [methods.addition(text) for text in config.terms]
    if config.search.trials:
        from kdcli.studies import search

        return search.plan(config, Stage(plan, run), console)
    if arguments.get("generations", 1) > 1:
        several = chains.generations(config, arguments["generations"])
        return plan(several, console, unless_complete=unless_complete)
    if config.via:
        return chains.plan(config, Stage(plan, run), console, unless_complete)
    taught = objectives.taught(config, bool(parts), console)
    config = objectives.from_scratch(objectives.of_its_task(config))
    known = frame.known_classes(config.teacher if taught else [])
    data = frame.labelled(config.data, "train", "validation", run=config, known=known)
    opened = (
        open_unlabelled(source, config.data, partial(places.kept_hashes, config))
        for source in config.data.extra
    )
    extra = [settle_extra(more, data, config.data.duplicates) for more in opened]
    frame.say(console, data, *extra)
    config, task, method, choice = objectives.objective(config, data, parts, console)
    idle.refuse_idle(config, idle.of_training(config.optim, config.views))
    frame.refuse_uneven(config.optim, config.processes)
    parents = [frame.parent("student", str(config.student), config.weights)]
    parents += frame.teachers(config.teacher) if taught else []
    prints = {"data": data.fingerprint, **{f"extra{i}": e.fingerprint for i, e in enumerate(extra)}}
    prints |= banks.fingerprints(config.texts, captions=config.data.captions)
    target = frame.target("distill", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    frame.refuse_absent(config)

    from kdcli.runs.material import Lesson, gather
    from kdcli.runs.refusals import refuse_unlike, warn_of_milestones, warn_of_one_seed

    material = gather(Lesson(config, data, extra, task, method), console)
    objectives.label_weights(config, material.networks["student"])
    idle.refuse_idle(config, idle.of_material(material))
    idle.warn_of_idle(config, console)
    if methods.entry(config.method.name).twin and "teacher" in material.networks:
        refuse_unlike(method, material.networks)
        warn_of_one_seed(config, console)
    warn_of_milestones(config.optim, method, material.schedule_steps, material.order.steps_per_epoch, console)
    return Plan(config, target, data, task, material.method, objectives.arguments(config), choice, material)


def run(
    plan: Plan | Study,
    console: Console,
    *,
    stop: Stop | None = None,
    command: str = "",
    ends: Callable[[int, float], str] | None = None,
) -> Result:
    """Train, and write the student as a model artifact.

    Args:
        plan: of one run, or of a study of several.
        console: shows progress.
        stop: set when a signal asks to stop.
        command: as it was typed.
        ends: see :class:`kdcli.engine.job.Job`.

    Raises:
        Diverged, Preempted: the last good state is kept, the same command continues from it.
    """
    if not isinstance(plan, Plan):
        return plan.run(console, stop=stop, command=command)
    from kdcli.engine.loop import train
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.engine.track import tracking
    from kdcli.runs.export import export, owner_of
    from kdcli.runs.training import training_job
    from kdcli.words.analysis import leaves_unused

    unused = plan.task.leaves_unused or leaves_unused(plan.method)
    runtime = open_runtime(plan.config, find_unused=unused)
    path, material = plan.target.path, plan.material
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        parties = copy.deepcopy(material.assembly.parties)
        for party in parties.values():
            party.to(runtime.device)
        if runtime.main:
            show.decisions(console, material.networks)
        job = training_job(material, parties, runtime, console, stop, owner=owner_of(plan), ends=ends)
        with tracking(plan.config, path, runtime) as job.track:
            outcome = train(job, output, runtime, console, stop)
        if runtime.main:
            export(plan, parties, outcome, output, runtime, command)
            seconds = duration(outcome.progress.seconds)
            done, why = outcome.progress.step, outcome.progress.ended
            end = f"; {why}" if why else ""
            console.note(f"{path}: {done:,} steps in {seconds}, {outcome.rate:.1f} steps/s{end}")
        runtime.barrier()
    return Result(path, frame.summary(path))
