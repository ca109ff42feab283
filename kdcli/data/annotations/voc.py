"""Pascal VOC XML (Everingham et al. 2010): one file with the root ``annotation`` for each picture.

Files lie in ``Annotations/`` beside ``JPEGImages/``, or beside pictures of the same stem. ``ImageSets/Main/``
divides them where it has lists (see :mod:`kdcli.data.annotations.imagesets`), and else their folders do.
Classes are the names of all objects, in the order of their text; parts of objects are not read. A picture
that a list names and no XML tells of is not annotated.

Coordinates are those of VOC: whole pixels counted from 1, both ends included, so that x = xmin - 1 and
width = xmax - xmin + 1, and a box over the whole picture is 1, 1, width, height. VOC's own evaluation
measures boxes so. Many tools write corners counted from 0 instead, in files that look the same but where a
box touches the left or upper edge: there they write 0, which VOC has not. Such a box begins at the edge, and
a note says that the others may stand one pixel too far to the left and above.

Files are untrusted: one with a document type (where entities are declared), of more than 16 MB or nested
deeper than 32 is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import ne
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kdcli.data.annotations.imagesets import divided, lists_of
from kdcli.data.annotations.objects import (
    Box,
    Claim,
    Row,
    by_basename,
    check_names,
    first_ring,
    folder_split,
    inside,
    number,
    said_of,
    size_of,
    tables_of,
)
from kdcli.data.files import Found
from kdcli.data.tables import Raw, readable
from kdcli.errors import InputError
from kdcli.reading import read_bytes

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_KIND = "Pascal VOC XML"
_LIMIT, _DEEPEST = 16 << 20, 32  # bytes, and elements inside of elements
_BEGINNING = 1 << 12  # bytes that the root is looked for in
_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
# What may stand before the root: a declaration, comments, a document type (refused by whoever reads it).
_ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?.*?\?>|<!--.*?-->)*<(?:!DOCTYPE\s+)?annotation[\s>/\[]", re.DOTALL
)


def claim(found: Found) -> Claim | None:
    """XML files below a folder whose root is ``annotation``."""
    files = [file for file in found.others if file.lower().endswith(".xml") and _is_annotation(file)]
    return Claim(_KIND, files[0], lambda: _read(found, files)) if files else None


def _is_annotation(file: str) -> bool:
    if not os.path.isfile(file):
        return False
    with readable(file), open(file, "rb") as stream:
        return bool(_ROOT.match(stream.read(_BEGINNING)))


# -- files ---------------------------------------------------------------------------------------------------


@dataclass
class _Aside:
    """XML files with boxes that begin where VOC has no pixel: how many, and the first."""

    count: int = 0
    file: str = ""


def _read(found: Found, files: Sequence[str]) -> Raw:
    said: list[str] = []
    bare: dict[str, list[str]] = {}
    lists = lists_of(found)
    if lists:
        splits, bare = divided(found, files, lists, said)
    else:
        splits = _by_folder(found, files)
    aside, partners = _Aside(), _Partners(found)
    rows: dict[str, list[Row]] = {}
    for split, members in splits.items():
        owners: dict[str, str] = {}
        for file in members:
            row = _row(file, partners, aside)
            if (other := owners.setdefault(row.path, file)) != file:
                raise InputError(f"{other} and {file} are both of {found.short(row.path)}. Remove one.")
            rows.setdefault(split, []).append(row)
    for split, paths in bare.items():
        rows.setdefault(split, []).extend(Row(path, annotated=False) for path in paths)
    for members_of in rows.values():
        members_of.sort(key=lambda row: row.path)
    classes = sorted({name for members_of in rows.values() for row in members_of for name in row.classes})
    check_names(classes, str(found.root))
    said = [*said_of(found, rows, [*files, *lists], "told of in no XML file in use"), *said]
    if aside.count:
        said.append(
            f"{found.root}: boxes begin at pixel 0 in {aside.count} XML files, first "
            f"{found.short(aside.file)}; VOC counts pixels from 1. These boxes begin at the edge; if all "
            "corners are counted from 0, the others begin one pixel too far to the left and above"
        )
    read = {file for members in splits.values() for file in members}
    if left := [file for file in files if file not in read]:
        said.append(
            f"{found.root}: {len(left)} XML files are in no list of ImageSets/Main and not read, first "
            f"{found.short(left[0])}"
        )
    return Raw(
        tables_of({s: own for s, own in rows.items() if own}, classes, "difficult"),
        root=found.root,
        notes=said,
        annotated="VOC",
    )


def _by_folder(found: Found, files: Sequence[str]) -> dict[str, list[str]]:
    """XML files by the split that their folders tell; all are train where none tells one.

    Raises:
        InputError: a file outside of the split folders.
    """
    splits: dict[str | None, list[str]] = {}
    for file in files:
        splits.setdefault(folder_split(file, found), []).append(file)
    loose = splits.pop(None, [])
    if loose and splits:
        raise InputError(
            f"{loose[0]} lies beside the split folders ({len(loose)} such). Move it into one, or away."
        )
    return {"train": loose} if loose else {split: own for split, own in splits.items() if split}


class _Partners:
    """Finds the picture of each XML file, in ever wider circles around it."""

    def __init__(self, found: Found) -> None:
        self.found, self.stems = found, by_basename(found.pictures, stem=True)

    def of(self, file: str, called: str) -> str:
        """The picture of the same stem; of several, the one with the name that the file says.

        Raises:
            InputError: there is none, or there are several.
        """
        own = self.stems.get(os.path.splitext(os.path.basename(file))[0], [])
        members = first_ring(self._rings(os.path.dirname(file), own))
        if len(members) > 1:
            members = [path for path in members if os.path.basename(path) == called] or members
        if not members:
            raise InputError(f"{file}: there is no picture of this name below {self.found.root}.")
        if len(members) > 1:
            one, other = map(self.found.short, members[:2])
            raise InputError(f"{file} may be of {one} or {other}, by its name. Move one away.")
        return members[0]

    def _rings(self, folder: str, own: Sequence[str]) -> Iterator[Iterator[str]]:
        """Pictures in the folder; in one that is called otherwise at one place; beside it; anywhere."""
        parts = folder.split(os.sep)
        folders = {path: os.path.dirname(path).split(os.sep) for path in own}
        alike = [p for p, f in folders.items() if len(f) == len(parts) and sum(map(ne, f, parts)) == 1]
        yield (path for path in own if folders[path] == parts)
        yield (path for path in alike if folders[path][-1] in ("JPEGImages", "images"))
        yield iter(alike)
        yield inside([os.path.dirname(folder)], own)
        yield iter(own)


# -- one file ------------------------------------------------------------------------------------------------


def _row(file: str, partners: _Partners, aside: _Aside) -> Row:
    root = _parse(file)
    called = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    size = size_of(root.findtext("size/width"), root.findtext("size/height"), file)
    row = Row(partners.of(file, called), size=size)
    outside = False
    for at, entry in enumerate(root.findall("object"), 1):
        where = f"{file}, object {at}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{where} has no name.")
        box = _box(entry, where)
        outside |= box[0] < 0 or box[1] < 0
        row.add(_from_edge(box), name, _flag(entry, where))
    if outside:
        aside.count, aside.file = aside.count + 1, aside.file or file
    return row


def _box(entry: Element, where: str) -> Box:
    """x, y, width and height of a box whose corners are pixels counted from 1, both of them inside."""
    found = entry.find("bndbox")
    texts = [None if found is None else found.findtext(side) for side in _SIDES]
    values = [number((text or "").strip()) for text in texts]
    x1, y1, x2, y2 = (-1.0 if value is None else value for value in values)
    if None in values or min(x1, y1) < 0:
        shown = ", ".join(str(text)[:20] for text in texts)
        raise InputError(
            f"{where} has the box {shown}, where {', '.join(_SIDES)} are wanted, in pixels from 1."
        )
    if x2 < max(x1, 1) or y2 < max(y1, 1):
        raise InputError(f"{where}: its box ends before it begins ({x1:g}, {y1:g}, {x2:g}, {y2:g}).")
    return x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1


def _from_edge(box: Box) -> Box:
    """The part of a box that lies right of and below the picture's upper left corner."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    return left, top, x + width - left, y + height - top


def _flag(entry: Element, where: str) -> bool:
    text = (entry.findtext("difficult") or "0").strip().lower()
    if text not in _FLAGS:
        raise InputError(f"{where} has difficult {text[:20]!r}, where 0 or 1 is wanted.")
    return _FLAGS[text]


def _parse(file: str) -> Element:
    """The root of a file. Raises InputError for one that is damaged, large, deep or has a document type."""
    from xml.etree.ElementTree import TreeBuilder
    from xml.parsers import expat

    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise InputError(f"{file} is nested more than {_DEEPEST} deep, as no annotation is.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> NoReturn:
        raise InputError(f"{file} has a document type (<!DOCTYPE …>), which may declare entities. Remove it.")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    with readable(file):
        data = read_bytes(Path(file), _LIMIT)
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError) as error:
            raise InputError(f"{file} is not valid XML: {error}.") from error
    return builder.close()
