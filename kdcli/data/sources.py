"""One ``open`` for every source: splits, columns, labels, samples."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from kdcli.data import splits as splits_of
from kdcli.data.duplicates import settle
from kdcli.data.images import decode, upright_size
from kdcli.data.labels import TRUTH, first_number, note_of_first, numbers_as_names
from kdcli.data.loading import Raw, load, reason
from kdcli.data.masks import NAMES, VOID, class_names, mask_column, picture_columns
from kdcli.data.samples import UNLABELLED, Data, Samples, carve, cell_bytes, hide_labels, identify
from kdcli.errors import BadImageError, InputError, nearest
from kdcli.sections import DataSection, SourceSection

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "y")
_MOST_CLASSES = 1_000_000


def open_data(config: DataSection, *, need: tuple[str, ...] = ("train",)) -> Data:
    """Open ``config.source``, carve what is missing, hide labels, leave out corrupt pictures.

    Args:
        config: the data section.
        need: splits that must exist: of ``train``, ``validation``, ``test``, or any split's own name.

    Raises:
        InputError: nothing readable there, no such split or column, an empty class, a foreign image cell.
        UsageError: an unknown bundled example.
    """
    source = config.source or ""
    raw = load(source)
    raw.refuse_unclear()
    wanted, carving = splits_of.wanted(raw.tables, config, need)
    used = {name: raw.tables[name] for name in dict.fromkeys(wanted.values())}
    mask = mask_column(next(iter(raw.tables.values())), config)
    classes, label_column = (None, None) if mask else _classes(raw, config)
    columns: dict[str, Any] = {"classes": classes, "label_column": label_column, "group_by": config.group_by}
    columns |= {"mask": mask, "void": config.void}
    samples = {name: _samples(name, table, config, raw, **columns) for name, table in used.items()}
    data = Data(source, classes, {}, raw.licence, task="segmentation" if mask else "classification")
    if config.on_bad_image == "skip":
        samples, skipped = _without_corrupt(samples, config)
        data = replace(data, skipped=skipped)
    if mask:
        named = splits_of.find(raw.tables, config.train, source, "data.train")
        train = samples.get(named or "") or next(iter(samples.values()))
        if named is not None and named not in used and not config.class_names:
            train = _samples(named, raw.tables[named], config, raw, **columns)
        classes = class_names(samples, train, config.class_names, config.max_pixels)
        data = replace(data, classes=classes)
    splits = {role: samples[name] for role, name in wanted.items()}
    if "train" in wanted:
        splits = _settled(splits, raw, config, wanted)
    if carving and classes is not None:
        whole = splits["train" if "train" in wanted else "validation"]
        train, validation = carve(whole, config.validation_fraction, config.split_seed)
        splits |= {role: s for role, s in (("train", train), ("validation", validation)) if role in need}
    if "train" in splits and classes is not None:
        if not mask:
            _refuse_empty_class(splits["train"], classes)
        if config.labels_per_class:
            splits["train"] = hide_labels(splits["train"], config.labels_per_class, config.split_seed)
    splits = {role: replace(s, name=role) for role, s in splits.items()}
    return replace(data, splits=splits, notes=tuple(raw.notes))


def open_train(config: SourceSection) -> Data:
    """Open the training split alone, whole; its labels, if any, are never read.

    Raises:
        InputError: nothing readable there, no such split or column, a foreign image cell.
    """
    raw = load(config.source or "")
    name = splits_of.wanted_train(raw.tables, config)
    return _unlabelled(raw, {"train": name}, config)


def open_unlabelled(source: str, config: SourceSection) -> Data:
    """Open extra pictures whose labels, if any, are never read."""
    plain = SourceSection(
        source=source,
        on_bad_image=config.on_bad_image,
        max_bad_fraction=config.max_bad_fraction,
        max_pixels=config.max_pixels,
    )
    raw = load(source)
    names = splits_of.wanted_unlabelled(raw.tables, source)
    return _unlabelled(raw, {f"extra {name}": name for name in names}, plain)


def refuse_small(samples: Samples, min_side: int, max_pixels: int) -> None:
    """Raise InputError naming the row of a picture of fewer than ``min_side`` pixels a side, or a bad one."""
    for i, row in enumerate(samples.rows):
        try:
            width, height = upright_size(samples.data(i), max_pixels=max_pixels)
        except BadImageError:
            samples.picture(i, max_pixels)  # says which
            raise
        if min(width, height) < min_side:
            raise InputError(
                f"{samples.name} row {int(row)}: a source of {width} x {height} pixels is too small "
                f"(data.min_side={min_side}). Remove it, or lower --set data.min_side=…"
            )


def _unlabelled(raw: Raw, names: dict[str, str], config: SourceSection) -> Data:
    """Splits by the role that they take, without labels."""
    samples = {role: _samples(name, raw.tables[name], config, raw) for role, name in names.items()}
    skipped: tuple[str, ...] = ()
    if config.on_bad_image == "skip":
        samples, skipped = _without_corrupt(samples, config)
    return Data(config.source or "", None, samples, raw.licence, skipped, notes=tuple(raw.notes))


def _settled(
    splits: dict[str, Samples], raw: Raw, config: DataSection, wanted: dict[str, str]
) -> dict[str, Samples]:
    """The splits in use after ``data.duplicates``; those that the run does not use are looked at too."""
    held = {}
    for name in splits_of.held_out(raw.tables, config):
        if name not in wanted.values():
            try:
                held[name] = _samples(name, raw.tables[name], config, raw)
            except InputError as error:  # whoever uses that split will be told
                raw.notes.append(f"pictures of train are not looked for in {name}: {error}")
    apart = {role: s for role, s in splits.items() if role == "train" or wanted[role] != wanted["train"]}
    apart, said = settle(apart, held, config.duplicates, config.source or "")
    raw.notes += said
    return {role: apart.get(role, apart["train"]) for role in splits}


# -- columns -------------------------------------------------------------------------------------------------


def _named_column(table: Any, name: str, config: SourceSection) -> str:
    if name not in table.column_names:
        raise InputError(
            f"{config.source} has no column '{name}'; it has: {', '.join(table.column_names)}."
            f"{nearest(name, table.column_names)}"
        )
    return name


def _image_column(table: Any, config: SourceSection, mask: str | None = None) -> str:
    if config.image_column:
        return _named_column(table, config.image_column, config)
    found = picture_columns(table)
    if len(found) > 1:
        found = [n for n in found if n.lower() not in NAMES and n != mask] or found
    if len(found) != 1:
        what = "several picture columns" if found else "no picture column"
        raise InputError(
            f"{config.source} has {what} among {', '.join(found or table.column_names)}. Name it: "
            "--set data.image_column=…"
        )
    return found[0]


def _label_column(table: Any, config: DataSection) -> str | None:
    import datasets

    if config.label_column:
        return _named_column(table, config.label_column, config)
    by_type = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in table.column_names]
    found = by_type if len(by_type) == 1 else [n for n in named if not by_type or n in by_type][:1]
    if len(by_type) > 1 and not found:
        raise InputError(f"several label columns: {', '.join(by_type)}. Name one: --set data.label_column=…")
    return found[0] if found else None


def _classes(raw: Raw, config: DataSection) -> tuple[list[str] | None, str | None]:
    """Class names of the whole source and its label column."""
    import datasets

    first_split, first = next(iter(raw.tables.items()))
    column = _label_column(first, config)
    if column is None:
        return None, None
    kind = first.features[column]
    tables = {name: t for name, t in raw.tables.items() if column in t.column_names}
    for name, table in tables.items():  # numbers mean the same class in each split
        if table.features[column] != kind:
            raise InputError(
                f"{config.source}: column '{column}' differs between the splits {first_split} ({kind}) and "
                f"{name} ({table.features[column]}). Save them with the same type and class names."
            )
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), column
    if not isinstance(kind, datasets.Value):
        raise InputError(
            f"column '{column}' holds several labels per picture; multi-label classification is not "
            "supported yet."
        )
    values = {v for table in tables.values() for v in table.unique(column) if v is not None}
    if kind.dtype.startswith(("int", "uint")):
        top = max((int(v) for v in values), default=-1)
        if top >= _MOST_CLASSES:
            raise InputError(f"column '{column}' holds {top}; class numbers count from 0.")
        classes = numbers_as_names(values)
        raw.notes += note_of_first(column, classes)
        return classes, column
    if kind.dtype == "bool":
        return list(TRUTH), column
    if kind.dtype in ("string", "large_string", "string_view"):
        return sorted(values), column
    raise InputError(f"column '{column}' is {kind.dtype}; labels are class names, numbers or text.")


def _samples(
    name: str,
    table: Any,
    config: SourceSection,
    raw: Raw,
    classes: list[str] | None = None,
    label_column: str | None = None,
    group_by: str | None = None,
    mask: str | None = None,
    void: int = VOID,
) -> Samples:
    import datasets

    if len(table) == 0:
        raise InputError(f"{config.source}: split '{name}' is empty.")
    mask = mask if mask in table.column_names else None
    column = _image_column(table, config, mask)
    labels = np.full(len(table), UNLABELLED, np.int64)
    if label_column is not None and label_column in table.column_names:
        labels = _labels(table, label_column, classes or [], name)
    groups = None
    if group_by:
        groups = table[_named_column(table, group_by, config)][:]
    pictures = table.select_columns([column, mask] if mask else [column])
    for found in pictures.column_names:
        try:
            pictures = pictures.cast_column(found, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            kind = table.features[found]
            raise InputError(f"column '{found}' holds no pictures ({kind}): {reason(error)}.") from error
    hashes, masks = [], np.zeros(len(table), np.uint64)
    for start in range(0, len(pictures), 512):
        part = pictures[start : start + 512]
        for row, cell in enumerate(part[column], start):
            hashes.append(hashlib.sha256(cell_bytes(cell, raw.root, f"{name} row {row}")).digest())
        for row, cell in enumerate(part[mask] if mask else (), start):
            if cell is not None and any(cell.values()):  # else unlabelled
                sha = hashlib.sha256(cell_bytes(cell, raw.root, f"{name} row {row}, its mask"))
                masks[row], labels[row] = int.from_bytes(sha.digest()[:8], "big"), 0
    ids, shas = identify(hashes)
    if groups is not None:  # a picture without a group is one by itself
        groups = np.array([f"picture {sha}" if g is None else f"group {g}" for g, sha in zip(groups, shas)])
    samples = Samples(name, pictures, column, raw.root, np.arange(len(pictures)), ids, shas, labels, groups)
    return replace(samples, mask_column=mask, masks=masks, void=void) if mask else samples


def _labels(table: Any, column: str, classes: list[str], name: str) -> np.ndarray:
    import datasets

    values = table[column][:]
    text = not isinstance(table.features[column], datasets.ClassLabel) and isinstance(
        next((v for v in values if v is not None), 0), str
    )
    number = {c: i for i, c in enumerate(classes)}
    labels = np.array([UNLABELLED if v is None else number[v] if text else int(v) for v in values], np.int64)
    labels[labels >= 0] -= first_number(table.features[column], classes)
    wrong = np.flatnonzero((labels < UNLABELLED) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{name} row {wrong[0]}: label {labels[wrong[0]]} is outside the {len(classes)} classes."
        )
    return labels


def _refuse_empty_class(train: Samples, classes: list[str]) -> None:
    counts = np.bincount(train.labels[train.labelled()], minlength=len(classes))
    empty = [classes[i] for i in np.flatnonzero(counts == 0)]
    if empty and counts.any():
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise InputError(
            f"class '{empty[0]}'{more} has no labelled picture in train. Remove the class or add some."
        )


def _without_corrupt(
    samples: dict[str, Samples], config: SourceSection
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """Decode everything once and leave out what cannot be decoded (only with ``--on-bad-image skip``)."""
    kept, skipped, total = {}, [], sum(map(len, samples.values()))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, split in samples.items():
            good = np.array(
                list(pool.map(lambda i, s=split: _decodes(s, i, config.max_pixels), range(len(split)))), bool
            )
            skipped += [f"{value:016x}" for value in split.ids[~good]]
            kept[name] = split.take(good)
    if len(skipped) > config.max_bad_fraction * total:
        raise InputError(
            f"{len(skipped)} of {total} pictures are corrupt, more than data.max_bad_fraction="
            f"{config.max_bad_fraction:g} allows. First: {skipped[0]}."
        )
    return kept, tuple(skipped)


def _decodes(split: Samples, index: int, max_pixels: int) -> bool:
    try:
        size = decode(split.data(index), max_pixels=max_pixels).size
        split.mask(index, size, max_pixels)
    except BadImageError:
        return False
    return True
