"""JSON of artifacts, read with care: within limits, and an object in each file or line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli.errors import InputError
from kdcli.reading import LIMIT, read_bytes, refuse_irregular

LOG_LIMIT = 1 << 30  # bytes of a log or report


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
