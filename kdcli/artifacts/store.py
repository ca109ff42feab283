"""Atomic output directories: ``OUT`` exists = ``OUT`` is whole.

A run writes into ``OUT.partial`` under a lock, syncs every file and directory, writes the manifest last,
drops what the manifest does not name, renames and syncs the parent. Running state goes through the same steps
as ``OUT.partial/state-STEP``: one rename makes it visible, and it stays until the manifest is written, so a
crash at any instruction leaves the last committed step. Deleting renames to a trash name first; what a new
directory replaces is deleted only once the new one stands in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from kdcli.artifacts import leftovers
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.files import remove, replace, sync, sync_tree, write_bytes, write_tensors
from kdcli.artifacts.leftovers import HASHES, STATE
from kdcli.artifacts.lock import IDENTITY, LOCK, locked
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.marks import is_trash
from kdcli.artifacts.reading import read_object
from kdcli.errors import DISK_FAULTS, EnvironmentFault, InputError, Preempted, from_os_error

__all__ = ["Output", "open_output", "remove", "write_bytes", "write_tensors"]

_PREEMPTED = "preempted"
_REMEDY = "Move it away, or choose another --out"


class Output:
    """An artifact being written. Use through :func:`open_output`.

    Attributes:
        path: where the artifact will stand.
        partial: the directory to write into.
    """

    def __init__(self, path: Path, partial: Path, replace: bool) -> None:
        self.path, self.partial, self._replace = path, partial, replace

    # -- running state ---------------------------------------------------------------------------------------
    def states(self) -> list[tuple[int, Path]]:
        """Committed states, oldest first, as (step, directory)."""
        found = [(int(m[1]), p) for p in self.partial.iterdir() if (m := STATE.fullmatch(p.name))]
        return sorted(found)

    @contextmanager
    def new_state(self, step: int) -> Iterator[Path]:
        """Directory to write a state into; leaving the block commits it and removes the older ones."""
        final = self.partial / f"state-{step:012d}"
        draft = final.with_suffix(".partial")
        remove(draft)
        os.mkdir(draft)
        yield draft
        sync(self.partial)  # files written beside the state are part of it
        hashes = {p.name: manifests.file_hash(p) for p in sorted(draft.iterdir())}
        write_bytes(draft / HASHES, json.dumps(hashes).encode())
        sync_tree(draft)
        replace(draft, final)
        for older, path in self.states():
            if older != step:
                remove(path)

    def last_state(self) -> tuple[int, Path] | None:
        """The newest committed state, hashes checked, or None. Raises InputError if it is damaged."""
        states = self.states()
        if not states:
            return None
        step, path = states[-1]
        if damage := leftovers.damage(path):
            raise InputError(f"the running state {path} is damaged ({damage}). Start anew with --overwrite.")
        return step, path

    # -- the end ---------------------------------------------------------------------------------------------
    def commit(self, manifest: Manifest, keep: list[str]) -> Manifest:
        """Hash ``keep``, sync, write the manifest last, drop all else, rename, sync the parent."""
        files = sorted(p for name in keep for p in _files(self.partial / name))
        manifest.files = {
            p.relative_to(self.partial).as_posix(): {
                "sha256": manifests.file_hash(p),
                "size": p.stat().st_size,
            }
            for p in files
        }
        sync_tree(self.partial, skip=LOCK)
        draft = self.partial / f"{manifests.NAME}.partial"
        write_bytes(draft, manifest.to_json().encode())
        os.rename(draft, self.partial / manifests.NAME)
        sync(self.partial)
        self.publish(manifest)
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Make the finished partial directory, whose manifest is ``manifest``, visible as ``path``."""
        if os.path.lexists(self.path):
            self._refuse_to_replace()
        kept = {PurePosixPath(name).parts[0] for name in manifest.files} | {manifests.NAME, LOCK}
        for entry in sorted(self.partial.iterdir()):
            if entry.name not in kept:
                remove(entry)
        sync(self.partial)
        replace(self.partial, self.path)
        with suppress(OSError):  # the artifact is whole, with or without it
            os.unlink(self.path / LOCK)

    def _refuse_to_replace(self) -> None:
        """Raise InputError for what came to stand at the output's place while the run was under way."""
        remedy = "Move it away and run the same command again: its work is kept"
        if not self._replace or not os.path.lexists(self.path / manifests.NAME):
            raise InputError(f"{self.path} appeared while this run was writing it. {remedy}.")
        try:
            refuse_foreign(self.path, overwrite=True)
        except InputError as error:
            write_bytes(self.partial / _PREEMPTED, b"")  # with --overwrite it would begin anew
            raise InputError(f"{error} {remedy}.") from error


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
        overwrite: start anew, unless this very command was preempted; an existing artifact stays until the
            new one is committed.

    Raises:
        InputError: something else stands there, or an identity field differs (exit 3).
        EnvironmentFault: another process is writing it, or the disk refuses (exit 4).
    """
    path = named(path)
    partial = path.with_name(path.name + ".partial")
    try:
        while True:
            if not overwrite and complete(path, identity):
                sweep(path)
                yield None
                return
            _make_folder(path.parent)
            with locked(path, partial):
                output = Output(path, partial, replace=overwrite)
                if not os.path.lexists(path) and _finish(output, overwrite):
                    continue  # the directory became the artifact, with the lock in it
                done = complete(path, identity, overwrite=overwrite)  # perhaps while we waited for the lock
                leftovers.sweep(path, partial)
                if done:
                    yield None
                    return
                if overwrite and not _was_preempted(partial, identity):
                    leftovers.empty(partial)
                _claim(partial, identity)
                try:
                    yield output
                except Preempted:
                    if overwrite:
                        write_bytes(partial / _PREEMPTED, b"")
                        sync(partial)
                    raise
                return
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise from_os_error(error, path) from error
        raise


def named(path: Path | str) -> Path:
    """The whole path of an output; raises InputError for a name that none can have."""
    whole = Path(os.path.abspath(path))
    if not whole.name or "\x00" in str(whole) or whole.name.endswith(".partial") or is_trash(whole.name):
        raise InputError(f"{str(whole)!r} cannot name an artifact. Choose another --out.")
    return whole


def complete(path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether ``path`` already holds the artifact of this identity, and is not to be replaced.

    Raises:
        InputError: something else stands there.
    """
    manifest = refuse_foreign(path, overwrite=overwrite)
    if manifest is None or overwrite:
        return False
    _refuse_other(manifest.identity, identity, path)
    return True


def sweep(path: Path | str) -> None:
    """Delete what a killed process left beside and in a finished artifact, unless another one works there."""
    path = named(path)
    partial = path.with_name(path.name + ".partial")
    if leftovers.are_left(path):
        with suppress(EnvironmentFault, InputError, OSError), locked(path, partial):
            leftovers.sweep(path, partial)


def refuse_foreign(path: Path, *, overwrite: bool = False) -> Manifest | None:
    """The manifest of the artifact that stands at ``path``, None if nothing does.

    Args:
        path: where an artifact is to stand.
        overwrite: whether what stands there is to be deleted.

    Raises:
        InputError: something else stands there; or, where it is to be deleted, files that its manifest does
            not name are among it.
    """
    if not os.path.lexists(path):
        return None
    remedy = f"--overwrite will not delete it. {_REMEDY}" if overwrite else "Choose another --out"
    try:
        manifest = manifests.read(path)
    except InputError as error:
        why = f": {error}" if os.path.lexists(path / manifests.NAME) else "."
        raise InputError(f"{path} exists and is not a kdcli artifact{why} {remedy}.") from error
    if overwrite and os.path.ismount(path):
        raise InputError(f"{path} is a mount point, which cannot be replaced. Choose another --out.")
    with suppress(FileNotFoundError):  # another run replaces it just now: its lock will be met
        for stranger in manifests.strangers(path, manifest) if overwrite else ():
            raise InputError(
                f"{path} holds {stranger}, which its manifest does not name: --overwrite will not delete it. "
                f"{_REMEDY}."
            )
    return manifest


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it looks when it was written and read."""
    return json.loads(json.dumps(identity, default=str))


def _refuse_other(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    if fields := manifests.differing(old, _plain(new)):
        raise InputError(
            f"{path} belongs to a run with other settings: {'; '.join(fields[:6])}. Choose another --out, "
            "or start anew with --overwrite."
        )


def _make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it, each synced into its parent."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} is not a directory. Choose another --out.") from error
    for place in missing:
        sync(place.parent)


def _claim(partial: Path, identity: Mapping[str, Any]) -> None:
    """Record the identity of a fresh partial output, or check that of an earlier one."""
    file = partial / IDENTITY
    if file.exists():
        try:
            old = read_object(file)
        except InputError as error:
            raise InputError(f"{file} is damaged ({error}). Start anew with --overwrite.") from error
        _refuse_other(old, identity, partial)
        return
    leftovers.empty(partial)
    draft = partial / f"{IDENTITY}.partial"
    write_bytes(draft, json.dumps(_plain(identity)).encode())
    os.rename(draft, file)
    sync(partial)
    sync(partial.parent)  # or the states inside would be lost with their directory


def _was_preempted(partial: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a run of this identity that started anew was told to stop: its requeued command goes on.

    The mark is good for one time, so that after a crash ``--overwrite`` means what it says.
    """
    try:
        os.unlink(partial / _PREEMPTED)
        return read_object(partial / IDENTITY) == _plain(identity)
    except (FileNotFoundError, InputError):
        return False


def _finish(output: Output, overwrite: bool) -> bool:
    """Check and publish what a run left that was cut off between its manifest and its rename.

    It is finished whatever comes next: if it was to replace an artifact, that one is in the trash by now.
    """
    if not (output.partial / manifests.NAME).exists():
        return False
    try:
        manifest = manifests.read(output.partial)
        manifests.verify(output.partial, manifest)
    except InputError as error:
        if overwrite:
            return False
        raise InputError(f"{error} Start anew with --overwrite.") from error
    output.publish(manifest)
    return True
