"""One class for each picture: a column of class numbers, names or text, or the folder a picture lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.data.columns import named_column
from kdcli.data.labels import TRUTH, first_number, note_of_first, numbers_as_names
from kdcli.data.targets import UNLABELLED, Targets, unlabelled
from kdcli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "y")
_MOST_CLASSES = 1_000_000
_COVERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "data", "all")


class LabelReader:
    """Finds the classes of a source and reads the number of each picture's."""

    task = "classification"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        self.names, self.column = _classes(raw, config)
        self.columns = () if self.column is None else (self.column,)

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Always: what no other task claims has one class a picture, or no labels."""
        return True

    def targets(self, name: str, table: Any) -> Targets:
        """Class numbers of a split."""
        if self.column is None or self.column not in table.column_names:
            return unlabelled(len(table))
        return Targets(_labels(table, self.column, self.names or [], name))

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str] | None:
        """Those of the whole source."""
        return self.names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Raise InputError for a class without a labelled picture."""
        counts = np.bincount(train.labels[train.labelled()], minlength=len(classes))
        empty = [classes[i] for i in np.flatnonzero(counts == 0)]
        if empty and counts.any():
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            around = (
                f" Where '{empty[0]}' is a folder around a split's pictures (test/{empty[0]}), it is taken "
                "for a class beside those of train: put that split into class folders, or leave it out."
            )
            raise InputError(
                f"class '{empty[0]}'{more} has no labelled picture in train. Remove the class or add some."
                f"{around if empty[0].casefold() in _COVERS else ''}"
            )


def _label_column(table: Any, config: DataSection) -> str | None:
    import datasets

    if config.label_column:
        return named_column(table, config.label_column, config)
    by_type = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in table.column_names]
    found = by_type if len(by_type) == 1 else [n for n in named if not by_type or n in by_type][:1]
    if len(by_type) > 1 and not found:
        raise InputError(f"several label columns: {', '.join(by_type)}. Name one: --set data.label_column=…")
    return found[0] if found else None


def _classes(raw: Raw, config: DataSection) -> tuple[list[str] | None, str | None]:
    """Class names of the whole source and its label column."""
    import datasets

    first_split, first = next(iter(raw.tables.items()))
    column = _label_column(first, config)
    if column is None:
        return None, None
    kind = first.features[column]
    tables = {name: t for name, t in raw.tables.items() if column in t.column_names}
    for name, table in tables.items():  # numbers mean the same class in each split
        if table.features[column] != kind:
            raise InputError(
                f"{config.source}: column '{column}' differs between the splits {first_split} ({kind}) and "
                f"{name} ({table.features[column]}). Save them with the same type and class names."
            )
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), column
    if not isinstance(kind, datasets.Value):
        raise InputError(
            f"column '{column}' holds several labels per picture, which is --set data.task=multi-label; or "
            "name a column of single labels: --set data.label_column=…"
        )
    values = {v for table in tables.values() for v in table.unique(column) if v is not None}
    if kind.dtype.startswith(("int", "uint")):
        top = max((int(v) for v in values), default=-1)
        if top >= _MOST_CLASSES:
            raise InputError(f"column '{column}' holds {top}; class numbers count from 0.")
        classes = numbers_as_names(values)
        raw.notes += note_of_first(column, classes)
        return classes, column
    if kind.dtype == "bool":
        return list(TRUTH), column
    if kind.dtype in ("string", "large_string", "string_view"):
        return sorted(values), column
    raise InputError(f"column '{column}' is {kind.dtype}; labels are class names, numbers or text.")


def _labels(table: Any, column: str, classes: list[str], name: str) -> np.ndarray:
    import datasets

    values = table[column][:]
    text = not isinstance(table.features[column], datasets.ClassLabel) and isinstance(
        next((v for v in values if v is not None), 0), str
    )
    number = {c: i for i, c in enumerate(classes)}
    labels = np.array([UNLABELLED if v is None else number[v] if text else int(v) for v in values], np.int64)
    labels[labels >= 0] -= first_number(table.features[column], classes)
    wrong = np.flatnonzero((labels < UNLABELLED) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{name} row {wrong[0]}: label {labels[wrong[0]]} is outside the {len(classes)} classes."
        )
    return labels


@dataclass(frozen=True)
class ClassColumns:
    """What losses read of a batch of classified pictures.

    Attributes:
        classes: C.
        weights: [C] factors of rows by their class, or None.
    """

    classes: int
    weights: Tensor | None = None

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``target`` int64 [B], ``labelled`` [B], and ``row_weight`` [B] where classes are weighed."""
        y = batch["y"]
        columns = {"target": y, "labelled": y >= 0}
        if self.weights is not None:
            columns["row_weight"] = self.weights.to(y.device)[y.clamp(min=0)]
        return columns

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """``target`` [B, C] are probabilities; a row counts as labelled when both of its pictures are."""
        from torch.nn import functional as F

        from kdcli.data.mixing import averaged, both_labelled

        y = batch["y"]
        target = averaged(F.one_hot(y.clamp(min=0), self.classes).float(), share)
        columns = {"target": target, "labelled": both_labelled(y >= 0)}
        if self.weights is not None:
            columns["row_weight"] = target @ self.weights.to(y.device)
        return columns
