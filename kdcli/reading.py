"""What users hand over, read with care: regular files up to a stated size, YAML within bounds.

A name may stand for a pipe, which would be waited for, or for a device without an end; so nothing is opened
before its kind is known, and nothing is read past its limit. Of YAML a few letters may mean a tree without
end (``&a [*a]``) or a number that takes minutes to print; no setting is like that.
"""

from __future__ import annotations

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import Any

from kdcli.errors import InputError

LIMIT = 32 << 20  # bytes of a manifest or configuration: some 200,000 files
TEXT_LIMIT = 1 << 20  # bytes of what a person writes
_DEEPEST, _MOST = 32, 100_000  # of YAML: levels, and values in all
_DIGITS = 39  # of a whole number
_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes


class YamlError(ValueError):
    """A text that is no YAML."""


def refuse_irregular(path: Path) -> None:
    """Raise InputError for what is there and no regular file; OSError where nothing can be looked at."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"cannot read {path}: it is no regular file.")


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of a file.

    Args:
        path: of a regular file, or a link to one.
        limit: most bytes that it may have.

    Raises:
        InputError: it is no regular file, or larger.
        OSError, ValueError: it cannot be opened or read.
    """
    refuse_irregular(path)
    with open(path, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"cannot read {path}: it has more than {limit:,} bytes.")
    return data


def refuse_untextual(text: str) -> None:
    """Raise ValueError for a text with NUL, or with half a character."""
    if "\0" in text:
        raise ValueError("a text without the character NUL is wanted")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("a text of whole Unicode characters is wanted") from None


def refuse_long_path(text: str) -> None:
    """Raise ValueError for a path that is longer than any, or has a name that is."""
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split("/")):
        raise ValueError(f"no file has a name of more than {_LONGEST_NAME} bytes")
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise ValueError(f"no path has more than {_LONGEST_PATH:,} bytes")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, with 1.2's plain scalars.

    Raises:
        YamlError: it is no YAML, or a key stands in it twice.
        ValueError: it is nested deeper, larger, or of longer numbers than settings are.
    """
    import yaml

    try:
        value = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from error
    _refuse_endless(value)
    return value


def _refuse_endless(value: Any) -> None:
    """Raise ValueError for a tree of too many levels or values, aliases counted each time."""
    waiting, count = [(value, 0)], 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        if count > _MOST:
            raise ValueError(f"it has more than {_MOST:,} values")
        inner = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting += [(one, depth + 1) for one in inner]


@cache
def _loader() -> Any:
    """PyYAML's safe loader with YAML 1.2's plain scalars, and without a key that hides another.

    1.1, PyYAML's own, reads ``no`` as False (a precision here), ``1e-3`` as text, ``010`` as eight and a day
    as a date.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_yaml_int(self, node: Any) -> int:
            if len(node.value) >= _DIGITS:  # Python itself reads some thousands, slowly, and no more
                raise ValueError(f"it has a whole number of {_DIGITS} digits or more")
            return super().construct_yaml_int(node)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                names = [key.value for key, _ in node.value]
                twice = next((name for name in names if names.count(name) > 1), names[0])
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{twice}' stands twice", node.start_mark
                )
            return found

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.yaml_implicit_resolvers = {}

    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        (
            "float",
            r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
            list("-+0123456789."),
        ),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)
    return Loader
