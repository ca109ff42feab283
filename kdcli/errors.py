"""Errors that a user can act on, each with the exit code of the command that meets it.

A message says what is wrong, where, and what to do. Anything else that escapes a command is a bug (exit 1).
"""

from __future__ import annotations

import difflib
import errno
import importlib.util
from collections.abc import Iterable
from pathlib import Path


class KdcliError(Exception):
    """Base of all errors that carry an exit code."""

    exit_code = 1


class UsageError(KdcliError):
    """The command line or configuration is off."""

    exit_code = 2


class InputError(KdcliError):
    """Data, an artifact or a combination of them cannot be used."""

    exit_code = 3


class BadImageError(InputError):
    """One picture cannot be decoded safely."""


class NotFinite(InputError, ValueError):
    """A network answers pictures with NaN or Inf, which no figure can be made of."""


class EnvironmentFault(KdcliError):
    """The machine lacks something: an extra, a GPU, memory, disk, a lock, a process."""

    exit_code = 4


class GateFailed(KdcliError):
    """A requirement such as ``--require 'top1>=0.8'`` was not met."""

    exit_code = 5


class Diverged(KdcliError):
    """NaN or Inf in loss, gradients or weights."""

    exit_code = 6


class Preempted(KdcliError):
    """A signal asked the run to stop; state is committed and the same command resumes it."""

    exit_code = 75


_LONGEST_NAME = 100


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    if len(name) > _LONGEST_NAME:  # the comparison takes the square of its length
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def shortened(text: str, most: int = 200) -> str:
    """The text, its middle left out where it is longer than ``most`` characters, saying how much."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]} … ({len(text) - 2 * head:,} characters left out) … {text[-head:]}"


def refuse_missing(packages: Iterable[str], extra: str, what: str) -> None:
    """Raise EnvironmentFault if a package of an extra is not installed.

    Args:
        packages: that are needed, by the names under which they are imported.
        extra: that brings them.
        what: for, to begin the message with.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFault(
                f"{what}: {name} is not installed. Install it with: pip install 'kdcli[{extra}]'"
            )


DISK_FAULTS = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOLCK"),
        *("ENOTDIR", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE", "EOPNOTSUPP", "EBUSY"),
    )
)


def from_os_error(error: OSError, path: Path | str, wanted_bytes: int | None = None) -> KdcliError:
    """Turn an operating-system error into one a user can act on, naming the path and the bytes wanted.

    Args:
        error: what the operating system said.
        path: where it happened, used when the error names no file itself.
        wanted_bytes: how much was being written, if known.
    """
    place = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f" ({wanted_bytes:,} bytes wanted)" if wanted_bytes else ""
        return EnvironmentFault(
            f"no space left on the disk while writing {place}{size}. Free some space and run the "
            "same command again: it continues from the last committed step."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentFault(
            f"cannot access {place}: {error.strerror}. Mend its rights or choose another."
        )
    return EnvironmentFault(f"{place}: {error.strerror or error}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, CUDA (by name: torch is not imported here) or torch's CPU allocator ran out."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
    )
