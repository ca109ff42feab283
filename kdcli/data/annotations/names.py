"""Names of classes beside YOLO text, by their numbers: ``data.yaml``, ``obj.names``, ``classes.txt``.

A YAML file counts whatever it is called, if it has the key ``names``: a list, or a mapping from numbers. In
the others a line is a name, the first of them number 0. The folders that a YAML file calls ``train``, ``val``
and ``test`` are not heeded (they seldom fit where the data lie now); where they say something else than the
folders' own names do, a note tells it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcli.data.annotations.objects import check_names, told
from kdcli.data.files import Found
from kdcli.data.tables import readable
from kdcli.errors import InputError
from kdcli.reading import TEXT_LIMIT, parse_yaml, read_bytes

_KEY = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)


def name_files(found: Found) -> list[str]:
    """Files that may name classes."""
    return [file for file in found.others if _is_list(file) or _has_key(file)]


def class_names(files: Sequence[str], said: list[str]) -> dict[int, str]:
    """Names by number, which all of the files agree on.

    Args:
        files: at least one.
        said: notes to add to.

    Raises:
        InputError: a file that is damaged or names no classes, or two that name others.
    """
    names = {file: dict(enumerate(_lines(file))) if _is_list(file) else _mapped(file, said) for file in files}
    first, *others = names
    for file in others:
        if names[file] != names[first]:
            raise InputError(f"{first} and {file} name other classes. Keep the one that is right.")
    return names[first]


def _is_list(file: str) -> bool:
    name = os.path.basename(file)
    return (name == "classes.txt" or name.endswith(".names")) and os.path.isfile(file)


def _has_key(file: str) -> bool:
    if not file.lower().endswith((".yaml", ".yml")) or not os.path.isfile(file):
        return False
    with readable(file), open(file, "rb") as stream:
        return bool(_KEY.search(stream.read(TEXT_LIMIT)))


def _text(file: str) -> str:
    with readable(file):
        return read_bytes(Path(file), TEXT_LIMIT).decode("utf-8-sig")


def _lines(file: str) -> list[str]:
    names = [line.strip() for line in _text(file).rstrip().split("\n")]
    check_names(names, file)
    return names


def _mapped(file: str, said: list[str]) -> dict[int, str]:
    """What a YAML file names, in the order of the numbers."""
    text = _text(file)
    with readable(file):
        content = parse_yaml(text)
    named = content.get("names") if isinstance(content, dict) else None
    numbered = dict(enumerate(named)) if isinstance(named, list) else named
    if not isinstance(numbered, dict) or not all(type(key) is int and key >= 0 for key in numbered):
        raise InputError(f"{file}: 'names' is no list, and no mapping from the numbers of classes to names.")
    names = {key: _name(numbered[key], file) for key in sorted(numbered)}
    check_names(list(names.values()), file)
    if type(count := content.get("nc")) is int and count != len(names):
        raise InputError(f"{file}: 'nc' says {count} classes, and 'names' has {len(names)}.")
    said += _unheeded(content, file)
    return names


def _name(value: Any, file: str) -> str:
    """A name, which may be written as a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{file}: {value!r} is no name of a class. Put it into quotes.")
    return str(value)


def _unheeded(content: dict[str, Any], file: str) -> Iterator[str]:
    for key in ("train", "val", "test"):
        value = content.get(key)
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and path and _split(path) != told(key):
                yield f"{file}: '{key}' is {path[:200]!r}; this is not heeded, for folders tell the splits"


def _split(path: str) -> str | None:
    parts = path.replace("\\", "/").split("/")
    is_list = parts[-1].endswith(".txt")
    return None if is_list else next((split for part in reversed(parts) if (split := told(part))), None)
