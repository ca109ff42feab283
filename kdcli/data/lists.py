"""``list_eval_partition.txt``, by which In-Shop Clothes Retrieval (Liu et al. 2016) says its splits.

Its first line counts the rows, its second names their columns, and each row names a picture, an item and the
split that the picture belongs to. The list lies in a folder beside that of the pictures, so their paths begin
wherever the first of them is found. Other data have lists of this name with other columns: they are not read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdcli.data.files import Found, notes, refuse_special, relative
from kdcli.data.tables import Raw, readable, table_of
from kdcli.errors import InputError

_NAME, _HEADER = "list_eval_partition.txt", ["image_name", "item_id", "evaluation_status"]
_SPLITS = ("train", "query", "gallery")
_PLACE = "the folder of the pictures"
_LARGEST = 1 << 28  # bytes: some three million rows
_BEGINNING = 1 << 10  # bytes that the first two lines are looked for in

_Row = tuple[int, str, str, str]  # number of the line, path, item, split


def partition_lists(found: Found) -> list[str]:
    """The lists of splits below a folder. Raises InputError for one that cannot be read."""
    return [file for file in found.others if os.path.basename(file) == _NAME and _has_header(file)]


def read_partition(found: Found, lists: Sequence[str]) -> Raw:
    """Tables of the pictures that a list names, with the columns ``image`` and ``item_id``.

    Raises:
        InputError: several lists, one that is damaged or too large, or a picture not below the folder.
    """
    if len(lists) > 1:
        raise InputError(f"{lists[0]} and {lists[1]}: which of them says the splits? Move one away.")
    (file,) = lists
    with readable(file):
        rows = _rows(file)
    base = _base(found, file, rows[0])
    pictures = set(found.pictures)
    splits: dict[str, list[tuple[str, str]]] = {}
    for number, name, item, split in rows:
        path = os.path.join(base, relative(name, f"{file} line {number}", _PLACE))
        if path not in pictures:
            raise InputError(f"{file} line {number}: there is no picture {path}.")
        splits.setdefault(split, []).append((path, item))
    said = notes(replace(found, others=[other for other in found.others if other != file]))
    named = {path for members in splits.values() for path, _ in members}
    if left := [path for path in found.pictures if path not in named]:
        said.append(
            f"{found.root}: {len(left)} pictures are not named in {found.short(file)} and not read, first "
            f"{found.short(left[0])}"
        )
    tables = {split: _table(splits[split]) for split in _SPLITS if split in splits}
    return Raw(tables, root=found.root, notes=said)


def _has_header(file: str) -> bool:
    """Whether a list begins with the number of its rows and the names of its columns."""
    refuse_special(file)
    with readable(file), open(file, "rb") as stream:
        lines = stream.read(_BEGINNING).splitlines()
    counted = len(lines) > 1 and lines[0].strip().isdigit()
    return counted and lines[1].decode(errors="replace").split() == _HEADER


def _rows(file: str) -> list[_Row]:
    """The rows of a list, every one understood."""
    if (size := os.path.getsize(file)) > _LARGEST:
        raise InputError(f"{file} has {size:,} bytes, more than {_LARGEST:,}. Write a metadata.csv of it.")
    with open(file, encoding="utf-8") as stream:
        lines = stream.read(_LARGEST).split("\n")
    rows: list[_Row] = []
    for number, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        fields = line.rsplit(None, 2)  # a path may hold spaces
        if len(fields) != 3 or fields[2] not in _SPLITS:
            raise InputError(
                f"{file} line {number}: {line.strip()[:200]!r} where a path, an item and one of "
                f"{', '.join(_SPLITS)} are wanted."
            )
        rows.append((number, fields[0].strip(), fields[1], fields[2]))
    if len(rows) != int(lines[0]) or not rows:
        raise InputError(
            f"{file} says that it has {int(lines[0]):,} rows, and has {len(rows):,}: is a part of it missing?"
        )
    return rows


def _base(found: Found, file: str, row: _Row) -> str:
    """The folder that paths begin in: the one below which the first picture is found.

    Raises:
        InputError: there is none, or there are several.
    """
    number, name, *_ = row
    inside = relative(name, f"{file} line {number}", _PLACE)
    whole = [path for path in found.pictures if path.endswith(os.sep + inside)]
    if not whole:
        raise InputError(f"{file} line {number}: there is no picture {inside} anywhere below {found.root}.")
    if len(whole) > 1:
        raise InputError(
            f"{file} line {number}: {name} may be {found.short(whole[0])} or {found.short(whole[1])}. Move "
            "one of these folders away."
        )
    return whole[0].removesuffix(inside).rstrip(os.sep)


def _table(rows: Sequence[tuple[str, str]]) -> Any:
    """Paths and items."""
    import datasets
    import pyarrow as pa

    paths, items = (pa.array([row[i] for row in rows], pa.string()) for i in range(2))
    features = datasets.Features({"image": datasets.Image(), "item_id": datasets.Value("string")})
    return table_of(pa.table({"image": datasets.Image().cast_storage(paths), "item_id": items}), features)
