"""``ImageSets/Main`` of Pascal VOC: lists of names, one a line, that divide the pictures beside them.

A list divides the folder that holds its ``ImageSets``, so that several years of VOC may lie side by side.
``trainval.txt`` is train and val together and is read where neither of these is there. Lists of single
classes (``cat_train.txt``) and of other tasks are not read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdcli.data.annotations.objects import by_basename, first_ring, inside
from kdcli.data.files import Found
from kdcli.data.tables import readable
from kdcli.errors import InputError
from kdcli.reading import read_bytes

_SPLITS = {"train": "train", "val": "validation", "test": "test", "trainval": "train"}
_LIMIT = 1 << 28  # bytes: some ten million names
_PICTURES = "JPEGImages"


def lists_of(found: Found) -> list[str]:
    """The lists below a folder."""
    return [file for file in found.others if _base(file)]


def divided(
    found: Found, files: Sequence[str], lists: Sequence[str], said: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What lists name, by split: XML files, and pictures that have none.

    Args:
        found: the folder.
        files: XML files.
        lists: at least one.
        said: notes to add to.

    Raises:
        InputError: a list that is damaged, names one thing twice, or what is not there, or may be several.
    """
    names = {file: _names(file) for file in lists}
    stems = (by_basename(files, stem=True), by_basename(found.pictures, stem=True))
    told: dict[str, list[str]] = {}
    bare: dict[str, list[str]] = {}
    for file in _without_joined(names, said):
        base, split = _base(file) or "", _SPLITS[_stem(file)]
        members, without = told.setdefault(split, []), bare.setdefault(split, [])
        for name, line in names[file].items():
            where = f"{file} line {line}"
            if own := _lone(_named(name, base, "Annotations", stems[0]), where, name):
                members.append(own)
            elif own := _lone(_named(name, base, _PICTURES, stems[1]), where, name):
                without.append(own)
            else:
                raise InputError(f"{where}: {name!r} names no XML file and no picture below {base}.")
    if first := [path for paths in bare.values() for path in paths]:
        said.append(
            f"{found.root}: {len(first)} pictures in lists have no XML file and are not annotated, first "
            f"{found.short(first[0])}"
        )
    return told, bare


def _base(file: str) -> str | None:
    """The folder that a list divides; None for a file that is no list."""
    folder, main = os.path.split(os.path.dirname(file))
    base, sets = os.path.split(folder)
    is_list = (sets, main) == ("ImageSets", "Main") and file.endswith(".txt") and _stem(file) in _SPLITS
    return base if is_list and os.path.isfile(file) else None


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]


def _names(file: str) -> dict[str, int]:
    """The names in a list, and the line of each."""
    with readable(file):
        lines = read_bytes(Path(file), _LIMIT).decode("utf-8-sig").split("\n")
    names: dict[str, int] = {}
    for line, text in enumerate(lines, 1):
        name = text.strip()
        if name and names.setdefault(name, line) != line:
            raise InputError(f"{file} line {line}: {name!r} stands in line {names[name]} already.")
    return names


def _without_joined(names: dict[str, dict[str, int]], said: list[str]) -> list[str]:
    """The lists but for each ``trainval.txt`` beside its halves."""
    kept = []
    for file, own in names.items():
        beside = [os.path.join(os.path.dirname(file), f"{half}.txt") for half in ("train", "val")]
        halves = [half for half in beside if half in names]
        if _stem(file) != "trainval" or not halves:
            kept.append(file)
        elif more := len(own.keys() - {name for half in halves for name in names[half]}):
            beside_it = " and ".join(map(os.path.basename, halves))
            said.append(f"{file} is not read beside {beside_it}, and names {more} pictures more")
    return kept


def _named(name: str, base: str, folder: str, stems: dict[str, list[str]]) -> list[str]:
    """Files of a name below ``base``, those in ``folder`` first; a name may hold folders, but no suffix."""
    direct = os.path.join(base, folder, name)
    own = stems.get(os.path.basename(name), [])
    same = (path for path in own if os.path.splitext(path)[0] == direct)
    end = os.sep + name
    return first_ring(
        [same, (path for path in inside([base], own) if os.path.splitext(path)[0].endswith(end))]
    )


def _lone(paths: Sequence[str], where: str, name: str) -> str | None:
    if len(paths) > 1:
        raise InputError(f"{where}: {name!r} may be {paths[0]} or {paths[1]}. Move one away.")
    return paths[0] if paths else None
