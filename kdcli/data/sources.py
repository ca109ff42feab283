"""One ``open`` for every source: splits, pictures, samples; what is known of them is a reader's to say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.data import open_classes
from kdcli.data import splits as splits_of
from kdcli.data.columns import image_column, named_column, undecoded
from kdcli.data.division import divide
from kdcli.data.duplicates import settle
from kdcli.data.hashes import cell_hashes
from kdcli.data.images import decode, glance, upright_size
from kdcli.data.loading import Raw, load
from kdcli.data.pool import Pool, no_labels, pooled, refuse_more
from kdcli.data.samples import Data, Samples, carve, corrupt, file_of, hide_labels, identify, prefixes
from kdcli.data.tables import Kept
from kdcli.data.targets import Reader, ReaderOf, unlabelled
from kdcli.errors import BadImageError, InputError
from kdcli.sections import DataSection, SourceSection


def open_data(
    config: DataSection, reader_of: ReaderOf, *, need: tuple[str, ...] = ("train",), kept: Kept | None = None
) -> Data:
    """Open ``config.source``, carve what is missing, hide labels, leave out corrupt pictures.

    Args:
        config: the data section.
        reader_of: finds and reads the labels.
        need: splits that must exist: of ``train``, ``validation``, ``test``, or any split's own name.
        kept: says where hashes of files are kept.

    Raises:
        InputError: nothing readable there, no such split or column, an empty class, a foreign image cell.
        UsageError: an unknown bundled example.
    """
    if config.open_classes is not None or config.shots is not None:
        return _open_by_class(config, reader_of, need, kept)
    raw = _load(config.source, kept)
    raw.refuse_unclear()
    reader = reader_of(raw, config)  # first, for it may lay tables together
    wanted, carving = splits_of.wanted(raw.tables, config, need)
    source = _Source(raw, config, reader, config.group_by)
    samples, skipped = source.splits(wanted.values())
    classes = reader.classes(samples, source.split)
    splits = {role: samples[name] for role, name in wanted.items()}
    held: dict[str, np.ndarray] = {}
    if "train" in wanted:
        splits, held = _settled(splits, raw, config, wanted)
    if carving and classes is not None:
        whole = splits["train" if "train" in wanted else "validation"]
        train, validation = carve(whole, config.validation_fraction, config.split_seed)
        splits |= {role: s for role, s in (("train", train), ("validation", validation)) if role in need}
    else:
        raw.notes.extend(_unheeded(config))
        if carving and "train" in wanted:  # of no labels nothing is carved
            splits.pop("validation", None)
    if "train" in splits and classes is not None:
        reader.check(splits["train"], classes)
        if config.labels_per_class:
            splits["train"] = hide_labels(splits["train"], config.labels_per_class, config.split_seed)
    splits = {role: replace(s, name=role) for role, s in splits.items()}
    held |= {role: s.pictures for role, s in splits.items() if role != "train"}
    notes = tuple(raw.notes)
    found = Data(config.source or "", classes, splits, raw.licence, skipped, reader.task, notes, held)
    return replace(found, carved=carving and classes is not None)


def _open_by_class(
    config: DataSection, reader_of: ReaderOf, need: tuple[str, ...], kept: Kept | None
) -> Data:
    """Open splits that ``data.open_classes`` makes; see :mod:`kdcli.data.open_classes`."""
    open_classes.refuse_beside(config, need)
    division = open_classes.read_open_classes(Path(str(config.open_classes)).expanduser())
    raw = _load(config.source, kept)
    raw.refuse_unclear()
    reader = reader_of(raw, config)
    source = _Source(raw, config, reader)
    found = open_classes.opened(division, source.pooled(), config, need)
    splits, skipped = source.without_corrupt(found.splits)
    shots = found.shots
    if "train" in splits:
        whole = splits.pop("train")
        shots = shots[np.isin(shots, whole.ids)]
        rest = whole.take(~np.isin(whole.ids, shots))  # few-shot pictures are never held out
        validation = carve(rest, config.validation_fraction, config.split_seed)[1]
        train = whole.take(~np.isin(whole.ids, validation.ids))
        if "train" in need:
            reader.check(train, found.classes[: found.learned])
            if config.labels_per_class:
                train = hide_labels(train, config.labels_per_class, config.split_seed, spared=shots)
        splits |= {"train": train, "validation": validation}
    if config.duplicates != "keep":
        raw.notes.append(
            f"{config.source}: data.duplicates={config.duplicates} changes nothing: where classes are "
            "divided each picture counts once"
        )
    splits = {role: replace(splits[role], name=role) for role in dict.fromkeys(need)}
    held = found.held | {role: s.pictures for role, s in splits.items() if role != "train"}
    notes = (*raw.notes, *found.notes)
    source_name, task = config.source or "", reader.task
    return Data(source_name, found.classes, splits, raw.licence, skipped, task, notes, held, shots)


def open_pool(
    config: DataSection, reader_of: ReaderOf, splits: Sequence[str] = (), kept: Kept | None = None
) -> Pool:
    """The labelled pictures of a source, to divide by their classes: of these splits, or of all.

    Raises:
        InputError: nothing readable there, no such split or column, no labels, a foreign image cell.
        UsageError: an unknown bundled example, or labels that are more than one class a picture.
    """
    raw = _load(config.source, kept)
    raw.refuse_unclear()
    for name in splits:
        if name not in raw.tables:
            raise splits_of.missing(raw.tables, name, config.source or "", "")
    found = _Source(raw, config, reader_of(raw, config)).pooled(splits)
    return replace(found, notes=(*raw.notes, *found.notes))


def class_names(config: DataSection, reader_of: ReaderOf) -> list[str]:
    """The names of a source's classes, of which no picture is opened.

    Raises:
        InputError: nothing readable there, no labels.
    """
    raw = _load(config.source, None)
    raw.refuse_unclear()
    names = reader_of(raw, config).classes({}, _Source(raw, config).split)
    if not names:
        raise no_labels(config.source or "")
    return names


def _unheeded(config: DataSection) -> Iterator[str]:
    """Of the options that say how validation is carved, those that were changed where nothing is carved."""
    names = ["validation_fraction", "group_by", *([] if config.labels_per_class else ["split_seed"])]
    fields = type(config).model_fields
    for name in names:
        if (value := getattr(config, name)) != fields[name].default:
            yield f"{config.source}: data.{name}={value} changes nothing: no validation is carved here"


def open_train(config: SourceSection, kept: Kept | None = None) -> Data:
    """Open the training split alone, whole; its labels, if any, are never read.

    Raises:
        InputError: nothing readable there, no such split or column, a foreign image cell.
    """
    raw = _load(config.source, kept)
    if isinstance(config, DataSection) and (config.open_classes is not None or config.shots is not None):
        return _open_seen(raw, config)
    name = splits_of.wanted_train(raw.tables, config)
    return _unlabelled(raw, {"train": name}, config)


def _open_seen(raw: Raw, config: DataSection) -> Data:
    """The pictures that ``data.open_classes`` gives to train, without labels."""
    open_classes.refuse_beside(config)
    division = open_classes.read_open_classes(Path(str(config.open_classes)).expanduser())
    source = _Source(raw, config)
    train = open_classes.train_of(division, source.pooled(), config)
    splits, skipped = source.without_corrupt({"train": train})
    return Data(config.source or "", None, splits, raw.licence, skipped, notes=tuple(raw.notes))


def open_unlabelled(source: str, config: SourceSection, kept: Kept | None = None) -> Data:
    """Open extra pictures whose labels, if any, are never read."""
    plain = SourceSection(
        source=source,
        on_bad_image=config.on_bad_image,
        max_bad_fraction=config.max_bad_fraction,
        max_pixels=config.max_pixels,
    )
    raw = _load(source, kept)
    names = splits_of.wanted_unlabelled(raw.tables, source)
    return _unlabelled(raw, {f"extra {name}": name for name in names}, plain)


def refuse_small(samples: Samples, min_side: int, max_pixels: int) -> None:
    """Raise InputError naming a picture of fewer than ``min_side`` pixels a side, or a bad one."""
    for i in range(len(samples)):
        try:
            width, height = upright_size(samples.data(i), max_pixels=max_pixels)
        except BadImageError:
            samples.picture(i, max_pixels)  # says which
            raise
        if min(width, height) < min_side:
            raise InputError(
                f"{samples.where(i)}: a source of {width} x {height} pixels is too small "
                f"(data.min_side={min_side}). Remove it, or lower --set data.min_side=…"
            )


def _load(source: str | None, kept: Kept | None) -> Raw:
    raw = load(source or "")
    raw.kept = kept
    divide(raw, source or "")
    return raw


def _unlabelled(raw: Raw, names: dict[str, str], config: SourceSection) -> Data:
    """Splits by the role that they take, without labels."""
    samples, skipped = _Source(raw, config).splits(names.values())
    splits = {role: samples[name] for role, name in names.items()}
    return Data(config.source or "", None, splits, raw.licence, skipped, notes=tuple(raw.notes))


def _settled(
    splits: dict[str, Samples], raw: Raw, config: DataSection, wanted: dict[str, str]
) -> tuple[dict[str, Samples], dict[str, np.ndarray]]:
    """The splits in use after ``data.duplicates``, and the hashes of those that the run does not use."""
    held = {}
    for name in splits_of.held_out(raw.tables, config):
        if name not in wanted.values():
            try:
                held[name] = _Source(raw, config).pictures(name)
            except InputError as error:  # whoever uses that split will be told
                raw.notes.append(f"pictures of train are not looked for in {name}: {error}")
    apart = {role: s for role, s in splits.items() if role == "train" or wanted[role] != wanted["train"]}
    apart, said = settle(apart, held, config.duplicates, config.source or "")
    raw.notes += said
    return {role: apart.get(role, apart["train"]) for role in splits}, held


# -- splits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Tables, and how samples are made of them.

    Attributes:
        raw: the tables.
        config: of the pictures.
        reader: of what is known of them; None leaves it unread.
        group_by: column whose equal values stay together.
    """

    raw: Raw
    config: SourceSection
    reader: Reader | None = None
    group_by: str | None = None

    def splits(self, names: Iterable[str]) -> tuple[dict[str, Samples], tuple[str, ...]]:
        """Samples by split, and ids of the corrupt pictures that were left out where that is asked for."""
        return self.without_corrupt({name: self.split(name) for name in dict.fromkeys(names)})

    def without_corrupt(self, samples: dict[str, Samples]) -> tuple[dict[str, Samples], tuple[str, ...]]:
        """The same after ``--on-bad-image``: what is left, and ids of the corrupt pictures left out."""
        if self.config.on_bad_image != "skip":
            return samples, ()
        kept, skipped, named = _without_corrupt(samples, self.config)
        if named:
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            what = "1 corrupt picture is" if len(named) == 1 else f"{len(named)} corrupt pictures are"
            said = f"{what} left out: {', '.join(named[:5])}{more}"
            self.raw.notes.append(f"{self.config.source}: {said}")
        return kept, skipped

    def split(self, name: str) -> Samples:
        """All samples of a split of the source."""
        table, config, reader = self.raw.tables[name], self.config, self.reader
        column = self._column(name)
        pictures = undecoded(table, column)
        targets = reader.targets(name, table) if reader else unlabelled(len(table))
        groups = table[named_column(table, self.group_by, config)][:] if self.group_by else None
        ids, shas = identify(self._hashes(name, column))
        if groups is not None:  # a picture without a group is one by itself
            groups = np.array([f"picture {s}" if g is None else f"group {g}" for g, s in zip(groups, shas)])
        rows = np.arange(len(pictures))
        return Samples(name, pictures, column, self.raw.root, rows, ids, shas, targets, groups)

    def pooled(self, names: Sequence[str] = ()) -> Pool:
        """Its pictures, of these splits or of all; where it has a reader, those with a label.

        Raises:
            InputError: no labels.
            UsageError: more is known of pictures than one class.
        """
        source, read = self.config.source or "", self.reader
        tables = {name: self.raw.tables[name] for name in names or self.raw.tables}
        if read is not None:  # of a split without labels no picture is wanted
            tables = {
                n: t for n, t in tables.items() if read.columns and set(read.columns) <= {*t.column_names}
            }
        used = [name for name, table in tables.items() if len(table)]
        if not used:
            raise no_labels(source)
        parts = []
        for name in used:
            parts.append(self.split(name))
            if read is not None:
                refuse_more(parts[-1].targets, read.task, source)
        if len(used) > 1:
            self.raw.notes.append(f"{source}: its own splits {', '.join(used)} are laid together")
        names_of = None if read is None else read.classes({}, self.split) or ()
        return pooled(parts, names_of, source)

    def pictures(self, name: str) -> np.ndarray:
        """[N] uint64: the hash of each picture of a split of which nothing else is wanted."""
        return prefixes(self._hashes(name, self._column(name)))

    def _column(self, name: str) -> str:
        """The column of a split's pictures. Raises InputError if it has no rows."""
        table = self.raw.tables[name]
        if len(table) == 0:
            raise InputError(f"{self.config.source}: split '{name}' is empty.")
        return image_column(table, self.config, self.reader.columns if self.reader else ())

    def _hashes(self, name: str, column: str) -> list[bytes]:
        """The sha256 of each picture's bytes, which are looked at unless corrupt ones are to be skipped."""
        looks = self.config.on_bad_image == "stop"
        return cell_hashes(self.raw, name, column, look=partial(_look_at, self.raw.root) if looks else None)


def _without_corrupt(
    samples: dict[str, Samples], config: SourceSection
) -> tuple[dict[str, Samples], tuple[str, ...], list[str]]:
    """Decode everything once and leave out what cannot be decoded (only with ``--on-bad-image skip``).

    Returns what is left, and ids and places of the others.
    """
    kept, skipped, named, total = {}, [], list[str](), sum(map(len, samples.values()))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, split in samples.items():
            good = np.array(
                list(pool.map(lambda i, s=split: _decodes(s, i, config.max_pixels), range(len(split)))), bool
            )
            skipped += [f"{value:016x}" for value in split.ids[~good]]
            named += [split.where(int(i)) for i in np.flatnonzero(~good)]
            kept[name] = split.take(good)
    if len(skipped) > config.max_bad_fraction * total:
        raise InputError(
            f"{len(skipped)} of {total} pictures are corrupt, more than data.max_bad_fraction="
            f"{config.max_bad_fraction:g} allows. First: {named[0]}."
        )
    return kept, tuple(skipped), named


def _look_at(root: Path | None, data: bytes, cell: Any, where: str) -> None:
    """Raise BadImageError for a picture that is seen to be none without decoding it."""
    try:
        glance(data)
    except BadImageError as error:
        raise corrupt(f"{where}{file_of(cell, root)}", error) from error


def _decodes(split: Samples, index: int, max_pixels: int) -> bool:
    try:
        size = decode(split.data(index), max_pixels=max_pixels).size
        split.beside(index, size, max_pixels)
    except BadImageError:
        return False
    return True
