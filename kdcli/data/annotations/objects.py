"""What every kind of annotations becomes: rows with boxes, and the column ``objects`` made of them.

A cell of ``objects`` is a struct of lists, one entry for each object: ``bbox`` (x, y, width, height in pixels
of the upright picture, from its upper left corner), ``category`` (a class number, with the same names in all
splits) and, of some kinds, a flag. Empty lists mean that the picture has no object, null that nobody looked.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcli.data import splits
from kdcli.data.files import Found, notes
from kdcli.data.tables import Raw, table_of
from kdcli.errors import InputError

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class Claim:
    """Annotations of one kind that a folder surely holds.

    Attributes:
        kind: what messages call it.
        first: one of its files.
        read: makes tables of it; raises InputError for what is wrong in them.
    """

    kind: str
    first: str
    read: Callable[[], Raw]


@dataclass
class Row:
    """What annotations say of one picture.

    Attributes:
        path: of the picture.
        boxes: one for each object.
        classes: the name of each object's class.
        flags: of each object, whatever the kind calls it.
        size: width and height as declared, or None.
        annotated: False where nobody looked for objects.
    """

    path: str
    boxes: list[Box] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)
    size: tuple[int, int] | None = None
    annotated: bool = True

    def add(self, box: Box, name: str, flag: bool = False) -> None:
        """One more object."""
        self.boxes.append(box)
        self.classes.append(name)
        self.flags.append(flag)


def tables_of(rows: Mapping[str, Sequence[Row]], classes: Sequence[str], flag: str = "") -> dict[str, Any]:
    """A table for each split, the usual ones first: ``image``, ``objects`` and, where declared, the size.

    Args:
        rows: by split.
        classes: names by number.
        flag: ``iscrowd`` or ``difficult``; without it flags are left out.
    """
    order = sorted(rows, key=[*splits.WORDS, *rows].index)
    sized = any(row.size for members in rows.values() for row in members)
    return {split: _table(rows[split], classes, flag, sized) for split in order}


def _table(rows: Sequence[Row], classes: Sequence[str], flag: str, sized: bool) -> Any:
    import datasets
    import pyarrow as pa

    number = {name: i for i, name in enumerate(classes)}
    struct = {
        "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
        "category": datasets.List(datasets.ClassLabel(names=list(classes))),
        **({flag: datasets.List(datasets.Value("bool"))} if flag else {}),
    }
    cells = [
        {
            "bbox": row.boxes,
            "category": [number[n] for n in row.classes],
            **({flag: row.flags} if flag else {}),
        }
        if row.annotated
        else None
        for row in rows
    ]
    sizes = {"width": 0, "height": 1} if sized else {}
    features = datasets.Features(
        {"image": datasets.Image(), "objects": struct, **{side: datasets.Value("int64") for side in sizes}}
    )
    paths = pa.array([row.path for row in rows], pa.string())
    columns = {
        "image": datasets.Image().cast_storage(paths),
        "objects": pa.array(cells, features.arrow_schema.field("objects").type),
    }
    for side, at in sizes.items():
        columns[side] = pa.array([row.size[at] if row.size else None for row in rows], pa.int64())
    return table_of(pa.table(columns), features)


# -- splits and pictures -------------------------------------------------------------------------------------


def told(name: str) -> str | None:
    """The split that the name of a file or folder tells, also among other words: ``instances_val2017``."""
    role = splits.role(name)
    return role if role in splits.WORDS else splits.hint(name)


def folder_split(path: str, found: Found) -> str | None:
    """The split that the nearest folder of a file tells, of those below the root."""
    return next((split for name in reversed(parents(path, found)) if (split := told(name))), None)


def parents(path: str, found: Found) -> list[str]:
    """The names of the folders between the root and a file, the outermost first."""
    return os.path.dirname(found.short(path)).split(os.sep)


def by_basename(paths: Iterable[str], stem: bool = False) -> dict[str, list[str]]:
    """Paths by the name of the file, without its suffix if so wished."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        name = os.path.basename(path)
        groups.setdefault(os.path.splitext(name)[0] if stem else name, []).append(path)
    return groups


def first_ring(rings: Iterable[Iterable[str]]) -> list[str]:
    """Of ever wider choices of paths, the first that has any."""
    return next((members for ring in rings if (members := list(dict.fromkeys(ring)))), [])


def inside(folders: Collection[str], paths: Iterable[str]) -> Iterator[str]:
    """Those of the paths that lie below any of the folders."""
    begins = tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
    return (path for path in paths if path.startswith(begins))


def said_of(found: Found, rows: Mapping[str, Sequence[Row]], read: Collection[str], what: str) -> list[str]:
    """Notes of what was not read, and of pictures of one split that lie in the folder of another.

    Args:
        found: the folder.
        rows: by split.
        read: files that were, beside the pictures.
        what: tells of a picture, for messages: ``named in no COCO file``.
    """
    read = set(read)
    said = notes(replace(found, others=[path for path in found.others if path not in read]))
    named = {row.path for members in rows.values() for row in members}
    if left := [path for path in found.pictures if path not in named]:
        said.append(
            f"{found.root}: {len(left)} pictures are {what} and not read, first {found.short(left[0])}"
        )
    for split, members in rows.items():
        elsewhere = [row.path for row in members if folder_split(row.path, found) not in (None, split)]
        if elsewhere:
            said.append(
                f"{found.root}: {len(elsewhere)} pictures of {split} lie in the folder of another split, "
                f"first {found.short(elsewhere[0])}"
            )
    return said


# -- values --------------------------------------------------------------------------------------------------


def number(text: str) -> float | None:
    """A finite number as it is written in text, or None."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def size_of(width: Any, height: Any, where: str) -> tuple[int, int] | None:
    """A declared size; zeros, as tools write where they do not know it, and what is absent declare none.

    Args:
        width: a number, or the text of one.
        height: the same.
        where: for messages.

    Raises:
        InputError: it is no size of a picture.
    """
    sides = [number(side.strip() or "0") if isinstance(side, str) else side or 0 for side in (width, height)]
    if sides == [0, 0]:
        return None
    whole = [side for side in sides if isinstance(side, int | float) and 0 < side < 1 << 31 and side % 1 == 0]
    if len(whole) < 2:
        shown = " x ".join(str(side)[:20] for side in (width, height))
        raise InputError(
            f"{where}: it declares a size of {shown} pixels, which no picture has. Mend or remove it."
        )
    return int(whole[0]), int(whole[1])


def check_names(names: Sequence[str], file: str) -> None:
    """Raise InputError where names cannot be those of classes: none, empty, twice, or half characters."""
    if not names:
        raise InputError(f"{file} names no class.")
    seen: set[str] = set()
    for name in names:
        if not name.strip() or not _is_text(name):
            raise InputError(f"{file}: {name!r} is no name of a class. Give each class one.")
        if name in seen:
            raise InputError(f"{file}: two classes are called {name!r}. Rename or remove one.")
        seen.add(name)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
