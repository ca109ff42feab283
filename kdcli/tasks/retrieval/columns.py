"""Where identities and cameras stand: columns by their names, or the names of files as Market-1501 has them.

``0002_c1s1_000451_03.jpg`` shows identity 0002 to camera 1 (Zheng et al. 2015); VeRi-776 and others have the
same kind of names. Identities and cameras are compared as text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.data.columns import image_column, named_column, undecoded_cells
from kdcli.data.targets import UNLABELLED
from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.sections import DataSection

NAMES = ("identity", "identity_id", "pid", "person_id", "vehicle_id", "item_id", "instance")
"""Columns that hold identities by their name, in the order in which they are looked for."""
CLASS_NAMES = ("label", "labels")
"""Columns that hold them where the task is named; else they hold classes."""
FILE_NAME = re.compile(r"(-1|[0-9]+)_c([0-9]+)(?:s[0-9]+)?(?![0-9A-Za-z])")
"""How a file's name says an identity and a camera."""
JUNK = "-1"
"""The identity of pictures without one."""
_CAMERAS = ("camera", "camera_id", "camid", "cam")
_LONGEST = 18  # digits of a number of a camera that int64 holds

Texts = list[str | None]
"""Names by row, None where there is none."""


def identity_column(raw: Raw, config: DataSection) -> str | None:
    """The column of the identities: as named, or by its name; None where there is none."""
    if config.label_column:
        return _given(raw, config.label_column, config)
    for name in (*NAMES, *CLASS_NAMES):
        if any(named(table, (name,)) for table in raw.tables.values()):
            return name
    return None


def camera_column(raw: Raw, config: DataSection) -> str | None:
    """The column of the cameras: as named, or by its name; None where there is none."""
    if config.camera_column:
        return _given(raw, config.camera_column, config)
    for name in _CAMERAS:
        if any(named(table, (name,)) for table in raw.tables.values()):
            return name
    return None


def _given(raw: Raw, column: str, config: DataSection) -> str:
    """A column that the user named, of any table."""
    tables = list(raw.tables.values())
    table = next((table for table in tables if column in table.column_names), tables[0])
    return named_column(table, column, config)


def named(table: Any, names: Collection[str]) -> str | None:
    """The first of some columns that a table has and that holds names or numbers."""
    return next((n for n in names if n in table.column_names and _kind(table.features[n])), None)


def _kind(kind: Any) -> str | None:
    """What a column holds: ``class``, ``number`` or ``text``; None for anything else."""
    import datasets

    if isinstance(kind, datasets.ClassLabel):
        return "class"
    dtype = kind.dtype if isinstance(kind, datasets.Value) else ""
    if dtype in ("string", "large_string", "string_view"):
        return "text"
    return "number" if dtype.startswith(("int", "uint")) else None


def texts(table: Any, column: str, name: str) -> Texts:
    """Cells of a column as text, ``-1`` among them; None where there is nothing, or no such column.

    Raises:
        InputError: it holds neither names nor numbers, or a number below -1.
    """
    if column not in table.column_names:
        return [None] * len(table)
    kind, values = table.features[column], table[column][:]
    match _kind(kind):
        case "class":
            return [None if v is None or v < 0 else kind.names[v] for v in values]
        case "text":
            return [v or None for v in values]
        case "number":
            if odd := [row for row, v in enumerate(values) if v is not None and v < -1]:
                raise InputError(
                    f"{name} row {odd[0]}: {values[odd[0]]} in column '{column}'; numbers count from 0, and "
                    "-1 says that there is none."
                )
            return [None if v is None else str(v) for v in values]
    raise InputError(f"column '{column}' of {name} is {kind}; names or numbers are wanted.")


def files(table: Any, config: DataSection, columns: Collection[str]) -> list[str]:
    """Names of the files of the pictures, without folders; empty where a picture has none."""
    import pyarrow.compute as pc

    cells = undecoded_cells(table, image_column(table, config, columns))
    return [os.path.basename(path or "") for path in pc.struct_field(cells, "path").to_pylist()]


def in_order(names: Collection[str | None]) -> list[str]:
    """Names in order: of numbers where all are numbers, else of text."""
    known = sorted(name for name in names if name is not None)
    numbers = all(name.isascii() and name.isdecimal() for name in known)
    return sorted(known, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"))) if numbers else known


def numbered(cameras: Mapping[str, Texts]) -> dict[str, np.ndarray]:
    """Numbers [N] of cameras by split: their own where all are numbers, else their place among the names."""
    names = in_order({v for own in cameras.values() for v in own if v not in (None, JUNK)})
    own = all(name.isascii() and name.isdecimal() and len(name) <= _LONGEST for name in names)
    number: dict[str | None, int] = {name: int(name) if own else i for i, name in enumerate(names)}
    return {
        split: np.array([number.get(v, UNLABELLED) for v in values], np.int64)
        for split, values in cameras.items()
    }
