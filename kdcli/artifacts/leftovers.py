"""What killed runs leave: found by its marks, and swept by the next run that holds the lock."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import marks
from kdcli.artifacts.files import discard, remove, replace, trash_of
from kdcli.artifacts.lock import IDENTITY, unless_held
from kdcli.artifacts.marks import LOCK
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError

HASHES = "hashes.json"
STATE = re.compile(r"state-(\d{12})")
_STATE_DRAFT = re.compile(STATE.pattern + r"\.partial")
_SAFETENSORS_DRAFT = re.compile(r"\.tmp\w{6}")  # safetensors writes through such a file, a crash leaves it
_SEGMENT_DRAFT = re.compile(r"segment-([0-9a-f]{16})\.partial")


def damage(state: Path) -> str:
    """What is wrong with a state's directory, empty if its files are those that were committed."""
    try:
        hashes = read_object(state / HASHES)
        if set(hashes) != {p.name for p in state.iterdir()} - {HASHES}:
            return f"its files are not those that {HASHES} names"
        wrong = [name for name, sha in hashes.items() if manifests.file_hash(state / name) != sha]
    except (OSError, ValueError, InputError) as error:
        return str(error)
    return f"{wrong[0]} differs from its hash" if wrong else ""


def are_left(path: Path) -> bool:
    """Whether a run was killed after it had committed ``path``, while it tidied up."""
    return bool(trash_of(path.parent, path.name)) or _lock_left(path)


def _lock_left(artifact: Path) -> bool:
    try:
        text = marks.lock_text(artifact)
    except OSError:
        return False
    return marks.is_marked(text) or marks.is_begun(text)


def sweep(path: Path, partial: Path) -> None:
    """Tidy up what an interrupted run left of an output.

    Args:
        path: of the output, which is an artifact or not there.
        partial: of the unfinished output; its lock is held.
    """
    for trash in (
        *trash_of(path.parent, path.name),
        *trash_of(path.parent, partial.name),
        *trash_of(partial),
    ):
        with suppress(OSError):
            discard(trash)
    _drop_lock(path)
    for draft in list(partial.rglob(".tmp*")):
        if _SAFETENSORS_DRAFT.fullmatch(draft.name):
            draft.unlink()
    for draft in list(partial.iterdir()):
        if draft.suffix == ".draft":
            remove(draft)
        elif _STATE_DRAFT.fullmatch(draft.name):
            final = draft.with_suffix("")
            if final.exists() or damage(draft):
                remove(draft)
            else:  # whole, and cut off before its rename: it may have taken the place of a state of that step
                replace(draft, final)


def _drop_lock(artifact: Path) -> None:
    with suppress(OSError):
        if _lock_left(artifact):
            os.unlink(artifact / LOCK)


def empty(partial: Path) -> None:
    """Delete all but the lock; what makes it resumable goes first, so that no half of it is ever resumed."""
    first = (IDENTITY, manifests.NAME)
    for entry in sorted(partial.iterdir(), key=lambda p: (p.name not in first, p.name)):
        if entry.name != LOCK:
            remove(entry)


def sweep_folder(folder: Path, prefix: str) -> None:
    """Tidy up a folder of outputs, in which no one else begins any: one whose filling is locked as a whole.

    Args:
        folder: holds them.
        prefix: of their names; all else is left alone, and so is an output that is still being written.
    """
    for place in [entry for entry in folder.iterdir() if entry.name.startswith(prefix)]:
        with suppress(OSError):
            if marks.is_trash(place.name):
                discard(place)
            elif place.suffix == ".partial" and not place.is_symlink():
                if marks.is_marked(marks.lock_text(place)) or _is_old_segment(place):
                    with unless_held(place) as free:
                        if free:
                            remove(place)
            elif _lock_left(place) and manifests.is_artifact(place):
                _drop_lock(place)


def _is_old_segment(partial: Path) -> bool:
    """Whether kdcli 0.1, which set no mark, began this segment of a cache: its name is that of its rows."""
    named = _SEGMENT_DRAFT.fullmatch(partial.name)
    if not named or not marks.is_begun(marks.lock_text(partial)):
        return False
    names = {entry.name for entry in partial.iterdir()}
    arrays = {name for name in names if name.endswith(".npy")}
    records = {name for name in (IDENTITY, manifests.NAME) if name in names}
    if names - arrays - records - {LOCK, f"{IDENTITY}.partial", f"{manifests.NAME}.partial"}:
        return False
    try:
        found = [read_object(partial / name) for name in records]
    except InputError:
        return False
    rows = [record.get("rows", record.get("identity")) for record in found]
    rows = [row.get("rows") if isinstance(row, dict) else row for row in rows]
    return all(str(row)[:16] == named[1] for row in rows) and bool(rows or not arrays)
