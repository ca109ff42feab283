"""Tables of any source: saved datasets, image folders, parquet, hub ids, the bundled example."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.artifacts import manifest as manifests
from kdcli.errors import InputError, UsageError, nearest
from kdcli.hub import reachable_hub

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_FOLDER = re.compile(
    rf"({'|'.join(w for words in _SPLIT_WORDS.values() for w in words)})(?:[-._ 0-9].*)?"
)
_HERE = Path(__file__).resolve()
_EXAMPLES = (_HERE.parent / "example", _HERE.parents[2] / "examples" / "data")


class Raw:
    """Tables by split name, the folder that cells may name files in, empty class folders, licence."""

    def __init__(self, tables: Mapping[str, Any], root: Path | None = None, empty: Sequence[str] = ()):
        # A saved table may ask for tensors instead of plain values.
        self.tables = {name: table.with_format(None) for name, table in tables.items()}
        self.root, self.empty = root, empty
        first = next(iter(self.tables.values()), None)
        self.licence = getattr(getattr(first, "info", None), "license", "") or ""


def load(source: str) -> Raw:
    """Tables of a source, whatever it is.

    Raises:
        InputError: nothing readable there; for a hub id also the ways to do without a hub.
        UsageError: no source, or an unknown bundled example.
    """
    import datasets

    if not source:
        raise UsageError("--data is required.")
    datasets.disable_progress_bars()
    if source.startswith("example:"):
        source = str(_example(source.removeprefix("example:")))
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return Raw(_parquet([path], path.parent))
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
        why = reason(error)
        if path.exists():
            raise InputError(f"cannot read data from {source}: {why}") from error
        raise InputError(
            f"cannot read data from {source}, which is no path here: {why}. Without a hub: give a folder, "
            "parquet files or a directory written by save_to_disk, or fill the hub cache where there is a "
            "network and set HF_HUB_OFFLINE=1."
        ) from error


def reason(error: BaseException) -> str:
    """The first line of what went wrong, below the library's "an error occurred"."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _load_hub(source: str) -> Raw:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub import constants

    if source in _PACKAGED_DATASETS_MODULES:  # would read whatever lies in the working directory
        raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
    with reachable_hub():
        tables = _as_dict(datasets.load_dataset(source))  # since datasets 4 no script is ever run
    root = Path(constants.HF_HUB_CACHE, f"datasets--{source.replace('/', '--')}")
    return Raw(tables, root=root.resolve())


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


def _load_folder(path: Path) -> Raw:
    import datasets

    if path.name.endswith(".partial") or (path / manifests.NAME).exists():
        manifest = manifests.read(path)
        if manifest.kind != "dataset":
            raise InputError(f"{path} is a {manifest.kind} artifact, not a dataset.")
        manifests.verify(path, manifest)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Raw(_as_dict(datasets.load_from_disk(str(path))))
    files = _visible(path)
    parquet = [p for p in files if p.suffix == ".parquet" and p.stem != "metadata"]
    if parquet:
        return Raw(_parquet(parquet, path))
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


def _image_folder(path: Path) -> Raw:
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
    flat = path not in named and not nested  # the library would take the names of the splits for classes
    loaded = datasets.load_dataset("imagefolder", data_files=patterns, drop_labels=flat or None)
    tables = _as_dict(loaded)
    empty: set[str] = set()
    if "label" in next(iter(tables.values())).column_names:
        classes = [p for root in named for p in root.iterdir() if p.is_dir() and p.name[0] not in "._"]
        full = {p.name for p in classes if any(f.suffix.lower() in _PICTURES for f in _visible(p))}
        empty = {p.name for p in classes} - full
    return Raw(tables, root=path, empty=sorted(empty))
