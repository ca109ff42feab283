"""Heads of a grid fitted on what a frozen backbone makes of the training pictures, and records of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcli.console import Console
from kdcli.data.cache import Store
from kdcli.data.samples import Data, Samples
from kdcli.data.views import EvaluationCut, TrainingView, WholeCut
from kdcli.engine.cache import Filling
from kdcli.engine.features import cached_features, live_features
from kdcli.engine.heads import HeadResult, HeadSpec, train_heads, train_heads_live
from kdcli.engine.lbfgs import lbfgs_path
from kdcli.engine.moments import Moments, Recording, record
from kdcli.engine.runtime import Runtime
from kdcli.models.timm import Network
from kdcli.runs import frame
from kdcli.tasks.segmentation.solver import DenseResult, Part, train_dense_heads


@dataclass(frozen=True)
class Parts:
    """What heads are fitted on, and how.

    Attributes:
        data: with its splits train and validation, of which the labelled pictures are used.
        network: the frozen backbone, on the device.
        features: of it that are tried.
        config: of probe: ``views``, ``grid``, ``protocol``, ``cache``, ``seed``, and how pictures are read.
        runtime: device and processes.
        console: shows progress.
        stop: set when a signal asks to stop.
    """

    data: Data
    network: Network
    features: list[str]
    config: Any
    runtime: Runtime
    console: Console
    stop: Any

    def labelled(self, split: str) -> Samples:
        """Labelled pictures of a split."""
        samples = self.data.split(split)
        return samples.take(samples.labelled())

    @property
    def classes(self) -> int:
        """Their number."""
        return len(self.data.classes or [])

    @property
    def views(self) -> int:
        """Fixed views per picture; one means the un-augmented view."""
        return int(self.config.views.count)

    @cached_property
    def view(self) -> TrainingView:
        """Cuts augmented views."""
        config = self.config
        return TrainingView(config.views, config.views.size or self.network.spec.size[0], config.seed)

    @cached_property
    def filling(self) -> Filling:
        """How the cache is filled."""
        reading = frame.reading(self.config, self.config.data)
        return Filling(self.runtime, self.console, self.config.grid.batch_size, stop=self.stop, **reading)


def fit_heads(parts: Parts, specs: Sequence[HeadSpec]) -> list[HeadResult]:
    """Results of the whole grid of classifiers, the same on every process."""
    config, grid, network, features = parts.config, parts.config.grid, parts.network, parts.features
    root, train, plain = Path(config.cache), parts.labelled("train"), EvaluationCut(network.spec)
    val, val_y = cached_features(
        root, network, features, parts.labelled("validation"), plain, 1, parts.filling
    )
    shared: dict[str, Any] = {
        "batch_size": grid.batch_size,
        "momentum": grid.momentum,
        "seed": config.seed,
        "device": parts.runtime.device,
    }
    if config.protocol == "dinov2":
        every = max(1, round(len(train) / grid.batch_size))
        steps = grid.epochs * every
        batches = live_features(network, features, train, parts.view, steps, parts.filling, config.seed)
        return train_heads_live(
            batches, val, val_y, specs, parts.classes, steps=steps, score_every=every, **shared
        )
    cut: Any = plain if parts.views == 1 else parts.view
    found, y = cached_features(root, network, features, train, cut, parts.views, parts.filling)
    results: list[HeadResult] = []
    if specs:
        limits: dict[str, Any] = {"epochs": grid.epochs, "patience": grid.patience}
        results += train_heads(found, y, val, val_y, specs, parts.classes, **limits, **shared)
    if grid.solver != "sgd":
        for name in features:
            path: dict[str, Any] = {"l2": grid.l2, "feature": name, "device": parts.runtime.device}
            results += lbfgs_path(found[name], y, val[name], val_y, parts.classes, **path)
    return results


def fit_dense_heads(parts: Parts, specs: Sequence[HeadSpec]) -> list[DenseResult]:
    """Results of the grid of segmentation heads; every process trains the same."""
    config, grid, plain = parts.config, parts.config.grid, WholeCut(parts.network.spec)
    return train_dense_heads(
        Path(config.cache),
        parts.network,
        Part(parts.labelled("train"), plain if parts.views == 1 else parts.view, parts.views),
        Part(parts.labelled("validation"), plain, 1),
        specs,
        parts.classes,
        parts.filling,
        store=Store(config.views.store),
        epochs=grid.epochs,
        batch_size=grid.batch_size,
        patience=grid.patience,
        seed=config.seed,
    )


def record_activations(parts: Parts) -> Moments:
    """Moments of the network's activations over the labelled training pictures, class by class.

    Warns of classes that are left out, while more pictures can still be had.
    """
    config, wanted = parts.config, parts.config.statistics
    found = record(
        parts.network,
        parts.labelled("train"),
        Recording(wanted.taps, parts.classes, wanted.min_count, wanted.max_gigabytes * 1e9),
        parts.runtime,
        parts.console,
        batch_size=config.grid.batch_size,
        **frame.reading(config, config.data),
    )
    if missing := parts.classes - len(found.classes):
        parts.console.warn(
            f"--statistics recorded nothing of {missing} of {parts.classes} classes, which have fewer than "
            f"{wanted.min_count} labelled pictures (statistics.min_count)."
        )
    return found
