"""One writer per output: a lock file inside ``OUT.partial``, so that it leaves with the rename.

Its first line is the mark of :mod:`kdcli.artifacts.marks`, written and synced before anything else is, so a
directory of that name without it is a user's, or was made by kdcli 0.1, and is left as it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from kdcli.artifacts import marks
from kdcli.artifacts.files import remove
from kdcli.artifacts.marks import LOCK
from kdcli.errors import EnvironmentFault, InputError

IDENTITY, MACHINES = "identity.json", "machines.json"
BOOKKEEPING = {LOCK, IDENTITY, f"{IDENTITY}.partial", MACHINES, f"{MACHINES}.partial"}
_REMEDY = "Move it away, or choose another --out"
_ORPHANS_S = 10.0  # loader workers of a killed run notice within 5 s, and hold its lock until then


@contextmanager
def locked(path: Path, partial: Path) -> Iterator[None]:
    """Hold the lock on output ``path``; ``partial`` is made, and removed if nothing was written into it.

    Raises:
        InputError: something that is no unfinished output stands at ``partial``.
        EnvironmentFault: another process holds the lock.
    """
    lock = partial / LOCK
    while True:
        if (fd := _open(partial)) is None:
            continue
        owner = 0  # a process forked meanwhile must not release it
        try:
            _take(fd, path)
            if not _stands_at(fd, lock):
                continue  # the holder renamed or removed the directory while we waited
            _refuse_contents(partial, set(os.listdir(partial)), os.pread(fd, marks.LINE, 0))
            owner = os.getpid()
            _sign(fd)
            yield
            return
        finally:
            if owner == os.getpid():
                with suppress(OSError):
                    if _stands_at(fd, lock) and set(os.listdir(partial)) <= BOOKKEEPING:
                        remove(partial)  # nothing was written: leave no trace
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough while a loader worker has it too
            os.close(fd)


@contextmanager
def unless_held(partial: Path) -> Iterator[bool]:
    """Whether no process holds the lock of an unfinished output; if so, this one does in the block."""
    fd = os.open(partial / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = _stands_at(fd, partial / LOCK)
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(fd)


def _open(partial: Path) -> int | None:
    """Descriptor of the lock file, made if need be; None if the directory went away meanwhile."""
    try:
        _make(partial)
        refuse_foreign(partial)
        return os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        refuse_foreign(partial)
        return None
    except OSError:
        with suppress(OSError):
            os.rmdir(partial)  # if it is empty
        raise


def _make(partial: Path) -> None:
    """Make the directory; where its parent stands and it cannot be (an automounter's root), say so."""
    try:
        os.makedirs(partial, exist_ok=True)
    except FileNotFoundError as error:
        if partial.parent.is_dir():
            raise EnvironmentFault(
                f"cannot make a directory in {partial.parent}: {error.strerror}. Choose another --out."
            ) from error
        raise


def refuse_foreign(partial: Path) -> None:
    """Raise InputError for what stands at ``partial`` and is not ours to write into and to empty.

    A writer renames the directory and drops the lock at the end, so only what still has its name counts.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(partial).st_mode)  # asked once: a writer may rename it meanwhile
    except OSError:
        if not partial.is_symlink():
            return
        is_folder = False
    if not is_folder:
        raise InputError(f"{partial} is not a directory. Choose another --out.")
    if partial.is_symlink() or os.path.ismount(partial):
        kind = "link" if partial.is_symlink() else "mount point"
        raise InputError(f"{partial} is needed for the unfinished output, and is a {kind}. {_REMEDY}.")
    with suppress(FileNotFoundError):
        folder = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found, text = set(os.listdir(folder)), marks.lock_text(partial, folder)
            if _stands_at(folder, partial):
                _refuse_contents(partial, found, text)
        finally:
            os.close(folder)


def _refuse_contents(partial: Path, found: set[str], text: bytes | None) -> None:
    """Raise InputError unless a directory of these names, with this lock, is ours or empty."""
    if is_free(found, text):
        return
    if IDENTITY in found and marks.is_begun(text):
        raise InputError(
            f"{partial} was begun by kdcli 0.1, whose unfinished outputs are not continued. Delete it, or "
            "choose another --out."
        )
    raise InputError(f"{partial} is needed for the unfinished output, and holds something else. {_REMEDY}.")


def is_free(found: set[str], text: bytes | None) -> bool:
    """Whether a directory of these names, with this lock, is kdcli's or empty."""
    return marks.is_marked(text) or not found or (found == {LOCK} and marks.is_begun(text))


def mark(fd: int) -> None:
    """Write the mark into an open lock file that has none, and sync it."""
    if not marks.is_marked(os.pread(fd, len(marks.MARK), 0)):
        os.ftruncate(fd, 0)
        os.pwrite(fd, marks.MARK, 0)
        os.fsync(fd)


def _sign(fd: int) -> None:
    """Write the mark, and who holds the lock."""
    mark(fd)
    os.ftruncate(fd, len(marks.MARK))
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), len(marks.MARK))


def take(fd: int, seconds: float, held: Callable[[int], None]) -> None:
    """Take the lock on an open file, trying it again and again.

    Args:
        fd: descriptor of the file.
        seconds: between two tries.
        held: called where another process has it, with how often it was called before; what it raises ends
            the waiting.
    """
    for tries in count():
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        held(tries)
        time.sleep(seconds)


@contextmanager
def alone_in(folder: Path, seconds: float, held: Callable[[int], None]) -> Iterator[None]:
    """Hold the lock of a folder of a cache, which is made if need be.

    Args:
        folder: with kdcli's mark, or empty.
        seconds: between two tries.
        held: see :func:`take`.

    Raises:
        EnvironmentFault: what lies in the folder is not kdcli's.
        OSError: nothing can be written there.
    """
    os.makedirs(folder, exist_ok=True)
    if not is_free(set(os.listdir(folder)), marks.lock_text(folder)):
        raise EnvironmentFault(f"{folder} holds something else")
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        take(fd, seconds, held)
        mark(fd)
        yield
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> None:
    deadline = time.monotonic() + _ORPHANS_S

    def held(_: int) -> None:
        holder = marks.holder(os.pread(fd, marks.LINE, 0))
        if not _gone(holder) or time.monotonic() > deadline:
            raise EnvironmentFault(
                f"{path} is being written by {holder or 'another process'}. Wait for it, or choose "
                "another --out."
            )

    try:
        take(fd, 0.02, held)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot lock {path}: {error.strerror}. Choose an --out on a disk that has locks."
        ) from error


def _gone(holder: str) -> bool:
    """Whether a lock's holder is dead (its workers will follow), or has not written its name yet."""
    named = re.fullmatch(r"process (\d+) on (.*)", holder)
    if not named or named[2] != socket.gethostname():
        return not holder
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _stands_at(fd: int, path: Path) -> bool:
    """Whether an open descriptor is the file that stands at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
