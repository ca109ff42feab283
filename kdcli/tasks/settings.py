"""What stages hand to a task to fit heads and to measure networks, and what they get back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kdcli.errors import UsageError

if TYPE_CHECKING:
    from kdcli.console import Console
    from kdcli.data.samples import Data, Samples
    from kdcli.data.views import TrainingView
    from kdcli.engine.cache import Filling
    from kdcli.engine.grid import HeadSpec, Training
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.models.protocol import Model
    from kdcli.sections import GridSection, StatisticsSection, ViewSection


class ProbeOptions(Protocol):
    """What a task may look at of the configuration of ``probe``."""

    @property
    def head(self) -> str:
        """``fit``, or ``none`` for a task whose networks may answer without one."""

    @property
    def protocol(self) -> str:
        """``cached`` or ``dinov2``."""

    @property
    def views(self) -> ViewSection:
        """How training views are cut."""

    @property
    def grid(self) -> GridSection:
        """The heads that are wanted, and how each is trained."""

    @property
    def statistics(self) -> StatisticsSection:
        """What is recorded of the finished model."""

    @property
    def cache(self) -> str:
        """Folder of caches."""

    @property
    def seed(self) -> int:
        """Of initial weights, order and views."""


@dataclass(frozen=True)
class Probing:
    """What heads are fitted on, and how.

    Attributes:
        data: with its splits train and validation, of which the labelled pictures are used.
        network: the frozen backbone, on the device.
        features: of it that are tried.
        specs: the heads that are tried.
        options: of the stage.
        reading: how loaders read pictures, as their keyword arguments.
        runtime: device and processes.
        console: shows progress.
        stop: set when a signal asks to stop.
    """

    data: Data
    network: Model
    features: list[str]
    specs: list[HeadSpec]
    options: ProbeOptions
    reading: dict[str, Any]
    runtime: Runtime
    console: Console
    stop: Stop | None

    def labelled(self, split: str) -> Samples:
        """Labelled pictures of a split."""
        samples = self.data.split(split)
        return samples.take(samples.labelled())

    @property
    def views(self) -> int:
        """Fixed views per training picture; one means the un-augmented view."""
        return int(self.options.views.count)

    @property
    def cache(self) -> Path:
        """Folder of caches."""
        return Path(self.options.cache)

    @cached_property
    def view(self) -> TrainingView:
        """Cuts augmented views."""
        from kdcli.data.views import TrainingView

        views = self.options.views
        return TrainingView(views, views.size or self.network.spec.size[0], self.options.seed)

    @cached_property
    def filling(self) -> Filling:
        """How caches are filled."""
        from kdcli.engine.cache import Filling

        batch_size = self.options.grid.batch_size
        return Filling(self.runtime, self.console, batch_size, stop=self.stop, **self.reading)

    @property
    def training(self) -> Training:
        """How each head is trained."""
        from kdcli.engine.grid import Training

        grid = self.options.grid
        return Training(grid.epochs, grid.batch_size, grid.momentum, self.options.seed, grid.patience)


@dataclass(frozen=True)
class EvalOptions:
    """What a task may look at of the configuration of ``eval``, and of what it is asked to measure.

    Attributes:
        given: names of the keys below that are not at their default; a task refuses those that it does not
            heed (:func:`refuse_unheeded`).
        networks: that are measured, by the name that the report gives each.
        teacher: that they are compared with, or None.
        pictures: number of those measured.
        window: side of a window that slides over a picture, in its pixels; None for the whole picture.
        stride: pixels between windows.
        exit_slack: accuracy that early exit may lose on validation, as a fraction.
        effects_mix: weight λ of the teacher in the gradient factors of distillation.
        occlusion: whether quality is measured while more and more of a picture is hidden.
        occlusion_grid: cells along a side of a picture, each hidden or not.
        cka: whether blocks are compared with the teacher's.
        class_order: how classes of models and data match.
        repeats: timed forwards; 0 for no latency.
        rerank: whether answers are ranked again by what their neighbours have in common.
        seed: of whatever is random.
        absent: classes, the last of the task's, that networks know and the data lack: no mean is over them.
    """

    given: frozenset[str]
    networks: Mapping[str, Model]
    teacher: Model | None
    pictures: int
    window: int | None
    stride: int | None
    exit_slack: float
    effects_mix: float
    occlusion: bool
    occlusion_grid: int
    cka: bool
    class_order: Literal["names", "same"]
    repeats: int
    rerank: bool
    seed: int
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Labelled pictures that are not among those measured, for what an evaluation chooses.

    Attributes:
        samples: they, or None.
        lacking: why there are none.
    """

    samples: Samples | None
    lacking: str = ""


@dataclass(frozen=True)
class Measured:
    """What a task measured of networks.

    Attributes:
        models: by their names, parts of a report (see :mod:`kdcli.report.page`): ``metrics``, perhaps
            ``teacher``, and what the task's panels show.
        together: parts of the report that are about all of them.
        notes: what a reader should know.
        shown: for the task's panels only, and no JSON.
    """

    models: dict[str, dict[str, Any]]
    together: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: Any = None


def refuse_unheeded(
    options: EvalOptions, heeded: Collection[str], task: str, reasons: Mapping[str, str]
) -> None:
    """Raise UsageError for an option of ``eval`` that was given and that a task does not heed.

    Args:
        options: what was given.
        heeded: keys that the task heeds.
        task: its name.
        reasons: by key, why it means nothing to the task, where more than that can be said.
    """
    for key in sorted(options.given - set(heeded)):
        raise UsageError(f"{key}: {reasons.get(key, f'{task} does not heed it')}.")
