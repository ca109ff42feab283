"""Which columns of a table hold pictures, and which of these is the one to learn from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kdcli.data.tables import reason, table_of
from kdcli.errors import InputError, nearest
from kdcli.sections import SourceSection

MASK_NAMES = ("mask", "masks", "segmentation", "annotation", "label", "labels", "seg")
"""Names of picture columns that hold masks, whatever the task."""


def named_column(table: Any, name: str, config: SourceSection) -> str:
    """A column that the user named. Raises InputError if there is none of that name."""
    if name not in table.column_names:
        raise InputError(
            f"{config.source} has no column '{name}'; it has: {', '.join(table.column_names)}."
            f"{nearest(name, table.column_names)}"
        )
    return name


def picture_columns(table: Any) -> list[str]:
    """Columns that hold pictures, by their type or, in plain parquet, by their shape."""
    import datasets

    features = table.features.items()
    by_type = [name for name, kind in features if isinstance(kind, datasets.Image)]
    return by_type or [n for n, kind in features if isinstance(kind, dict) and {"bytes", "path"} <= set(kind)]


def image_column(table: Any, config: SourceSection, targets: Collection[str] = ()) -> str:
    """The column of the pictures to learn from.

    Args:
        table: one split.
        config: may name it.
        targets: columns that hold something else.

    Raises:
        InputError: none, or several.
    """
    if config.image_column:
        return named_column(table, config.image_column, config)
    found = picture_columns(table)
    if len(found) > 1:
        found = [n for n in found if n.lower() not in MASK_NAMES and n not in targets] or found
    if len(found) != 1:
        what = "several picture columns" if found else "no picture column"
        raise InputError(
            f"{config.source} has {what} among {', '.join(found or table.column_names)}. Name it: "
            "--set data.image_column=…"
        )
    return found[0]


def undecoded(table: Any, column: str) -> Any:
    """The table of one column of pictures, whose cells are ``{"bytes", "path"}``.

    Args:
        table: a split as it was opened, all of its rows in their order.
        column: of it.

    Raises:
        InputError: it holds none.
    """
    import datasets

    kind = table.features[column]
    if isinstance(kind, datasets.Image):  # what follows would copy and hash the table to say so
        return table_of(
            table.data.select([column]), datasets.Features({column: datasets.Image(decode=False)})
        )
    try:
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"column '{column}' holds no pictures ({kind}): {reason(error)}.") from error


def undecoded_cells(table: Any, column: str) -> Any:
    """The cells of :func:`undecoded`, as an arrow array."""
    import datasets

    plain = isinstance(table.features[column], datasets.Image)
    return (table if plain else undecoded(table, column)).data.column(column)
