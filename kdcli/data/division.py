"""Rows of one table that a column gives to several splits: ``split`` beside ``file_name`` and ``label``."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcli.data import splits as names
from kdcli.data.tables import Raw, table_of
from kdcli.errors import InputError

COLUMNS = ("split", "subset", "partition")
"""What such a column is called, in any case."""
_SHOWN = 3  # values of a message


def divide(raw: Raw, source: str) -> None:
    """Let a table's column of splits divide it; a column that says nothing of splits divides nothing.

    Args:
        raw: the tables, of which a single one is replaced by those of its splits.
        source: for messages.

    Raises:
        InputError: some values name splits and others do not, or they contradict what the table is called.
    """
    for name, table in list(raw.tables.items()):
        values = _values(table)
        roles = {value: names.role(value) for value in dict.fromkeys(values)}
        if not any(roles.values()):
            continue
        if odd := [value for value, role in roles.items() if role is None]:
            shown = ", ".join(repr(value) for value in odd[:_SHOWN])
            raise InputError(
                f"{source}: the column {_column(table)} says which split a row is of, and of some it says "
                f"{shown}. Call them train, validation and test, or leave the column out."
            )
        own = np.array([roles[value] for value in values])
        found = list(dict.fromkeys(own.tolist()))
        if len(raw.tables) > 1:
            if found != [names.role(name)]:
                raise InputError(
                    f"{source}: the column {_column(table)} of '{name}' gives rows to {', '.join(found)}. "
                    "Keep what is true: the column, or the name."
                )
            continue
        raw.tables = {role: _rows(table, own == role) for role in found}
        counts = ", ".join(f"{role} {int((own == role).sum()):,}" for role in found)
        raw.notes.append(f"{source}: the column {_column(table)} divides the rows: {counts}")


def _column(table: Any) -> str | None:
    return next((column for column in table.column_names if column.casefold() in COLUMNS), None)


def _values(table: Any) -> list[str]:
    """What the column says of each row; empty where there is none of text."""
    import datasets

    if (column := _column(table)) is None:
        return []
    kind, cells = table.features[column], table.data.column(column).to_pylist()
    if isinstance(kind, datasets.ClassLabel):
        cells = [None if cell is None or cell < 0 else kind.int2str(cell) for cell in cells]
    elif getattr(kind, "dtype", None) not in ("string", "large_string"):
        return []
    return ["" if cell is None else cell for cell in cells]


def _rows(table: Any, chosen: np.ndarray) -> Any:
    """A table of these rows, which copies none of them."""
    from datasets.table import concat_tables

    edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen.astype(np.int8), [0]))))
    parts = [table.data.slice(first, end - first) for first, end in edges.reshape(-1, 2).tolist()]
    return table_of(concat_tables(parts), table.features)
