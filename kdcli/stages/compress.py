"""Make a trained network smaller: channels that it can do without go, and what is left is dense.

One process:     kdcli compress --method cdd --teacher runs/teacher --data cars/ --out runs/small
Several GPUs:    kdcli compress -n 8 --precision bf16 --target flops=0.45 --student runs/teacher --data cars/
Tiny, on a CPU:  kdcli compress --target flops=0.5 --student runs/student --max-steps 60 \\
                     --data example:fashion-mnist --set method.strength=0.5 --set method.interval=5

After capacity dynamic distillation (Xie et al. 2023, arXiv 2303.09230) and ResRep (Ding et al. 2021, arXiv
2007.03260). A compactor, the identity at first, stands in front of activations whose channels nothing outside
their block sees. While the network learns, rows of compactors shrink to zero; then they are removed and the
compactors folded into the layers in front of them. ``--dry-run`` shows layer by layer what can go.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from kdcli import methods
from kdcli.config import Section, inputs, method_option, option, origins, outputs, training
from kdcli.console import Console, duration
from kdcli.errors import UsageError
from kdcli.runs import Result, deploying, frame, idle, recipes, show
from kdcli.runs import targets as goals
from kdcli.sections import LARGEST, OptimSection, StudentSection, TrainingData

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.engine.runtime import Stop
    from kdcli.runs.compaction import Compacted
    from kdcli.runs.material import Material
    from kdcli.tasks import Task
    from kdcli.words import Method

SAME, NONE = "same", "none"


class MethodSection(Section):
    """The method's name; all other keys are its parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    principal = "name"
    name: str = method_option("resrep", "resrep, cdd, magnitude, taylor, none.", "--method")


class ShrinkSection(OptimSection):
    """How a network learns while it shrinks."""

    opt: str = training("momentum", "momentum or sgd (Nesterov's): what rows shrink by.", "--opt")
    lr: float = training(0.01, "Learning rate at the global batch size.", "--lr", gt=0, le=LARGEST)
    weight_decay: float = training(
        1e-4, "Weight decay; none on biases, norms, positions.", "--weight-decay", ge=0, le=LARGEST
    )
    warmup: float = option(0.0, "Part of the steps of linear warm-up.", ge=0, lt=1)
    auto_batch: bool = option(False, "Not for compress.")
    clip_grad: float | None = option(None, "Largest norm of each network's gradient.", gt=0, le=LARGEST)


class LabelledData(TrainingData):
    """Labelled pictures; there is no place for others."""

    extra: list[str] = option([], "Not for compress.")
    extra_ratio: float | None = option(None, "Not for compress.", ge=0, le=1)


class Config(StudentSection):
    """Make a trained network smaller: channels that it can do without go."""

    teacher: list[str] = inputs(
        [], "Model artifact with a head that teaches, or -.", "--teacher", max_length=64
    )
    student: str | None = inputs(
        SAME, "What is made smaller: an artifact, a model's name, or same: the teacher.", "--student"
    )
    from_scratch: bool = option(False, "Random weights for the student.")
    method: MethodSection = MethodSection()
    target: str | None = method_option(
        None, "What is left: flops=0.45, params=3M, latency=8ms, …", "--target"
    )
    data: LabelledData = LabelledData()
    optim: ShrinkSection = ShrinkSection()
    threshold: float = option(1e-5, "Rows of a smaller norm are removed.", gt=0, le=1)
    export: list[str] = outputs([], "onnx or torch beside the model (repeatable).", "--export")
    quantize: Literal["int8", "int8-dynamic", "weights", "int4"] | None = outputs(
        None, "Integers: in the ONNX file, or how weights are kept.", "--quantize"
    )
    inside: bool = option(False, "Exported graphs normalise pictures (uint8) themselves.")
    recipe: str = method_option(
        recipes.DEFAULT, "The training: default, paper, or a recipe by name.", "--recipe"
    )


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
    compacted: Compacted
    material: Material
    goal: goals.Goal

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe(),
            "method": {"name": self.method.name, **self.arguments},
            "recipe": self.recipe.to_json(),
            "sites": self.compacted.to_json(),
            "objective": self._objective(),
            "turns": show.turns(self.method, self.material.assembly),
            "states": show.states(self.material.assembly),
            "steps": self.material.steps,
            "parameters": show.parameters(self.material.assembly.parties),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        from kdcli.runs import course

        material = self.material
        console.note(f"reads    {self.config.data.source}: {show.splits(self.data)}")
        for name, net in material.networks.items():
            show.network(console, name, net)
        self.compacted.describe(console)
        if self.compacted.kept is None:
            console.note(f"shrinks  {course.said(self.config, self.arguments, material, self.compacted.of)}")
        batch = f"{self.config.optim.batch_size} at {material.view.size} px"
        console.note(f"trains   {material.steps:,} steps of {batch}")
        show.learning(console, self.config.optim, self.method, material.steps)
        show.table(console, "objective", self._objective())
        show.beyond_the_table(console, self.method, material.assembly)
        show.recipe(console, self.recipe)
        console.note(f"writes   {self.target.path}")

    def _objective(self) -> list[dict[str, str]]:
        accumulate = self.config.optim.accumulate
        return show.objective(self.method, self.material.assembly.shapes, accumulate)


def refuse_unknown(config: Config) -> None:
    """Raise UsageError for a method that there is not; imports no torch."""
    if config.method.name != NONE:
        methods.refuse_other_stage(config.method.name, methods.COMPRESSORS)


def plan(
    config: Config, console: Console, *, unless_complete: bool = False
) -> Plan | deploying.Plan | Result:
    """Check data, networks, what can be removed, and whether the training is long enough for it.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option or parameter that does not exist or fit, a training that prunes nothing.
        InputError: data or networks that cannot be used, or that nothing can be removed from.
    """
    deploying.refuse_forms(config)
    own = config.teacher[:1] if config.student == SAME else [str(config.student)]
    config = frame.task_of_models(config, own)
    if config.method.name == NONE:
        idle.refuse_idle(config, idle.of_export(config))
        return deploying.plan(config, unless_complete)
    refuse_unknown(config)
    idle.refuse_idle(config, idle.of_compress(config))
    if config.student == SAME and not config.teacher:
        raise UsageError("--student same is the teacher's network: give --teacher, or --student.")
    if len(config.teacher) > 1:
        raise UsageError("kdcli compress takes one teacher.")
    _arguments(config)
    data = frame.labelled(config.data, "train", "validation", run=config)
    frame.say(console, data)
    deploying.refuse_few(config, data.split("train"))
    published = methods.recipes(config.method.name)
    config, choice = recipes.take(config, config.recipe, config.method.name, published)
    goal, arguments = _arguments(config)
    idle.refuse_idle(config, idle.of_training(config.optim, config.views))
    frame.refuse_uneven(config.optim, config.processes)
    student = config.teacher[0] if config.student == SAME else str(config.student)
    parents = [frame.parent("student", student, config.weights), *frame.teachers(config.teacher)]
    target = frame.target("compress", config, parents, {"data": data.fingerprint})
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    frame.refuse_absent(config)

    from kdcli.runs import course
    from kdcli.runs.compaction import compact, narrowed
    from kdcli.runs.material import Lesson, gather
    from kdcli.runs.refusals import warn_of_milestones
    from kdcli.tasks import task_of

    if not methods.entry(config.method.name).before:
        course.refuse_optimiser(config.optim)
    for name in dict.fromkeys([*config.teacher, student]):
        frame.warn_of_other_validation(name, data, console)
    task = task_of(data, config.data, config.optim, config.views)
    compacted = compact(config, student, task, data, goal, console)
    arguments = goal.settled(arguments, compacted.of.widths, compacted.of.cost)
    goals.refuse_unreachable(arguments.get("target"), goal, compacted.of.widths, compacted.of.cost)
    method, compacted = _method(config, task, data, compacted, arguments)
    lesson = Lesson(config, data, (), task, method)
    if methods.entry(config.method.name).before:
        compacted = narrowed(compacted, lesson, arguments, console)
    material = gather(lesson, console, dict(compacted.networks))
    idle.refuse_idle(config, idle.of_material(material))
    idle.warn_of_idle(config, console)
    warn_of_milestones(config.optim, method, material.schedule_steps, material.order.steps_per_epoch, console)
    if config.export:
        compacted.rehearse_export(config)
    if compacted.kept is None:
        course.refuse_short(config, arguments, material, compacted.of)
    return Plan(config, target, data, task, material.method, arguments, choice, compacted, material, goal)


def _method(
    config: Config, task: Task, data: Data, compacted: Compacted, arguments: dict[str, Any]
) -> tuple[Method, Compacted]:
    """The method for as many steps as its pictures take, which it decides itself by what its terms see.

    Raises:
        UsageError: a parameter that was given and changes nothing.
    """
    from kdcli.runs.material import planned_steps
    from kdcli.runs.pools import pool_of
    from kdcli.runs.refusals import refuse_weights
    from kdcli.words.analysis import without_zero_terms

    name = config.method.name
    first = methods.function(name)(task, compacted.of, **arguments)
    pictures = len(pool_of(data, (), without_zero_terms(first)))
    of = replace(compacted.of, pictures=pictures, steps=planned_steps(config.optim, pictures))
    make = partial(methods.function(name), task, of)
    method = make(**arguments)
    heeded = ("target", "pictures") if methods.entry(name).before else ()
    idle.refuse_idle_parameters(config, make, method, arguments, heeded)
    method = without_zero_terms(method)
    refuse_weights(method)
    return method, replace(compacted, of=of)


def _arguments(config: Config) -> tuple[goals.Goal, dict[str, Any]]:
    """What a target is of, and all parameters of the method."""
    name = config.method.name
    given = config.method.model_dump(exclude={"name"}, exclude_none=True)
    if config.target is not None and "method.target" not in origins(config):
        given.pop("target", None)  # a recipe's, which gives way
    goal, given = goals.given(name, config.target, given)
    return goal, methods.arguments(name, given)


def run(
    plan: Plan | deploying.Plan, console: Console, *, stop: Stop | None = None, command: str = ""
) -> Result:
    """Train with compactors, remove what has shrunk, and write the smaller network as a model artifact.

    Raises:
        Diverged, Preempted: the last good state is kept, the same command continues from it.
        InputError: an export that cannot hold the network.
    """
    if isinstance(plan, deploying.Plan):
        return deploying.run(plan, console, stop=stop, command=command)
    from kdcli.engine.loop import train
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.engine.track import tracking
    from kdcli.runs.latency import refuse_unlike
    from kdcli.runs.shrunken import export, followed
    from kdcli.runs.training import training_job
    from kdcli.words.analysis import leaves_unused

    runtime = open_runtime(plan.config, find_unused=plan.task.leaves_unused or leaves_unused(plan.method))
    path, material = plan.target.path, plan.material
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        if plan.goal.kind == "latency":
            refuse_unlike(plan.compacted.of.cost, plan.compacted.of.widths, runtime)
        parties = copy.deepcopy(material.assembly.parties)
        for party in parties.values():
            party.to(runtime.device)
        if runtime.main:
            show.decisions(console, material.networks)
        job = training_job(material, parties, runtime, console, stop)
        if plan.compacted.kept is None and job.evaluate is not None:
            job.evaluate = followed(job.evaluate, plan.compacted)
        with tracking(plan.config, path, runtime) as job.track:
            outcome = train(job, output, runtime, console, stop)
        export(plan, parties, outcome, output, runtime, console, command)
        if runtime.main:
            seconds = duration(outcome.progress.seconds)
            console.note(f"{path}: {material.steps:,} steps in {seconds}")
        runtime.barrier()
    return Result(path, frame.summary(path))
