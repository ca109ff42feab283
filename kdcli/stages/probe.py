"""Fit the best linear head on a frozen backbone: a task-specific teacher.

One process:     kdcli probe --teacher dinov2_vitg --data cars/ --out runs/teacher
Several GPUs:    kdcli probe -n 8 --precision bf16 --teacher dinov2_vitg --data cars/ --out runs/teacher
Tiny, on a CPU:  kdcli probe --teacher test_vit --weights my.safetensors --data example:fashion-mnist

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): the last n ∈ {1, 4} blocks' class
tokens, with or without the mean patch token, times a grid of learning rates and weight decays. The backbone
runs once over fixed views and all heads train together on its features; ``--protocol dinov2`` trains them
live on augmented views as published. Data with masks get segmentation heads on the patch tokens of the last
n ∈ {1, 4} blocks, by AdamW, chosen by mIoU. Selection is on the validation part only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdcli.artifacts.manifest import Manifest
from kdcli.config import Section, head_option, inputs, option, training
from kdcli.console import Console
from kdcli.errors import InputError, UsageError, nearest
from kdcli.launch import world_size
from kdcli.runs import Result, frame, show
from kdcli.sections import DataSection, OptimSection, RunSection, StudentSection, TrainingData, ViewSection

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data
    from kdcli.engine.heads import HeadResult, HeadSpec
    from kdcli.engine.job import Outcome
    from kdcli.engine.runtime import Runtime
    from kdcli.models.timm import Network
    from kdcli.tasks.segmentation.solver import DenseResult

# DINOv2's thirteen learning rates (for a batch of 256)
_RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]
_DENSE_RATES = [3e-4, 1e-3, 3e-3, 1e-2]  # of AdamW, around its usual 1e-3


class GridSection(Section):
    """The heads that are tried, and how each is trained."""

    lr: list[float] | None = option(None, "Learning rates of SGD at a batch of 256, or of AdamW (masks).")
    weight_decay: list[float] = option([0.0], "Weight decays of SGD or AdamW.")
    l2: list[float] = option([1e-1, 1e-2, 1e-3, 1e-4], "L2 strengths of the L-BFGS path.")
    solver: Literal["both", "sgd", "lbfgs"] = option("both", "SGD grid, L-BFGS path, or both.")
    epochs: int = training(30, "Passes over the features.", "--epochs", ge=1)
    batch_size: int = training(128, "Batch of SGD.", "--batch-size", ge=1)
    momentum: float = option(0.9, "Momentum of SGD.", ge=0, lt=1)
    patience: int | None = option(5, "Epochs without gain after which a head stops.", ge=1)


class StatisticsSection(Section):
    """What is recorded of the finished model's activations, for pictures without data."""

    principal: ClassVar[str | None] = "record"
    record: bool = head_option(
        False, "Record activations by class, for synthesize --mixer lopes.", "--statistics"
    )
    taps: list[str] = option(["pooled"], "Of what: the classifier's input, logits, block1, module paths.")
    min_count: int = option(20, "Record no class of fewer pictures, for their privacy.", ge=2)
    max_gigabytes: float = option(2.0, "Deviations where covariances would take more.", ge=0)


class FinetuneSection(OptimSection):
    """How backbone and head learn together with --finetune."""

    flags: ClassVar[bool] = False  # --epochs and --batch-size are the heads'
    lr: float = option(5e-5, "Learning rate at the global batch size.", gt=0)
    epochs: float = option(10, "Passes over the training pictures.", gt=0)


class Config(RunSection):
    """Fit the best linear head on a frozen backbone: a task-specific teacher."""

    teacher: str | None = inputs(None, "Alias, timm name, hf-hub:…, local-dir:… or artifact.", "--teacher")
    weights: str | None = inputs(None, "Your own checkpoint for it (safetensors or .pth).", "--weights")
    image_size: int | None = inputs(None, "Its input size.", "--image-size", ge=8)
    head: Literal["fit", "keep"] = head_option(
        "fit", "keep: store an already trained classifier as it is.", "--head"
    )
    features: str = head_option("all", "all, timm (its own head's), or names with commas.", "--features")
    protocol: Literal["cached", "dinov2"] = head_option(
        "cached", "cached fixed views, or live as published.", "--protocol"
    )
    finetune: bool = head_option(
        False, "Then train backbone and head together (optim.*), live views.", "--finetune"
    )
    data: DataSection = DataSection()
    views: ViewSection = ViewSection(count="1")
    grid: GridSection = GridSection()
    statistics: StatisticsSection = StatisticsSection()
    optim: FinetuneSection = FinetuneSection()

    def finetuning(self) -> StudentSection:
        """The same run as one of a student that is there already."""
        return StudentSection(
            **{name: getattr(self, name) for name in RunSection.model_fields},
            student=self.teacher,
            data=TrainingData(**self.data.model_dump()),
            views=self.views.model_copy(update={"count": "live"}),
            optim=OptimSection(**self.optim.model_dump()),
        )


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    target: frame.Target
    data: Data | None
    network: Network
    features: list[str]

    @property
    def specs(self) -> list[HeadSpec]:
        """SGD's part of the grid."""
        from kdcli.engine.heads import HeadSpec

        grid = self.config.grid
        if grid.solver == "lbfgs" and self.config.protocol == "cached":
            return []
        rates = grid.lr or (_DENSE_RATES if self.dense else _RATES)
        solver: Literal["adamw", "sgd"] = "adamw" if self.dense else "sgd"
        return [HeadSpec(f, r, wd, solver) for f in self.features for r in rates for wd in grid.weight_decay]

    @property
    def dense(self) -> bool:
        """Whether the data have masks."""
        return self.data is not None and self.data.task == "segmentation"

    @property
    def views(self) -> int:
        """Fixed views per training picture; one means the un-augmented view."""
        return int(self.config.views.count)

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
            tune = f", then all of it for {self.config.optim.epochs:g} epochs" if self.config.finetune else ""
            heads = f"{len(self.specs)} SGD heads and {self._lbfgs_count} by L-BFGS"
            if self.dense:
                heads = f"{len(self.specs)} segmentation heads by AdamW"
            console.note(f"reads    {self.config.data.source}: {show.splits(self.data)}")
            console.note(f"trains   {heads} on {', '.join(self.features)}{tune}")
            if self.config.statistics.record:
                console.note(f"records  {', '.join(self.config.statistics.taps)} of each class")
        else:
            console.note(f"keeps    the trained classifier of {len(self.network.classes or [])} classes")
        console.note(f"writes   {self.target.path}")

    @property
    def _lbfgs_count(self) -> int:
        grid = self.config.grid
        lbfgs = grid.solver != "sgd" and self.config.protocol == "cached" and not self.dense
        return len(grid.l2) * len(self.features) if lbfgs else 0


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Check backbone, data, features and grid.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option that does not exist or fit.
        InputError: data or weights that cannot be used.
    """
    frame.require(config.teacher, "--teacher")
    if not config.views.count.isdigit() or int(config.views.count) < 1:
        raise UsageError(f"--views: probe caches a number of fixed views, got '{config.views.count}'.")
    if config.finetune:
        if config.head == "keep":
            raise UsageError("--finetune trains a fitted head further; leave out --head keep.")
        frame.refuse_uneven(config.optim, config.processes)
    if config.statistics.record and (
        config.head == "keep" or (config.finetune and max(config.processes, world_size()) > 1)
    ):
        raise UsageError("--statistics needs training pictures (no --head keep), and with --finetune no -n.")
    parents = [frame.parent("teacher", str(config.teacher), config.weights)]
    data = frame.labelled(config.data, "train", "validation") if config.head == "fit" else None
    prints = {"data": data.fingerprint} if data else {}
    target = frame.target("probe", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))

    from kdcli.models.build import build
    from kdcli.tasks import task_of

    if data is not None:
        task_of(data, config.data, config.optim, config.views)  # refuses what it has not
        if data.task == "segmentation" and (config.protocol != "cached" or config.grid.solver == "lbfgs"):
            raise UsageError("segmentation has no --protocol dinov2 and no L-BFGS: its heads learn by AdamW.")
    network = build(str(config.teacher), weights=config.weights, size=config.image_size)
    if config.statistics.record:
        _refuse_taps(config, network, data)
    if network.trained == "random":
        raise InputError(f"{config.teacher} has random weights: nothing to probe.")
    if data is None:
        if network.classes is None:
            raise InputError(f"{config.teacher} has no trained classifier to keep; fit one with --data.")
        return Plan(config, target, None, network, [])
    classes = data.classes or []
    if len(classes) < 2:
        raise InputError(f"{config.data.source} has one class only ('{classes[0]}'); a classifier needs two.")
    return Plan(config, target, data, network.requires_grad_(False), _features(config, network, data.task))


def run(plan: Plan, console: Console, *, stop: Any = None, command: str = "") -> Result:
    """Extract features, train the grid, and write backbone and winner as a model artifact.

    Raises:
        Diverged: every head did.
        Preempted: features computed so far stay in the cache.
    """
    from kdcli.engine.heads import best
    from kdcli.engine.moments import FILE as RECORDS
    from kdcli.engine.runtime import open_runtime, shared_output

    runtime = open_runtime(plan.config, find_unused=plan.dense)
    path = plan.target.path
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        network = copy.deepcopy(plan.network).to(runtime.device)
        results: Sequence[HeadResult | DenseResult] = []
        outcome: Outcome | None = None
        if plan.data is not None:
            from kdcli.runs.fit import Parts, fit_dense_heads, fit_heads, record_activations

            parts = Parts(plan.data, network, plan.features, plan.config, runtime, console, stop)
            results = (fit_dense_heads if plan.dense else fit_heads)(parts, plan.specs)
            winner = best(results)
            winner.attach(network, plan.data.classes or [])
            metric, value = next(iter(winner.metrics.items()))
            console.note(f"best of {len(results)} heads: {winner.spec.name}, validation {metric} {value:.4f}")
            if plan.config.finetune:
                from kdcli.runs.finetune import finetune

                config = plan.config.finetuning()
                outcome = finetune(network, config, plan.data, output, runtime, console, stop)
            if plan.config.statistics.record:
                if outcome is not None:
                    network.load_state_dict(outcome.best or outcome.last)
                records = record_activations(parts)
                if runtime.main:
                    records.write(output.partial / RECORDS)
        if runtime.main:
            _export(plan, network, results, outcome, output, runtime, command)
        runtime.barrier()
    return Result(path, frame.summary(path))


def _features(config: Config, network: Network, task: str) -> list[str]:
    from kdcli.models.heads import GRIDS

    known = list(GRIDS) if task == "segmentation" else network.feature_names()
    if config.features == "all":
        return known
    wanted = ["pooled"] if config.features == "timm" else config.features.split(",")
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--features: no '{name}'.{nearest(name, known)} {network.name} has: {', '.join(known)}."
            )
    return wanted


def _refuse_taps(config: Config, network: Network, data: Data | None) -> None:
    """Taps that the network has not, found by a call of it."""
    import torch

    if data is not None and data.task == "segmentation":
        raise UsageError("--statistics records classes of pictures, and these data have masks.")
    with torch.inference_mode():
        network.eval().call(
            [torch.zeros((1, 3, *network.spec.size), dtype=torch.uint8)], config.statistics.taps
        )


def _export(
    plan: Plan,
    network: Network,
    results: Sequence[HeadResult | DenseResult],
    outcome: Outcome | None,
    output: Output,
    runtime: Runtime,
    command: str,
) -> None:
    """Write backbone and head, with the whole grid in the manifest, and commit."""
    from kdcli.engine.heads import best
    from kdcli.engine.loop import LOG
    from kdcli.engine.moments import FILE as RECORDS

    keep = network.save(output.partial, (outcome.best or outcome.last) if outcome else None)
    if plan.config.statistics.record:
        keep.append(RECORDS)
    manifest = Manifest("model", "probe", plan.target.identity, plan.target.parents)
    chosen: dict[str, Any] = {}
    if results:
        winner = best(results)
        chosen = {
            "metrics": {f"validation/{name}": value for name, value in winner.metrics.items()},
            "selection": f"best of {len(results)} heads on validation: {winner.spec.name}",
            "grid": [{**asdict(r.spec), **r.metrics, "epoch": r.epoch} for r in results],
        }
    cost = {"teacher_forwards": len(plan.data.split("train")) * plan.views if plan.data else 0}
    if outcome:
        keep.append(LOG)
        chosen["head"] = {"metrics": chosen["metrics"], "selection": chosen["selection"]}
        chosen |= {"metrics": outcome.metrics, "selection": f"finetuned, {outcome.selection}"}
        cost["finetune_steps"] = outcome.progress.step
    manifest.facts = frame.facts(
        plan.config,
        command,
        task=network.task,
        layout=network.layout,
        classes=network.classes,
        **chosen,
        data=plan.data.describe() if plan.data else None,
        cost=cost,
        **runtime.describe(),
    )
    output.commit(manifest, keep)
