"""What lies below a data folder: pictures, tables, and what is not read, each said by kind and number."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdcli.artifacts import manifest as manifests
from kdcli.errors import InputError

_DECODED = """
    .jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm
"""
_NOT_DECODED = """
    .heic .heics .heif .heifs .hif .avif .avifs .jxl .jp2 .j2k .j2c .jpc .jpf .jpx .jxr .wdp .hdp .bpg .qoi
    .psd .psb .xcf .svg .svgz .eps .ps .ai .tga .pcx .ico .icns .cur .dds .exr .hdr .pfm .sgi .ras .xbm .xpm
    .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .mpo .insp
    .dcm .dicom .nii .fits .mov .mp4 .avi .mkv .webm .mpg .mpeg .m4v
"""
PICTURES = frozenset(_DECODED.split())
"""Suffixes of files that :mod:`kdcli.data.images` decodes."""
_OTHER_PICTURES = frozenset(_NOT_DECODED.split())
"""Suffixes of pictures, scans and films of kinds that are not decoded."""

_METADATA = frozenset(("metadata.jsonl", "metadata.csv", "metadata.parquet"))
_DOCUMENTS = frozenset(
    ("license", "licence", "copying", "notice", "readme", "citation", "authors", "changelog")
)
_LEFT_BY_SYSTEMS = frozenset(("thumbs.db", "desktop.ini", "icon\r"))


@dataclass
class Found:
    """Files below a folder, by what becomes of them; paths are whole, in the order of their text.

    Attributes:
        root: the folder.
        pictures: files of a kind that is decoded.
        tables: parquet files.
        metadata: ``metadata.jsonl``, ``.csv`` or ``.parquet``.
        others: files of other kinds.
        dangling: links that lead nowhere.
        folders: all that were looked into.
        passed: hidden folders and pictures, and what archives of a Mac leave.
        ours: what kdcli itself wrote.
    """

    root: Path
    pictures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)

    def short(self, path: str) -> str:
        """A path as it is called from the folder."""
        return os.path.relpath(path, self.root)


def look(root: Path) -> Found:
    """Everything below ``root``. Nothing is opened, links to folders are not followed.

    Raises:
        InputError: a link to a folder, a folder that cannot be read, a name that is not UTF-8, or something
            named like a picture or a table that is no regular file (a FIFO would be waited for).
    """
    found, waiting = Found(root), [str(root)]
    while waiting:
        folder = waiting.pop()
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                if _is_passed(entry.name):
                    found.passed.append(entry.path)
                elif manifests.is_ours(entry.path):
                    found.ours.append(entry.path)
                else:
                    found.folders.append(entry.path)
                    waiting.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path) and not _is_passed(entry.name):
                raise InputError(
                    f"{entry.path} is a link to a folder; links are not followed. Copy it there."
                )
            else:
                _sort_in(entry, found)
    for paths in vars(found).values():
        if isinstance(paths, list):
            paths.sort()
    return found


def by_folder(base: str, paths: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Of the paths below ``base``, those directly in it, and the others by the folder below it."""
    begin = len(base.rstrip(os.sep)) + 1
    loose: list[str] = []
    folders: dict[str, list[str]] = {}
    for path in below(base, paths):
        end = path.find(os.sep, begin)
        if end < 0:
            loose.append(path)
        else:
            folders.setdefault(path[begin:end], []).append(path)
    return loose, folders


def below(base: str, paths: Iterable[str]) -> Iterator[str]:
    """Those of the paths that lie below ``base``."""
    begin = base.rstrip(os.sep) + os.sep
    return (path for path in paths if path.startswith(begin))


def kinds(paths: Sequence[str]) -> str:
    """``12 .heic, 3 .avif and 1 without a suffix``, the most frequent first."""
    counts = Counter(os.path.splitext(path)[1].lower() for path in paths).most_common()
    said = [f"{count} {suffix or 'without a suffix'}" for suffix, count in counts[:5]]
    if len(counts) > 5:
        said.append(f"{sum(count for _, count in counts[5:])} of other kinds")
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def refuse_mostly_unread(
    where: str, read: Sequence[str], others: Sequence[str], dangling: Sequence[str]
) -> None:
    """Raise InputError where most of the pictures are of kinds that are not read, or links to nothing."""
    unread = [p for p in others if os.path.splitext(p)[1].lower() in _OTHER_PICTURES] + list(dangling)
    if len(unread) > len(read):
        what = "links that lead nowhere" if len(dangling) == len(unread) else f"not read ({kinds(unread)})"
        raise InputError(
            f"{where}: {len(unread)} of {len(unread) + len(read)} pictures are {what}. Convert them to JPEG, "
            "PNG or WebP."
        )


def _is_document(path: str) -> bool:
    """Whether a file speaks of the others, as its name says, so that nobody misses it: LICENSE, README.md."""
    return os.path.splitext(os.path.basename(path))[0].casefold() in _DOCUMENTS


def notes(found: Found) -> list[str]:
    """What a user should know was not read."""
    said = []
    if unread := [path for path in found.others if not _is_document(path)]:
        said.append(f"{found.root}: files that are not read: {kinds(unread)}")
    if found.dangling:
        count, first = len(found.dangling), found.short(found.dangling[0])
        said.append(
            f"{found.root}: {count} {'link leads' if count == 1 else 'links lead'} nowhere, first {first}"
        )
    for what, paths in (("hidden", found.passed), ("kdcli's own output", found.ours)):
        if paths:
            names = [found.short(path) for path in paths]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(f"{found.root}: passed over as {what}: {', '.join(names[:3])}{more}")
    return said


def refuse_special(path: str | Path) -> None:
    """Raise InputError for what exists and is no regular file: to open a FIFO or a device may never end."""
    with suppress(OSError, ValueError):  # what cannot be looked at is said by whoever opens it
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} is no regular file (a FIFO, a socket, a device?). Remove it.")


def relative(name: str, where: str, base: str | Path) -> str:
    """A path below ``base``, as a file of the data names it.

    Args:
        name: with slashes of either kind; ``..`` may turn within the folder.
        where: file and row, for messages.
        base: the folder, or what to call it.

    Raises:
        InputError: it may lead elsewhere.
    """
    path = os.path.normpath(name.replace("\\", "/"))
    if "\0" in name or "://" in name or os.path.isabs(path) or path.split("/")[0] == "..":
        raise InputError(
            f"{where}: {name!r} is no path to a file below {base}. Files elsewhere and URLs are never opened."
        )
    return path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise InputError(f"cannot look into {folder}: {error.strerror}.") from error
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder} holds a name that is not UTF-8: {entry.name!a}. Rename it.") from None
    return found


def _sort_in(entry: os.DirEntry[str], found: Found) -> None:
    """Put a file, a link to one, or something else of that kind, where it belongs."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        if suffix in PICTURES:
            found.passed.append(entry.path)
    elif entry.is_symlink() and not os.path.exists(entry.path):
        found.dangling.append(entry.path)
    elif suffix in PICTURES or suffix == ".parquet" or entry.name in _METADATA:
        if not entry.is_file():
            refuse_special(entry.path)
        kind = found.pictures if suffix in PICTURES else found.tables
        (found.metadata if entry.name in _METADATA else kind).append(entry.path)
    elif entry.name.lower() not in _LEFT_BY_SYSTEMS:
        found.others.append(entry.path)


def _is_passed(name: str) -> bool:
    return name.startswith((".", "__"))
