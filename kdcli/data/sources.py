"""One ``open`` for every source: saved datasets, image folders, parquet, hub ids, the bundled example."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.artifacts import manifest as manifests
from kdcli.config import DataSection
from kdcli.data.images import decode
from kdcli.data.samples import UNLABELLED, Data, Samples, carve, cell_bytes, hide_labels, identify
from kdcli.errors import BadImageError, InputError, UsageError, nearest

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "y")
_HERE = Path(__file__).resolve()
_EXAMPLES = (_HERE.parent / "example", _HERE.parents[2] / "examples" / "data")


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
    raw = _load(source)
    names = {
        "train": config.train,
        "validation": config.validation or _validation_name(raw.tables),
        "test": config.test,
    }
    wanted = {role: names.get(role) or role for role in need}
    if "validation" in need and names["validation"] is None:
        wanted["validation"] = config.train  # carved below
    for role, name in wanted.items():
        if name not in raw.tables:
            only = len(raw.tables) == 1 and role in ("train", "validation")
            if not only:
                raise InputError(f"{config.source} has no split '{name}'; it has: {', '.join(raw.tables)}.")
            wanted[role] = next(iter(raw.tables))
    used = {name: raw.tables[name] for name in dict.fromkeys(wanted.values())}
    classes, label_column = _classes(raw.tables, config, raw.folder_classes)
    samples = {name: _samples(name, t, config, raw, classes, label_column) for name, t in used.items()}
    data = Data(source, classes, {}, raw.licence)
    if config.on_bad_image == "skip":
        samples, skipped = _without_corrupt(samples, config)
        data = replace(data, skipped=skipped)
    splits = {role: samples[name] for role, name in wanted.items()}
    if {"train", "validation"} & set(need) and names["validation"] is None and classes is not None:
        train, validation = carve(
            samples[wanted.get("train", config.train)], config.validation_fraction, config.split_seed
        )
        splits |= {role: s for role, s in (("train", train), ("validation", validation)) if role in need}
    if "train" in splits and classes is not None:
        _refuse_empty_class(splits["train"], classes)
        if config.labels_per_class:
            splits["train"] = hide_labels(splits["train"], config.labels_per_class, config.split_seed)
    return replace(data, splits={role: replace(s, name=role) for role, s in splits.items()})


def open_unlabelled(source: str, config: DataSection) -> Data:
    """Open extra pictures whose labels, if any, are never read."""
    raw = _load(source)
    plain = DataSection(
        source=source, on_bad_image=config.on_bad_image, max_bad_fraction=config.max_bad_fraction
    )
    samples = {name: _samples(name, t, plain, raw, None, None) for name, t in raw.tables.items()}
    if len(samples) > 1 and plain.train in samples:
        samples = {plain.train: samples[plain.train]}
    skipped: tuple[str, ...] = ()
    if config.on_bad_image == "skip":
        samples, skipped = _without_corrupt(samples, config)
    return Data(source, None, {f"extra {name}": s for name, s in samples.items()}, raw.licence, skipped)


# -- loading -------------------------------------------------------------------------------------------------


class _Raw:
    """Tables by split name, the folder that cells may name files in, names of class folders, licence."""

    def __init__(
        self, tables: Mapping[str, Any], root: Path | None = None, folder_classes: list[str] | None = None
    ):
        self.tables, self.root, self.folder_classes = dict(tables), root, folder_classes
        first = next(iter(self.tables.values()), None)
        self.licence = getattr(getattr(first, "info", None), "license", "") or ""


def _load(source: str) -> _Raw:
    import datasets

    datasets.disable_progress_bars()
    if source.startswith("example:"):
        source = str(_example(source.removeprefix("example:")))
    path = Path(source)
    try:
        if path.is_file():
            if path.suffix == ".parquet":
                return _Raw(_parquet({path.stem.split("-")[0]: [str(path)]}))
            raise InputError(_conversion(path))
        if path.is_dir():
            return _load_folder(path)
        if _looks_local(source):
            raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
        return _Raw(_as_dict(datasets.load_dataset(source)))  # since datasets 4 no script is ever run
    except (InputError, UsageError):
        raise
    except Exception as error:  # the library raises many kinds; each means that the source cannot be read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        ways = (
            " Without a hub: give a folder, parquet files or a directory written by save_to_disk, or fill "
            "the hub "
            "cache where there is a network and set HF_HUB_OFFLINE=1."
            if not path.exists()
            else ""
        )
        raise InputError(f"cannot read data from {source}: {reason}{ways}") from error


def _example(name: str) -> Path:
    for root in _EXAMPLES:
        if (root / name).is_dir():
            return root / name
    known = sorted({p.name for root in _EXAMPLES if root.is_dir() for p in root.iterdir() if p.is_dir()})
    raise UsageError(
        f"no bundled example '{name}'.{nearest(name, known)} There are: {', '.join(known) or 'none'}."
    )


def _looks_local(source: str) -> bool:
    return (
        source.startswith((".", "/", "~")) or source.endswith("/") or source.count("/") > 1 or "\\" in source
    )


def _load_folder(path: Path) -> _Raw:
    import datasets

    if (path / manifests.NAME).exists():
        manifest = manifests.read(path)
        if manifest.kind != "dataset":
            raise InputError(f"{path} is a {manifest.kind} artifact, not a dataset.")
        manifests.verify(path, manifest)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _Raw(_as_dict(datasets.load_from_disk(str(path))))
    if path.name.endswith(".partial"):
        manifests.read(path)
    parquet = sorted(p for p in path.rglob("*.parquet"))
    if parquet:
        groups: dict[str, list[str]] = {}
        for file in parquet:
            groups.setdefault(file.stem.split("-")[0], []).append(str(file))
        return _Raw(_parquet(groups))
    if any(path.rglob("*.tar")):
        raise InputError(_conversion(path))
    pictures = next((p for p in path.rglob("*") if p.suffix.lower() in _PICTURES), None)
    if pictures is None:
        raise InputError(f"{path} holds no pictures, parquet files or saved dataset.")
    tables = _as_dict(datasets.load_dataset("imagefolder", data_dir=str(path.resolve())))
    return _Raw(tables, root=path.resolve(), folder_classes=_class_folders(path, set(tables)))


def _parquet(groups: dict[str, list[str]]) -> dict[str, Any]:
    import datasets

    return {name: datasets.Dataset.from_parquet(files) for name, files in groups.items()}


def _as_dict(loaded: Any) -> dict[str, Any]:
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _conversion(path: Path) -> str:
    return (
        f"{path}: streams and archives (webdataset, tar, jsonl) are not read; kdcli needs random access. "
        "Convert "
        "once: python -c \"import datasets; datasets.load_dataset('webdataset', data_files='"
        f"{path}').save_to_disk('data')\""
    )


def _class_folders(path: Path, splits: set[str]) -> list[str] | None:
    """Names of class folders, empty ones included (the library does not see those)."""
    roots = [path / name for name in splits if (path / name).is_dir()] or [path]
    if any((root / name).exists() for root in roots for name in ("metadata.jsonl", "metadata.csv")):
        return None
    return sorted(
        {p.name for root in roots for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    )


# -- columns -------------------------------------------------------------------------------------------------


def _validation_name(tables: Mapping[str, Any]) -> str | None:
    return next((name for name in ("validation", "val", "valid", "dev") if name in tables), None)


def _image_column(table: Any, config: DataSection) -> str:
    import datasets

    if config.image_column:
        if config.image_column not in table.column_names:
            raise InputError(
                f"no column '{config.image_column}'.{nearest(config.image_column, table.column_names)}"
            )
        return config.image_column
    by_type = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    by_shape = [
        name
        for name, kind in table.features.items()
        if isinstance(kind, dict) and {"bytes", "path"} <= set(kind)
    ]
    found = by_type or by_shape
    if len(found) != 1:
        what = "several picture columns" if found else "no picture column"
        raise InputError(
            f"{config.source} has {what} among {', '.join(table.column_names)}. Name it: --set "
            "data.image_column=…"
        )
    return found[0]


def _label_column(table: Any, config: DataSection) -> str | None:
    import datasets

    if config.label_column:
        if config.label_column not in table.column_names:
            raise InputError(
                f"no column '{config.label_column}'.{nearest(config.label_column, table.column_names)}"
            )
        return config.label_column
    by_type = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in table.column_names]
    found = by_type if len(by_type) == 1 else [n for n in named if not by_type or n in by_type][:1]
    if len(by_type) > 1 and not found:
        raise InputError(f"several label columns: {', '.join(by_type)}. Name one: --set data.label_column=…")
    return found[0] if found else None


def _classes(
    tables: Mapping[str, Any], config: DataSection, folders: list[str] | None
) -> tuple[list[str] | None, str | None]:
    """Class names of the whole source and its label column."""
    import datasets

    first = next(iter(tables.values()))
    column = _label_column(first, config)
    if column is None:
        return None, None
    kind = first.features[column]
    if isinstance(kind, datasets.ClassLabel):
        names = list(kind.names)
        if folders and set(folders) - set(names):
            raise InputError(
                f"{config.source}: class folder '{sorted(set(folders) - set(names))[0]}' holds no picture."
            )
        return names, column
    if not isinstance(kind, datasets.Value):
        raise InputError(
            f"column '{column}' holds several labels per picture; multi-label classification is not "
            "supported yet."
        )
    values = {
        v for t in tables.values() if column in t.column_names for v in t.unique(column) if v is not None
    }
    if kind.dtype.startswith(("int", "uint")):
        top = max((int(v) for v in values), default=-1)
        return [str(i) for i in range(top + 1)], column
    if kind.dtype in ("string", "large_string", "string_view"):
        return sorted(values), column
    raise InputError(f"column '{column}' is {kind.dtype}; labels are class names, numbers or text.")


def _samples(
    name: str, table: Any, config: DataSection, raw: _Raw, classes: list[str] | None, label_column: str | None
) -> Samples:
    import datasets

    if len(table) == 0:
        raise InputError(f"{config.source}: split '{name}' is empty.")
    column = _image_column(table, config)
    labels = np.full(len(table), UNLABELLED, np.int64)
    if label_column is not None and label_column in table.column_names:
        labels = _labels(table, label_column, classes or [], name)
    groups = None
    if config.group_by:
        if config.group_by not in table.column_names:
            raise InputError(f"no column '{config.group_by}'.{nearest(config.group_by, table.column_names)}")
        groups = np.array([str(v) for v in table[config.group_by]])
    pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    hashes = []
    for start in range(0, len(pictures), 512):
        for offset, cell in enumerate(pictures[start : start + 512][column]):
            hashes.append(hashlib.sha256(cell_bytes(cell, raw.root, f"{name} row {start + offset}")).digest())
    ids, shas = identify(hashes)
    return Samples(name, pictures, column, raw.root, np.arange(len(pictures)), ids, shas, labels, groups)


def _labels(table: Any, column: str, classes: list[str], name: str) -> np.ndarray:
    import datasets

    values = table[column]
    text = not isinstance(table.features[column], datasets.ClassLabel) and isinstance(
        next((v for v in values if v is not None), 0), str
    )
    number = {c: i for i, c in enumerate(classes)}
    labels = np.array([UNLABELLED if v is None else number[v] if text else int(v) for v in values], np.int64)
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
    samples: dict[str, Samples], config: DataSection
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
        decode(split.data(index), max_pixels=max_pixels)
    except BadImageError:
        return False
    return True
