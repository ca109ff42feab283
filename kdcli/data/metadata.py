"""``metadata.jsonl``, ``.csv`` or ``.parquet`` in an image folder: what is known of the pictures it names.

The column ``file_name`` names a picture from the folder of the metadata file, ``mask_file_name`` (or any
other ``…_file_name``) a second one; they become the columns ``image`` and ``mask``. Types are those that
datasets' image folder finds: pandas reads CSV, arrow JSON lines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli.data.files import refuse_special, relative
from kdcli.data.tables import read_parquet, readable, table_of
from kdcli.errors import InputError

_NAME, _END = "file_name", "_file_name"
_LARGEST = 1 << 29  # bytes of CSV or JSON lines: some five million rows


def read_metadata(files: Sequence[str]) -> tuple[Any, set[str]]:
    """Rows of the metadata files of one split, as a ``datasets.Dataset``, and the paths that they name.

    Raises:
        InputError: files of several kinds or with unlike columns, none that names pictures, or a name that
            leads out of its folder.
    """
    import datasets
    import pyarrow as pa

    if len({os.path.splitext(file)[1] for file in files}) > 1:
        raise InputError(f"{files[0]} and {files[-1]}: metadata files are of one kind. Remove one.")
    tables = []
    pictures: dict[str, str] = {}
    for file in files:
        with readable(file):
            rows = _rows(Path(file))
        rows, own = _with_paths(rows, Path(file))
        tables.append(rows)
        pictures |= own
    try:
        whole = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{files[0]} and {files[-1]} have unlike columns: {error}") from error
    named = {path for column in pictures for path in whole[column].to_pylist() if path is not None}
    features = datasets.Features.from_arrow_schema(whole.schema.remove_metadata())
    for column in pictures:
        features[column] = datasets.Image()
        cells = datasets.Image().cast_storage(whole[column].combine_chunks())
        whole = whole.set_column(whole.column_names.index(column), column, cells)
    return table_of(whole.replace_schema_metadata(None), features), named


def _rows(file: Path) -> Any:
    """A metadata file as an arrow table."""
    import pyarrow as pa

    if file.suffix == ".parquet":
        return read_parquet([file]).data.table
    refuse_special(file)
    if (size := file.stat().st_size) > _LARGEST:
        raise InputError(
            f"{file} has {size:,} bytes, more than {_LARGEST:,}: it would be held in memory several times. "
            "Make a metadata.parquet of it."
        )
    if file.suffix == ".csv":
        import pandas

        return pa.Table.from_pandas(pandas.read_csv(file), preserve_index=False)
    from pyarrow import json

    # In one block, since a row must not be longer than a block.
    return json.read_json(file, read_options=json.ReadOptions(block_size=max(size, 1 << 20)))


def _with_paths(rows: Any, file: Path) -> tuple[Any, dict[str, str]]:
    """The table with whole paths under the names of picture columns, which are returned too."""
    import pyarrow as pa

    named = [n for n in rows.column_names if n == _NAME or n.endswith(_END)]
    named = [n for n in named if pa.types.is_string(rows[n].type) or pa.types.is_large_string(rows[n].type)]
    if not named:
        raise InputError(
            f"{file} has no column '{_NAME}' that names pictures; it has: {', '.join(rows.column_names)}."
        )
    pictures = {n.removesuffix(_END) if n != _NAME else "image": n for n in named}
    if twice := [n for n in pictures if n in rows.column_names]:
        raise InputError(
            f"{file}: the columns '{pictures[twice[0]]}' and '{twice[0]}' mean the same. Remove one."
        )
    for new, old in pictures.items():
        paths = [_path(name, file, row) for row, name in enumerate(rows[old].to_pylist(), 1)]
        at = rows.column_names.index(old)
        rows = rows.set_column(at, new, pa.array(paths, pa.string()))
    return rows, pictures


def _path(name: str | None, file: Path, row: int) -> str | None:
    """Where a picture lies that metadata name. Raises InputError for a name that may lead elsewhere."""
    if not name:
        return None
    return os.path.join(file.parent, relative(name, f"{file} row {row}", file.parent))
