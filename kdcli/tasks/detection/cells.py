"""Boxes as tables hold them: structs of lists, or lists of structs, of a box and a category each.

Both are the forms that the datasets library gives to annotations in the manner of COCO. A cell without any
list is a picture that nobody annotated; empty lists say that there is nothing on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from kdcli.data.columns import named_column
from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.sections import DataSection

COLUMN = "objects"
BOXES = ("bbox", "boxes")
CATEGORIES = ("category", "categories", "category_id", "label", "labels")
FLAGS = ("iscrowd", "is_crowd", "difficult")


@dataclass(frozen=True)
class Form:
    """How a column holds boxes.

    Attributes:
        lists: whether a cell is a struct of lists; else it is a list of structs.
        box: key of the boxes.
        category: key of what they are of.
        flags: keys of what marks a box that is neither to be learned nor to be judged.
        kind: the feature of a category.
    """

    lists: bool
    box: str
    category: str
    flags: tuple[str, ...]
    kind: Any


def form_of(kind: Any) -> Form | None:
    """The form of a column of this feature; None where it holds no boxes."""
    import datasets

    many = (datasets.List, datasets.LargeList)
    lists = isinstance(kind, dict)
    if lists:
        parts = {name: part.feature for name, part in kind.items() if isinstance(part, many)}
    else:
        one = kind.feature if isinstance(kind, many) else None
        parts = one if isinstance(one, dict) else {}
    box, category = (next((n for n in names if n in parts), None) for names in (BOXES, CATEGORIES))
    if box is None or category is None:
        return None
    return Form(lists, box, category, tuple(n for n in FLAGS if n in parts), parts[category])


def column_of(table: Any, config: DataSection) -> str:
    """The column of the boxes. Raises InputError where there is none."""
    column = named_column(table, config.box_column, config) if config.box_column else COLUMN
    if not config.box_column and form_of(table.features.get(column)) is None:
        raise InputError(
            f"{config.source} has no column '{column}' of boxes among {', '.join(table.column_names)}. Name "
            "it: --set data.box_column=…"
        )
    return column


def declared_sizes(table: Any) -> np.ndarray:
    """[N, 2] float64 width and height as columns of these names have them, NaN where they do not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.full((len(table), 2), np.nan)
    for side, name in enumerate(("width", "height")):
        if name in table.column_names:
            cells = table.data.column(name)
            if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
                found[:, side] = pc.cast(cells, pa.float64(), safe=False).to_numpy()
    return found


@dataclass(frozen=True)
class Cells:
    """The boxes of one column, end to end.

    Attributes:
        known: [N] which pictures are annotated.
        rows: [M] row of each box.
        numbers: [M, 4] float64, as they are stored.
        categories: [M] int64 as they are stored, or places in ``names``.
        names: what categories that are text are called; None for numbers.
        ignored: [M] whether a box is marked by one of the flags.
    """

    known: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    categories: np.ndarray
    names: list[str] | None
    ignored: np.ndarray


def read_cells(cells: Any, form: Form, split: str) -> Cells:
    """All boxes of a column.

    Args:
        cells: an arrow array of N cells.
        form: of the column.
        split: for messages.

    Raises:
        InputError: a box that is not four finite numbers, one without a category, lists of unlike length.
    """
    lengths, flat = _flattened(cells, form, form.box)
    counts = np.maximum(lengths, 0)
    rows = np.repeat(np.arange(len(lengths)), counts)
    others, categories = _flattened(cells, form, form.category)
    if len(odd := np.flatnonzero(np.maximum(others, 0) != counts)):
        raise InputError(
            f"{split} row {odd[0]}: it has {counts[odd[0]]} boxes ('{form.box}') and "
            f"{max(int(others[odd[0]]), 0)} categories ('{form.category}'). Give each box one."
        )
    where = _Where(split, rows)
    numbers = _numbers(flat, where)
    codes, names = _codes(categories, where)
    ignored = np.zeros(len(rows), bool)
    for flag in form.flags:
        own, values = _flattened(cells, form, flag)
        if len(odd := np.flatnonzero((own >= 0) & (own != counts))):
            raise InputError(
                f"{split} row {odd[0]}: it has {counts[odd[0]]} boxes and {own[odd[0]]} values of '{flag}'."
            )
        ignored[np.repeat(own >= 0, counts)] |= _flags(values, flag, split)
    return Cells(lengths >= 0, rows, numbers, codes, names, ignored)


@dataclass(frozen=True)
class _Where:
    """Says which row a box is of, for messages."""

    split: str
    rows: np.ndarray

    def refuse(self, wrong: np.ndarray, text: str) -> NoReturn:
        """Raise InputError for the first of these boxes."""
        raise InputError(f"{self.split} row {self.rows[int(np.flatnonzero(wrong)[0])]}: {text}")


def _flattened(cells: Any, form: Form, key: str) -> tuple[np.ndarray, Any]:
    """The length of each cell's list [N], -1 where there is none, and all values under a key."""
    import pyarrow.compute as pc

    lists = pc.struct_field(cells, key) if form.lists else cells
    flat = pc.list_flatten(lists)
    return _lengths(lists), flat if form.lists else pc.struct_field(flat, key)


def _lengths(lists: Any) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(lists), -1).to_numpy().astype(np.int64)


def _numbers(flat: Any, where: _Where) -> np.ndarray:
    """[M, 4] float64 of lists of numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(flat):
        return np.zeros((0, 4))
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(flat.type) for is_list in lists):
        raise InputError(f"{where.split}: boxes are stored as {flat.type}; a box is a list of four numbers.")
    lengths = _lengths(flat)
    if (wrong := lengths != 4).any():
        length = int(lengths[wrong][0])
        has = "is empty (null)" if length < 0 else f"has {length} numbers"
        where.refuse(wrong, f"a box {has}, and four are wanted.")
    values = pc.list_flatten(flat)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise InputError(f"{where.split}: boxes are stored as lists of {values.type}, not of numbers.")
    numbers = pc.cast(values, pa.float64(), safe=False).to_numpy().reshape(-1, 4)
    if (wrong := ~np.isfinite(numbers).all(axis=1)).any():
        where.refuse(wrong, f"its box {shown(numbers[wrong][0])} is not of four finite numbers.")
    return numbers


def _codes(flat: Any, where: _Where) -> tuple[np.ndarray, list[str] | None]:
    """[M] int64 categories, or their places among names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if flat.null_count:
        empty = pc.is_null(flat).to_numpy()
        where.refuse(empty, "a box has no category (null). Give it one, or remove it.")
    if not len(flat):
        return np.zeros(0, np.int64), None
    if pa.types.is_integer(flat.type):
        return flat.to_numpy().astype(np.int64), None
    if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        raise InputError(f"{where.split}: categories are stored as {flat.type}; they are names or numbers.")
    names, codes = np.unique(flat.to_numpy(), return_inverse=True)
    return codes.astype(np.int64), names.tolist()


def _flags(flat: Any, flag: str, split: str) -> np.ndarray:
    """[…] bool of truth values or numbers; null is no."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(flat.type):
        return np.zeros(len(flat), bool)
    if not (pa.types.is_boolean(flat.type) or pa.types.is_integer(flat.type)):
        raise InputError(f"{split}: '{flag}' is stored as {flat.type}; it is 1 or 0 (true or false).")
    return pc.fill_null(pc.cast(flat, pa.int64()), 0).to_numpy() != 0


def shown(numbers: np.ndarray) -> str:
    """A box as messages have it."""
    return f"[{', '.join(f'{value:g}' for value in numbers.tolist())}]"
