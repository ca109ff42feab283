"""Files of any kind and size: what is no small regular file is refused, and never waited for."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import reading
from kdcli.artifacts.reading import read_object, read_rows
from kdcli.errors import InputError
from kdcli.reading import read_bytes


def make(path: Path, kind: str) -> Path:
    """A file that would be waited for, or that has no end."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with open(path, "wb") as stream:
            stream.truncate(1 << 40)
    else:
        path.symlink_to({"zeros": "/dev/zero", "null": "/dev/null"}[kind])
    return path


KINDS = ("pipe", "folder", "sparse", "zeros", "null")


def rows(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        *((read, kind) for read in (read_bytes, read_object, rows) for kind in KINDS),
        *((manifests.file_hash, kind) for kind in KINDS if kind != "sparse"),  # any size has a hash
    ],
)
def test_what_is_no_small_file(tmp_path: Path, read: Any, kind: str) -> None:
    path = make(tmp_path / "file", kind)
    reason = "is too large for a log|more than 33,554,432 bytes" if kind == "sparse" else "no regular file"
    with pytest.raises(InputError, match=rf"cannot read {path}: it.*({reason})"):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_that_is_no_small_file(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / manifests.NAME, kind)
    with pytest.raises(InputError, match=f"cannot read {path}: it (is no regular file|has more than)"):
        manifests.read(tmp_path)


def test_the_limit_is_the_last_byte(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(InputError, match="more than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 9999 + b"}", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"7", "is not a JSON object"),
    ],
    ids=["open", "bytes", "deep", "digits", "list", "number"],
)
def test_what_is_no_object(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} {message}"):
        read_object(path)
    path.write_bytes(b'{"step": 1}\n' + data)
    with pytest.raises(InputError, match=message):
        list(read_rows(path))
    for place in (tmp_path / "missing", path / "below", tmp_path / "a\x00b"):
        for read in (read_object, rows):
            with pytest.raises(InputError, match=r"cannot read .*(No such file|Not a directory|null byte)"):
                read(place)


def test_rows(tmp_path: Path) -> None:
    written = [{"step": i, "name": "größe"} for i in range(5)]
    (tmp_path / "log").write_text("".join(json.dumps(row) + "\n" for row in written))
    assert rows(tmp_path / "log") == written
    (tmp_path / "log").write_bytes(b"")
    assert rows(tmp_path / "log") == []


def test_a_log_of_long_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"a": 1}\n' * 100)
    with pytest.raises(InputError, match="too large for a log"):
        list(read_rows(tmp_path / "log", limit=640))
    (tmp_path / "log").write_bytes(b'{"a": "' + b"x" * 90)
    with pytest.raises(InputError, match="too large for a log"):
        list(read_rows(tmp_path / "log", limit=640))
    assert reading.LIMIT < reading.LOG_LIMIT
