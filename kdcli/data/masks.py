"""Masks: the class of every pixel, as a single-channel picture beside the picture.

A value is a class number, counted from 0, or the void value: such pixels enter no term and no metric. Inside
kdcli void is always :data:`VOID`, whatever the files have.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.errors import InputError, UsageError
from kdcli.sections import DataSection

if TYPE_CHECKING:
    from kdcli.data.samples import Samples

VOID = 255
NAMES = ("mask", "masks", "segmentation", "annotation", "label", "labels", "seg")


def picture_columns(table: Any) -> list[str]:
    """Columns that hold pictures, by their type or, in plain parquet, by their shape."""
    import datasets

    features = table.features.items()
    by_type = [name for name, kind in features if isinstance(kind, datasets.Image)]
    return by_type or [n for n, kind in features if isinstance(kind, dict) and {"bytes", "path"} <= set(kind)]


def mask_column(table: Any, config: DataSection) -> str | None:
    """The column of the masks where the task is segmentation, else None.

    Raises:
        InputError: segmentation is asked for and there is no such column, or there are several.
        UsageError: options of masks for another task.
    """
    if config.task == "classification":
        if config.mask_column or config.class_names:
            raise UsageError("data.mask_column and data.class_names go with data.task=segmentation.")
        return None
    columns = picture_columns(table)
    if config.mask_column:
        found = [name for name in table.column_names if name == config.mask_column]
    else:
        found = [n for n in columns if n.lower() in NAMES and n != config.image_column]
    if len(found) == 1 and (len(columns) > 1 or config.mask_column):
        return found[0]
    if len(found) > 1 or config.task == "segmentation" or config.mask_column:
        what = "several mask columns" if len(found) > 1 else "no mask column"
        raise InputError(
            f"{config.source} has {what} among {', '.join(found if len(found) > 1 else table.column_names)}. "
            "Name it: --set data.mask_column=…"
        )
    if config.class_names:
        raise UsageError(f"data.class_names names the classes of masks, and {config.source} has none.")
    return None


def class_names(
    splits: dict[str, Samples], train: Samples, names: list[str] | None, max_pixels: int
) -> list[str]:
    """Check every mask of the splits, once, and name the classes.

    Args:
        splits: what is used.
        train: where classes are counted if they have no names.
        names: by class number, or None for "0" to the highest in ``train``.
        max_pixels: of a picture.

    Raises:
        InputError: no mask, one of another size than its picture or with a value outside the classes.
    """
    highest = {id(s): _highest(s, max_pixels) for s in (*splits.values(), *([] if names else [train]))}
    if names is None:
        names = [str(i) for i in range(int(highest[id(train)].max(initial=-1)) + 1)]
        if not names:
            raise InputError(f"{train.name}: no mask has a pixel that is not void.")
    if len(names) > VOID:
        raise InputError(f"{len(names)} classes: a mask of 8 bits has at most {VOID} beside void.")
    for samples in splits.values():
        wrong = np.flatnonzero(highest[id(samples)] >= len(names))
        if len(wrong):
            raise InputError(
                f"{samples.name} row {int(samples.rows[wrong[0]])}: its mask has the value "
                f"{highest[id(samples)][wrong[0]]}, outside the {len(names)} classes. Name all with "
                "--set data.class_names=[…], or give the void value: --set data.void=…"
            )
    return names


def _highest(samples: Samples, max_pixels: int) -> np.ndarray:
    """[N] highest class in each mask, -1 where there is none."""

    def look(index: int) -> int:
        mask = samples.mask(index, samples.size(index, max_pixels), max_pixels)
        values = mask[mask != VOID]
        return int(values.max()) if values.size else -1

    found = np.full(len(samples), -1)
    rows = np.flatnonzero(samples.labelled())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found[rows] = list(pool.map(look, rows.tolist()))
    return found
