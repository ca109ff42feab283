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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from kdcli import methods
from kdcli.artifacts.manifest import Manifest
from kdcli.config import Section, method_option, option
from kdcli.console import Console, duration, size
from kdcli.errors import UsageError
from kdcli.launch import world_size
from kdcli.sections import StudentSection
from kdcli.stages import Result, frame, show

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data
    from kdcli.engine.loop import Job, Outcome
    from kdcli.engine.runtime import Runtime
    from kdcli.models.network import Network
    from kdcli.stages.material import Material
    from kdcli.tasks.classification import Classification
    from kdcli.words import Method


class MethodSection(Section):
    """The method's name; all other keys are its parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    principal = "name"
    name: str = method_option(
        "task-specific", "supervised, kd, …; --help --method NAME for more.", "--method"
    )
    alpha: float | None = method_option(
        None, "Weight of the teacher (methods that have it).", "--alpha", ge=0, le=1
    )
    temperature: float | None = method_option(
        None, "Softening of logits (methods that have it).", "--temperature", gt=0
    )


class Config(StudentSection):
    """Train a student, with or without a teacher."""

    method: MethodSection = MethodSection()
    evaluate_every: float = option(1.0, "Epochs between evaluations on the validation split.", gt=0)
    evaluate_steps: int | None = option(None, "Steps between them instead.", ge=1)
    save_steps: int | None = option(
        None, "Commit state every so many steps (beside save_minutes).", runtime=True, ge=1
    )
    save_minutes: float = option(5.0, "Commit state so often.", runtime=True, gt=0)
    log_every: int = option(10, "Steps between rows of metrics.jsonl.", ge=1)


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    target: frame.Target
    data: Data
    task: Classification
    method: Method
    arguments: dict[str, Any]
    material: Material

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe(),
            "method": {"name": self.method.name, **self.arguments},
            "objective": show.objective(self.method),
            "steps": self.material.steps,
            "views": self.material.order.views or "live",
            "teacher_forwards": self.material.teacher_forwards,
            "cache_bytes": self.material.cache_bytes,
            "parameters": show.parameters(self.material.networks),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        material, views = self.material, self.material.order.views
        pictures = f"{show.splits(self.data)}; in all {len(material.pool):,} pictures to train on"
        console.note(f"reads    {self.config.data.source}: {pictures}")
        for name, net in material.networks.items():
            show.network(console, name, net)
        kind = f"{views} fixed views per picture" if views else "a new view each epoch"
        batch = f"{self.config.optim.batch_size} at {material.view.size} px"
        console.note(f"trains   {material.steps:,} steps of {batch}, {kind}")
        if "teacher" in material.networks:
            cache = f"cache of {size(material.cache_bytes)}, live would be {material.drawn:,}"
            how = cache if material.cached else "live, no cache"
            console.note(f"teacher  {material.teacher_forwards:,} forwards ({how})")
        rows = show.objective(self.method)
        console.table(list(rows[0]), [list(row.values()) for row in rows], title="objective")
        console.note(f"writes   {self.target.path}")


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Check everything that can be checked without a step: data, networks, classes, method, views.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option or parameter that does not exist or does not fit the method.
        InputError: data, artifacts or a combination of them that cannot be used.
    """
    from kdcli.data.sources import open_unlabelled

    entry = methods.entry(config.method.name)
    frame.require(config.student, "--student")
    _refuse_uneven(config)
    arguments = methods.arguments(
        config.method.name, config.method.model_dump(exclude={"name"}, exclude_none=True)
    )
    if entry.teacher and not config.teacher:
        raise UsageError(f"method {config.method.name} needs --teacher; --method supervised does without.")
    data = frame.labelled(config.data, "train", "validation")
    extra = [open_unlabelled(source, config.data) for source in config.data.extra]
    parents = [frame.parent("student", str(config.student), config.weights)]
    if entry.teacher:
        parents.append(frame.parent("teacher", str(config.teacher)))
    prints = {"data": data.fingerprint, **{f"extra{i}": e.fingerprint for i, e in enumerate(extra)}}
    target = frame.target("distill", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))

    from kdcli.stages.material import gather
    from kdcli.tasks.classification import Classification
    from kdcli.words import without_zero_terms

    task = Classification(
        tuple(data.classes or ()), config.optim.label_smoothing, config.data.class_balance == "loss"
    )
    method = without_zero_terms(methods.function(config.method.name)(task, **arguments))
    material = gather(config, data, extra, task, method, console)
    return Plan(config, target, data, task, method, arguments, material)


def _refuse_uneven(config: Config) -> None:
    parts = max(world_size(), config.processes) * config.optim.accumulate
    if config.optim.batch_size % parts:
        raise UsageError(
            f"--batch-size {config.optim.batch_size} does not divide by {parts} (processes × accumulate)."
        )


def run(plan: Plan, console: Console, *, stop: Any = None, command: str = "") -> Result:
    """Train, and write the student as a model artifact.

    Raises:
        Diverged, Preempted: the last good state is kept, the same command continues from it.
    """
    from kdcli.engine.loop import train
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.engine.track import tracking

    runtime = open_runtime(plan.config, find_unused=any(len(p.turns) > 1 for p in plan.method.phases))
    path, material = plan.target.path, plan.material
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        networks = {n: copy.deepcopy(net).to(runtime.device) for n, net in material.networks.items()}
        job = _job(plan, networks, runtime, console, stop)
        with tracking(plan.config, path, runtime) as job.track:
            outcome = train(job, output, runtime, console, stop)
        if runtime.main:
            _export(plan, networks["student"], outcome, output, runtime, command)
            seconds = duration(outcome.progress.seconds)
            console.note(f"{path}: {material.steps:,} steps in {seconds}, {outcome.rate:.1f} steps/s")
        runtime.barrier()
    return Result(path, frame.summary(path))


# -- parts of the run ----------------------------------------------------------------------------------------


def _job(plan: Plan, networks: dict[str, Network], runtime: Runtime, console: Console, stop: Any) -> Job:
    """Loader (with the teacher's cache), order of samples and evaluation for the loop."""
    from kdcli.data.batches import training_loader
    from kdcli.data.cache import Store
    from kdcli.engine.cache import Filling, fill_calls
    from kdcli.engine.loop import Job
    from kdcli.tasks.classification import class_weights

    config, material = plan.config, plan.material
    pool = material.pool
    reading = frame.reading(config, config.data)
    columns = None
    if material.cached:
        columns = fill_calls(
            Path(config.cache),
            plan.method,
            networks,
            pool,
            material.view,
            material.order.used(material.steps),
            Store(config.views.store),
            Filling(runtime, console, config.optim.batch_size, stop=stop, **reading),
        )
    every = config.evaluate_steps or config.evaluate_every * material.order.steps_per_epoch
    return Job(
        method=plan.method,
        parties={p.name: networks[p.source] for p in plan.method.parties},
        plan=material.order,
        loader=training_loader(
            pool, material.view, columns=columns, pin=runtime.device.type == "cuda", **reading
        ),
        optim=config.optim,
        steps=material.steps,
        classes=len(plan.task.classes),
        seed=config.seed,
        evaluate=_evaluation(plan, runtime, reading),
        selection=plan.task.selection,
        evaluate_every=every,
        row_weight=class_weights(pool.labels, len(plan.task.classes)) if plan.task.weighted else None,
        save_steps=config.save_steps,
        save_minutes=config.save_minutes,
        log_every=config.log_every,
    )


def _evaluation(plan: Plan, runtime: Runtime, reading: dict[str, Any]) -> Any:
    import torch

    from kdcli.engine.inference import outputs

    validation = plan.data.split("validation")
    validation = validation.take(validation.labelled())
    targets = torch.from_numpy(validation.labels)
    batch = max(1, plan.config.optim.batch_size // runtime.world_size)

    def evaluate(network: Any) -> dict[str, float]:
        return plan.task.measure(outputs(network, validation, runtime, batch_size=batch, **reading), targets)

    return evaluate


def _export(
    plan: Plan, student: Network, outcome: Outcome, output: Output, runtime: Runtime, command: str
) -> None:
    """Write the best student as the artifact and the last one beside it, and commit."""
    from kdcli.engine.loop import LOG
    from kdcli.models.build import save

    config, material, progress = plan.config, plan.material, outcome.progress
    best = progress.best
    (output.partial / "last").mkdir(exist_ok=True)
    save(student, output.partial / "last", outcome.last)
    keep = save(student, output.partial, outcome.best or outcome.last)
    chosen = best["metrics"] if best else progress.last
    parents = [p for p in plan.target.parents if p["role"] in material.networks]
    manifest = Manifest("model", "distill", plan.target.identity, parents)
    manifest.facts = frame.facts(
        config,
        command,
        task=plan.task.name,
        layout=student.layout,
        classes=list(plan.task.classes),
        metrics={f"validation/{k}": v for k, v in chosen.items()},
        metrics_last={f"validation/{k}": v for k, v in progress.last.items()},
        selection=f"best on validation, step {best['step']} of {material.steps}"
        if best
        else f"last step ({material.steps})",
        data=plan.data.describe(),
        method={"name": plan.method.name, **plan.arguments},
        views=material.order.views or "live",
        global_batch=config.optim.batch_size,
        lr=config.optim.lr,
        steps=progress.step,
        seconds=round(progress.seconds, 4),
        cost={"student_steps": progress.step, "teacher_forwards": material.teacher_forwards},
        **runtime.describe(),
    )
    output.commit(manifest, [*keep, "last", LOG])
