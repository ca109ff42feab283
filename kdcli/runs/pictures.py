"""New pictures, planned and written: what mixtures of a training set and pictures from a teacher share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import dataset
from kdcli.artifacts.files import write_bytes
from kdcli.artifacts.manifest import Manifest
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.runs import frame

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.synthesis.draws import Draw, Make

SHEET = "contact_sheet.png"


@dataclass
class PicturePlan(ABC):
    """A plan of new pictures, checked.

    Attributes:
        config: of synthesize, with the mixer's defaults filled in.
        target: where and what.
        kind: the mixer as it is recorded.
        total: pictures of all shards.
        numbers: of the pictures of this one.
    """

    config: Any
    target: frame.Target
    kind: str
    total: int
    numbers: range

    @property
    def commit_images(self) -> int:
        """Pictures after which a part is committed."""
        return self.config.commit_images

    @property
    def features(self) -> Any:
        """``datasets.Features`` of what is written."""
        from kdcli.synthesis.generate import features

        return features()

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "mixer": self.kind,
            "images": len(self.numbers),
            "images_of_all_shards": self.total,
        }

    def note_output(self, console: Console, whole: str = "") -> None:
        """Say what is written; ``whole`` says what a shard does not divide."""
        part = f" of {self.total:,} (shard {self.config.shard}{whole})" if self.config.shard else ""
        console.note(f"writes   {self.target.path}: {len(self.numbers):,} pictures{part}")

    def columns(self, draws: list[Draw]) -> dict[str, list[Any]]:
        """All columns but the pictures: (seed, number) says all that is random."""
        return {
            "source_ids": [self.sources(draw) for draw in draws],
            "mixer": [self.kind] * len(draws),
            "seed": [self.config.seed] * len(draws),
            "number": [draw.number for draw in draws],
        }

    def sources(self, draw: Draw) -> list[str]:
        """Ids of the pictures that a new one is made of."""
        return []

    def export(self, output: Output, runtime: Runtime, command: str, rate: float) -> None:
        """Write what makes the parts a dataset, and the contact sheet, and commit.

        Args:
            output: with all parts.
            runtime: described in the manifest.
            command: likewise.
            rate: pictures per second.
        """
        from kdcli.engine.machines import machines_of

        facts = self.facts(output.partial)
        names = dataset.finish(output.partial, self.features, facts["licences"])
        write_bytes(output.partial / SHEET, self.sheet(output.partial))
        manifest = Manifest("dataset", "synthesize", self.target.identity, self.target.parents)
        manifest.facts = frame.facts(
            self.config,
            command,
            mixer=self.kind,
            images=len(self.numbers),
            images_of_all_shards=self.total,
            images_per_second=round(rate, 4),
            machines=machines_of(output.partial),
            **facts,
            **runtime.describe(),
        )
        output.commit(manifest, [*names, SHEET, *self.beside])

    @property
    def beside(self) -> tuple[str, ...]:
        """Files that are kept beside the dataset."""
        return ()

    @abstractmethod
    def facts(self, folder: Path) -> dict[str, Any]:
        """Facts of the manifest about the mixer; ``licences`` are among them, by what they cover."""

    @abstractmethod
    def sheet(self, folder: Path) -> bytes:
        """The contact sheet, as PNG, of the parts in ``folder``."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Pictures that are made at a time."""

    @abstractmethod
    def draw(self, number: int) -> Draw:
        """What a picture is made of."""

    @abstractmethod
    def maker(self, output: Output, runtime: Runtime, console: Console, stop: Stop | None) -> Make:
        """What turns draws into pictures, once that is ready which they are made with.

        Raises:
            Preempted: a signal came meanwhile.
        """


def refuse_unheeded(config: Any, names: Mapping[str, str]) -> None:
    """Raise UsageError for options of ``synthesize`` that its mixer would not heed.

    Args:
        config: all options.
        names: of those options, to what a message calls them (empty: their flag).
    """
    for name, shown in names.items():
        if getattr(config, name) != getattr(type(config)(), name):
            shown = shown or f"--{name.replace('_', '-')}"
            raise UsageError(f"--mixer {config.mixer} has no use for {shown}.")
