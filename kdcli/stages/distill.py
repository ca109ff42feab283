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
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from kdcli import methods
from kdcli.artifacts.manifest import Manifest
from kdcli.config import (
    DataSection,
    OptimSection,
    RunSection,
    Section,
    ViewSection,
    inputs,
    method_option,
    option,
)
from kdcli.console import Console, duration, size
from kdcli.errors import InputError, UsageError
from kdcli.stages import Result, frame

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.batches import Pool
    from kdcli.data.samples import Data
    from kdcli.data.views import TrainingView
    from kdcli.engine.loop import Job, Outcome
    from kdcli.engine.runtime import Runtime
    from kdcli.models.network import Network
    from kdcli.tasks.classification import Classification
    from kdcli.words import Method

_AUTO_VIEWS = 8  # more fixed views than this are not worth their disk unless asked for


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


class TrainingData(DataSection):
    """Labelled pictures as every stage has them, and more without labels."""

    extra: list[str] = inputs([], "More pictures, for the teacher term only (repeatable).", "--extra")


class Config(RunSection):
    """Train a student, with or without a teacher."""

    teacher: str | None = inputs(None, "Model artifact with a head for this task, or -.", "--teacher")
    student: str | None = inputs(None, "Alias, timm name, hf-hub:…, local-dir:… or artifact.", "--student")
    weights: str | None = inputs(None, "The student's own checkpoint (safetensors or .pth).", "--weights")
    from_scratch: bool = inputs(False, "Random weights for the student.", "--from-scratch")
    image_size: int | None = inputs(None, "The student's input size.", "--image-size", ge=8)
    drop_path: float | None = option(None, "The student's stochastic depth.", ge=0, lt=1)
    data: TrainingData = TrainingData()
    views: ViewSection = ViewSection()
    method: MethodSection = MethodSection()
    optim: OptimSection = OptimSection()
    evaluate_every: float = option(1.0, "Epochs between evaluations on the validation split.", gt=0)
    save_steps: int | None = option(
        None, "Commit state every so many steps (beside save_minutes).", runtime=True, ge=1
    )
    save_minutes: float = option(5.0, "Commit state so often.", runtime=True, gt=0)
    log_every: int = option(10, "Steps between rows of metrics.jsonl.", ge=1)


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    out: Path
    identity: dict[str, Any]
    parents: list[dict[str, str]]
    data: Data
    pool: Pool
    task: Classification
    method: Method
    arguments: dict[str, Any]
    networks: dict[str, Network]
    view: TrainingView
    views: int | None
    steps: int

    @property
    def cached(self) -> bool:
        """Whether teacher outputs come from the cache."""
        return self.views is not None and "teacher" in self.networks

    @property
    def teacher_forwards(self) -> int:
        """Pictures that the teacher sees: to fill the cache, or live."""
        if "teacher" not in self.networks:
            return 0
        return len(self.pool) * self.views if self.views else self.steps * self.config.optim.batch_size

    @property
    def cache_bytes(self) -> int:
        """Size of the teacher cache."""
        from kdcli.data.cache import Store
        from kdcli.engine.cache import bytes_per_view

        each = bytes_per_view(len(self.task.classes), Store(self.config.views.store))
        return self.teacher_forwards * each if self.cached else 0

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            "out": str(self.out),
            "identity": self.identity,
            "parents": self.parents,
            "data": self.data.describe(),
            "method": {"name": self.method.name, **self.arguments},
            "objective": frame.objective(self.method),
            "steps": self.steps,
            "views": self.views or "live",
            "teacher_forwards": self.teacher_forwards,
            "cache_bytes": self.cache_bytes,
            "parameters": {n: sum(p.numel() for p in net.parameters()) for n, net in self.networks.items()},
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        splits = ", ".join(
            f"{n} {len(s):,} ({int(s.labelled().sum()):,} labelled)" for n, s in self.data.splits.items()
        )
        console.note(
            f"reads    {self.config.data.source}: {splits}; in all {len(self.pool):,} pictures to train on"
        )
        for name, net in self.networks.items():
            count = sum(p.numel() for p in net.parameters()) / 1e6
            console.note(
                f"{name:8} {net.name}: {count:.2f} M parameters, {net.trained} weights, {net.spec.size[0]} px"
            )
        kind = f"{self.views} fixed views per picture" if self.views else "a new view each epoch"
        console.note(
            f"trains   {self.steps:,} steps of {self.config.optim.batch_size} at {self.view.size} px, {kind}"
        )
        if "teacher" in self.networks:
            live = self.steps * self.config.optim.batch_size
            how = (
                f"cache of {size(self.cache_bytes)}, live would be {live:,}"
                if self.cached
                else "live, no cache"
            )
            console.note(f"teacher  {self.teacher_forwards:,} forwards ({how})")
        rows = [list(r.values()) for r in frame.objective(self.method)]
        console.table(list(frame.objective(self.method)[0]), rows, title="objective")
        console.note(f"writes   {self.out}")


def plan(config: Config, console: Console) -> Plan:
    """Check everything that can be checked without a step: data, networks, classes, method, views.

    Raises:
        UsageError: an option or parameter that does not exist or does not fit the method.
        InputError: data, artifacts or a combination of them that cannot be used.
    """
    from kdcli.data.batches import Pool
    from kdcli.data.sources import open_data, open_unlabelled
    from kdcli.data.views import TrainingView
    from kdcli.tasks.classification import Classification
    from kdcli.words import without_zero_terms

    entry = methods.entry(config.method.name)
    frame.require(config.data.source, "--data")
    frame.require(config.student, "--student")
    _refuse_uneven(config)
    arguments = methods.arguments(
        config.method.name, config.method.model_dump(exclude={"name"}, exclude_none=True)
    )
    if entry.teacher and not config.teacher:
        raise UsageError(f"method {config.method.name} needs --teacher; --method supervised does without.")
    data = open_data(config.data, need=("train", "validation"))
    if data.classes is None:
        raise InputError(f"{config.data.source} has no labels. Name their column: --set data.label_column=…")
    extra = [open_unlabelled(source, config.data) for source in config.data.extra]
    pool = Pool((data.split("train"), *(s for e in extra for s in e.splits.values())))
    task = Classification(
        tuple(data.classes), config.optim.label_smoothing, config.data.class_balance == "loss"
    )
    method = without_zero_terms(methods.function(config.method.name)(task, **arguments))
    if not entry.teacher or "teacher" not in {p.name for p in method.parties}:
        if config.data.extra:
            raise UsageError("--extra pictures enter the teacher term only, and this objective has none.")
        pool = Pool((data.split("train").take(data.split("train").labelled()),))
    networks = _networks(config, task, {p.source for p in method.parties}, data, console)
    view = TrainingView(
        config.views, config.views.size or max(n.spec.size[0] for n in networks.values()), config.seed
    )
    steps = config.optim.max_steps or math.ceil(config.optim.epochs * len(pool) / config.optim.batch_size)
    views = _views(config, method, task, "teacher" in networks, len(pool), steps)
    parents = [frame.parent("student", str(config.student), config.weights)]
    if "teacher" in networks:
        parents.append(frame.parent("teacher", str(config.teacher)))
    prints = {"data": data.fingerprint, **{f"extra{i}": e.fingerprint for i, e in enumerate(extra)}}
    identity = frame.identity_of("distill", config, parents, prints)
    out = frame.output_path("distill", config, identity)
    return Plan(
        config, out, identity, parents, data, pool, task, method, arguments, networks, view, views, steps
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
    with shared_output(plan.out, plan.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            console.note(f"{plan.out} is complete")
            return Result(plan.out, frame.summary(plan.out))
        networks = {n: copy.deepcopy(net).to(runtime.device) for n, net in plan.networks.items()}
        job = _job(plan, networks, runtime, console, stop)
        with tracking(plan.config, plan.out, runtime) as job.track:
            outcome = train(job, output, runtime, console, stop)
        if runtime.main:
            _export(plan, networks["student"], outcome, output, runtime, command)
            seconds = duration(outcome.progress.seconds)
            console.note(f"{plan.out}: {plan.steps:,} steps in {seconds}, {outcome.rate:.1f} steps/s")
        runtime.barrier()
    return Result(plan.out, frame.summary(plan.out))


# -- parts of the plan ---------------------------------------------------------------------------------------


def _refuse_uneven(config: Config) -> None:
    from kdcli.launch import world_size

    parts = max(world_size(), config.processes) * config.optim.accumulate
    if config.optim.batch_size % parts:
        raise UsageError(
            f"--batch-size {config.optim.batch_size} does not divide by {parts} (processes × accumulate)."
        )


def _networks(
    config: Config, task: Classification, wanted: set[str], data: Data, console: Console
) -> dict[str, Network]:
    """Student and, where the objective needs it, teacher with its classes in the data's order."""
    from kdcli.models.build import build

    classes = list(task.classes)
    student = build(
        str(config.student),
        classes=classes,
        pretrained=not config.from_scratch,
        weights=config.weights,
        size=config.image_size,
        drop_path=config.drop_path,
        seed=config.seed,
    )
    if "teacher" not in wanted:
        return {"student": student}
    chosen_on = frame.split_hash(str(config.teacher), "validation")
    if chosen_on not in ("", data.split("validation").fingerprint):
        console.warn("the teacher was chosen on other validation samples than this run selects by.")
    return {
        "student": student,
        "teacher": frame.teacher(str(config.teacher), classes, config.data.class_order),
    }


def _views(
    config: Config, method: Method, task: Classification, has_teacher: bool, samples: int, steps: int
) -> int | None:
    """Number of fixed views, None for live ones.

    Raises UsageError where fixed views cannot serve the method.
    """
    from kdcli.data.cache import Store
    from kdcli.engine.cache import affordable_views

    text = config.views.count
    if text not in ("auto", "live") and not (text.isdigit() and int(text) > 0):
        raise UsageError(f"--views: a number above 0, live or auto, got '{text}'.")
    mixes = bool(config.optim.mixup or config.optim.cutmix)
    fixed = method.cacheable and has_teacher and not mixes
    if text.isdigit():
        if has_teacher and not fixed:
            raise UsageError(
                "--views K caches the teacher's outputs of fixed views; mixed pictures need --views live."
            )
        return int(text)
    if text == "live" or not fixed:
        return None
    epochs = math.ceil(steps * config.optim.batch_size / samples)
    store, classes = Store(config.views.store), len(task.classes)
    return min(epochs, _AUTO_VIEWS, affordable_views(Path(config.cache), samples, classes, store)) or None


# -- parts of the run ----------------------------------------------------------------------------------------


def _job(plan: Plan, networks: dict[str, Network], runtime: Runtime, console: Console, stop: Any) -> Job:
    """Loader (with the teacher's cache), order of samples and evaluation for the loop."""
    from kdcli.data.batches import Plan as Order
    from kdcli.data.batches import training_loader
    from kdcli.data.cache import Store
    from kdcli.engine.cache import Filling, fill_calls
    from kdcli.engine.loop import Job
    from kdcli.tasks.classification import class_weights

    config, pool = plan.config, plan.pool
    reading: dict[str, Any] = {
        "max_pixels": config.data.max_pixels,
        "workers": config.workers,
        "timeout": config.worker_timeout,
    }
    columns = None
    if plan.cached:
        columns = fill_calls(
            Path(config.cache),
            plan.method,
            networks,
            pool,
            plan.view,
            int(plan.views or 0),
            Store(config.views.store),
            Filling(runtime, console, config.optim.batch_size, stop=stop, **reading),
        )
    balance = config.data.class_balance
    return Job(
        method=plan.method,
        parties={p.name: networks[p.source] for p in plan.method.parties},
        plan=Order(
            pool.labels,
            config.optim.batch_size,
            config.seed,
            plan.views,
            config.data.labelled_fraction,
            balance == "sampler",
        ),
        loader=training_loader(
            pool, plan.view, columns=columns, pin=runtime.device.type == "cuda", **reading
        ),
        optim=config.optim,
        steps=plan.steps,
        classes=len(plan.task.classes),
        seed=config.seed,
        evaluate=_evaluation(plan, runtime, reading),
        selection=plan.task.selection,
        evaluate_every=config.evaluate_every,
        row_weight=class_weights(pool.labels, len(plan.task.classes)) if balance == "loss" else None,
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

    config, progress = plan.config, outcome.progress
    best = progress.best
    (output.partial / "last").mkdir(exist_ok=True)
    save(student, output.partial / "last", outcome.last)
    keep = save(student, output.partial, outcome.best or outcome.last)
    chosen = best["metrics"] if best else progress.last
    manifest = Manifest("model", "distill", plan.identity, plan.parents)
    manifest.facts = frame.facts(
        config,
        command,
        task=plan.task.name,
        layout=student.layout,
        classes=list(plan.task.classes),
        metrics={f"validation/{k}": v for k, v in chosen.items()},
        metrics_last={f"validation/{k}": v for k, v in progress.last.items()},
        selection=f"best on validation, step {best['step']} of {plan.steps}"
        if best
        else f"last step ({plan.steps})",
        data=plan.data.describe(),
        method={"name": plan.method.name, **plan.arguments},
        views=plan.views or "live",
        global_batch=config.optim.batch_size,
        lr=config.optim.lr,
        steps=progress.step,
        seconds=round(progress.seconds, 4),
        cost={"student_steps": progress.step, "teacher_forwards": plan.teacher_forwards},
        **runtime.describe(),
    )
    output.commit(manifest, [*keep, "last", LOG])
