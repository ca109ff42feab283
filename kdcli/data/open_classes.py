"""Classes that training sees and classes that it never sees: a frozen division of some data, in a file.

The protocol by which students of vision-language teachers are measured (Li et al. 2023, arXiv 2307.03135,
table 13): the classes fall into two halves, Y_id and Y_ood. Of each class of Y_id the greater part of the
pictures is ``train`` and the rest ``id``; all pictures of Y_ood are ``ood``. Whoever is measured on ``ood``
chooses among Y_ood alone, and on ``id`` among Y_id alone. In few-shot learning the first n pictures of each
class of Y_ood are learned from and never measured.

The division goes by class, so the source's own splits are laid together first (:mod:`kdcli.data.pool`). It
is drawn by hash of class names and of pictures, whatever their order, and written down, so that it holds for
good.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.artifacts.files import sync, write_bytes
from kdcli.artifacts.reading import read_object
from kdcli.data.pool import Pool
from kdcli.data.samples import Samples, rank
from kdcli.data.targets import UNLABELLED
from kdcli.errors import InputError, UsageError, from_os_error
from kdcli.sections import DataSection

SCHEMA = 1
SEEN, UNSEEN = "id", "ood"
"""The halves of the classes, and the splits that they are measured by."""
SPLITS = ("train", SEEN, UNSEEN)
_ROLES = ("train", "validation", SEEN, UNSEEN)  # validation is carved from train
_LARGEST = 1 << 29  # bytes of a file: some six million pictures
_FEWEST = 2  # classes of a half: among fewer there is nothing to choose
_ENTRY = re.compile(r"([0-9a-f]{16})(?: (.+))?", re.DOTALL)


# -- the division --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenClasses:
    """A division of classes into halves, and of their pictures into splits.

    Attributes:
        seed: that it was drawn by.
        parts: what was asked for: of the classes ``ood``, of the pictures of each seen class ``train``.
        classes: names by half, ``id`` and ``ood``.
        splits: ids (16 hexadecimal digits) by split, ``train``, ``id`` and ``ood``.
        files: where the picture of an id lay, for people: two divisions are equal without them.
    """

    seed: int
    parts: Mapping[str, float]
    classes: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_json(self) -> str:
        """The text of the file."""
        named = {
            split: [f"{one} {self.files[one]}" if self.files.get(one) else one for one in ids]
            for split, ids in self.splits.items()
        }
        classes = {half: list(names) for half, names in self.classes.items()}
        whole = {"schema": SCHEMA, "seed": self.seed, "parts": dict(self.parts), "classes": classes}
        return json.dumps({**whole, "splits": named}, indent=1) + "\n"


def draw(pool: Pool, source: str, *, seed: int = 0, ood: float = 0.5, train: float = 0.7) -> OpenClasses:
    """Divide classes and pictures by hash of what they are.

    Args:
        pool: the pictures.
        source: for messages.
        seed: of the division.
        ood: part of the classes that training never sees, rounded down.
        train: part of each seen class that is trained on, rounded up; one picture always stays to measure.

    Raises:
        InputError: fewer than two classes in a half, or fewer than two pictures of a class to divide.
    """
    count = len(pool.classes)
    unseen = int(Fraction(str(ood)) * count)
    if min(unseen, count - unseen) < _FEWEST:
        raise InputError(
            f"{source} has {count} {'class' if count == 1 else 'classes'}, of which {unseen} would be unseen "
            f"and {count - unseen} seen: each half needs {_FEWEST} or more. Give more classes, or another "
            "--ood."
        )
    ranked = sorted(pool.classes, key=lambda name: rank(f"class {name}", seed))
    halves = {UNSEEN: tuple(sorted(ranked[:unseen])), SEEN: tuple(sorted(ranked[unseen:]))}
    number = {name: i for i, name in enumerate(pool.classes)}
    ids = np.array([f"{value:016x}" for value in pool.samples.ids.tolist()])
    of = {name: sorted(ids[pool.samples.labels == number[name]].tolist()) for name in pool.classes}
    if few := [name for name in halves[SEEN] if len(of[name]) < 2]:
        raise InputError(
            f"{source}: of {', '.join(few[:5])}{f' and {len(few) - 5} more' if len(few) > 5 else ''} there "
            "is one picture only, and a seen class needs one to learn and one to measure. Add pictures, or "
            "leave the class out."
        )
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for name in halves[SEEN]:
        learned = min(math.ceil(Fraction(str(train)) * len(of[name])), len(of[name]) - 1)
        chosen = set(sorted(of[name], key=lambda one: rank(one, seed))[:learned])
        splits["train"] += [one for one in of[name] if one in chosen]
        splits[SEEN] += [one for one in of[name] if one not in chosen]
    for name in halves[UNSEEN]:
        splits[UNSEEN] += of[name]
    return OpenClasses(
        seed,
        {UNSEEN: ood, "train": train},
        {half: halves[half] for half in (SEEN, UNSEEN)},
        {name: tuple(found) for name, found in splits.items()},
        {one: file for one, file in zip(ids.tolist(), pool.files) if file},
    )


def read_open_classes(file: Path | str) -> OpenClasses:
    """The division that a file holds.

    Raises:
        InputError: it cannot be read, is damaged, or is of another schema.
    """
    found = read_object(Path(file), _LARGEST)
    try:
        if found["schema"] != SCHEMA:
            raise InputError(
                f"{file} has schema {found['schema']!r}, this kdcli reads {SCHEMA}. Update kdcli."
            )
        classes = {half: _texts(found["classes"][half], f"classes of {half}") for half in (SEEN, UNSEEN)}
        entries = {name: _texts(found["splits"][name], f"pictures of {name}") for name in SPLITS}
        matches = {name: [(one, _ENTRY.fullmatch(one)) for one in entries[name]] for name in SPLITS}
        for one in (one for pairs in matches.values() for one, match in pairs if match is None):
            raise ValueError(f"{one[:40]!r} is no id of a picture (16 hexadecimal digits)")
        parts = {name: float(found["parts"][name]) for name in (UNSEEN, "train")}
        seed = int(found["seed"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{file} is no whole division of classes: {what}. Write it again: kdcli classes split."
        ) from error
    pairs = {name: [(m[1], m[2] or "") for _, m in matches[name] if m is not None] for name in SPLITS}
    splits = {name: tuple(one for one, _ in pairs[name]) for name in SPLITS}
    for what, lists in (("class", classes), ("picture", splits)):
        if twice := _repeated([one for found in lists.values() for one in found]):
            raise InputError(
                f"{file} is no division: it names the {what} {twice} twice. Write it again: kdcli "
                "classes split."
            )
    files = {one: path for name in SPLITS for one, path in pairs[name] if path}
    return OpenClasses(seed, parts, classes, splits, files)


def write_open_classes(file: Path, division: OpenClasses, *, overwrite: bool = False) -> bool:
    """Write a division unless the file holds it already.

    Args:
        file: to write, synced and renamed into its place.
        division: to write.
        overwrite: whether it may take the place of another division, and of nothing else.

    Returns:
        Whether it was written.

    Raises:
        InputError: something else stands there.
        EnvironmentFault: the disk refuses.
    """
    if os.path.lexists(file):
        try:
            old = read_open_classes(file)
        except InputError as error:
            raise InputError(f"{file} exists and is not replaced. {error} Choose another --out.") from error
        if old == division:
            return False
        if not overwrite:
            raise InputError(
                f"{file} holds another division of classes. Choose another --out, or replace it with "
                "--overwrite."
            )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.partial")
        write_bytes(draft, division.to_json().encode())
        os.replace(draft, file)
        sync(file.parent)
    except OSError as error:
        raise from_os_error(error, file) from error
    return True


def _texts(found: Any, what: str) -> tuple[str, ...]:
    """A list of texts of a file. Raises ValueError for anything else, and for an empty one."""
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"its {what} are no list of texts")
    return tuple(found)


def _repeated(names: Sequence[str]) -> str:
    """The first name that stands in a list twice, in quotes; empty where none does."""
    return next((repr(name) for name, count in Counter(names).items() if count > 1), "")


# -- opening by it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """What a division makes of a source for one use.

    Attributes:
        splits: of ``train`` (few-shot pictures behind the others), ``id`` and ``ood`` those needed, labels
            counting ``classes``.
        classes: that are told apart, the seen ones first.
        learned: how many of them, from the first, have pictures in ``train``.
        shots: uint64 ids of the few-shot pictures.
        held: hashes of the pictures that are measured, by split.
        notes: what the user should know.
    """

    splits: dict[str, Samples]
    classes: list[str]
    learned: int
    shots: np.ndarray
    held: dict[str, np.ndarray]
    notes: tuple[str, ...]


def refuse_beside(config: DataSection, need: Collection[str] = ()) -> None:
    """Raise UsageError for what makes no sense where a file divides the classes.

    Args:
        config: the data section.
        need: splits that are asked for.
    """
    if config.open_classes is None:
        raise UsageError(
            f"data.shots={config.shots} takes pictures of unseen classes, and without data.open_classes "
            "there are none. Give a division (kdcli classes split), or leave data.shots out."
        )
    defaults = type(config).model_fields
    for name in ("train", "validation", "test", "group_by"):
        if (value := getattr(config, name)) != defaults[name].default:
            raise UsageError(
                f"data.{name}={value} is of the source's own splits, and {config.open_classes} makes others. "
                f"Leave data.{name} out."
            )
    for name in need:
        if name not in _ROLES:
            raise UsageError(
                f"{config.source} has no split '{name}' where {config.open_classes} divides its classes. "
                f"Give --split {SEEN} (of classes that training sees) or --split {UNSEEN} (of those that it "
                "never sees)."
            )


def opened(division: OpenClasses, pool: Pool, config: DataSection, need: Collection[str]) -> Opened:
    """The splits that a use needs, with the classes of these splits and no others.

    ``train``, ``validation`` and ``id`` are of Y_id, ``ood`` of Y_ood; with ``data.shots`` the first two are
    of both. Where splits of both kinds are needed at once, classes are those of both.

    Args:
        division: of the source's classes.
        pool: its pictures.
        config: names the file and the source, and how many pictures of an unseen class are learned.
        need: ``train``, ``validation``, ``id`` or ``ood``.

    Raises:
        InputError: the file is of other data, or an unseen class has too few pictures for ``data.shots``.
    """
    rows, notes = _rows(division, pool, config)
    few = _few(division, pool, rows[UNSEEN], config)
    rows[UNSEEN] = np.setdiff1d(rows[UNSEEN], few)
    learns = not {"train", "validation"}.isdisjoint(need)
    seen = learns or SEEN in need
    unseen = UNSEEN in need or (learns and len(few) > 0)
    classes = [*(division.classes[SEEN] if seen else ()), *(division.classes[UNSEEN] if unseen else ())]
    number = {name: i for i, name in enumerate(classes)}
    lut = np.array([number.get(name, UNLABELLED) for name in pool.classes], np.int64)
    samples = pool.samples
    samples = replace(samples, targets=replace(samples.targets, labels=lut[samples.labels]))
    wanted = [name for name in SPLITS if name in need or (name == "train" and learns)]
    used = {**rows, "train": np.concatenate([rows["train"], few])}
    return Opened(
        {name: samples.take(used[name], name) for name in wanted},
        classes,
        len(classes) if len(few) else len(division.classes[SEEN]),
        samples.ids[few],
        {name: samples.pictures[rows[name]] for name in (SEEN, UNSEEN)},
        (*pool.notes, *notes),
    )


def train_of(division: OpenClasses, pool: Pool, config: DataSection) -> Samples:
    """The pictures of ``train``, few-shot ones not among them, of a pool whose labels are not known.

    Raises:
        InputError: the file is of other data.
    """
    return pool.samples.take(_found(division, pool, config)["train"])


def _found(division: OpenClasses, pool: Pool, config: DataSection) -> dict[str, np.ndarray]:
    """Rows of the pool by split, in its order. Raises InputError where pictures of the file are missing."""
    order = np.argsort(pool.samples.ids)
    ids = pool.samples.ids[order]
    rows, missing, total = {}, 0, 0
    for name, wanted in division.splits.items():
        values = np.array([int(one, 16) for one in wanted], np.uint64)
        at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        there = ids[at] == values
        missing, total = missing + int((~there).sum()), total + len(there)
        rows[name] = np.sort(order[at[there]])
    if missing:
        raise InputError(
            f"{config.open_classes}: {missing:,} of the {total:,} pictures that it divides are not in "
            f"{config.source}. It was made of other data: make one of these (kdcli classes split)."
        )
    return rows


def _rows(division: OpenClasses, pool: Pool, config: DataSection) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of the pool by split, and what to say of the others.

    Raises:
        InputError: the file is of other data.
    """
    file, source = config.open_classes, config.source
    named = [*division.classes[SEEN], *division.classes[UNSEEN]]
    for have, lack, who, whom in (
        (named, set(pool.classes), f"{file} divides", f"which {source} has not"),
        (pool.classes, set(named), f"{source} has", f"which {file} does not divide"),
    ):
        if absent := [name for name in have if name not in lack]:
            raise InputError(
                f"{who} {len(have):,} classes, {len(absent):,} of {whom}, first '{absent[0]}'. It was made "
                "of other data: make one of these (kdcli classes split)."
            )
    rows = _found(division, pool, config)
    half = {name: half for half, names in division.classes.items() for name in names}
    unseen = np.array([half[name] == UNSEEN for name in pool.classes])
    for name, own in rows.items():
        if wrong := own[unseen[pool.samples.labels[own]] != (name == UNSEEN)].tolist():
            where = pool.files[wrong[0]] or f"{int(pool.samples.ids[wrong[0]]):016x}"
            of = pool.classes[int(pool.samples.labels[wrong[0]])]
            raise InputError(
                f"{file}: {len(wrong):,} of the {len(own):,} pictures of {name} are of classes of the other "
                f"half in {source}, first {where} of '{of}'. Labels were changed: make a division of these "
                "data (kdcli classes split)."
            )
    counts = ", ".join(f"{name} {len(own):,}" for name, own in rows.items())
    seen = len(division.classes[SEEN])
    notes = [f"{source}: {file} divides it: {seen} classes seen and {len(named) - seen} unseen, {counts}"]
    if left := len(pool.samples) - sum(map(len, rows.values())):
        notes.append(f"{source}: {left:,} labelled pictures are not in {file} and not used")
    return rows, notes


def _few(division: OpenClasses, pool: Pool, unseen: np.ndarray, config: DataSection) -> np.ndarray:
    """Rows of the first ``data.shots`` pictures of each unseen class, by the names of their files.

    Where the data name no files, they are the first by row.

    Raises:
        InputError: nothing would be left of a class to measure.
    """
    if config.shots is None:
        return np.zeros(0, np.int64)
    labels, named = pool.samples.labels[unseen], all(pool.files)
    number = {name: i for i, name in enumerate(pool.classes)}
    few: list[int] = []
    for name in division.classes[UNSEEN]:
        own = unseen[labels == number[name]].tolist()
        if len(own) <= config.shots:
            raise InputError(
                f"data.shots={config.shots}: of the unseen class '{name}' there are {len(own)} pictures, and "
                f"one at least has to be left to measure. Give data.shots={max(len(own) - 1, 0)} or less."
            )
        few += sorted(own, key=lambda row: (pool.files[row], row) if named else ("", row))[: config.shots]
    return np.array(few, np.int64)
