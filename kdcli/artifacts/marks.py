"""What tells kdcli's own directories from a user's: marks that are looked at before anything is deleted.

An unfinished output, and a cache, carries the first line of its ``.lock``. What is being deleted carries a
name that no one gives by chance: it ends in a check of itself. A finished artifact has its manifest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

LOCK = ".lock"
MARK = b"kdcli keeps this folder and deletes what is in it\n"
LINE = 400  # bytes that are read of a lock: the mark, and who holds it
_HOLDER = re.compile(rb"process \d+ on [^\n]*")  # all that 0.1 wrote into a lock
_TRASH = re.compile(r"(.+)\.trash-([0-9a-f]{8})-([0-9a-f]{12})", re.DOTALL)


def lock_text(folder: Path | str, descriptor: int | None = None) -> bytes | None:
    """The beginning of a directory's lock file; None if it has none that is a regular file.

    Args:
        folder: the directory.
        descriptor: of the directory, if it is open: it may have been renamed meanwhile.

    Raises:
        OSError, ValueError: it cannot be opened, though it may be there.
    """
    path = os.path.join(folder, LOCK)
    try:
        fd = os.open(
            LOCK if descriptor is not None else path,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
            dir_fd=descriptor,
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return None  # nothing, nothing below it, a link, a socket
        raise OSError(error.errno, error.strerror, path) from error
    try:
        return os.pread(fd, LINE, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def holder(text: bytes) -> str:
    """Who wrote his name into a lock, empty if no one did."""
    return text.removeprefix(MARK).decode(errors="replace")


def is_marked(text: bytes | None) -> bool:
    """Whether a lock's text carries the mark."""
    return text is not None and text.startswith(MARK)


def is_begun(text: bytes | None) -> bool:
    """Whether a lock's text is a beginning of the mark, as a killed run leaves it, or all that 0.1 wrote."""
    return text is not None and (MARK.startswith(text) or _HOLDER.fullmatch(text) is not None)


def trash_name(path: Path) -> Path:
    """A name beside ``path`` under which it is deleted."""
    number = secrets.token_hex(4)
    return path.with_name(f"{path.name}.trash-{number}-{_check(path.name, number)}")


def is_trash(name: str, of: str | None = None) -> bool:
    """Whether a name is one of :func:`trash_name`: for ``of``, or for anything."""
    found = _TRASH.fullmatch(name)
    return found is not None and of in (None, found[1]) and found[3] == _check(found[1], found[2])


def _check(name: str, number: str) -> str:
    return hashlib.sha256(os.fsencode(f"kdcli deletes {name} {number}")).hexdigest()[:12]
