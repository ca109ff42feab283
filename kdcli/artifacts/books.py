"""Books of hashes: which bytes the files of a user had when they were read, to spare reading them again.

A book is one file, which carries a hash of itself and is replaced as a whole. Books lie in a folder that has
kdcli's mark; those that were not used for the longest time go when they become too large together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcli.artifacts.files import sync, write_bytes
from kdcli.artifacts.lock import alone_in
from kdcli.errors import EnvironmentFault
from kdcli.reading import read_bytes

FOLDER, ENDING = "picture-hashes", ".hashes"
"""Names of the folder of books below ``--cache``, and of a book."""
STAMP = np.dtype([("size", "<i8"), ("modified", "<i8"), ("changed", "<i8"), ("inode", "<u8")])
"""What tells that a file is as it was: bytes, times in nanoseconds of its content and of any change."""
SHA_BYTES = hashlib.sha256().digest_size

_HEADER = b"kdcli hashes of files 1\n"
_LARGEST = 4 << 30  # bytes of all books: some 30 million files
_PARTIAL = ".partial"
_TRIES, _PAUSE_S = 100, 0.05  # for another process to finish writing


@dataclass(frozen=True)
class Book:
    """What is known of N files, one or more.

    Attributes:
        paths: of each.
        stamps: [N] ``STAMP`` that each had.
        shas: [N, 32] uint8, the sha256 of the bytes of each.
    """

    paths: Sequence[str]
    stamps: np.ndarray
    shas: np.ndarray


def read_book(file: Path) -> tuple[Book, int]:
    """A book, and a number of 64 bits made of what is in it and of when it was last read.

    Raises:
        OSError, InputError: it cannot be read.
        ValueError: it is damaged.
    """
    data = read_bytes(file, _LARGEST)
    begin = len(_HEADER) + SHA_BYTES
    check, body = data[len(_HEADER) : begin], memoryview(data)[begin:]
    if not data.startswith(_HEADER) or hashlib.sha256(body).digest() != check:
        raise ValueError(f"{file} is damaged")
    end = 8 + int.from_bytes(body[:8], "little")
    paths = bytes(body[8:end]).decode().split("\0")
    stamps = np.frombuffer(body, STAMP, len(paths), end)
    shas = np.frombuffer(body, np.uint8, len(paths) * SHA_BYTES, end + stamps.nbytes)
    seed = hashlib.sha256(check + str(os.stat(file).st_mtime_ns).encode()).digest()
    with suppress(OSError):
        os.utime(file)
    return Book(paths, stamps, shas.reshape(-1, SHA_BYTES)), int.from_bytes(seed[:8], "little")


def write_book(file: Path, book: Book) -> None:
    """Write a book in place of an older one.

    Raises:
        OSError, EnvironmentFault: it cannot be written, or would be too large, or what lies in its folder is
            not kdcli's.
    """
    names = "\0".join(book.paths).encode()
    parts = len(names).to_bytes(8, "little"), names, book.stamps.tobytes(), book.shas.tobytes()
    check = hashlib.sha256()
    for part in parts:
        check.update(part)
    data = b"".join((_HEADER, check.digest(), *parts))
    if len(data) > _LARGEST:
        raise EnvironmentFault(f"they take more than {_LARGEST:,} bytes")
    with _turn(file.parent):
        _make_room(file, len(data))
        partial = file.with_name(f"{file.name}{_PARTIAL}")
        write_bytes(partial, data)
        os.replace(partial, file)
        sync(file.parent)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of books, which is made if need be; what a killed process left is swept."""
    with alone_in(folder, _PAUSE_S, _held):
        for left in folder.glob(f"*{ENDING}{_PARTIAL}"):
            os.unlink(left)
        yield


def _held(tries: int) -> None:
    if tries >= _TRIES:
        raise EnvironmentFault("another process is writing there")


def _make_room(file: Path, size: int) -> None:
    """Delete the books that were used least recently, until one of ``size`` bytes may stand beside them."""
    others = [(os.stat(other), other) for other in file.parent.glob(f"*{ENDING}") if other != file]
    total = size + sum(status.st_size for status, _ in others)
    for status, other in sorted(others, key=lambda pair: pair[0].st_mtime_ns):
        if total > _LARGEST:
            os.unlink(other)
            total -= status.st_size
