"""YOLO text (Redmon et al. 2016; darknet and its successors): one text file for each picture.

The file of ``images/train/a.jpg`` is ``labels/train/a.txt`` (the last folder called ``images`` becomes
``labels``), or else ``a.txt`` in a folder ``labels`` beside the picture, or beside it. A line is an object:
the number of its class, then center x, center y, width and height of its box as fractions of the upright
picture. A picture whose file is empty, or that has none where others of its split have one, has no objects.
Names of classes are in files of their own (see :mod:`kdcli.data.annotations.names`). Folders tell the
splits.

A folder holds YOLO text where there are such names, or a folder called ``labels``, and text files of pictures
with such lines in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from kdcli.data.annotations.names import class_names, name_files
from kdcli.data.annotations.objects import (
    Box,
    Claim,
    Row,
    folder_split,
    number,
    parents,
    said_of,
    tables_of,
)
from kdcli.data.files import Found
from kdcli.data.images import upright_size
from kdcli.data.samples import cell_bytes
from kdcli.data.tables import Raw, readable
from kdcli.errors import BadImageError, InputError
from kdcli.reading import read_bytes

_KIND = "YOLO text"
_LIMIT = 16 << 20  # bytes of a text file: some 300,000 objects
_LOOKED = 50  # text files with something in them that are looked into before a folder counts as none of YOLO
_BEGINNING = 1 << 12  # bytes of these
_HEAD = 1 << 18  # bytes of a JPEG that mostly hold its header
_IMAGES, _LABELS = "images", "labels"


def claim(found: Found) -> Claim | None:
    """Text files of pictures, with lines of objects."""
    names = name_files(found)
    if not names and all(os.path.basename(folder) != _LABELS for folder in found.folders):
        return None
    texts = {file for file in found.others if file.lower().endswith(".txt")} - set(names)
    pairs = _pairs(found, texts)
    filled = ((file, fits) for file in pairs.values() if (fits := _fits(file)) is not None)
    first = next((file for file, fits in islice(filled, _LOOKED) if fits), None)
    return None if first is None else Claim(_KIND, first, lambda: _read(found, names, texts, pairs))


def _pairs(found: Found, texts: set[str]) -> dict[str, str]:
    """The text file of each picture that has one."""
    pairs: dict[str, str] = {}
    for path in found.pictures:
        if file := next((file for file in _places(path, found) if file in texts), None):
            pairs[path] = file
    return pairs


def _places(path: str, found: Found) -> Iterator[str]:
    """Where the text file of a picture may lie."""
    folder, name = os.path.split(os.path.splitext(path)[0] + ".txt")
    parts = parents(path, found)
    if _IMAGES in parts:
        last = len(parts) - 1 - parts[::-1].index(_IMAGES)
        yield os.path.join(found.root, *parts[:last], _LABELS, *parts[last + 1 :], name)
    yield os.path.join(folder, _LABELS, name)
    yield os.path.join(folder, name)


def _fits(file: str) -> bool | None:
    """Whether a file begins with a line of numbers as objects have them; None for an empty one."""
    if not os.path.isfile(file):
        return False
    with readable(file), open(file, "rb") as stream:
        begin = stream.read(_BEGINNING).decode("utf-8-sig", errors="replace")
    line = next((line for line in begin.split("\n") if line.strip()), None)
    if line is None:
        return None
    values = [number(text) for text in line.split()]
    return len(values) >= 5 and None not in values and values[0] == int(values[0] or 0)


# -- splits --------------------------------------------------------------------------------------------------


def _read(found: Found, files: Sequence[str], texts: set[str], pairs: Mapping[str, str]) -> Raw:
    if not files:
        raise InputError(
            f"{found.root}: no file names the classes of its YOLO text. Write their names into classes.txt, "
            "one a line, the first of them number 0; or into a data.yaml."
        )
    said: list[str] = []
    names = class_names(files, said)
    _refuse_unpaired(found, texts, pairs)
    splits = _splits(found, pairs)
    rows: dict[str, list[Row]] = {}
    faults: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for split, paths in splits.items():
            rows[split] = list(pool.map(partial(_row, found, pairs, _Names(files[0], names), faults), paths))
            if without := [path for path in paths if path not in pairs]:
                said.append(
                    f"{found.root}: {len(without)} of {len(paths)} pictures of {split} have no text file and "
                    f"count as such without objects, first {found.short(without[0])}"
                )
    if faults:
        said.append(
            f"{found.root}: boxes of {len(faults)} pictures are not read, since the size of these cannot be "
            f"told, first {min(faults)}"
        )
    read = [*files, *pairs.values()]
    said = [*said_of(found, rows, read, "beside folders that have text files"), *said]
    return Raw(tables_of(rows, list(names.values())), root=found.root, notes=said, annotated="YOLO")


def _refuse_unpaired(found: Found, texts: Iterable[str], pairs: Mapping[str, str]) -> None:
    """Raise InputError for a text file of two pictures, and for one of objects that has none."""
    owners: dict[str, str] = {}
    for path, file in pairs.items():
        if (other := owners.setdefault(file, path)) != path:
            one, two = found.short(other), found.short(path)
            raise InputError(f"{file} may be of {one} or {two}, by its name. Move one away.")
    homes = {os.path.dirname(file) for file in owners}
    alone = [file for file in sorted(texts) if file not in owners]
    alone = [file for file in alone if os.path.dirname(file) in homes or _LABELS in parents(file, found)]
    if lost := [file for file in alone if _fits(file)]:
        raise InputError(
            f"{found.root}: {len(lost)} text files hold objects of pictures that are not there (or of a kind "
            f"that is not read), first {found.short(lost[0])}. Put the pictures there, or move these away."
        )


def _splits(found: Found, pairs: Mapping[str, str]) -> dict[str, list[str]]:
    """Pictures by the split that their folders tell; all are train where none tells one.

    Those in folders without text files, and not below one that has them nor one called ``images``, are left
    out: they may be masks, or samples of what a model said.

    Raises:
        InputError: a picture with a text file outside of the split folders, or a split without any.
    """
    homes = {os.path.dirname(path) for path in pairs}
    splits: dict[str | None, list[str]] = {}
    for path in found.pictures:
        if path in pairs or _IMAGES in parents(path, found) or _is_below(path, homes):
            splits.setdefault(folder_split(path, found), []).append(path)
    loose = splits.pop(None, [])
    if splits and (labelled := [path for path in loose if path in pairs]):
        raise InputError(
            f"{labelled[0]} lies beside the split folders ({len(labelled)} such with a text file). Move it "
            "into one, or away."
        )
    whole = {split: paths for split, paths in splits.items() if split} or {"train": loose}
    labelled_splits = {split for split, paths in whole.items() if any(path in pairs for path in paths)}
    for path in found.pictures:
        if (told := folder_split(path, found)) and told not in labelled_splits:
            raise InputError(
                f"{found.root}: none of the pictures of {told} has a text file of objects, first "
                f"{found.short(path)}. Put them beside the pictures or into a folder called labels, or move "
                "these pictures away."
            )
    return whole


def _is_below(path: str, folders: set[str]) -> bool:
    while (above := os.path.dirname(path)) != path:
        if above in folders:
            return True
        path = above
    return False


# -- one picture ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """Names of classes by number, and the file that has them."""

    file: str
    by_number: dict[int, str]


def _row(found: Found, pairs: Mapping[str, str], names: _Names, faults: list[str], path: str) -> Row:
    """What is known of a picture; where its size cannot be told, that is added to ``faults``."""
    if path not in pairs:
        return Row(path)
    file = pairs[path]
    with readable(file):
        lines = read_bytes(Path(file), _LIMIT).decode("utf-8-sig").split("\n")
    objects = [
        _object(line.split(), f"{file} line {at}", names) for at, line in enumerate(lines, 1) if line.strip()
    ]
    if not objects:
        return Row(path)
    try:
        width, height = _size(path, found.root)
    except BadImageError as error:  # whoever decodes it will say so
        faults.append(f"{found.short(path)}: {error}")
        return Row(path, annotated=False)
    row = Row(path)
    for name, (x, y, w, h) in objects:
        row.add(((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), name)
    return row


def _object(line: Sequence[str], where: str, names: _Names) -> tuple[str, Box]:
    """Name of an object's class, and its box as fractions: center, width and height."""
    values = [value for text in line if (value := number(text)) is not None]
    if len(values) < len(line):
        raise InputError(f"{where}: {' '.join(line)[:80]!r} where 'class x y width height' is wanted.")
    if len(values) != 5:
        raise InputError(
            f"{where} has {len(values)} numbers where 5 are wanted (class x y width height): polygons, "
            "turned boxes, key points and confidences are not read. Convert them to boxes."
        )
    kind, x, y, width, height = values
    if min(x, y, width, height) < 0 or max(x, y, width, height) > 1:
        raise InputError(
            f"{where}: {' '.join(line)[:80]!r} goes beyond 0 and 1. Boxes are fractions of the picture here: "
            "divide pixels by its width and height."
        )
    if kind not in names.by_number:
        raise InputError(f"{where} is of class {kind:g}, for which {names.file} has no name.")
    return names.by_number[int(kind)], (x, y, width, height)


def _size(path: str, root: Path) -> tuple[int, int]:
    """Width and height of an upright picture; of a JPEG, from its beginning if that tells."""
    if Path(path).resolve().is_relative_to(root):
        with readable(path), open(path, "rb") as stream:
            head = stream.read(_HEAD)
        if head.startswith(b"\xff\xd8") and len(head) == _HEAD:
            try:
                return upright_size(head)
            except BadImageError:
                pass
    return upright_size(cell_bytes(path, root, path))
