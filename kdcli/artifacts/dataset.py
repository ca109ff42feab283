"""Dataset artifacts: the layout of ``datasets.save_to_disk``, written part by part.

A part is one Arrow file ``data-FIRST-END.arrow`` with the rows FIRST to END − 1. It is committed when it has
its name: drafts are written under another one, synced and renamed. The parts *are* the finished dataset's
files, so nothing is written twice, and what a killed run committed is never lost.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.files import sync, write_bytes
from kdcli.errors import InputError

_PART = re.compile(r"data-(\d{9,})-(\d{9,})\.arrow")
_DRAFT = ".draft"
_INFO, _STATE = "dataset_info.json", "state.json"


def write_part(folder: Path, first: int, columns: Mapping[str, Sequence[Any]], features: Any) -> Path:
    """Commit rows ``first``, ``first + 1``, … as one part.

    Args:
        folder: the artifact's partial directory.
        first: number of the first row.
        columns: values by column, all of one length; a picture is ``{"bytes": …, "path": None}``.
        features: ``datasets.Features`` of the columns.

    Raises:
        EnvironmentFault: the disk refuses; no part is left half-written under its name.
    """
    import pyarrow as pa

    table = pa.table(dict(columns), schema=features.arrow_schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    path = folder / f"data-{first:09d}-{first + len(table):09d}.arrow"
    draft = path.with_suffix(_DRAFT)
    write_bytes(draft, sink.getvalue().to_pybytes())
    os.rename(draft, path)
    sync(folder)
    return path


def parts(folder: Path) -> list[tuple[int, int, Path]]:
    """Committed parts in order, as (first, end, path)."""
    found = ((m, p) for p in folder.iterdir() if (m := _PART.fullmatch(p.name)))
    return sorted((int(m[1]), int(m[2]), p) for m, p in found)


def missing(folder: Path, numbers: range) -> list[int]:
    """Rows of ``numbers`` that no committed part holds.

    Raises:
        InputError: a part that is damaged.
    """
    done: set[int] = set()
    for first, end, path in parts(folder):
        if _rows(path) != end - first:
            raise InputError(
                f"{path} is damaged: it does not hold the rows of its name. Delete it and rerun."
            )
        done.update(range(first, end))
    return [number for number in numbers if number not in done]


def _rows(path: Path) -> int:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return sum(batch.num_rows for batch in stream)
    except (pa.ArrowInvalid, OSError):
        return -1


def remove_drafts(folder: Path) -> None:
    """Delete what a killed run had not committed."""
    for draft in folder.glob(f"data-*{_DRAFT}"):
        draft.unlink()


def finish(folder: Path, features: Any, licences: Mapping[str, str]) -> list[str]:
    """Write what makes the parts a saved dataset; returns the names of its files, to be committed.

    Args:
        folder: the artifact's partial directory.
        features: ``datasets.Features`` of the columns.
        licences: by what they cover, perhaps empty.
    """
    import datasets

    names = [path.name for _, _, path in parts(folder)]
    licence = "; ".join(f"{covered}: {text}" for covered, text in licences.items() if text)
    info = asdict(datasets.DatasetInfo(features=features, license=licence))
    info["features"] = features.to_dict()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": manifests.digest([manifests.file_hash(folder / name) for name in names])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    write_bytes(folder / _INFO, json.dumps(info, indent=2, sort_keys=True, default=str).encode())
    write_bytes(folder / _STATE, json.dumps(state, indent=2).encode())
    return [*names, _INFO, _STATE]


def copy_parts(source: Path, folder: Path) -> None:
    """Copy the parts of a finished dataset into another that is being written; goes on where it stopped."""
    for _, _, part in parts(source):
        copy = folder / part.name
        if not copy.exists():
            draft = copy.with_suffix(_DRAFT)
            shutil.copyfile(part, draft)
            sync(draft)
            os.rename(draft, copy)
    sync(folder)


def head(folder: Path, column: str, count: int) -> list[Any]:
    """The first ``count`` values of a column."""
    import pyarrow as pa

    found: list[Any] = []
    for _, _, path in parts(folder):
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            found += stream.read_all().column(column).slice(0, count - len(found)).to_pylist()
        if len(found) >= count:
            break
    return found
