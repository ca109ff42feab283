"""COCO JSON (Lin et al. 2014): one file for each split, that names pictures, their objects and the classes.

An object with the keys ``images``, ``annotations`` and ``categories`` is COCO, whatever its file is called:
``annotations/instances_train2017.json`` beside ``train2017/``, ``train/_annotations.coco.json`` among the
pictures, ``annotations.json`` or ``train.json`` beside a folder of them. Its split is what its name tells, or
else a folder above it; one file alone that tells none is train. Where a folder has files called
``instances_…``, those beside them (keypoints, captions, stuff) are of the same pictures and not read.

Classes are numbered in the order of their ids, which need not be dense. Boxes are x, y, width, height in
pixels, as the column wants them. A picture without annotations has no objects.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.data.annotations.objects import (
    Box,
    Claim,
    Row,
    by_basename,
    check_names,
    first_ring,
    folder_split,
    inside,
    said_of,
    size_of,
    tables_of,
    told,
)
from kdcli.data.files import Found, relative
from kdcli.data.tables import Raw, readable
from kdcli.errors import InputError
from kdcli.reading import read_bytes

_KIND = "COCO JSON"
_KEYS = ("images", "annotations", "categories")
_LIMIT = 2 << 30  # bytes: COCO's largest file has 0.5e9, LVIS' 1.2e9
_CHUNK = 1 << 24  # bytes looked through at once
_MANY = 100  # files, above which those named like the picture beside them are not looked into
_LONG = ("segmentation", "keypoints", "segments_info")  # most of a file, and not read

Content = dict[str, Any]


def claim(found: Found) -> Claim | None:
    """COCO files below a folder. One that looks like COCO and is damaged counts: who reads it says so."""
    contents: dict[str, Content] = {}
    damaged: list[InputError] = []
    others: list[str] = []
    files = _candidates(found)
    marked = {os.path.dirname(file) for file in files if _is_instances(file)}
    for file in files:
        if os.path.dirname(file) in marked and not _is_instances(file):
            others.append(file)
            continue
        try:
            content = _parse(file)
        except InputError as error:
            damaged.append(error)
            contents[file] = {}
        else:
            if isinstance(content, dict) and set(_KEYS) <= set(content):
                contents[file] = content
    if not contents:
        return None

    def read() -> Raw:
        for error in damaged:
            raise error
        return _read(found, contents, others)

    return Claim(_KIND, next(iter(contents)), read)


def _is_instances(file: str) -> bool:
    return os.path.basename(file).startswith("instances_")


def _candidates(found: Found) -> list[str]:
    """JSON files that may be COCO by the words in them; a sidecar of each of many pictures is none."""
    files = [file for file in found.others if file.lower().endswith(".json") and os.path.isfile(file)]
    if len(files) > _MANY:
        beside = {os.path.splitext(path)[0] for path in found.pictures} | set(found.pictures)
        files = [file for file in files if file[: -len(".json")] not in beside]
    return [file for file in files if _has_words(file)]


def _has_words(file: str) -> bool:
    """Whether the keys stand in it somewhere; the last of them may be missing where a file was cut off."""
    wanted = {f'"{word}"'.encode() for word in (*_KEYS, "bbox")}
    seen: set[bytes] = set()
    tail = b""
    with readable(file), open(file, "rb") as stream:
        while wanted - seen and (chunk := stream.read(_CHUNK)):
            block = tail + chunk
            seen |= {word for word in wanted - seen if word in block}
            tail = block[-32:]
    return {b'"images"', b'"annotations"'} <= seen and bool({b'"categories"', b'"bbox"'} & seen)


def _parse(file: str) -> Any:
    def lean(part: Content) -> Content:
        for key in _LONG:
            part.pop(key, None)
        return part

    with readable(file):
        data = read_bytes(Path(file), _LIMIT)
        try:
            return json.loads(data, object_hook=lean)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not valid JSON: {error}. Was it cut off? Get it again.") from error


# -- files ---------------------------------------------------------------------------------------------------


def _read(found: Found, contents: Mapping[str, Content], others: Sequence[str]) -> Raw:
    files = _splits(found, list(contents))
    names = {file: _categories(contents[file], file) for file in files.values()}
    classes = list(dict.fromkeys(name for own in names.values() for name in own.values()))
    pictures = _Pictures(found)
    rows: dict[str, list[Row]] = {}
    said: list[str] = []
    for split, file in files.items():
        rows[split] = _rows(contents[file], file, names[file], pictures.finder(file, split))
        if not contents[file]["annotations"]:
            said.append(f"{file} holds no annotation: all of its pictures count as such without objects")
    first, *more = names
    if unlike := [file for file in more if list(names[file].values()) != list(names[first].values())]:
        said.append(f"{unlike[0]} has other categories than {first}: they are matched by name")
    if others:
        said.append(
            f"{found.root}: {found.short(others[0])} is not read, since instances_… beside it has the boxes"
        )
    read = [*contents, *others]
    said = [*said_of(found, rows, read, "named in no COCO file"), *said]
    return Raw(tables_of(rows, classes, "iscrowd"), root=found.root, notes=said, annotated="COCO")


def _splits(found: Found, files: Sequence[str]) -> dict[str, str]:
    """The file of each split. Raises InputError where a split has two, or a file of several tells none."""
    found_files: dict[str, str] = {}
    for file in files:
        split = told(os.path.splitext(os.path.basename(file))[0]) or folder_split(file, found)
        if split is None and len(files) > 1:
            other = next(one for one in files if one != file)
            raise InputError(
                f"{file} beside {found.short(other)}: of which split is it? Call it train.json, "
                "validation.json or test.json, or move it away."
            )
        split = split or "train"
        if split in found_files:
            raise InputError(
                f"{found_files[split]} and {file} are both of the {split} split. Join them, or move one away."
            )
        found_files[split] = file
    return found_files


def _categories(content: Content, file: str) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    names: dict[int, str] = {}
    for entry in _entries(content, "categories", file):
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{file}: a category has the id {number!r}, where a whole number is wanted.")
        if number in names:
            raise InputError(f"{file}: two categories have the id {number}.")
        if not isinstance(name, str):
            raise InputError(f"{file}: the category {number} has no name. Give it one.")
        names[number] = name
    names = dict(sorted(names.items()))
    check_names(list(names.values()), file)
    return names


def _entries(content: Content, key: str, file: str) -> list[Content]:
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: '{key}' is no list of objects, as COCO has it.")
    return entries


# -- rows ----------------------------------------------------------------------------------------------------


def _rows(
    content: Content, file: str, names: Mapping[int, str], find: Callable[[str], str | None]
) -> list[Row]:
    """A row for each picture, in the order of the file."""
    rows: dict[Any, Row] = {}
    owners: dict[str, str] = {}
    absent: list[str] = []
    for entry in _entries(content, "images", file):
        key, name = entry.get("id"), entry.get("file_name")
        if not isinstance(key, int | str) or not isinstance(name, str) or not name:
            raise InputError(f"{file}: the image {key!r} has no id or no file_name ({name!r}).")
        if key in rows:
            raise InputError(f"{file}: two images have the id {key!r}.")
        path = find(name)
        if path is None:
            absent.append(name)
        elif path in owners:
            raise InputError(f"{file}: two images have the same file, {owners[path]!r} and {name!r}.")
        else:
            owners[path] = name
        size = size_of(entry.get("width"), entry.get("height"), f"{file}, {name!r}")
        rows[key] = Row(path or "", size=size)
    if absent:
        raise InputError(
            f"{file}: {len(absent)} of the {len(rows)} pictures that it names are not there (or of a kind "
            f"that is not read), first {absent[0]!r}. Put them beside it or below the folder, or remove them "
            "from it."
        )
    if not rows:
        raise InputError(f"{file} names no picture.")
    for at, entry in enumerate(_entries(content, "annotations", file)):
        where = f"{file}, annotation {entry.get('id', f'number {at}')!r}"
        picture, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(picture, int | str) or picture not in rows:
            raise InputError(f"{where} is of the image {picture!r}, which 'images' has not.")
        if not isinstance(category, int) or category not in names:
            raise InputError(f"{where} is of the category {category!r}, which 'categories' has not.")
        rows[picture].add(_box(entry.get("bbox"), where), names[category], _flag(entry, where))
    return list(rows.values())


def _box(value: Any, where: str) -> Box:
    if isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value)):
        x, y, width, height = map(float, value)
        return x, y, width, height
    raise InputError(f"{where} has the bbox {str(value)[:80]}, where x, y, width and height are wanted.")


def _is_finite(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e9 and math.isfinite(value)


def _flag(entry: Content, where: str) -> bool:
    value = entry.get("iscrowd", 0)
    if value not in (0, 1):
        raise InputError(f"{where} has iscrowd {value!r}, where 0 or 1 is wanted.")
    return bool(value)


class _Pictures:
    """Finds the pictures that JSON files name, in ever wider circles around them."""

    def __init__(self, found: Found) -> None:
        self.found, self.paths, self.named = found, set(found.pictures), by_basename(found.pictures)

    def finder(self, file: str, split: str) -> Callable[[str], str | None]:
        """Finds what a file names; raises InputError for a name that leads elsewhere, or to several."""
        base, stem = os.path.dirname(file), os.path.splitext(os.path.basename(file))[0]
        called = {folder: os.path.basename(folder) for folder in self.found.folders}
        alike = [f for f, n in called.items() if stem == n or stem.endswith((f"_{n}", f"-{n}", f".{n}"))]
        alike = alike or [folder for folder, name in called.items() if told(name) == split]

        def rings(path: str) -> Iterator[Iterator[str]]:
            end = os.sep + path
            named = [own for own in self.named.get(os.path.basename(path), ()) if own.endswith(end)]
            yield (own for own in (os.path.join(base, path),) if own in self.paths)
            yield (own for own in (os.path.join(folder, path) for folder in alike) if own in self.paths)
            yield inside(alike, named)
            yield iter(named)

        def find(name: str) -> str | None:
            members = first_ring(rings(relative(name, file, base)))
            if len(members) > 1:
                one, other = map(self.found.short, members[:2])
                raise InputError(
                    f"{file}: {name!r} may be {one} or {other}. Put the file beside its pictures, or their "
                    "folder into the names."
                )
            return members[0] if members else None

        return find
