"""Small files read with care: regular files only, up to a stated size, and JSON that is an object.

A name may stand for a pipe, which would be waited for, or for a device without an end; so nothing is opened
before its kind is known, and nothing is read past its limit.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli.errors import InputError

LIMIT = 32 << 20  # bytes of a manifest or configuration: some 200,000 files
LOG_LIMIT = 512 << 20  # bytes of a log or report


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


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: of a regular file, or a link to one.
        limit: most bytes that it may have.

    Raises:
        InputError: it cannot be read, is larger, is not JSON, or holds something else than an object.
    """
    try:
        data = read_bytes(path, limit)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _object(data, path)


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    return InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.")


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object.")
    return found


def read_rows(path: Path, limit: int = LOG_LIMIT) -> Iterator[dict[str, Any]]:
    """The JSON objects that a log holds, one a line.

    Args:
        path: of a regular file, or a link to one.
        limit: most bytes that it may have, and 1/64 of it the longest line.

    Raises:
        InputError: as :func:`read_object`, for any line.
    """
    try:
        refuse_irregular(path)
        with open(path, "rb") as stream:
            while line := stream.readline(limit // 64 + 1):
                if stream.tell() > limit or len(line) > limit // 64:
                    raise InputError(f"cannot read {path}: it, or a line of it, is too large for a log.")
                yield _object(line, path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
