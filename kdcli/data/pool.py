"""The pictures of a source laid together, whatever its own splits, and each of them once.

Of equal bytes the first stay: by the name of their class, then by that of their file, then by row. So which
ones stay does not hang on the order of rows, and no picture is on two sides of any division of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from kdcli.data.samples import Samples
from kdcli.data.tables import table_of
from kdcli.data.targets import UNLABELLED, Targets
from kdcli.errors import InputError, UsageError


@dataclass(frozen=True)
class Pool:
    """The labelled pictures of a source, of all its splits, each once.

    Attributes:
        samples: N of them, whose labels count ``classes``.
        classes: the names of those that have pictures, sorted.
        files: [N] where each lies in the source; empty where the data do not say.
        notes: what was left out.
    """

    samples: Samples
    classes: list[str]
    files: list[str]
    notes: tuple[str, ...] = ()


def pooled(parts: Sequence[Samples], names: Sequence[str] | None, source: str) -> Pool:
    """Lay the splits of a source together.

    Args:
        parts: the splits, one or more.
        names: of classes, by their labels; None where labels are not asked for.
        source: for messages.

    Raises:
        InputError: no labelled picture.
    """
    labels = np.concatenate([part.labels for part in parts])
    known = np.unique(labels[labels != UNLABELLED])
    classes = sorted(names[i] for i in known) if names is not None else []
    if names is not None and not classes:
        raise no_labels(source)
    if names is not None:
        number = {name: i for i, name in enumerate(classes)}
        lut = np.array([*(number.get(name, UNLABELLED) for name in names), UNLABELLED], np.int64)  # of -1 too
        labels = lut[labels]
    files = [file for part in parts for file in files_of(part)]
    pictures = np.concatenate([part.pictures for part in parts])
    ids = np.concatenate([_first_ids(part) for part in parts])
    known = np.flatnonzero(labels != UNLABELLED) if names is not None else np.arange(len(labels))
    by_file = np.unique(np.array(files, object), return_inverse=True)[1]
    order = known[np.lexsort((known, by_file[known], labels[known]))]
    first = np.sort(order[np.unique(pictures[order], return_index=True)[1]])
    samples = Samples(
        "train",
        _table(parts),
        parts[0].column,
        parts[0].root,
        first,
        ids[first],
        pictures[first],
        replace(parts[0].targets, labels=labels[first]),
    )
    notes = tuple(_left_out(labels, pictures, known, first, source)) if names is not None else ()
    return Pool(samples, classes, [files[i] for i in first], notes)


def no_labels(source: str) -> InputError:
    """That there is nothing to divide by."""
    return InputError(
        f"{source} has no labels to divide its pictures by: no column of them (name it: --set "
        "data.label_column=…), and no two class folders."
    )


def refuse_more(targets: Targets, task: str, source: str) -> None:
    """Raise UsageError for targets that know more of a picture than one class."""
    if [known.name for known in fields(targets)] != ["labels"]:
        raise UsageError(
            f"data.open_classes divides pictures of one class each, and {source} is opened for {task}. Name "
            "a task that reads one class a picture (--task), or leave data.open_classes out."
        )


def _first_ids(part: Samples) -> np.ndarray:
    """[N] uint64: of each picture the id that its first occurrence in the split has."""
    _, first, inverse = np.unique(part.pictures, return_index=True, return_inverse=True)
    return part.ids[first][inverse]


def _table(parts: Sequence[Samples]) -> Any:
    """The rows of all splits as one table, which copies none of them."""
    from datasets.table import concat_tables

    if len(parts) == 1:
        return parts[0].table
    column = parts[0].column
    own = [p.table.data if p.column == column else p.table.data.rename_columns([column]) for p in parts]
    return table_of(concat_tables(own), parts[0].table.features)


def files_of(part: Samples) -> Iterator[str]:
    """Where each picture lies, from the source's folder if it has one; their bytes are not read."""
    import pyarrow.compute as pc

    for path in pc.struct_field(part.table.data.column(part.column), "path").to_pylist():
        inside = path and part.root is not None and os.path.abspath(path).startswith(f"{part.root}{os.sep}")
        yield os.path.relpath(path, part.root) if inside else path or ""


def _left_out(
    labels: np.ndarray, pictures: np.ndarray, known: np.ndarray, first: np.ndarray, source: str
) -> Iterator[str]:
    """What to say of unlabelled pictures, and of those whose bytes stand in the data before."""
    if unlabelled := len(labels) - len(known):
        yield f"{source}: {unlabelled:,} pictures without a label are left out"
    if again := len(known) - len(first):
        by_picture = first[np.argsort(pictures[first])]
        owners = by_picture[np.searchsorted(pictures[by_picture], pictures[known])]
        others = int((labels[owners] != labels[known]).sum())
        more = f", {others:,} of them in another class" if others else ""
        yield f"{source}: {again:,} pictures are there before{more}: each counts once, in its first class"
