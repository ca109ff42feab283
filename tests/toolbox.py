"""What several tests make or break: tiny pictures, traps, a flipped bit, a console that says nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdcli.console import Console

QUIET = Console(silent=True)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Bytes of a picture as a file."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    before: Iterable[tuple[bytes, bytes]] = (),
    after: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG written by hand, for what Pillow does not write; each row begins with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def sample_photographs() -> dict[str, Image.Image]:
    """Scikit-learn's two, 640 x 427, without the five seconds that importing scikit-learn takes."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return {  # through arrays, which leaves the files' metadata behind
        name: Image.fromarray(np.asarray(Image.open(folder / name))) for name in ("china.jpg", "flower.jpg")
    }


class Payload:
    """Makes a folder when it is unpickled: nothing that reads pickles may be run on it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def flip(file: Path, at: int = -1) -> None:
    """Change one bit of the byte at ``at``."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def facts(artifact: Path) -> dict[str, Any]:
    """Its manifest."""
    return json.loads((artifact / "kdcli.json").read_text())


def rows(artifact: Path) -> list[dict[str, Any]]:
    """Rows of its log."""
    return [json.loads(line) for line in (artifact / "metrics.jsonl").read_text().splitlines()]
