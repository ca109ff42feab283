"""Masks: the class of every pixel, as a single-channel picture beside the picture.

A value is a class number, counted from 0, or the void value: such pixels enter no term and no metric. Inside
kdcli void is always :data:`VOID`, whatever the files have.
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
from kdcli.data.images import decode_indices
from kdcli.data.samples import cell_bytes, prefixes
from kdcli.data.targets import UNLABELLED, Place, Targets, unlabelled
from kdcli.errors import BadImageError, InputError, UsageError

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

VOID = 255


@dataclass(frozen=True)
class Masks(Targets):
    """A mask for each picture; the label is 0, or -1 where there is none: pictures are one stratum.

    Attributes:
        hashed: [N] uint64 hash of each mask's stored bytes, 0 where there is none.
        rows: [N] row of each in ``table``.
        table: of the masks' cells.
        column: their name.
        root: the folder that cells may name files in.
        void: their value for pixels of no class.
    """

    hashed: np.ndarray
    rows: np.ndarray
    table: Any
    column: str
    root: Path | None
    void: int

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

    def mask(self, index: int, place: Place) -> np.ndarray:
        """Class numbers uint8 [H, W] of a picture, turned as it is, ``VOID`` where void.

        All zeros for an unlabelled picture, whose pixels all enter the teacher's term.

        Raises:
            BadImageError: it cannot be decoded, or holds no class numbers.
            InputError: it has another size.
        """
        if self.labels[index] == UNLABELLED:
            return np.zeros(place.size[::-1], np.uint8)
        data = cell_bytes(self.table[int(self.rows[index])][self.column], self.root, place.where)
        try:
            mask = decode_indices(data, max_pixels=place.max_pixels, picture=place.stored())
        except BadImageError as error:
            raise BadImageError(f"{place.where}: its mask: {error}") from error
        if mask.shape != place.size[::-1]:
            raise InputError(
                f"{place.where}: its mask has {mask.shape[1]} x {mask.shape[0]} pixels, its picture "
                f"{place.size[0]} x {place.size[1]}."
            )
        if self.void != VOID:
            mask = np.where(mask == self.void, np.uint8(VOID), mask)
        return mask

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
            if len(found) < 2 and config.task == "auto" and not config.mask_column:
                raise UsageError(
                    f"data.class_names names the classes of masks, and {config.source} has none."
                )
            what = "several mask columns" if len(found) > 1 else "no mask column"
            among = found if len(found) > 1 else table.column_names
            raise InputError(
                f"{config.source} has {what} among {', '.join(among)}. Name it: --set data.mask_column=…"
            )
        self.column = found[0]
        self.columns = (self.column,)

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether a column is named as masks are, beside the pictures, or the options speak of masks."""
        return bool(
            config.mask_column
            or config.class_names
            or (_mask_columns(table, config) and len(picture_columns(table)) > 1)
        )

    def targets(self, name: str, table: Any) -> Targets:
        """Hashes of the masks of a split; none of a split that has no such column."""
        if self.column not in table.column_names:
            return unlabelled(len(table))
        cells, root = undecoded(table, self.column), self.raw.root
        labels, hashed = np.full(len(table), UNLABELLED, np.int64), np.zeros(len(table), np.uint64)
        shas = cell_hashes(self.raw, name, self.column, "its mask")
        there = np.array([len(sha) > 0 for sha in shas], bool)
        hashed[there], labels[there] = prefixes([sha for sha in shas if sha]), 0
        return Masks(labels, hashed, np.arange(len(table)), cells, self.column, root, self.config.void)

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        """Check every mask of the splits, once, and name the classes: "0" to the highest in train.

        Raises:
            InputError: no mask, one of another size than its picture or with a value outside the classes.
        """
        config, most = self.config, self.config.max_pixels
        highest = {name: _highest(samples, most) for name, samples in splits.items()}
        names = config.class_names
        if names is None:
            source = config.source or ""
            train = splits_of.find(self.raw.tables, config.train, source, "data.train") or next(iter(splits))
            if train not in splits:
                highest[train] = _highest(whole(train), most)
            names = [str(i) for i in range(int(highest[train].max(initial=-1)) + 1)]
            if not names:
                raise InputError(f"{train}: no mask has a pixel that is not void.")
        if len(names) > VOID:
            raise InputError(f"{len(names)} classes: a mask of 8 bits has at most {VOID} beside void.")
        for name, samples in splits.items():
            wrong = np.flatnonzero(highest[name] >= len(names))
            if len(wrong):
                raise InputError(
                    f"{samples.where(int(wrong[0]))}: its mask has the value {highest[name][wrong[0]]}, "
                    f"outside the {len(names)} classes. Name all with --set data.class_names=[…], or give "
                    "the void value: --set data.void=…"
                )
        return names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Nothing: a class may have no pixel."""


def _mask_columns(table: Any, config: DataSection) -> list[str]:
    """The column that the options name, or those that are named as masks are."""
    if config.mask_column:
        return [name for name in table.column_names if name == config.mask_column]
    return [n for n in picture_columns(table) if n.lower() in MASK_NAMES and n != config.image_column]


def _highest(samples: Samples, max_pixels: int) -> np.ndarray:
    """[N] highest class in each mask, -1 where there is none."""

    masks = cast(Masks, samples.targets)

    def look(index: int) -> int:
        mask = masks.mask(index, samples.place(index, samples.size(index, max_pixels), max_pixels))
        values = mask[mask != VOID]
        return int(values.max()) if values.size else -1

    found = np.full(len(samples), -1)
    rows = np.flatnonzero(samples.labelled())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found[rows] = list(pool.map(look, rows.tolist()))
    return found


class PixelColumns:
    """What losses read of a batch with masks: beside the loader's ``mask``, which rows have one."""

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``labelled`` [B]."""
        return {"labelled": batch["y"] >= 0}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Raise UsageError: pixels of mixed pictures have no class."""
        raise UsageError("pictures with masks are not mixed.")
