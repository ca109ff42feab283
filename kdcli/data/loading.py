"""Tables of any source: saved datasets, image folders, parquet, hub ids, the bundled example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli.artifacts import manifest as manifests
from kdcli.data.annotations import read_annotations, unread_annotations
from kdcli.data.files import kinds, look, notes, refuse_special
from kdcli.data.folders import image_folder, unread_list
from kdcli.data.lists import partition_lists, read_partition
from kdcli.data.splits import resembles, role
from kdcli.data.tables import Raw, read_parquet, read_saved, readable, reason
from kdcli.errors import DISK_FAULTS, InputError, UsageError, from_os_error, nearest
from kdcli.hub import cache_fault, reachable_hub

__all__ = ["Raw", "load", "reason"]

_HERE = Path(__file__).resolve()
_FILES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".arrow", ".h5")
_EXAMPLES = (_HERE.parent / "example", _HERE.parents[2] / "examples" / "data")


def load(source: str) -> Raw:
    """Tables of a source, whatever it is. Nothing but a hub id is asked of a network.

    Raises:
        InputError: nothing readable there; for a hub id also the ways to do without a hub.
        UsageError: no source, or an unknown bundled example.
        EnvironmentFault: the hub's cache cannot be written, or no space for a large parquet file's rows.
    """
    import datasets

    if not source:
        raise UsageError("--data is required.")
    datasets.disable_progress_bars()
    if source.startswith("example:"):
        source = str(_example(source.removeprefix("example:")))
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if path.exists():
        return Raw(_parquet([path], path.parent))
    if path.with_name(path.name + ".partial").exists():
        manifests.read(path)  # says that it is half-written
    if _looks_local(source):
        raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
    return _load_hub(source)


def _load_hub(source: str) -> Raw:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub import constants

    if source in _PACKAGED_DATASETS_MODULES:  # would read whatever lies in the working directory
        raise InputError(f"{source} does not exist (a hub id looks like owner/name).")
    try:
        with reachable_hub():
            loaded = datasets.load_dataset(source)  # since datasets 4 no script is ever run
    except Exception as error:  # the library raises many kinds; each means that the source cannot be read
        if fault := cache_fault(error, "the hub"):
            raise fault from error
        if isinstance(error, OSError) and error.errno in DISK_FAULTS:
            raise from_os_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise InputError(
            f"cannot read data from {source}, which is no path here: {reason(error)}. Without a hub: give a "
            "folder, parquet files or a directory written by save_to_disk, or fill the hub cache where there "
            "is a network and set HF_HUB_OFFLINE=1."
        ) from error
    root = Path(constants.HF_HUB_CACHE, f"datasets--{source.replace('/', '--')}")
    return Raw(dict(loaded) if isinstance(loaded, dict) else {"train": loaded}, root=root.resolve())


def _example(name: str) -> Path:
    for root in _EXAMPLES:
        if (root / name).is_dir():
            return root / name
    known = sorted({p.name for root in _EXAMPLES if root.is_dir() for p in root.iterdir() if p.is_dir()})
    raise UsageError(
        f"no bundled example '{name}'.{nearest(name, known)} There are: {', '.join(known) or 'none'}."
    )


def _looks_local(source: str) -> bool:
    """Whether it is written like a path; no hub id is called like a file of data."""
    return (
        source.startswith((".", "/", "~"))
        or source.endswith("/")
        or source.count("/") > 1
        or "\\" in source
        or Path(source).suffix.lower() in _FILES
    )


def _load_folder(path: Path) -> Raw:
    if path.name.endswith(".partial") or (path / manifests.NAME).exists():
        manifest = manifests.read(path)
        if manifest.kind != "dataset":
            raise InputError(f"{path} is a {manifest.kind} artifact, not a dataset.")
        manifests.verify(path, manifest)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        with readable(path):
            return Raw(read_saved(path))
    found = look(path.resolve())
    if found.tables:
        if lost := [link for link in found.dangling if link.lower().endswith(".parquet")]:
            raise InputError(f"{lost[0]} is a link that leads nowhere: a part of the table is missing.")
        aside = len(found.pictures)
        said = [f"{path}: {aside} pictures beside the parquet files are not read"] if aside else []
        said = [*notes(found), *said]
        files = sorted(map(Path, found.tables), key=lambda file: (file.parent.parts, file.name))
        return Raw(_parquet(files, found.root), notes=said)
    archives = [file for file in found.others if ".tar" in Path(file).suffixes]
    if archives:
        raise InputError(_conversion(path))
    if not found.pictures:
        held = [*found.others, *found.dangling]
        raise InputError(
            f"{path} holds no pictures, parquet files or saved dataset{f' ({kinds(held)})' if held else ''}."
        )
    if found.metadata:
        raw = image_folder(found)
        raw.notes += unread_annotations(found)
        return raw
    if lists := partition_lists(found):
        return read_partition(found, lists)
    return read_annotations(found) or image_folder(found)


def _parquet(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """A table per split: ``train-00000-of-00002.parquet``, ``train/0000.parquet``, ``Test/part-0.parquet``.

    Files of one name in several folders are one split, unless the name of a folder says which they are.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        refuse_special(file)
        if file.suffix.lower() != ".parquet":
            if file.suffix.lower() in (".csv", ".tsv"):
                raise InputError(unread_list(str(file)))
            tar = ".tar" in file.suffixes
            raise InputError(_conversion(file) if tar else f"{file} is neither a folder nor a parquet file.")
        groups.setdefault(_split_of(file, root), []).append(file)
    with readable(root if len(files) > 1 else files[0]):
        return {name: read_parquet(members) for name, members in groups.items()}


def _split_of(file: Path, root: Path) -> str:
    """The split that a file's name tells, or else that of the folder which tells one."""
    name = file.stem.split("-")[0]
    above = [folder.name for folder in file.parents if folder.is_relative_to(root) and folder != root]
    if role(name) is None and (split := next((n for n in above if role(n) or resembles(n)), None)):
        return split
    return file.parent.name if above and not name[:1].isalpha() else name


def _conversion(path: Path) -> str:
    files = path / "**" / "*.tar*" if path.is_dir() else path
    return (
        f"{path}: archives and streams (webdataset, tar) are not read; kdcli needs random access. Convert "
        "once: python -c \"import datasets; datasets.load_dataset('webdataset', data_files='"
        f"{files}').save_to_disk('data')\""
    )
