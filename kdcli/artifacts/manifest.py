"""The manifest ``kdcli.json``: what an artifact is, where it came from, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from kdcli.artifacts import marks
from kdcli.artifacts.shapes import malformed
from kdcli.errors import InputError
from kdcli.reading import read_bytes, refuse_irregular

SCHEMA = 1
NAME = "kdcli.json"
GRAIN_NS = 2 * 10**9  # of the coarsest clock of a file system, FAT's
_CHUNK = 1 << 20
_NESTED = 3  # runs/cache/KEY/segment-… is the deepest


@dataclass
class Manifest:
    """Everything an artifact says about itself.

    Attributes:
        kind: ``model``, ``dataset``, ``cache`` or ``report``.
        stage: the stage that wrote it.
        identity: the fields that make this artifact what it is; a resumed run must have the same.
        parents: artifacts and sources read, each ``{"role", "path", "hash"}``.
        files: ``{relative name: {"sha256", "size"}}``, filled on commit.
        facts: all else: config, command, data, versions, device, metrics, cost and so on.
    """

    kind: str
    stage: str
    identity: dict[str, Any]
    parents: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def hash(self) -> str:
        """Hash of the content (kind and files): equal for two runs that wrote the same bytes."""
        return digest({"kind": self.kind, "files": {k: v["sha256"] for k, v in self.files.items()}})

    def to_json(self) -> str:
        """Serialise, facts last and flattened beside the fixed fields."""
        data = asdict(self)
        facts = data.pop("facts")
        return json.dumps({**data, **facts}, indent=1, sort_keys=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Parse ``text``; raises InputError naming ``path`` when it is not a manifest of this schema."""
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema == SCHEMA:
                fixed = {n: data.pop(n) for n in ("kind", "stage", "identity", "parents", "files")}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is not a kdcli manifest ({error!r}). Point at a whole artifact."
            ) from error
        if schema != SCHEMA:
            raise InputError(
                f"{path} has manifest schema {schema!r}, this kdcli reads {SCHEMA}. Update kdcli."
            )
        if fault := malformed({**data, **fixed}):
            raise InputError(f"{path} is damaged: its {fault}. Make the artifact again.")
        for name in fixed["files"]:
            if not _is_member(name):
                raise InputError(f"{path} names a file outside its artifact: {name!r}. Refused.")
        return cls(schema=schema, facts=data, **fixed)


def digest(value: Any) -> str:
    """Sha256 (hex) of any JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Sha256 (hex) of a regular file, read in pieces; raises InputError for another, OSError for none."""
    refuse_irregular(path)
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()


def _current_hash(file: Path, status: os.stat_result) -> str:
    """Sha256 (hex) of a file; one that this process has hashed and that is as it was is not read again.

    Its path, size, inode and times tell: anyone can put back when its content was changed, no one when it was
    changed at all. What was changed just now may be changed again within the grain of the clock.
    """
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if changed > time.time_ns() - GRAIN_NS:
        return file_hash(file)
    return _settled_hash(file, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _settled_hash(file: Path, *_status: int) -> str:
    return file_hash(file)


def safe_member(root: Path, name: str) -> Path:
    """Path of member ``name`` under ``root``; raises InputError if it would lead outside."""
    path = root / name
    if _is_member(name):
        try:
            if os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
                return path
        except (OSError, ValueError):
            pass
    raise InputError(f"{root / NAME} names a file outside its artifact: {name!r}. Refused.")


def _is_member(name: str) -> bool:
    """Whether a name stays below the directory that it is taken from, links aside."""
    pure = PurePosixPath(name)
    return bool(pure.parts) and not (pure.is_absolute() or ".." in pure.parts or {"\x00", "\\"} & set(name))


def read(path: Path | str) -> Manifest:
    """Read the manifest of the artifact at ``path``.

    Raises:
        InputError: nothing there, only a partial output there, or no valid manifest.
    """
    root = Path(path)
    file = root / NAME
    try:
        text = read_bytes(file).decode("utf-8")
    except FileNotFoundError:
        refuse_half_written(root)
        if not root.exists():
            raise InputError(f"{root} does not exist.") from None
        raise InputError(f"{root} is not a kdcli artifact: it has no {NAME}.") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise InputError(f"cannot read {file}: {error}") from error
    return Manifest.from_json(text, file)


def refuse_half_written(path: Path) -> None:
    """Raise InputError if ``path`` is, or lies in, an output that a run has not finished."""
    whole = Path(os.path.abspath(path))
    unfinished = any(place.name.endswith(".partial") for place in (whole, whole.parent))
    if unfinished or (not whole.exists() and Path(f"{whole}.partial").exists()):
        raise InputError(
            f"{path} is half-written: the run that writes it has not finished. Run the same command again "
            "to continue it."
        )


def is_ours(path: Path | str) -> bool:
    """Whether a directory is kdcli's own, so that its pictures are no data of the user's.

    That is an artifact, an unfinished one, a cache, what a deletion left, or a folder (``runs/``) that holds
    such directories and nothing else. Ask it of what lies below the data, not of the data themselves, which
    may be a dataset artifact. It looks at one directory and opens a few small files.
    """
    folder = Path(path)
    return carries_mark(folder) or bool(_own(folder, _NESTED))


def carries_mark(folder: Path) -> bool:
    """Whether a directory is an artifact, an unfinished one, a cache, or what a deletion left."""
    try:
        text = marks.lock_text(folder)
    except (OSError, ValueError):
        return False
    begun = folder.name.endswith(".partial") and marks.is_begun(text)
    marked = begun or marks.is_marked(text) or marks.is_trash(folder.name)
    return folder.is_dir() if marked else is_artifact(folder)


def is_artifact(folder: Path) -> bool:
    """Whether a directory holds a manifest that can be read."""
    if not os.path.lexists(folder / NAME):
        return False
    try:
        read(folder)
    except InputError:
        return False
    return True


def _own(folder: Path, depth: int) -> int | None:
    """How many directories of kdcli's own a folder holds; None where it holds something else.

    Empty folders are nothing, and a lock that 0.1 left in a cache is none of the user's.
    """
    count = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == marks.LOCK and marks.is_begun(marks.lock_text(folder)):
                    continue
                if not depth or not entry.is_dir(follow_symlinks=False):
                    return None
                if _is_log(folder, entry.name):
                    continue
                inner = 1 if carries_mark(Path(entry.path)) else _own(Path(entry.path), depth - 1)
                if inner is None:
                    return None
                count += inner
    except (OSError, ValueError):
        return None
    return count


def _is_log(folder: Path, name: str) -> bool:
    """Whether a directory of this name is what ``--track`` wrote beside an output."""
    output = name.removesuffix(".track")
    return output != name and any(carries_mark(folder / f"{output}{end}") for end in ("", ".partial"))


def strangers(root: Path, manifest: Manifest) -> Iterator[str]:
    """What lies in an artifact's directory and is not named by its manifest: its writer left none of it.

    Raises OSError for a directory that cannot be listed.
    """
    named = {PurePosixPath(name).as_posix() for name in manifest.files} | {NAME}
    text = marks.lock_text(root)
    if marks.is_marked(text) or marks.is_begun(text):
        named.add(marks.LOCK)
    folders = {parent.as_posix() for name in named for parent in PurePosixPath(name).parents}
    for place, below, files in os.walk(root, onerror=_refuse):
        at = Path(place).relative_to(root)
        for name in files:
            if (at / name).as_posix() not in named:
                yield (at / name).as_posix()
        for name in below:
            if (at / name).as_posix() not in folders or Path(place, name).is_symlink():
                yield f"{(at / name).as_posix()}/"


def _refuse(error: OSError) -> None:
    raise error


def verify(path: Path | str, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Check size and sha256 of the files of an artifact.

    Args:
        path: the artifact's directory.
        manifest: its manifest.
        names: which files; all by default.

    Raises:
        InputError: a file is missing, has another size or other bytes than were committed.
    """
    root = Path(path)
    for name in manifest.files if names is None else names:
        if name not in manifest.files:
            raise InputError(f"{root} has no {name}; its files are: {', '.join(sorted(manifest.files))}.")
        file, expected = safe_member(root, name), manifest.files[name]
        try:
            if not file.is_file():
                raise InputError(f"{file} is missing from its artifact. Make the artifact again.")
            status = file.stat()
            size = status.st_size
            sha = _current_hash(file, status) if size == expected["size"] else ""
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}.") from error
        if size != expected["size"]:
            raise InputError(
                f"{file} is damaged: {size:,} bytes instead of {expected['size']:,}. Make the artifact again."
            )
        if sha != expected["sha256"]:
            raise InputError(
                f"{file} is damaged: its sha256 differs from the manifest. Make the artifact again."
            )


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that decide results."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in (
        "kdcli",
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "diffusers",
        "accelerate",
        "datasets",
        "safetensors",
        "numpy",
        "pillow",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two identities differ."""
    fields = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            fields += differing(a, b, f"{prefix}{key}.")
        elif a != b and repr(a) != repr(b):  # NaN is the same setting as NaN
            fields.append(f"{prefix}{key} ({a!r} then, {b!r} now)")
    return fields
