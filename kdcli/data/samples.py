"""Samples of one split: pictures as stored bytes, targets, and ids that follow the picture, not its place.

A sample id is the first 64 bits of sha256(stored bytes, occurrence number), so the same picture has the same
id in any subset and subsets share a cache. Splits are carved by hash of the picture, independent of order and
``--seed``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.artifacts.manifest import digest
from kdcli.data.files import refuse_special
from kdcli.data.images import decode, upright_size
from kdcli.data.targets import UNLABELLED, Place, Targets
from kdcli.errors import BadImageError, InputError

_REMEDY = "Mend the picture, or run with --on-bad-image skip."


@dataclass(frozen=True)
class Samples:
    """Pictures of one split.

    Attributes:
        name: ``train``, ``validation``, … for messages.
        table: the underlying Hugging Face dataset; image cells are ``{"bytes", "path"}``.
        column: name of the image column.
        root: the folder that cells may name files in; None where only embedded bytes are allowed.
        rows: [N] row of each sample in ``table``.
        ids: [N] uint64 sample ids, unique.
        pictures: [N] uint64 hash of the stored bytes (equal for duplicates).
        targets: what is known of the N pictures.
        groups: [N] values that stay together when splitting, or None.
    """

    name: str
    table: Any
    column: str
    root: Path | None
    rows: np.ndarray
    ids: np.ndarray
    pictures: np.ndarray
    targets: Targets
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """[N] int64 class numbers, or strata; -1 for unlabelled."""
        return self.targets.labels

    def where(self, index: int) -> str:
        """Split, row and, where it has one, file of sample ``index``, for messages: its cell is read."""
        return f"{self.row(index)}{file_of(self._cell(index), self.root)}"

    def row(self, index: int) -> str:
        """Split and row of sample ``index``, for messages."""
        return f"{self.name} row {int(self.rows[index])}"

    def _cell(self, index: int) -> Any:
        return self.table[int(self.rows[index])][self.column]

    def data(self, index: int) -> bytes:
        """Stored bytes of sample ``index``. Raises InputError for a cell that names a foreign file or URL."""
        return cell_bytes(self._cell(index), self.root, self.row(index))

    def picture(self, index: int, max_pixels: int) -> Any:
        """The decoded RGB picture. Raises BadImageError naming row and file."""
        data = self.data(index)
        try:
            return decode(data, max_pixels=max_pixels)
        except BadImageError as error:
            raise corrupt(self.where(index), error) from error

    def size(self, index: int, max_pixels: int) -> tuple[int, int]:
        """Width and height of a picture. Raises BadImageError naming row and file."""
        try:
            return upright_size(self.data(index), max_pixels=max_pixels)
        except BadImageError as error:
            raise corrupt(self.where(index), error, "") from error

    def place(self, index: int, size: tuple[int, int], max_pixels: int) -> Place:
        """A picture of ``size`` (width, height), as those who read its target need it."""
        return Place(size, self.row(index), partial(self.data, index), max_pixels)

    def beside(self, index: int, size: tuple[int, int], max_pixels: int) -> Any:
        """What is cut together with a picture of ``size``; see :meth:`Targets.read`."""
        return self.targets.read(index, self.place(index, size, max_pixels))

    def take(self, keep: np.ndarray, name: str | None = None) -> Samples:
        """The samples selected by a mask or index array."""
        return replace(
            self,
            name=name or self.name,
            rows=self.rows[keep],
            ids=self.ids[keep],
            pictures=self.pictures[keep],
            targets=self.targets.take(keep),
            groups=None if self.groups is None else self.groups[keep],
        )

    def unlabelled(self, like: Targets) -> Samples:
        """The same pictures beside targets of the kind of ``like``, of which nothing is known."""
        return replace(self, targets=like.blank(len(self)))

    def without(self, others: Samples) -> Samples:
        """The labelled samples whose pictures are not among those of ``others``."""
        return self.take(self.labelled() & ~np.isin(self.pictures, others.pictures))

    def numbered(self, names: Sequence[str], classes: Sequence[str]) -> Samples:
        """The samples of ``classes``, which their labels number, where they numbered ``names`` before."""
        place = {name: number for number, name in enumerate(classes)}
        lut = np.array([*(place.get(name, UNLABELLED) for name in names), UNLABELLED], np.int64)  # of -1 too
        found = replace(self, targets=replace(self.targets, labels=lut[self.labels]))
        return found.take(found.labelled())

    @property
    def fingerprint(self) -> str:
        """Hash of the multiset of (picture, label, what else is known), whatever their order."""
        more = self.targets.hashes
        order = np.lexsort((*more, self.labels, self.pictures))
        sha = hashlib.sha256(self.pictures[order].tobytes())
        sha.update(self.labels[order].astype(np.int64).tobytes())
        for hashes in more:
            sha.update(hashes[order].tobytes())
        return sha.hexdigest()[:32]

    def labelled(self) -> np.ndarray:
        """[N] mask of the samples with a label."""
        return self.labels != UNLABELLED


def corrupt(where: str, error: BadImageError, remedy: str = _REMEDY, file: str = "") -> BadImageError:
    """The error of a decoder, with what is corrupt and what to do; ``file`` unless ``where`` says it."""
    return BadImageError(f"{where}: {str(error).rstrip('.')}{file}. {remedy}".rstrip())


def file_of(cell: Any, root: Path | None) -> str:
    """The file that an image cell names, in brackets, or nothing: put behind the row in messages."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    if not isinstance(path, str) or not path:
        return ""
    whole = root is not None and os.path.abspath(path).startswith(f"{root}{os.sep}")
    return f" ({os.path.relpath(path, root) if whole else path})"


def cell_bytes(cell: Any, root: Path | None, where: str) -> bytes:
    """Bytes of an image cell; files are read only where they lie below ``root``."""
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        return cell["bytes"]
    path = cell.get("path") if isinstance(cell, dict) else cell
    if isinstance(path, str) and path and root is not None and "://" not in path and "\0" not in path:
        file = Path(path).resolve()
        if file.is_relative_to(root):
            refuse_special(file)
            try:
                return file.read_bytes()
            except OSError as error:
                raise InputError(f"{where}: cannot read {file}: {error.strerror}.") from error
    if isinstance(path, str) and path:
        raise InputError(
            f"{where}: its picture is not stored in the data but named as {path!r}. Files outside the data "
            "and URLs are never opened: embed the bytes (for example by datasets' save_to_disk after a cast)."
        )
    raise InputError(f"{where}: the image cell is empty.")


def identify(hashes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] and picture hashes [N] (both uint64) from the sha256 of each picture's bytes."""
    seen: Counter[bytes] = Counter()
    numbered = []
    for sha in hashes:
        numbered.append(hashlib.sha256(sha + seen[sha].to_bytes(8, "big")).digest())
        seen[sha] += 1
    ids = prefixes(numbered)
    if len(np.unique(ids)) != len(ids):
        raise InputError("two different pictures share a 64-bit sample id; remove one of them.")
    return ids, prefixes(hashes)


def prefixes(hashes: Sequence[bytes]) -> np.ndarray:
    """The first 64 bits of each sha256: uint64 [N]."""
    return np.frombuffer(b"".join(hashes), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def rank(value: Any, seed: int) -> bytes:
    """What things are ordered by to draw some of them, whatever order they stand in: a hash of them."""
    return hashlib.sha256(f"{seed}:{value}".encode()).digest()


def carve(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split labelled samples per stratum by hash of the picture (or of its group) into (train, validation).

    Strata, mostly classes, are :attr:`Targets.strata`. Duplicates, groups and what :attr:`Targets.together`
    joins stay together; unlabelled samples stay in train, but for those of a held-out unit.

    Raises:
        InputError: too few labelled pictures to carve one.
    """
    units, strata = _units(samples), samples.targets.strata
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(samples.labelled()):
        members.setdefault(int(units[i]), []).append(int(strata[i]))
    by_class: dict[int, list[int]] = {}
    for unit, labels in members.items():
        counts = Counter(labels)
        by_class.setdefault(min(counts, key=lambda c: (-counts[c], c)), []).append(unit)
    held: list[int] = []
    for units_of_class in by_class.values():
        ranked = sorted(units_of_class, key=lambda unit: rank(unit, seed))
        wanted = round(fraction * sum(len(members[u]) for u in ranked))
        for unit in ranked[:-1]:  # one unit always stays in train
            if len(members[unit]) <= wanted:
                held.append(unit)
                wanted -= len(members[unit])
    mask = np.isin(units, np.array(held, np.uint64))
    samples.targets.refuse_carving(mask, fraction, samples.name)
    return samples.take(~mask), samples.take(mask, "validation")


def _units(samples: Samples) -> np.ndarray:
    """[N] what must not be split: the smallest hash among pictures that are alike, in a group, or joined."""
    units, joined = samples.pictures, samples.targets.together
    known = [samples.groups] if samples.groups is not None else []
    if joined is not None:  # a picture by itself has a number of its own
        known.append(np.where(joined < 0, joined.max(initial=0) + 1 + np.arange(len(joined)), joined))
    if not known:
        return units
    keys = [np.unique(k, return_inverse=True)[1] for k in (*known, samples.pictures)]
    while True:  # a picture in two groups joins them
        before = units
        for key in keys:
            smallest = np.full(key.max(initial=0) + 1, np.iinfo(np.uint64).max)
            np.minimum.at(smallest, key, units)
            units = smallest[key]
        if np.array_equal(units, before):
            return units


def hide_labels(
    samples: Samples, per_class: int, seed: int, spared: np.ndarray | Sequence[int] = ()
) -> Samples:
    """Keep ``per_class`` labels of each class, chosen by hash of the picture; hide the rest.

    Those of the samples whose ids are ``spared`` are kept in any case, and not counted.
    """
    rest: list[int] = []
    open_to = samples.labelled() & ~np.isin(samples.ids, np.asarray(spared, np.uint64))
    for label in np.unique(samples.labels[open_to]):
        indices = np.flatnonzero(open_to & (samples.labels == label)).tolist()
        ranked = sorted(indices, key=lambda i: rank(int(samples.ids[i]), seed))
        rest += ranked[per_class:]
    return replace(samples, targets=samples.targets.hidden(np.array(rest, np.int64)))


@dataclass(frozen=True)
class Data:
    """A source with its splits.

    Attributes:
        source: as given.
        classes: names by class number, None for unlabelled data.
        splits: ``train``, ``validation``, ``test`` as far as they exist.
        licence: what the data says of itself.
        skipped: ids (hex) of corrupt pictures left out.
        task: what its labels are for, a key of :data:`kdcli.tasks.TASKS`; empty where none are read.
        notes: what the user should know of how they were read.
        held: [N] hashes of the pictures that a training is selected and measured by, by split.
        shots: uint64 ids of the few-shot pictures, those of unseen classes that are learned from.
        carved: whether validation was carved from train, so that another seed holds out others.
    """

    source: str
    classes: list[str] | None
    splits: dict[str, Samples]
    licence: str = ""
    skipped: tuple[str, ...] = ()
    task: str = ""
    notes: tuple[str, ...] = ()
    held: Mapping[str, np.ndarray] = field(default_factory=dict)
    shots: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    carved: bool = False

    def split(self, name: str) -> Samples:
        """The split ``name``; raises InputError listing those that exist."""
        if name not in self.splits:
            raise InputError(f"{self.source} has no split '{name}'; it has: {', '.join(self.splits)}.")
        return self.splits[name]

    @property
    def fingerprint(self) -> str:
        """Hash over all splits and class names."""
        return digest({"classes": self.classes, **{k: s.fingerprint for k, s in self.splits.items()}})[:32]

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        return {
            "source": self.source,
            "classes": self.classes,
            "fingerprint": self.fingerprint,
            "licence": self.licence,
            "skipped": list(self.skipped),
            "splits": {
                name: {"samples": len(s), "labelled": int(s.labelled().sum()), "hash": s.fingerprint}
                for name, s in self.splits.items()
            },
        }
