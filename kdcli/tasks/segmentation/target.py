"""Masks: the class of every pixel, as a single-channel picture beside the picture.

A value is a class number, counted from 0, or the void value: such pixels enter no term and no metric. Inside
kdcli void is always :data:`VOID`, whatever the files have. Masks of two classes are often stored as 0 and
255: where those of train have these two values only, they are taken for the classes, and the user is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdcli.data import splits as splits_of
from kdcli.data.columns import MASK_NAMES, picture_columns, undecoded
from kdcli.data.hashes import cell_hashes
from kdcli.data.images import decode_indices, palette_of
from kdcli.data.samples import cell_bytes, corrupt, file_of, prefixes
from kdcli.data.targets import UNLABELLED, Place, Targets, unlabelled
from kdcli.errors import BadImageError, InputError, UsageError
from kdcli.tasks.segmentation.values import VALUES, VOID, Colours, Values, lacking

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

_AT_ONCE = 16  # decoded, before the search for two values looks


@dataclass(frozen=True)
class Masks(Targets):
    """A mask for each picture; the label is 0, or -1 where there is none: pictures are one stratum.

    Attributes:
        hashed: [N] uint64 hash of each mask's stored bytes, 0 where there is none.
        rows: [N] row of each in ``table``.
        table: of the masks' cells.
        column: their name.
        root: the folder that cells may name files in.
        values: what they stand for.
    """

    hashed: np.ndarray
    rows: np.ndarray
    table: Any
    column: str
    root: Path | None
    values: Values

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        """Those of the masks."""
        return (self.hashed,)

    def take(self, keep: np.ndarray) -> Masks:
        """The masks selected by a mask or index array."""
        return replace(super().take(keep), hashed=self.hashed[keep], rows=self.rows[keep])

    def blank(self, count: int) -> Masks:
        """No masks, of ``count`` pictures."""
        none = np.zeros(count, np.int64)
        return replace(self, labels=none + UNLABELLED, hashed=none.astype(np.uint64), rows=none)

    def file(self, index: int) -> str:
        """The file of a mask in brackets, for messages; empty where it has none."""
        return file_of(self._cell(index), self.root)

    def _cell(self, index: int) -> Any:
        return self.table[int(self.rows[index])][self.column]

    def mask(self, index: int, place: Place) -> np.ndarray:
        """Class numbers uint8 [H, W] of a picture, turned as it is, ``VOID`` where void.

        All zeros for an unlabelled picture, whose pixels all enter the teacher's term.

        Raises:
            BadImageError: it cannot be decoded, or holds no class numbers.
            InputError: it has another size, or a value that is neither a class nor void.
        """
        if self.labels[index] == UNLABELLED:
            return np.zeros(place.size[::-1], np.uint8)
        return self.values.classes(self.stored(index, place), place.where)

    def stored(self, index: int, place: Place) -> np.ndarray:
        """Values uint8 [H, W] of a picture's mask, as its file has them; errors are those of :meth:`mask`."""
        try:
            mask = decode_indices(
                self.data(index, place.where), max_pixels=place.max_pixels, picture=place.stored()
            )
        except BadImageError as error:
            raise corrupt(f"{place.where}: its mask", error, file=self.file(index)) from error
        if mask.shape != place.size[::-1]:
            raise InputError(
                f"{place.where}: its mask has {mask.shape[1]} x {mask.shape[0]} pixels, its picture "
                f"{place.size[0]} x {place.size[1]}{self.file(index)}."
            )
        return mask

    def data(self, index: int, where: str) -> bytes:
        """Stored bytes of a mask. Raises InputError for a cell that names a foreign file."""
        return cell_bytes(self._cell(index), self.root, where)

    def read(self, index: int, place: Place) -> Any:
        """The mask as a ``tv_tensors.Mask`` [H, W]; see :meth:`mask`."""
        from torchvision.tv_tensors import Mask

        return Mask(self.mask(index, place))

    def columns(self, indices: np.ndarray, moved: Sequence[Any]) -> dict[str, Any]:
        """``mask`` uint8 [B, S, S]."""
        import torch

        return {"mask": torch.stack([mask.as_subclass(torch.Tensor) for mask in moved])}


class MaskReader:
    """Finds the masks of a source, in a column of pictures that is named for them."""

    task = "segmentation"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        self.raw, self.config = raw, config
        table = next(iter(raw.tables.values()))
        found = _mask_columns(table, config)
        alone = len(picture_columns(table)) == 1 and not config.mask_column  # the picture itself
        if len(found) != 1 or alone:
            what = "several mask columns" if len(found) > 1 else "no mask column"
            among = found if len(found) > 1 else table.column_names
            raise InputError(
                f"{config.source} has {what} among {', '.join(among)}. Name it: --set data.mask_column=…"
            )
        self.column = found[0]
        self.columns = (self.column,)
        self.values = self._values()
        self._present: dict[str, np.ndarray] = {}  # [rows of the split, VALUES] by its name: which classes

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether a column is named as masks are, beside the pictures, or the options name one."""
        beside = _mask_columns(table, config) and len(picture_columns(table)) > 1
        return bool(config.mask_column or beside)

    def targets(self, name: str, table: Any) -> Targets:
        """Hashes of the masks of a split; none of a split that has no such column."""
        if self.column not in table.column_names:
            return unlabelled(len(table))
        cells, root = undecoded(table, self.column), self.raw.root
        labels, hashed = np.full(len(table), UNLABELLED, np.int64), np.zeros(len(table), np.uint64)
        shas = cell_hashes(self.raw, name, self.column, "its mask")
        there = np.array([len(sha) > 0 for sha in shas], bool)
        hashed[there], labels[there] = prefixes([sha for sha in shas if sha]), 0
        return Masks(labels, hashed, np.arange(len(table)), cells, self.column, root, self.values)

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        """Check every mask of the splits, once, and name the classes: "0" to the highest in train.

        Raises:
            InputError: no mask, one of another size than its picture, with a value outside the classes, or
                with other colours for the same values.
        """
        config, colours = self.config, Colours(self.values)
        for name, samples in splits.items():
            self._present[name] = self._looked_through(samples, colours)
        names = config.class_names
        if names is None:
            train = self._train or next(iter(splits))
            if train not in splits:
                self._present[train] = self._looked_through(whole(train), colours)
            found = np.flatnonzero(self._present[train].any(axis=0))
            if not len(found):
                raise InputError(f"{train}: no mask has a pixel that is not void.")
            names = self.values.names(int(found[-1]))
        if len(names) > VOID:
            raise InputError(f"{len(names)} classes: a mask of 8 bits has at most {VOID} beside void.")
        for name, samples in splits.items():
            self._refuse_other_values(name, names)
            masks = cast(Masks, samples.targets)
            outside = self._present[name][masks.rows, len(names) :]
            wrong = np.flatnonzero(outside.any(axis=1))
            if len(wrong):
                first, value = int(wrong[0]), len(names) + int(np.flatnonzero(outside[wrong[0]])[-1])
                raise InputError(
                    f"{samples.row(first)}: its mask has the value {value}, outside the "
                    f"{len(names)} classes{masks.file(first)}. Name all with --set data.class_names=[…], or "
                    "give the void value: --set data.void=…"
                )
        return names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Say which classes have no pixel in training. Raises InputError where fewer than two have one."""
        masks = cast(Masks, train.targets)
        present: np.ndarray = self._present[train.name][masks.rows[train.labelled()], : len(classes)]
        if said := lacking(np.any(present, axis=0), classes, train.name):
            self.raw.notes.append(said)

    @property
    def _train(self) -> str | None:
        """The split that is trained on, of all that the source has."""
        return splits_of.find(self.raw.tables, self.config.train, self.config.source or "", "data.train")

    def _values(self) -> Values:
        """What the values of the masks stand for, by those of train; says so where it is not the usual."""
        config = self.config
        usual, names = Values(config.void), config.class_names or ["0", str(VOID)]
        train = self._train or next(iter(self.raw.tables))
        if config.void != VOID or len(names) != 2 or not self._has_two_values(self.raw.tables[train]):
            return usual
        self.raw.notes.append(
            f"the masks of {train} have the values 0 and {VOID} only: they are read as two classes, 0 as "
            f"'{names[0]}' and {VOID} as '{names[1]}', and no pixel is void"
        )
        return Values(config.void, two=True)

    def _refuse_other_values(self, split: str, names: list[str]) -> None:
        """Raise InputError for masks of 0 and 255 where those of train have 0 and 1: 255 would be void."""
        usual = not self.values.two and self.values.void == VOID and len(names) == 2
        if split == self._train or not usual or self._present[split][:, 1].any():
            return
        train = self._train and self.raw.tables[self._train]
        if self._has_two_values(self.raw.tables[split]) and train and not self._seen(train)[VOID]:
            raise InputError(
                f"the masks of {split} have the values 0 and {VOID} only, and those of train 0 and 1: {VOID} "
                f"is void there, so that '{names[1]}' would have no pixel. Give all masks the same values."
            )

    def _has_two_values(self, table: Any) -> bool:
        """Whether its masks have pixels of 0 and of 255, and no others; the first other one ends the look."""
        seen = self._seen(table, others=False)
        return bool(seen[0] and seen[VOID] and not seen[1:VOID].any())

    def _seen(self, table: Any, others: bool = True) -> np.ndarray:
        """[VALUES] which values its masks have; without ``others`` up to the first that is not 0 or 255."""
        seen = np.zeros(VALUES, bool)
        if self.column not in table.column_names:
            return seen
        cells = undecoded(table, self.column)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(cells), _AT_ONCE):
                some = [
                    c
                    for c in cells[start : start + _AT_ONCE][self.column]
                    if c is not None and any(c.values())
                ]
                for present in pool.map(self._values_of, some):
                    seen |= present
                if seen[1:VOID].any() and not others:
                    return seen
        return seen

    def _values_of(self, cell: Any) -> np.ndarray:
        """[VALUES] which values a mask has; none of one that cannot be read: it is met again by its row."""
        try:
            data = cell_bytes(cell, self.raw.root, "its mask")
            return _occurring(decode_indices(data, max_pixels=self.config.max_pixels))
        except (BadImageError, InputError):
            return np.zeros(VALUES, bool)

    def _looked_through(self, samples: Samples, colours: Colours) -> np.ndarray:
        """[rows of the split, VALUES] which classes each mask has, every mask checked."""
        masks, most = cast(Masks, samples.targets), self.config.max_pixels

        def look(index: int) -> tuple[np.ndarray, np.ndarray | None]:
            place = samples.place(index, samples.size(index, most), most)
            stored = masks.stored(index, place)
            self.values.classes(stored, place.where)  # refuses what is neither a class nor void
            return _occurring(stored), palette_of(masks.data(index, place.where), max_pixels=most)

        found = np.zeros((len(masks.table), VALUES), bool)
        rows = np.flatnonzero(samples.labelled()).tolist()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for index, (present, palette) in zip(rows, pool.map(look, rows)):
                if palette is not None:
                    colours.check(palette, present, samples.where(index))
                found[masks.rows[index]] = self.values.class_of(present)
        return found


def _occurring(mask: np.ndarray) -> np.ndarray:
    """[VALUES] which values a mask has."""
    return np.bincount(mask.ravel(), minlength=VALUES) > 0


def _mask_columns(table: Any, config: DataSection) -> list[str]:
    """The column that the options name, or those that are named as masks are."""
    if config.mask_column:
        return [name for name in table.column_names if name == config.mask_column]
    return [n for n in picture_columns(table) if n.lower() in MASK_NAMES and n != config.image_column]


class PixelColumns:
    """What losses read of a batch with masks: beside the loader's ``mask``, which rows have one."""

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``labelled`` [B]."""
        return {"labelled": batch["y"] >= 0}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Raise UsageError: pixels of mixed pictures have no class."""
        raise UsageError("pictures with masks are not mixed.")
