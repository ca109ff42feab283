"""Captions: a sentence about each picture, which the auxiliary loss of Li et al. 2023 aligns it with.

They are written beforehand by a captioning model (arXiv 2307.03135 takes OFA) and come as JSON,
``{"train/kit_fox/1.jpg": "a fox on a rock", …}``. They go by path and not by the order of a list: where one
picture is added, each caption behind it would be about the picture before its own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdcli.data.class_texts import parse_object, read_text, refuse_unsayable
from kdcli.errors import InputError, shortened

_LARGEST = 1 << 28  # bytes: some two million captions
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]|\\|[a-z]+://")


class Unmatched(NamedTuple):
    """What captions and pictures have not in common.

    Attributes:
        pictures: number of those without a caption.
        captions: number of those that are of none of the pictures.
    """

    pictures: int
    captions: int


def read_captions(file: str) -> dict[str, str]:
    """Captions by the path of their picture, in the order of the file.

    Args:
        file: path of JSON with a key for each picture: its path from the folder of the data, with ``/``
            between folders.

    Raises:
        InputError: a file that cannot be read, is larger than 256 MiB, is not UTF-8 or no JSON object, or
            has no caption; a path that stands in it twice, is absolute, or leads out of the folder; a caption
            that is empty, no text, or has control characters.
    """
    path = Path(file)
    content = parse_object(path, read_text(path, _LARGEST))
    if not content:
        raise InputError(f"{path} holds no caption.")
    return {name: _caption(path, name, value) for name, value in content.items()}


def captions_for(captions: Mapping[str, str], names: Sequence[str], where: str) -> list[str | None]:
    """The caption of each picture, None where there is none; how many, :func:`unmatched` tells.

    Args:
        captions: by path.
        names: paths of N pictures from the folder of the data, with ``/`` between folders.
        where: the captions are from, for messages.

    Returns:
        N captions, in the order of ``names``.

    Raises:
        InputError: not one of the pictures has a caption.
    """
    found = [captions.get(name) for name in names]
    if names and not any(found):
        first = next(iter(captions), "")
        raise InputError(
            f"{where}: these are captions of other pictures, of none of the {len(names):,} that the data "
            f"have, first {shortened(names[0])!r}. The first path in it is {shortened(first)!r}."
            " Paths begin in the folder of the data, and name the folder of a split too."
        )
    return found


def unmatched(captions: Mapping[str, str], names: Sequence[str]) -> Unmatched:
    """How many pictures have no caption, and how many captions are of none of the pictures."""
    return Unmatched(sum(name not in captions for name in names), len(captions.keys() - set(names)))


def _caption(path: Path, name: str, value: object) -> str:
    refuse_unsayable(name, str(path), "the path of a picture")
    where = f"{path}, picture {shortened(name)!r}"
    if _ABSOLUTE.match(name) or ".." in name.split("/"):
        raise InputError(f"{where}: a path begins in the folder of the data and stays in it.")
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain != name:
        raise InputError(f"{where}: write the path as {shortened(plain)!r}.")
    return refuse_unsayable(value, where, "the caption").strip()
