"""Files and directories that survive a crash and a loss of power: written, synced, replaced, deleted.

A fault of the disk is an ``EnvironmentFault`` that names the file and the bytes wanted.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.artifacts import marks
from kdcli.errors import from_os_error

if TYPE_CHECKING:
    import torch


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Name the file and the bytes wanted in any fault of the disk."""
    try:
        yield
    except OSError as error:
        fault = OSError(error.errno, error.strerror, str(path))
        raise from_os_error(fault, path, size) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write and sync a new file; raises EnvironmentFault where the disk refuses."""
    with _writing(path, len(data)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write and sync a safetensors file; shared or strided tensors are written as plain copies.

    Raises EnvironmentFault where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():
        storage = tensor.untyped_storage().data_ptr()
        if tensor.numel() and storage in seen:
            plain[name] = tensor.clone()
        seen.add(storage)
    with _writing(path, sum(t.numel() * t.element_size() for t in plain.values())):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        mode = os.fstat(fd).st_mode & 0o777  # as the umask has it; safetensors makes files of mode 600
        os.close(fd)
        try:
            save_file(plain, str(path), metadata=metadata or {"format": "pt"})
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            code = int(found[1]) if found else errno.EIO
            raise OSError(code, os.strerror(code) if found else str(error)) from error
        os.chmod(path, mode)
        sync(path)


def sync(path: Path) -> None:
    """Fsync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # EINVAL: this file system syncs no directories
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


def sync_tree(root: Path, skip: str = "") -> None:
    """Fsync every directory and every file below ``root`` (but those named ``skip``), children first."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            if name != skip:
                sync(Path(folder, name))
        sync(Path(folder))


def remove(path: Path) -> None:
    """Delete a path; renamed to a trash name first, so that nothing half-deleted keeps its name."""
    if os.path.lexists(path):
        trash = marks.trash_name(path)
        os.rename(path, trash)
        discard(trash)


def discard(trash: Path) -> None:
    """Delete a path that no one reads by name."""
    with suppress(FileNotFoundError):  # the next run may be sweeping it
        try:
            shutil.rmtree(trash) if trash.is_dir() and not trash.is_symlink() else os.unlink(trash)
        except OSError as error:  # rmtree names a file by its last part
            raise OSError(error.errno, error.strerror, str(trash)) from error


def replace(new: Path, final: Path) -> None:
    """Rename ``new`` to ``final``; what stood there is deleted once ``new`` has its place, else put back."""
    old = None
    if os.path.lexists(final):
        old = marks.trash_name(final)
        os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        if old is not None:
            os.rename(old, final)
        raise
    sync(final.parent)
    if old is not None:
        with suppress(OSError):  # it is committed; the next run sweeps what is left
            discard(old)


def trash_of(folder: Path, name: str | None = None) -> list[Path]:
    """Trash that an interrupted deletion of ``name`` (None: of anything) left in ``folder``."""
    try:
        return [folder / entry for entry in os.listdir(folder) if marks.is_trash(entry, name)]
    except OSError:
        return []
