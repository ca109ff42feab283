"""What is known of pictures beside their pixels, and what a task gives to have it found, read and learned.

The data know targets through :class:`Targets` only, and never which task they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

UNLABELLED = -1
WEIGHTS = ("row_weight", "label_weight")  # columns that even out classes, or the answers of labels, in a loss


@dataclass(frozen=True)
class Place:
    """A picture, as those who read its target need it.

    Attributes:
        size: its width and height, upright.
        where: split and row, for messages.
        stored: its bytes, read when asked for.
        max_pixels: of anything that has to be decoded.
    """

    size: tuple[int, int]
    where: str
    stored: Callable[[], bytes]
    max_pixels: int


@dataclass(frozen=True)
class Targets:
    """What is known of each of N pictures; of this kind, a class number and nothing else.

    Attributes:
        labels: [N] int64, -1 for unlabelled: the class number, or whatever stratum batches are balanced by
            and, unless :attr:`strata` says otherwise, splits are carved by.
    """

    labels: np.ndarray

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        """[N] each: what the fingerprint of the samples covers beside pictures and labels."""
        return ()

    @property
    def strata(self) -> np.ndarray:
        """[N] int64: of each of these a carving holds out the same fraction."""
        return self.labels

    @property
    def together(self) -> np.ndarray | None:
        """[N] int64 numbers of what no carving splits, -1 for a picture by itself; None where all are."""
        return None

    def refuse_carving(self, held: np.ndarray, fraction: float, name: str) -> None:
        """Raise InputError where pictures that were held out of these are too few to validate by.

        Args:
            held: [N] mask of them.
            fraction: that was to be held out.
            name: of the split.
        """
        if not held.any():
            raise InputError(
                f"{name}: {int((self.labels != UNLABELLED).sum())} labelled pictures are too few to carve "
                f"{fraction:.0%} per class for validation. Give a validation split, or raise "
                "--set data.validation_fraction (which takes two pictures or more of a class)."
            )

    def take(self, keep: np.ndarray) -> Self:
        """The targets selected by a mask or index array."""
        return replace(self, labels=self.labels[keep])

    def hidden(self, rows: np.ndarray) -> Self:
        """The same with some of the labels hidden, those selected by a mask or index array."""
        labels = self.labels.copy()
        labels[rows] = UNLABELLED
        return replace(self, labels=labels)

    def blank(self, count: int) -> Targets:
        """Targets of this kind for ``count`` pictures of which nothing is known."""
        return unlabelled(count)

    def read(self, index: int, place: Place) -> Any:
        """What is cut together with a picture, or None.

        Args:
            index: of the picture.
            place: the picture itself.

        Returns:
            torchvision's ``tv_tensors`` (masks, boxes), or any nesting of them in lists and dictionaries; of
            an unlabelled picture something of the same form.

        Raises:
            BadImageError: it cannot be decoded.
            InputError: it does not fit the picture.
        """
        return None

    def columns(self, indices: np.ndarray, moved: Sequence[Any]) -> dict[str, Any]:
        """Columns of a batch beside ``x``, ``y`` and ``index``.

        Args:
            indices: [B] of the pictures.
            moved: what :meth:`read` gave for each, cut as the picture was.

        Returns:
            Tensors [B, …]; a list of B tensors where rows are of unlike length.
        """
        return {}


def unlabelled(count: int) -> Targets:
    """Targets of pictures of which nothing is known."""
    return Targets(np.full(count, UNLABELLED, np.int64))


class Reader(Protocol):
    """Finds and reads the targets of one source: what :func:`kdcli.data.sources.open_data` asks a task for.

    It is made of the source's tables and of how they are to be opened, and refuses there what it cannot read.
    Tables that are one split to it (a query and its gallery) it lays together there. A reader's module
    imports without torch: each one is asked before anything else is known of a run.

    Attributes:
        task: whose it is, a key of :data:`kdcli.tasks.TASKS`.
        columns: names of the columns that hold targets: none of them is taken for the picture.
    """

    task: str
    columns: Collection[str]

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether a table's labels look like this task's, where ``data.task`` is ``auto``."""

    def targets(self, name: str, table: Any) -> Targets:
        """Of the pictures of the split ``name``, row by row. Raises InputError naming a row."""

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str] | None:
        """Class names by number, every label of ``splits`` checked against them; None without labels.

        Args:
            splits: those in use, by their names in the source.
            whole: opens another split of the source.

        Raises:
            InputError: a label outside the classes.
        """

    def check(self, train: Samples, classes: list[str]) -> None:
        """Raise InputError for a training split that cannot be learned from."""


ReaderOf = Callable[["Raw", "DataSection"], Reader]
"""Makes the reader of a source."""


class TargetColumns(Protocol):
    """What losses read of a batch beside its views, made of the batch's columns on the device."""

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of pictures as they are: ``labelled`` [B], which rows have a target, and what the terms name."""

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """The same of mixed pictures, each of ``share`` of itself and the rest of its partner.

        Pairs are those of :mod:`kdcli.data.mixing`.
        """
