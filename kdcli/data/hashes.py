"""Hashes of the stored bytes of pictures; those of files are kept, so that they are not read at every start.

A file counts as the one that was hashed if its path, size, inode and both its times are the same to the
nanosecond: that of its content, which anyone can put back, and that of any change to it, which no one can. A
file that was changed about when it was hashed may have been changed again within the grain of the clock, so
its hash is not kept (git's rule for racy timestamps). Part of the files is read again at every use, and where
one has other bytes than were hashed, nothing that is kept of its column is believed.

What is kept stands below ``--cache``, in a book for each column of each split. It saves time and nothing
depends on it: where a book is damaged, or cannot be written, all pictures are read.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.artifacts.books import ENDING, SHA_BYTES, STAMP, Book, read_book, write_book
from kdcli.artifacts.manifest import GRAIN_NS, digest
from kdcli.data.columns import undecoded_cells
from kdcli.data.samples import cell_bytes
from kdcli.errors import EnvironmentFault, InputError, from_os_error

if TYPE_CHECKING:
    from kdcli.data.tables import Raw

Look = Callable[[bytes, Any, str], None]
_Read = Callable[[int], bytes]
_Stamp = tuple[int, int, int, int]

_ROWS = 512  # cells read at once
_FEWEST = 1000  # files that a book is worth it for
_SAMPLE, _SHARE = 16, 0.01  # files read again, at least and of all
_SAVE_S = 60.0  # between two writings of what a first, long start has hashed
_LIMIT = 2**63  # of a number of nanoseconds that a stamp holds
_UNKNOWN: _Stamp = (-1, 0, 0, 0)  # of what is not told from other files, and so not kept


def cell_hashes(raw: Raw, split: str, column: str, beside: str = "", look: Look | None = None) -> list[bytes]:
    """The sha256 of the stored bytes of every cell of a column of pictures.

    Args:
        raw: the source; says where hashes are kept, and is told what the user should know.
        split: of its tables.
        column: of pictures.
        beside: what a cell holds beside the picture (``its mask``) and may lack; the hash is empty then.
        look: is given the bytes that are read, the cell or the file's path, and what messages call it.

    Raises:
        InputError: a cell that is empty, or names what cannot be read or lies outside the data.
    """
    cells, more = undecoded_cells(raw.tables[split], column), f", {beside}" if beside else ""
    hashes: list[bytes] = []
    rows: list[int] = []
    paths: list[str] = []
    for start in range(0, len(cells), _ROWS):
        for row, cell in enumerate(cells.slice(start, _ROWS).to_pylist(), start):
            data, path = (cell["bytes"], cell["path"]) if cell else (None, None)
            if data is None and (path or not beside):
                rows.append(row)
                paths.append(path or "")
            nothing = data is None or (beside and not data and not path)
            if look and data is not None and not nothing:
                look(data, cell, f"{split} row {row}{more}")
            hashes.append(b"" if nothing else hashlib.sha256(data or b"").digest())

    def read(index: int) -> bytes:
        where = f"{split} row {rows[index]}{more}"
        data = cell_bytes(paths[index], raw.root, where)
        if look:
            look(data, paths[index], where)
        return data

    for row, sha in zip(rows, _file_hashes(raw, paths, read, f"{column} of {split}")):
        hashes[row] = sha
    return hashes


def _file_hashes(raw: Raw, paths: Sequence[str], read: _Read, name: str) -> Iterable[bytes]:
    """The sha256 of files of a source, called ``name`` together; those that are kept are not read."""
    folder = raw.kept() if raw.kept and raw.root and len(paths) >= _FEWEST else None
    if folder is None:
        return (hashlib.sha256(read(i)).digest() for i in range(len(paths)))
    root = str(raw.root)
    files = _Files(paths, root, read, folder / f"{digest([root, name])[:24]}{ENDING}")
    try:
        files.recall()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (InputError, OSError, ValueError) as error:
        files.forget()
        raw.notes.append(f"{root}: the hashes kept of its pictures are not used, and made anew: {error}")
    if fault := files.complete():
        raw.notes.append(f"{root}: hashes of its {len(paths)} pictures are not kept: {fault}")
    whole = files.shas.tobytes()
    return (whole[i : i + SHA_BYTES] for i in range(0, len(whole), SHA_BYTES))


class _Files:
    """N files of pictures, and their hashes.

    Args:
        paths: of the files.
        root: folder that they have to lie below.
        read: gives the bytes of one, by its number.
        book: the file that keeps hashes of them.

    Attributes:
        shas: [N, 32] uint8.
    """

    def __init__(self, paths: Sequence[str], root: str, read: _Read, book: Path) -> None:
        self.paths, self.read, self.book = paths, read, book
        self.status = _Status(root)
        self.stamps = np.fromiter(map(self.status, paths), STAMP, len(paths))
        self.forget()

    def forget(self) -> None:
        """No hash is known."""
        self.shas, self.known = (
            np.zeros((len(self.paths), SHA_BYTES), np.uint8),
            np.zeros(len(self.paths), bool),
        )

    def recall(self) -> None:
        """Take over the hashes of those files that are as they were, and read part of these again.

        Raises:
            OSError, InputError: the book cannot be read.
            ValueError: it is damaged, or wrong about a file.
        """
        book, seed = read_book(self.book)
        rows = {path: row for row, path in enumerate(book.paths)}
        at = np.fromiter((rows.get(path, -1) for path in self.paths), np.int64, len(self.paths))
        self.known = (at >= 0) & (book.stamps[at] == self.stamps) & (self.stamps["size"] >= 0)
        self.shas[self.known] = book.shas[at[self.known]]
        known = np.flatnonzero(self.known)
        count = min(len(known), max(_SAMPLE, math.ceil(_SHARE * len(known))))
        for i in np.sort(np.random.default_rng(seed).choice(known, count, replace=False)).tolist():
            if hashlib.sha256(self.read(i)).digest() != self.shas[i].tobytes() and self._is_as_it_was(i):
                raise ValueError(f"{self.paths[i]} has other bytes, and nothing tells of it")

    def complete(self) -> str:
        """Hash all other files and keep what can be kept; returns why it could not be."""
        fault, new, written = "", 0, time.monotonic()
        for i in np.flatnonzero(~self.known).tolist():
            begun = time.time_ns()
            self.shas[i] = np.frombuffer(hashlib.sha256(self.read(i)).digest(), np.uint8)
            self.known[i] = True
            stamp = self.stamps[i]
            if max(stamp["modified"], stamp["changed"]) > begun - GRAIN_NS or not self._is_as_it_was(i):
                self.stamps[i] = _UNKNOWN
            new += int(self.stamps[i]["size"] >= 0)
            if new and not fault and time.monotonic() - written > _SAVE_S:
                fault, new, written = self._keep(), 0, time.monotonic()
        return self._keep() if new and not fault else fault

    def _is_as_it_was(self, i: int) -> bool:
        return bool(self.status(self.paths[i]) == self.stamps[i].item())

    def _keep(self) -> str:
        """Write the book; returns why it could not be."""
        kept = np.flatnonzero(self.known & (self.stamps["size"] >= 0))
        paths = [self.paths[i] for i in kept.tolist()]
        try:
            write_book(self.book, Book(paths, self.stamps[kept], self.shas[kept]))
        except (OSError, EnvironmentFault) as error:
            fault = from_os_error(error, self.book) if isinstance(error, OSError) else error
            return str(fault).rstrip(".")
        return ""


class _Status:
    """Size, times and inode of regular files below a folder; asks where a folder leads to once only."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._inside: dict[str, bool] = {}

    def __call__(self, path: str) -> _Stamp:
        """Of one file; of anything else, whose reader says what is wrong with it, ``_UNKNOWN``."""
        try:
            folder = os.path.dirname(path)
            if folder not in self._inside:
                self._inside[folder] = self._is_below(folder)
            inside, found = self._inside[folder], os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                inside, found = self._is_below(path), os.stat(path)
        except (OSError, ValueError):
            return _UNKNOWN
        known = inside and stat.S_ISREG(found.st_mode) and max(found.st_mtime_ns, found.st_ctime_ns) < _LIMIT
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino) if known else _UNKNOWN

    def _is_below(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.root or real.startswith(self.root.rstrip(os.sep) + os.sep)
