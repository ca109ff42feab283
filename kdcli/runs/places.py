"""Where a run may write: in nothing that it reads, around nothing that it reads, in nothing of kdcli's own.

``--overwrite`` deletes a whole directory, and files that appear in data, or in an artifact, change what these
are. So an output that overlaps an input is refused before anything is made. Links are followed, and
directories are compared as the file system does, whatever they are called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from kdcli.artifacts import lock
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.files import refuse_unusable
from kdcli.artifacts.store import named, refuse_foreign
from kdcli.config import leaves
from kdcli.console import legible
from kdcli.errors import EnvironmentFault, InputError
from kdcli.sections import RunSection

_DATA = ("--data", "--extra")
_LOCAL, _REMOTE = "local-dir:", ("hf-hub:", "hf_hub:", "example:")


def check(config: RunSection, path: Path) -> None:
    """Refuse a place that a run must not write to.

    An output that was not named (``runs/…``) may lie in the data, where the working directory is in them: its
    marks tell the reader of the data to leave it out.

    Args:
        config: all fields.
        path: where the artifact will stand.

    Raises:
        InputError: the output, or what stands beside it while the run is under way, is or contains what the
            run reads or the working directory, or lies in what it reads or in a directory of kdcli's own;
            or something stands there that is not to be replaced.
        EnvironmentFault: a folder was named for the caches, and cannot be written to.
    """
    whole = named(path)
    check_around(config, path, *([".track"] if config.track else []))
    _refuse_own(f"the output {path}", whole.parent)
    refuse_foreign(path, overwrite=config.overwrite)
    lock.refuse_foreign(whole.with_name(f"{whole.name}.partial"))
    if config.track:
        _refuse_log(whole.with_name(f"{whole.name}.track"))


def check_around(config: RunSection, path: Path, *more: str) -> None:
    """What :func:`check` refuses of a place whatever stands there, for a folder of several runs too.

    Args:
        config: all fields.
        path: of an output, or such a folder.
        more: endings of what else is named after it.

    Raises:
        InputError, EnvironmentFault: see :func:`check`.
    """
    if legible(str(path)) != str(path):
        raise InputError(
            f"--out {str(path)!r}: the path is given to the next command as one line of text, so that it has "
            "no control characters. Choose another --out."
        )
    read = [
        *(_Input(option, value, bool(config.out) or option not in _DATA) for option, value in inputs(config)),
        _Input("the working directory", os.getcwd(), False),
        _Input("--cache", config.cache, True),
    ]
    for place in around(path, *more):
        _refuse_overlaps(place, read)
    _refuse_cache(config)


def kept_hashes(config: RunSection) -> Path | None:
    """The folder below ``--cache`` in which hashes of pictures are kept; None where nothing may be written.

    Why not is said by :func:`check`, which comes later: where a run writes depends on what its data are.
    """
    try:
        _refuse_cache(config)
        for place in around(Path(config.out)) if config.out else ():
            refuse_overlap(place, "--cache", config.cache)
    except (InputError, EnvironmentFault):
        return None
    from kdcli.artifacts.books import FOLDER  # with numpy, which a help text does without

    return Path(config.cache, FOLDER)


def inputs(config: RunSection) -> Iterator[tuple[str, str]]:
    """Options that say what a run reads, each with a value that was given: a path, or the name of a model."""
    for dotted, _, extra in leaves(type(config)):
        if extra.get("panel") == "Inputs" or extra.get("positional"):
            given: Any = reduce(getattr, dotted.split("."), config)
            option = (extra.get("flag") or "the argument").split(",")[-1]
            yield from (
                (option, v) for v in (given if isinstance(given, list) else [given]) if isinstance(v, str)
            )


def around(path: Path, *more: str) -> list[Path]:
    """An output, where it stands while it is unfinished, and what else is named after it, by endings."""
    whole = Path(os.path.abspath(path))
    return [path, *(whole.with_name(whole.name + ending) for ending in (".partial", *more) if whole.name)]


def refuse_overlap(place: Path, option: str, value: str, inside: bool = True) -> None:
    """Refuse an output that overlaps an input.

    Args:
        place: of the output.
        option: of the input.
        value: of the option; what is no path on this machine overlaps with nothing.
        inside: whether the output may not lie in the input either.

    Raises:
        InputError: see above.
    """
    _refuse_overlaps(place, [_Input(option, value, inside)])


class _Input:
    """An input that an output is compared with; see :func:`refuse_overlap`."""

    def __init__(self, option: str, value: str, inside: bool) -> None:
        self.option, self.value, self.inside = option, value, inside
        self.spots = list(_spots(value, there=option != "--cache"))


def _refuse_overlaps(place: Path, read: Sequence[_Input]) -> None:
    spots = list(_spots(str(place)))
    for given in read:
        for own, other in product(spots, given.spots):
            into, over = _lies_in(own, other), _lies_in(other, own)
            if over or (into and given.inside):
                relation = "is" if into and over else "contains" if over else "lies in"
                raise InputError(
                    f"the output {place} {relation} {given.option} {given.value}: a run does not write into "
                    "what it reads. Choose another --out."
                )


def _spots(value: str, there: bool = False) -> Iterator[str]:
    """Where a path lies, links above it followed: as it is called, and where it leads if it is a link.

    With ``there`` nothing where there is no such path: it is the name of a model or of hub data.
    """
    if not value or "\0" in value or value.startswith(_REMOTE):
        return
    plain = value.removeprefix(_LOCAL)
    for name in dict.fromkeys((plain, os.path.expanduser(plain))):
        if not there or os.path.lexists(name):
            above, last = os.path.split(os.path.abspath(name))
            yield from dict.fromkeys((os.path.join(os.path.realpath(above), last), os.path.realpath(name)))


def _lies_in(inner: str, outer: str) -> bool:
    """Whether ``inner`` is ``outer`` or lies below it."""
    wanted = _identity(outer)
    while True:
        if inner == outer or (wanted is not None and _identity(inner) == wanted):
            return True
        above = os.path.dirname(inner)
        if above == inner:
            return False
        inner = above


def _identity(path: str) -> tuple[int, int] | None:
    """What the file system knows a path by, however it is called; None where nothing is there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _refuse_cache(config: RunSection) -> None:
    """Refuse a place of caches; see :func:`check`."""
    if config.cache != type(config).model_fields["cache"].default:
        refuse_unusable("--cache", config.cache)
    _refuse_own(f"--cache {config.cache}", Path(config.cache))


def _refuse_own(what: str, folder: Path) -> None:
    """Refuse a place in a directory that kdcli keeps, and may delete, as a whole."""
    whole = Path(os.path.realpath(folder))
    for above in (whole, *whole.parents):
        if manifests.carries_mark(above):
            raise InputError(
                f"{what} lies in {above}, which is an artifact, an unfinished output or a cache. Choose "
                "another place."
            )


def _refuse_log(folder: Path) -> None:
    """Refuse what stands where trackers write their log, if it is no such folder."""
    if os.path.lexists(folder) and (not folder.is_dir() or manifests.carries_mark(folder)):
        raise InputError(
            f"--track writes to {folder}, and something else stands there. Move it away, or choose another "
            "--out."
        )
