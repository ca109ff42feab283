"""Fit the best head on a frozen backbone: a task-specific teacher.

One process:     kdcli probe --teacher dinov2_vitg --data cars/ --out runs/teacher
Several GPUs:    kdcli probe -n 8 --precision bf16 --teacher dinov2_vitg --data cars/ --out runs/teacher
Tiny, on a CPU:  kdcli probe --teacher test_vit --weights my.safetensors --data example:fashion-mnist

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): a grid of heads, features × learning
rates × weight decays. The backbone runs once over fixed views and all heads train together on its features;
``--protocol dinov2`` trains them live on augmented views as published. Which heads there are is the task's
(``kdcli/tasks/NAME/probe.py``). Selection is on the validation part only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from kdcli.artifacts.manifest import Manifest
from kdcli.config import beneath, head_option, inputs, option
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.launch import world_size
from kdcli.runs import Result, backbone, banks, frame, show
from kdcli.runs.fitted import Fitted, training, training_by_steps
from kdcli.runs.idle import of_optimizer, of_probe, refuse_idle
from kdcli.runs.objective import defaults_of
from kdcli.sections import (
    LARGEST,
    LARGEST_SIDE,
    DataSection,
    GridSection,
    OptimSection,
    RunSection,
    StatisticsSection,
    StudentSection,
    TextSection,
    TrainingData,
    ViewSection,
    checked_head,
)

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.job import Outcome
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.metrics.calibration import Calibration
    from kdcli.models.protocol import Model
    from kdcli.tasks import Task


class FinetuneSection(OptimSection):
    """How backbone and head learn together with --finetune."""

    flags: ClassVar[bool] = False  # --epochs and --batch-size are the heads'
    lr: float = option(5e-5, "Learning rate at the global batch size.", gt=0, le=LARGEST)
    epochs: float = option(10, "Passes over the training pictures.", gt=0, le=1_000_000)


class Config(RunSection):
    """Fit the best linear head on a frozen backbone: a task-specific teacher."""

    teacher: str | None = inputs(None, "Alias, timm name, hf-hub:…, local-dir:… or artifact.", "--teacher")
    weights: str | None = inputs(None, "Your own checkpoint for it, FILE or FILE:ENTRY.", "--weights")
    image_size: int | None = inputs(None, "Its input size.", "--image-size", ge=8, le=LARGEST_SIDE)
    head: str = head_option(
        "fit",
        "keep: store a trained classifier as it is; none: what the backbone answers (retrieval); decoder: "
        "store a masked autoencoder whole; texts: compare with texts; rtdetr, dfine or "
        "light[,num_queries=60]: fit that detector.",
        "--head",
    )
    features: str = head_option("all", "all, timm (its own head's), or names with commas.", "--features")
    protocol: Literal["cached", "dinov2"] = head_option(
        "cached", "cached fixed views, or live as published.", "--protocol"
    )
    finetune: bool = head_option(
        False, "Then train backbone and head together (optim.*), live views.", "--finetune"
    )
    data: DataSection = DataSection()
    texts: TextSection = TextSection()
    views: ViewSection = ViewSection(count="1")
    grid: GridSection = GridSection()
    statistics: StatisticsSection = StatisticsSection()
    optim: FinetuneSection = FinetuneSection()

    @field_validator("head")
    @classmethod
    def _is_a_head(cls, value: str) -> str:
        known = ("fit", "none", *backbone.KEPT)
        return str(checked_head(value, "|".join(known), known))

    @property
    def kind(self) -> str | None:
        """Of the head that is fitted, where one is asked for."""
        return None if self.head in ("fit", "none", *backbone.KEPT) else self.head

    def finetuning(self) -> StudentSection:
        """The same run as one of a student that is there already; of a head alone without --finetune."""
        grid, optim = self.grid, OptimSection(**self.optim.model_dump())
        if not self.finetune:
            lr, decay = (grid.lr or [optim.lr])[0], grid.weight_decay[0]
            optim = OptimSection(lr=lr, weight_decay=decay, epochs=grid.epochs, batch_size=grid.batch_size)
        return StudentSection(
            **{name: getattr(self, name) for name in RunSection.model_fields},
            student=self.teacher,
            data=TrainingData(**self.data.model_dump()),
            views=self.views.model_copy(update={"count": "live"}),
            optim=optim,
        )


@dataclass
class Plan:
    """Everything a run needs, checked; without data and task the trained classifier is kept as it is."""

    config: Config
    target: frame.Target
    data: Data | None
    task: Task | None
    network: Model
    features: list[str]
    specs: list[HeadSpec]

    @property
    def by_steps(self) -> bool:
        """Whether the head learns step by step, through the backbone, and not on its features."""
        return self.task is not None and backbone.by_steps(self.task)

    @property
    def forwards(self) -> int:
        """Training views that the backbone sees to fit heads."""
        return len(self.data.split("train")) * int(self.config.views.count) if self.data else 0

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe() if self.data else None,
            "features": self.features,
            "heads": len(self.specs),
            "parameters": show.parameters({"teacher": self.network}),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        show.network(console, "teacher", self.network)
        if self.data is not None:
            console.note(f"reads    {self.config.data.source}: {show.splits(self.data)}")
            network, config = self.network, self.config
            how = (
                training_by_steps(config, network)
                if self.by_steps
                else training(config, self.specs, self.features)
            )
            console.note(f"trains   {how}")
            if self.config.statistics.record:
                console.note(f"records  {', '.join(self.config.statistics.taps)} of each class")
        else:
            console.note(f"keeps    {backbone.kept(self.network)}")
        console.note(f"writes   {self.target.path}")


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Check backbone, data, features and grid.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option that does not exist or fit.
        InputError: data or weights that cannot be used.
    """
    config = backbone.with_head(config)
    _refuse_options(config)
    parents = [frame.parent("teacher", str(config.teacher), config.weights)]
    keeps = config.head in backbone.KEPT
    data = None if keeps else frame.labelled(config.data, "train", "validation", run=config)
    kept = (
        frame.labelled(config.data, "train", run=config)
        if config.head in ("keep", "texts") and config.data.source
        else None
    )
    opened = data or kept
    frame.say(console, opened)
    prints = {**({"data": opened.fingerprint} if opened else {}), **banks.fingerprints(config.texts)}
    target = frame.target("probe", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    frame.refuse_absent(config)

    from kdcli.models.build import DROPPED, build
    from kdcli.tasks import task_of

    task, stepwise = None, False
    if data is not None:
        task = task_of(data, config.data, config.optim, config.views)
        config = beneath(config, defaults_of(config, task.name))[0]
        _refuse_of_task(config, task)
        task.heads(config, ())  # refuses what it has not before a network is fetched
        stepwise = backbone.by_steps(task)
    refuse_idle(config, of_probe(config, stepwise))
    if config.finetune:
        refuse_idle(config, of_optimizer(config.optim))
    wanted = backbone.wanted(config, task)
    name, seed = str(config.teacher), config.seed
    network = build(name, wanted, weights=config.weights, size=config.image_size, seed=seed)
    if network.decoder is not None and wanted is None:
        network.decoder = None
        network.notes += (DROPPED.format(network.name),)
    if config.statistics.record:
        backbone.refuse_taps(config, network)
    if network.trained == "random":
        raise InputError(f"{config.teacher} has random weights: nothing to probe.")
    if data is None or task is None:
        if config.head == "keep":
            backbone.settle_names(config, network, kept)
        if config.head == "texts":
            banks.attach(network, config.texts, kept.classes if kept else None, name, console)
        return Plan(config, target, None, None, network, [], [])
    if config.finetune or stepwise:
        from kdcli.runs.finetune import refuse_finetuning

        refuse_finetuning(network, config.finetuning())
    if stepwise:
        backbone.refuse_pictures(network)
    features = backbone.features(config, network, task.features(network))
    specs = task.heads(config, features)
    return Plan(config, target, data, task, network.requires_grad_(False), features, specs)


def _refuse_options(config: Config) -> None:
    """Raise UsageError for options that are missing, or contradict one another for any task."""
    frame.require(config.teacher, "--teacher")
    if config.head != "texts":
        banks.refuse_texts(config.texts, "other tasks")
    if not config.views.count.isdigit() or int(config.views.count) < 1:
        raise UsageError(f"--views: probe caches a number of fixed views, got '{config.views.count}'.")
    if config.finetune:
        if config.head in backbone.KEPT:
            raise UsageError(f"--finetune trains a fitted head further; leave out --head {config.head}.")
        frame.refuse_uneven(config.optim, config.processes)
    if config.statistics.record and (
        config.head in backbone.KEPT or (config.finetune and max(config.processes, world_size()) > 1)
    ):
        raise UsageError(
            f"--statistics needs training pictures (no --head {config.head}), and with --finetune no -n."
            if config.head in backbone.KEPT
            else "--statistics of a finetuned network is of one process: leave out -n."
        )


def _refuse_of_task(config: Config, task: Task) -> None:
    """Raise UsageError for options that only some tasks have."""
    from kdcli.runs.refusals import refuse_box_views
    from kdcli.tasks import entry

    embeds = entry(task.name).embeds
    if config.head == "none" and not embeds:
        raise UsageError(f"--head none: networks for {task.name} answer by a head.")
    refuse_box_views(config.views, task)
    if config.kind is not None:
        task.wanted(config.kind)
        if not backbone.by_steps(task):
            raise UsageError(f"--head {config.head}: a probe fits linear heads for {task.name}.")
    if config.finetune and embeds:
        raise UsageError(
            f"--finetune trains a fitted classifier further, and {task.name} fits none. To train the "
            "backbone on labels: kdcli distill --method supervised --student NAME."
        )


def run(plan: Plan, console: Console, *, stop: Stop | None = None, command: str = "") -> Result:
    """Extract features, train the grid, and write backbone and winner as a model artifact.

    Raises:
        Diverged: every head did.
        Preempted: features computed so far stay in the cache.
    """
    from kdcli.engine.grid import best
    from kdcli.engine.moments import FILE as RECORDS
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.runs.calibrating import recalibrated, say_calibration, say_winner
    from kdcli.runs.finetune import Tuning, finetune
    from kdcli.runs.recording import record_activations
    from kdcli.tasks.settings import Probing

    config, task = plan.config, plan.task
    runtime = open_runtime(config, find_unused=task is not None and task.leaves_unused)
    path = plan.target.path
    with shared_output(path, plan.target.identity, config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        if runtime.main:
            show.decisions(console, {"teacher": plan.network})
        network = copy.deepcopy(plan.network).to(runtime.device)
        results: list[HeadResult] = []
        outcome: Outcome | None = None
        calibration: Calibration | None = None
        if plan.data is not None and task is not None:
            reading = frame.reading(config, config.data)
            probing = Probing(
                plan.data, network, plan.features, plan.specs, config, reading, runtime, console, stop
            )
            if not plan.by_steps:
                results = task.fit(probing)
                winner = best(results)
                task.attach(network, winner)
                say_winner(console, winner, results)
                calibration = winner.calibration
            if config.finetune or plan.by_steps:
                tuning = Tuning(config.finetuning(), whole=config.finetune, fitted=bool(results))
                outcome = finetune(network, tuning, plan.data, output, runtime, console, stop)
            if config.statistics.record:
                if outcome is not None:
                    network.load_state_dict(outcome.best or outcome.last)
                records = record_activations(probing, config.statistics)
                if runtime.main:
                    records.write(output.partial / RECORDS)
        if runtime.main:
            if outcome is not None and plan.data is not None and task is not None:
                calibration = recalibrated(network, outcome, config.finetuning(), plan.data, task, runtime)
            say_calibration(console, calibration)
            fitted = Fitted(results, outcome, calibration)
            _export(plan, network, fitted, output, runtime, command)
        runtime.barrier()
    return Result(path, frame.summary(path))


def _export(
    plan: Plan, network: Model, fitted: Fitted, output: Output, runtime: Runtime, command: str
) -> None:
    """Write backbone and head, with the whole grid in the manifest, and commit."""
    from kdcli.engine.loop import LOG
    from kdcli.engine.moments import FILE as RECORDS
    from kdcli.runs.calibrating import kept

    outcome, config = fitted.outcome, plan.config
    keep = network.save(output.partial, (outcome.best or outcome.last) if outcome else None)
    keep += [RECORDS] if config.statistics.record else []
    keep += [LOG] if outcome else []
    manifest = Manifest("model", "probe", plan.target.identity, plan.target.parents)
    chosen = fitted.facts(finetuned=config.finetune)
    if plan.data is None and (calibration := kept(str(config.teacher))):
        chosen["calibration"] = calibration
    manifest.facts = frame.facts(
        config,
        command,
        task=network.task,
        layout=network.layout,
        classes=network.classes,
        **banks.described(network),
        **chosen,
        data=plan.data.describe() if plan.data else None,
        cost=fitted.cost(plan.forwards, config.finetuning().optim.batch_size),
        **frame.decisions({"teacher": plan.network}),
        **runtime.describe(),
    )
    output.commit(manifest, keep)
