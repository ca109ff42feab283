"""Fit the best linear head on a frozen backbone: a task-specific teacher.

One process:     kdcli probe --teacher dinov2_vitg --data cars/ --out runs/teacher
Several GPUs:    kdcli probe -n 8 --precision bf16 --teacher dinov2_vitg --data cars/ --out runs/teacher
Tiny, on a CPU:  kdcli probe --teacher test_vit --weights my.safetensors --data example:fashion-mnist

After DINOv2's linear evaluation (arXiv 2304.07193; its eval/linear.py): the last n ∈ {1, 4} blocks' class
tokens, with or without the mean patch token, times a grid of learning rates and weight decays. The backbone
runs once over fixed views and all heads train together on its features; ``--protocol dinov2`` trains them
live on augmented views as published. Selection is on the validation part only.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcli.artifacts.manifest import Manifest
from kdcli.config import DataSection, RunSection, Section, ViewSection, head_option, inputs, option, training
from kdcli.console import Console
from kdcli.errors import InputError, UsageError, nearest
from kdcli.stages import Result, frame

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.engine.heads import HeadResult, HeadSpec
    from kdcli.engine.runtime import Runtime
    from kdcli.models.network import Network

# DINOv2's thirteen learning rates (for a batch of 256)
_RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


class GridSection(Section):
    """The heads that are tried, and how each is trained."""

    lr: list[float] = option(_RATES, "Learning rates of SGD at a batch of 256.")
    weight_decay: list[float] = option([0.0], "Weight decays of SGD.")
    l2: list[float] = option([1e-1, 1e-2, 1e-3, 1e-4], "L2 strengths of the L-BFGS path.")
    solver: Literal["both", "sgd", "lbfgs"] = option("both", "SGD grid, L-BFGS path, or both.")
    epochs: int = training(30, "Passes over the features.", "--epochs", ge=1)
    batch_size: int = training(128, "Batch of SGD.", "--batch-size", ge=1)
    momentum: float = option(0.9, "Momentum of SGD.", ge=0, lt=1)
    patience: int | None = option(5, "Epochs without gain after which a head stops.", ge=1)


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
    data: DataSection = DataSection()
    views: ViewSection = ViewSection(count="1")
    grid: GridSection = GridSection()


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    out: Path
    identity: dict[str, Any]
    parents: list[dict[str, str]]
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
        return [HeadSpec(f, lr, wd) for f in self.features for lr in grid.lr for wd in grid.weight_decay]

    @property
    def views(self) -> int:
        """Fixed views per training picture; one means the un-augmented view."""
        return int(self.config.views.count)

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            "out": str(self.out),
            "identity": self.identity,
            "parents": self.parents,
            "data": self.data.describe() if self.data else None,
            "features": self.features,
            "heads": len(self.specs),
            "parameters": {"teacher": sum(p.numel() for p in self.network.parameters())},
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        net = self.network
        count = sum(p.numel() for p in net.parameters()) / 1e6
        console.note(
            f"teacher  {net.name}: {count:.2f} M parameters, {net.trained} weights, {net.spec.size[0]} px"
        )
        if self.data is not None:
            splits = ", ".join(f"{name} {len(s):,}" for name, s in self.data.splits.items())
            heads = f"{len(self.specs)} SGD heads and {self._lbfgs_count} by L-BFGS"
            console.note(f"reads    {self.config.data.source}: {splits}")
            console.note(f"trains   {heads} on {', '.join(self.features)}")
        else:
            console.note(f"keeps    the trained classifier of {len(net.classes or [])} classes")
        console.note(f"writes   {self.out}")

    @property
    def _lbfgs_count(self) -> int:
        grid = self.config.grid
        lbfgs = grid.solver != "sgd" and self.config.protocol == "cached"
        return len(grid.l2) * len(self.features) if lbfgs else 0


def plan(config: Config, console: Console) -> Plan:
    """Check backbone, data, features and grid.

    Raises:
        UsageError: an option that does not exist or fit.
        InputError: data or weights that cannot be used.
    """
    from kdcli.data.sources import open_data
    from kdcli.models.build import build

    frame.require(config.teacher, "--teacher")
    if not config.views.count.isdigit() or int(config.views.count) < 1:
        raise UsageError(f"--views: probe caches a number of fixed views, got '{config.views.count}'.")
    network = build(str(config.teacher), weights=config.weights, size=config.image_size)
    if network.trained == "random":
        raise InputError(f"{config.teacher} has random weights: nothing to probe.")
    parents = [frame.parent("teacher", str(config.teacher), config.weights)]
    if config.head == "keep":
        if network.classes is None:
            raise InputError(f"{config.teacher} has no trained classifier to keep; fit one with --data.")
        identity = frame.identity_of("probe", config, parents, {})
        return Plan(
            config, frame.output_path("probe", config, identity), identity, parents, None, network, []
        )
    frame.require(config.data.source, "--data")
    data = open_data(config.data, need=("train", "validation"))
    if data.classes is None:
        raise InputError(f"{config.data.source} has no labels. Name their column: --set data.label_column=…")
    if len(data.classes) < 2:
        raise InputError(
            f"{config.data.source} has one class only ('{data.classes[0]}'); a classifier needs two."
        )
    identity = frame.identity_of("probe", config, parents, {"data": data.fingerprint})
    out = frame.output_path("probe", config, identity)
    return Plan(
        config, out, identity, parents, data, network.requires_grad_(False), _features(config, network)
    )


def run(plan: Plan, console: Console, *, stop: Any = None, command: str = "") -> Result:
    """Extract features, train the grid, and write backbone and winner as a model artifact.

    Raises:
        Diverged: every head did.
        Preempted: features computed so far stay in the cache.
    """
    from kdcli.engine.heads import best
    from kdcli.engine.runtime import open_runtime, shared_output

    runtime = open_runtime(plan.config)
    with shared_output(plan.out, plan.identity, plan.config.overwrite, runtime) as output:
        if output is None:
            console.note(f"{plan.out} is complete")
            return Result(plan.out, frame.summary(plan.out))
        network = copy.deepcopy(plan.network).to(runtime.device)
        results: list[HeadResult] = []
        if plan.data is not None:
            results = _fit(plan, network, runtime, console, stop)
            winner = best(results)
            network.attach_linear(winner.spec.feature, winner.weight, winner.bias, plan.data.classes or [])
            console.note(
                f"best of {len(results)} heads: {winner.spec.name}, validation top-1 {winner.top1:.4f}"
            )
        if runtime.main:
            _export(plan, network, results, output, runtime, command)
        runtime.barrier()
    return Result(plan.out, frame.summary(plan.out))


def _features(config: Config, network: Network) -> list[str]:
    known = network.feature_names()
    if config.features == "all":
        return known
    wanted = ["pooled"] if config.features == "timm" else config.features.split(",")
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--features: no '{name}'.{nearest(name, known)} {network.name} has: {', '.join(known)}."
            )
    return wanted


def _fit(plan: Plan, network: Network, runtime: Runtime, console: Console, stop: Any) -> list[HeadResult]:
    """Results of the whole grid, the same on every process."""
    from kdcli.data.views import EvaluationCut, TrainingView
    from kdcli.engine.cache import Filling
    from kdcli.engine.features import cached_features, live_features
    from kdcli.engine.heads import lbfgs_path, train_heads, train_heads_live

    assert plan.data is not None
    config, grid, count = plan.config, plan.config.grid, len(plan.data.classes or [])
    reading: dict[str, Any] = {
        "max_pixels": config.data.max_pixels,
        "workers": config.workers,
        "timeout": config.worker_timeout,
    }
    filling = Filling(runtime, console, grid.batch_size, stop=stop, **reading)
    train, validation = (
        s.take(s.labelled()) for s in (plan.data.split("train"), plan.data.split("validation"))
    )
    plain = EvaluationCut(network.spec)
    view = TrainingView(config.views, config.views.size or network.spec.size[0], config.seed)
    root = Path(config.cache)
    val, val_y = cached_features(root, network, plan.features, validation, plain, 1, filling)
    shared: dict[str, Any] = {"momentum": grid.momentum, "seed": config.seed, "device": runtime.device}
    if config.protocol == "dinov2":
        steps = grid.epochs * max(1, round(len(train) / grid.batch_size))
        batches = live_features(network, plan.features, train, view, steps, filling, config.seed)
        every = steps // grid.epochs
        return train_heads_live(
            batches,
            val,
            val_y,
            plan.specs,
            count,
            steps=steps,
            score_every=every,
            batch_size=grid.batch_size,
            **shared,
        )
    cut: Any = plain if plan.views == 1 else view
    features, y = cached_features(root, network, plan.features, train, cut, plan.views, filling)
    results: list[HeadResult] = []
    if plan.specs:
        limits: dict[str, Any] = {
            "epochs": grid.epochs,
            "batch_size": grid.batch_size,
            "patience": grid.patience,
        }
        results += train_heads(features, y, val, val_y, plan.specs, count, **limits, **shared)
    if grid.solver != "sgd":
        for name in plan.features:
            path: dict[str, Any] = {"l2": grid.l2, "feature": name, "device": runtime.device}
            results += lbfgs_path(features[name], y, val[name], val_y, count, **path)
    return results


def _export(
    plan: Plan, network: Network, results: list[HeadResult], output: Any, runtime: Runtime, command: str
) -> None:
    """Write backbone and head, with the whole grid in the manifest, and commit."""
    from kdcli.engine.heads import best
    from kdcli.models.build import save

    keep = save(network, output.partial)
    manifest = Manifest("model", "probe", plan.identity, plan.parents)
    chosen: dict[str, Any] = {}
    if results:
        winner = best(results)
        chosen = {
            "metrics": {"validation/top1": winner.top1, "validation/nll": winner.nll},
            "selection": f"best of {len(results)} heads on validation: {winner.spec.name}",
            "grid": [{**asdict(r.spec), "top1": r.top1, "nll": r.nll, "epoch": r.epoch} for r in results],
        }
    manifest.facts = frame.facts(
        plan.config,
        command,
        task="classification",
        layout=network.layout,
        classes=network.classes,
        **chosen,
        data=plan.data.describe() if plan.data else None,
        cost={"teacher_forwards": len(plan.data.split("train")) * plan.views if plan.data else 0},
        **runtime.describe(),
    )
    output.commit(manifest, keep)
