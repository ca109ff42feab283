"""One ``open`` for every source: saved datasets, image folders, parquet, hub ids, the bundled example."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from kdcli.artifacts import manifest as manifests
from kdcli.config import DataSection
from kdcli.data.images import decode
from kdcli.data.samples import UNLABELLED, Data, Samples, carve, cell_bytes, hide_labels, identify
from kdcli.errors import BadImageError, InputError, UsageError, nearest

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "y")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_FOLDER = re.compile(
    rf"({'|'.join(w for words in _SPLIT_WORDS.values() for w in words)})(?:[-._ 0-9].*)?"
)
_MOST_CLASSES = 1_000_000
_CONNECT_S = 5.0
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
    classes, label_column = _classes(raw, config)
    samples = {name: _samples(name, t, config, raw, classes, label_column) for name, t in used.items()}
    data = Data(source, classes, {}, raw.licence)
    if config.on_bad_image == "skip":
        samples, skipped = _without_corrupt(samples, config)
        data = replace(data, skipped=skipped)
    splits = {role: samples[name] for role, name in wanted.items()}
    if {"train", "validation"} & set(need) and names["validation"] is None and classes is not None:
        whole = samples[wanted["train" if "train" in wanted else "validation"]]
        train, validation = carve(whole, config.validation_fraction, config.split_seed)
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
        source=source,
        on_bad_image=config.on_bad_image,
        max_bad_fraction=config.max_bad_fraction,
        max_pixels=config.max_pixels,
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
    """Tables by split name, the folder that cells may name files in, empty class folders, licence."""

    def __init__(self, tables: Mapping[str, Any], root: Path | None = None, empty: Sequence[str] = ()):
        # A saved table may ask for tensors instead of plain values.
        self.tables = {name: table.with_format(None) for name, table in tables.items()}
        self.root, self.empty = root, empty
        first = next(iter(self.tables.values()), None)
        self.licence = getattr(getattr(first, "info", None), "license", "") or ""


def _load(source: str) -> _Raw:
    import datasets

    if not source:
        raise UsageError("--data is required.")
    datasets.disable_progress_bars()
    if source.startswith("example:"):
        source = str(_example(source.removeprefix("example:")))
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return _Raw(_parquet([path], path.parent))
        if path.is_dir():
            return _load_folder(path)
        if path.with_name(path.name + ".partial").exists():
            manifests.read(path)  # says that it is half-written
        if _looks_local(source):
            raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
        return _load_hub(source)
    except (InputError, UsageError):
        raise
    except Exception as error:  # the library raises many kinds; each means that the source cannot be read
        reason = _reason(error)
        if path.exists():
            raise InputError(f"cannot read data from {source}: {reason}") from error
        raise InputError(
            f"cannot read data from {source}, which is no path here: {reason}. Without a hub: give a folder, "
            "parquet files or a directory written by save_to_disk, or fill the hub cache where there is a "
            "network and set HF_HUB_OFFLINE=1."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, below the library's "an error occurred"."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _load_hub(source: str) -> _Raw:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub import constants

    if source in _PACKAGED_DATASETS_MODULES:  # would read whatever lies in the working directory
        raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
    with _without_retries():
        tables = _as_dict(datasets.load_dataset(source))  # since datasets 4 no script is ever run
    root = Path(constants.HF_HUB_CACHE, f"datasets--{source.replace('/', '--')}")
    return _Raw(tables, root=root.resolve())


@contextmanager
def _without_retries() -> Iterator[None]:
    """Where the hub cannot be reached, look only in its cache; its client would retry for minutes."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not any(before) and not getproxies() and not _reachable(constants.ENDPOINT):
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


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

    if path.name.endswith(".partial") or (path / manifests.NAME).exists():
        manifest = manifests.read(path)
        if manifest.kind != "dataset":
            raise InputError(f"{path} is a {manifest.kind} artifact, not a dataset.")
        manifests.verify(path, manifest)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _Raw(_as_dict(datasets.load_from_disk(str(path))))
    files = _visible(path)
    parquet = [p for p in files if p.suffix == ".parquet" and p.stem != "metadata"]
    if parquet:
        return _Raw(_parquet(parquet, path))
    if any(".tar" in p.suffixes for p in files):
        raise InputError(_conversion(path))
    pictures = [p for p in files if p.suffix.lower() in _PICTURES]
    if not pictures:
        raise InputError(f"{path} holds no pictures, parquet files or saved dataset.")
    return _image_folder(path.resolve())


def _visible(path: Path) -> list[Path]:
    """Files below ``path``, sorted, without those that the library ignores; a linked folder is refused."""
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in folders:
            if Path(folder, name).is_symlink():  # the library would leave its pictures out
                raise InputError(
                    f"{Path(folder, name)} is a link to a folder; links are not followed. Copy it there."
                )
        found += [Path(folder, name) for name in sorted(names) if not name.startswith((".", "__"))]
    return found


def _parquet(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """A table per split: ``train-00000-of-00002.parquet`` or ``train/0000.parquet``."""
    import datasets

    groups: dict[str, list[str]] = {}
    for file in files:
        if file.suffix != ".parquet":
            tar = ".tar" in file.suffixes
            raise InputError(_conversion(file) if tar else f"{file} is neither a folder nor a parquet file.")
        name = file.stem.split("-")[0]
        if not name[:1].isalpha() and file.parent != root:
            name = file.parent.name
        groups.setdefault(name, []).append(str(file))
    return {name: datasets.Dataset.from_parquet(names) for name, names in groups.items()}


def _as_dict(loaded: Any) -> dict[str, Any]:
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _conversion(path: Path) -> str:
    files = path / "**" / "*.tar*" if path.is_dir() else path
    return (
        f"{path}: archives and streams (webdataset, tar) are not read; kdcli needs random access. Convert "
        "once: python -c \"import datasets; datasets.load_dataset('webdataset', data_files='"
        f"{files}').save_to_disk('data')\""
    )


def _image_folder(path: Path) -> _Raw:
    """Pictures in class folders, in split folders of class folders, or beside ``metadata.jsonl``.

    Which files form a split is decided here, by folders alone: the library also goes by file names, and one
    ``dog/test_1.jpg`` would be the whole data.
    """
    import datasets

    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith((".", "__"))]
    named = {p: match[1] for p in folders if (match := _SPLIT_FOLDER.fullmatch(p.name))}
    nested = any(q.is_dir() or q.stem == "metadata" for p in named for q in p.iterdir())
    if not named or not (nested or len(named) == len(folders)):  # classes may be called "train" too
        named = {path: "train"}
    patterns: dict[str, list[str]] = {}
    for folder, word in named.items():
        split = next(split for split, words in _SPLIT_WORDS.items() if word in words)
        if any(p.suffix.lower() in _PICTURES for p in _visible(folder)):
            patterns.setdefault(split, []).append(f"{glob.escape(str(folder))}/**")
    tables = _as_dict(datasets.load_dataset("imagefolder", data_files=patterns))
    empty: set[str] = set()
    if "label" in next(iter(tables.values())).column_names:
        classes = [p for root in named for p in root.iterdir() if p.is_dir() and p.name[0] not in "._"]
        full = {p.name for p in classes if any(f.suffix.lower() in _PICTURES for f in _visible(p))}
        empty = {p.name for p in classes} - full
    return _Raw(tables, root=path, empty=sorted(empty))


# -- columns -------------------------------------------------------------------------------------------------


def _validation_name(tables: Mapping[str, Any]) -> str | None:
    return next((name for name in ("validation", "val", "valid", "dev") if name in tables), None)


def _named_column(table: Any, name: str, config: DataSection) -> str:
    if name not in table.column_names:
        raise InputError(
            f"{config.source} has no column '{name}'; it has: {', '.join(table.column_names)}."
            f"{nearest(name, table.column_names)}"
        )
    return name


def _image_column(table: Any, config: DataSection) -> str:
    import datasets

    if config.image_column:
        return _named_column(table, config.image_column, config)
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


def _classes(raw: _Raw, config: DataSection) -> tuple[list[str] | None, str | None]:
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
        if raw.empty:
            raise InputError(f"{config.source}: class folder '{raw.empty[0]}' holds no picture.")
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
        groups = table[_named_column(table, config.group_by, config)][:]
    try:
        pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        kind = table.features[column]
        raise InputError(f"column '{column}' holds no pictures ({kind}): {_reason(error)}.") from error
    hashes = []
    for start in range(0, len(pictures), 512):
        for offset, cell in enumerate(pictures[start : start + 512][column]):
            hashes.append(hashlib.sha256(cell_bytes(cell, raw.root, f"{name} row {start + offset}")).digest())
    ids, shas = identify(hashes)
    if groups is not None:  # a picture without a group is one by itself
        groups = np.array([f"picture {sha}" if g is None else f"group {g}" for g, sha in zip(groups, shas)])
    return Samples(name, pictures, column, raw.root, np.arange(len(pictures)), ids, shas, labels, groups)


def _labels(table: Any, column: str, classes: list[str], name: str) -> np.ndarray:
    import datasets

    values = table[column][:]
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
