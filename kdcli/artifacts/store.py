"""Atomic output directories: ``OUT`` exists = ``OUT`` is whole.

A run writes into ``OUT.partial`` under a lock, syncs every file and directory, writes the manifest last,
renames and syncs the parent. Running state goes through the same steps as ``OUT.partial/state-STEP``: one
rename makes it visible, so a crash at any instruction leaves the last committed step. Deleting renames to a
trash name first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.errors import DISK_FAULTS, EnvironmentFault, InputError, from_os_error

if TYPE_CHECKING:
    import torch

_LOCK = ".lock"
_IDENTITY = "identity.json"
_STATE = re.compile(r"state-(\d{12})")


def write_bytes(path: Path, data: bytes) -> None:
    """Write and sync a new file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write and sync a safetensors file; shared or strided tensors are written as plain copies."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    try:
        save_file(plain, str(path), metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from error
    sync(path)


def sync(path: Path) -> None:
    """Fsync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Fsync every directory and every file below ``root``, children first."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            if name != _LOCK:
                sync(Path(folder, name))
        sync(Path(folder))


def remove(path: Path) -> None:
    """Delete a path; renamed to a trash name first, so that nothing half-deleted keeps its name."""
    if not path.exists():
        return
    trash = path.with_name(f"{path.name}.trash-{os.getpid()}")
    os.rename(path, trash)
    shutil.rmtree(trash) if trash.is_dir() else os.unlink(trash)


class Output:
    """An artifact being written. Use through :func:`open_output`.

    Attributes:
        path: where the artifact will stand.
        partial: the directory to write into.
        resumed: whether an earlier run left committed state there.
    """

    def __init__(self, path: Path, partial: Path, replace: bool) -> None:
        self.path, self.partial, self._replace = path, partial, replace

    # -- running state ---------------------------------------------------------------------------------------
    def states(self) -> list[tuple[int, Path]]:
        """Committed states, oldest first, as (step, directory)."""
        found = [(int(m[1]), p) for p in self.partial.iterdir() if (m := _STATE.fullmatch(p.name))]
        return sorted(found)

    @contextmanager
    def new_state(self, step: int) -> Iterator[Path]:
        """Directory to write a state into; leaving the block commits it and removes the older ones."""
        final = self.partial / f"state-{step:012d}"
        draft = final.with_suffix(".partial")
        remove(draft)
        os.mkdir(draft)
        yield draft
        hashes = {p.name: manifests.file_hash(p) for p in sorted(draft.iterdir())}
        write_bytes(draft / "hashes.json", json.dumps(hashes).encode())
        sync_tree(draft)
        sync(self.partial)  # files written beside the state are part of it
        remove(final)
        os.rename(draft, final)
        sync(self.partial)
        for older, path in self.states():
            if older != step:
                remove(path)

    def last_state(self) -> tuple[int, Path] | None:
        """The newest committed state, hashes checked, or None. Raises InputError if it is damaged."""
        states = self.states()
        if not states:
            return None
        step, path = states[-1]
        try:
            hashes = json.loads((path / "hashes.json").read_text())
            damaged = [name for name, sha in hashes.items() if manifests.file_hash(path / name) != sha]
        except (OSError, ValueError) as error:
            damaged = [str(error)]
        if damaged:
            raise InputError(
                f"the running state {path} is damaged ({damaged[0]}). Start anew with --overwrite."
            )
        return step, path

    # -- the end ---------------------------------------------------------------------------------------------
    def commit(self, manifest: Manifest, keep: list[str]) -> Manifest:
        """Drop all but ``keep``, hash, sync, write the manifest last, rename, sync the parent."""
        for path in sorted(self.partial.iterdir()):
            if path.name not in {*keep, _LOCK, _IDENTITY}:
                remove(path)
        files = sorted(p for name in keep for p in _files(self.partial / name))
        manifest.files = {
            p.relative_to(self.partial).as_posix(): {
                "sha256": manifests.file_hash(p),
                "size": p.stat().st_size,
            }
            for p in files
        }
        sync_tree(self.partial)
        draft = self.partial / f"{manifests.NAME}.partial"
        write_bytes(draft, manifest.to_json().encode())
        os.rename(draft, self.partial / manifests.NAME)
        sync(self.partial)
        self.publish()
        return manifest

    def publish(self) -> None:
        """Make the finished partial directory visible as ``path``."""
        if self.path.exists():
            if not self._replace:
                raise InputError(f"{self.path} appeared while this run was writing it. Choose another --out.")
            remove(self.path)
        os.rename(self.partial, self.path)
        sync(self.path.parent)
        for name in (_LOCK, _IDENTITY):
            if (self.path / name).exists():
                os.unlink(self.path / name)


def _files(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


@contextmanager
def open_output(
    path: Path | str, identity: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Output | None]:
    """The one resume rule: continue a partial output, yield None if it is complete, refuse another identity.

    Args:
        path: where the artifact will stand.
        identity: the fields that make it what it is (configuration and hashes of parents).
        overwrite: start anew; an existing artifact stays until the new one is committed.

    Raises:
        InputError: something else stands there, or an identity field differs (exit 3).
        EnvironmentFault: another process is writing it, or the disk refuses (exit 4).
    """
    path = Path(os.path.abspath(path))
    partial = path.with_name(path.name + ".partial")
    identity = json.loads(json.dumps(identity, default=str))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _complete(path, identity, overwrite):
            yield None
            return
        with _locked(path, partial) as fd:
            if fd is None or _complete(
                path, identity, overwrite
            ):  # it was finished while we waited for the lock
                yield None
                return
            _sweep(path)
            output = Output(path, partial, replace=overwrite)
            if overwrite:
                _empty(partial)
            if (partial / manifests.NAME).exists() and not overwrite:
                _finish(output, identity)
                yield None
                return
            _claim(partial, identity)
            yield output
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise from_os_error(error, path) from error
        raise


def _complete(path: Path, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether ``path`` already holds the artifact of this identity."""
    if overwrite or not os.path.lexists(path):
        if overwrite and path.exists() and not (path / manifests.NAME).exists():
            raise InputError(f"{path} exists and is not a kdcli artifact; --overwrite will not delete it.")
        return False
    if not (path / manifests.NAME).exists():
        raise InputError(f"{path} exists and is not a kdcli artifact. Choose another --out.")
    _refuse_other(manifests.read(path).identity, identity, path)
    return True


def _refuse_other(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    if fields := manifests.differing(old, new):
        raise InputError(
            f"{path} belongs to a run with other settings: {'; '.join(fields[:6])}. Choose another --out, "
            "or start anew with --overwrite."
        )


@contextmanager
def _locked(path: Path, partial: Path) -> Iterator[int | None]:
    """Hold the output's lock, a file inside ``partial`` so that it leaves with the rename."""
    while True:
        os.makedirs(partial, exist_ok=True)
        try:
            fd = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # another process has just renamed the directory
        held = False
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
                raise EnvironmentFault(
                    f"{path} is being written by {holder}. Wait for it, or choose another --out."
                ) from None
            try:
                same = os.fstat(fd).st_ino == os.stat(partial / _LOCK).st_ino
            except FileNotFoundError:
                same = False
            if not same:
                if path.exists():  # the holder has just committed
                    yield None
                    return
                continue
            held = True
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield fd
            return
        finally:
            if held and partial.exists() and not any(p.name != _LOCK for p in partial.iterdir()):
                remove(partial)  # nothing was written: leave no trace
            os.close(fd)


def _claim(partial: Path, identity: Mapping[str, Any]) -> None:
    """Record the identity of a fresh partial output, or check that of an earlier one."""
    file = partial / _IDENTITY
    if file.exists():
        _refuse_other(json.loads(file.read_text()), identity, partial)
        return
    _empty(partial)
    draft = partial / f"{_IDENTITY}.partial"
    write_bytes(draft, json.dumps(identity).encode())
    os.rename(draft, file)
    sync(partial)


def _finish(output: Output, identity: Mapping[str, Any]) -> None:
    """A run was cut off between its manifest and its rename: check and publish."""
    manifest = manifests.read(output.partial)
    _refuse_other(manifest.identity, identity, output.partial)
    manifests.verify(output.partial, manifest)
    output.publish()


def _empty(partial: Path) -> None:
    for entry in sorted(partial.iterdir()):
        if entry.name != _LOCK:
            remove(entry)


def _sweep(path: Path) -> None:
    """Delete trash that an interrupted deletion left; the lock on ``path`` is held."""
    for trash in (
        *path.parent.glob(f"{path.name}.trash-*"),
        *path.parent.glob(f"{path.name}.partial.trash-*"),
    ):
        shutil.rmtree(trash, ignore_errors=True)
    partial = path.with_name(path.name + ".partial")
    for trash in partial.glob("*.trash-*"):
        shutil.rmtree(trash, ignore_errors=True) if trash.is_dir() else trash.unlink(missing_ok=True)
