"""Tables by split: what a source is once it is opened, and how parquet and saved datasets become one.

Parquet is read from the file itself at every start. The library's way (`datasets.Dataset.from_parquet`) is a
copy in its cache that is found again by path and time of change and never checked: a file replaced within the
clock's grain, or put back with its old time, would give the pictures of before. What fits is held in memory;
what does not goes through a file without a name, which nothing but this process can reach and which is gone
with it. A saved dataset (`save_to_disk`) is used where it lies, without a copy.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdcli.artifacts.reading import read_object
from kdcli.data.files import refuse_special
from kdcli.errors import DISK_FAULTS, InputError, KdcliError, from_os_error

_IN_MEMORY = 256 << 20  # bytes of unpacked rows
_BATCH = 256 << 20  # bytes that a batch of rows may unpack to
_LARGEST, _MOST_TIMES = 1 << 30, 64  # rows may unpack to the first, or to so many times the file


Kept = Callable[[], Path | None]
"""Says in which folder hashes of files are kept, None for nowhere; asked only where there are many."""


class Raw:
    """Tables of a source.

    Attributes:
        tables: by split name.
        root: the folder that cells may name files in; None where only embedded bytes are allowed.
        fault: why its labels cannot be told, for those who want them; empty where they can.
        notes: what the user should know of how it was read.
        licence: what the data say of themselves.
        kept: where hashes of its files are; see :mod:`kdcli.data.hashes`.
        annotated: the kind of annotation files that boxes were read from, whose convention is known.
    """

    def __init__(
        self,
        tables: Mapping[str, Any],
        root: Path | None = None,
        fault: str = "",
        notes: Sequence[str] = (),
        annotated: str = "",
    ):
        for table in tables.values():
            table.reset_format()  # a saved table may ask for tensors instead of plain values
        self.tables = {name: _with_pictures(table) for name, table in tables.items()}
        self.root, self.fault, self.notes = root, fault, list(notes)
        self.annotated = annotated
        self.kept: Kept | None = None
        first = next(iter(self.tables.values()), None)
        self.licence = getattr(getattr(first, "info", None), "license", "") or ""

    def refuse_unclear(self) -> None:
        """Raise InputError where the labels cannot be told, saying why."""
        if self.fault:
            raise InputError(self.fault)


@contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Say of what the libraries raise over damaged files, which is of many kinds, whose files they are."""
    try:
        yield
    except KdcliError:
        raise
    except Exception as error:
        raise InputError(f"cannot read data from {source}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The first line of what went wrong, below the library's "an error occurred"."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def table_of(rows: Any, features: Any) -> Any:
    """A ``datasets.Dataset`` of an arrow table in memory. Its fingerprint is not made of the rows' bytes."""
    import datasets
    from datasets.fingerprint import generate_random_fingerprint

    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(rows, info=info, fingerprint=generate_random_fingerprint())


def read_parquet(files: Sequence[Path | str]) -> Any:
    """The rows of parquet files, in their order, typed as the first file is.

    Raises:
        InputError: a file that is no regular one, or whose rows unpack to far more than itself.
        EnvironmentFault: no space for rows that do not fit into memory.
    """
    import datasets
    import pyarrow.parquet
    from datasets.table import table_cast

    for file in files:
        refuse_special(file)
    features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(files[0]))
    gathered = _Gathered(features.arrow_schema)
    limit = max(_LARGEST, _MOST_TIMES * sum(os.path.getsize(file) for file in files))
    for file in files:
        for rows in _batches(file, limit):
            gathered.add(table_cast(rows, features.arrow_schema))
            if gathered.bytes > limit:
                raise _unpacks(file, limit)
    return table_of(gathered.table(), features)


def read_saved(path: Path) -> dict[str, Any]:
    """The tables of a directory written by ``save_to_disk``.

    Raises:
        InputError: it names a file that is not in it, or one that is no regular file.
    """
    import datasets

    refuse_chain(path)
    for state in sorted([*path.glob("state.json"), *path.glob("*/state.json")]):
        refuse_special(state)
        try:
            names = [str(file["filename"]) for file in read_object(state)["_data_files"]]
        except (TypeError, KeyError) as error:
            raise InputError(f"{state} is damaged ({error!r}). Save the dataset again.") from error
        for name in names:
            if name != os.path.basename(name) or "\0" in name:
                raise InputError(f"{state} names {name!r}, a file outside its directory. Refused.")
            refuse_special(state.parent / name)
    loaded = datasets.load_from_disk(str(path))
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def refuse_chain(path: Path) -> None:
    """Raise InputError for a path that the datasets library takes for one in another: it splits at ``::``."""
    if "::" in str(path):
        raise InputError(
            f"{path}: a saved dataset is not read below a path with '::', which stands for a file inside of "
            "another there. Rename the folder."
        )


def _batches(file: Path | str, limit: int) -> Iterator[Any]:
    """Rows of a file, in arrow tables that are small whatever the file says of itself."""
    import pyarrow as pa
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
        if sum(_unpacked(group) for group in groups) > limit:
            raise _unpacks(file, limit)
        for number, group in enumerate(groups):
            rows = min(max(_BATCH // max(_largest_repeated(group), 1), 1), 1000)
            for batch in opened.iter_batches(batch_size=rows, row_groups=[number]):
                yield pa.Table.from_batches([batch])


def _largest_repeated(group: Any) -> int:
    """Bytes of the largest value that many rows may repeat: one of a dictionary, by the size of its chunk.

    Of a chunk without a dictionary all rows together have no more bytes than the chunk.
    """
    chunks = [group.column(i) for i in range(group.num_columns)]
    repeating = [c for c in chunks if c.has_dictionary_page or any("DICT" in e for e in c.encodings)]
    return max((chunk.total_uncompressed_size for chunk in repeating), default=0)


def _unpacked(group: Any) -> int:
    return sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))


def _unpacks(file: Path | str, limit: int) -> InputError:
    return InputError(
        f"{file} has {os.path.getsize(file):,} bytes and unpacks to more than {limit:,}. If its pictures are "
        'meant to be that large, convert it once: python -c "import datasets; datasets.Dataset.from_parquet('
        f"'{file}').save_to_disk('data')\""
    )


class _Gathered:
    """Rows that come in small tables: in memory, or, once they are many, in a file without a name."""

    def __init__(self, schema: Any) -> None:
        self.schema, self.bytes, self._waiting = schema, 0, 0
        self._tables: list[Any] = []
        self._small: list[Any] = []
        self._stream: IO[bytes] | None = None
        self._writer: Any = None

    def add(self, rows: Any) -> None:
        """Take a table; many small ones are joined, since a row is found faster in few large ones."""
        self.bytes += rows.nbytes
        self._small.append(rows)
        self._waiting += rows.nbytes
        if self._waiting > _IN_MEMORY // 16:
            self._flush()

    def table(self) -> Any:
        """All of them as one table."""
        import pyarrow as pa

        self._flush()
        if self._stream is None:
            return pa.concat_tables(self._tables) if self._tables else self.schema.empty_table()
        self._writer.close()
        self._stream.flush()
        mapped = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._small:
            joined = pa.concat_tables(self._small).combine_chunks()
            self._small, self._waiting = [], 0
            self._tables.append(joined)
            if self._stream is None and self.bytes > _IN_MEMORY:
                self._open()
            if self._stream is not None:
                self._write()

    def _open(self) -> None:
        import datasets
        import pyarrow as pa

        folder = Path(datasets.config.HF_DATASETS_CACHE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  its mapping outlives this
        except OSError as error:
            raise from_os_error(error, folder) from error
        self._writer = pa.ipc.new_file(pa.PythonFile(self._stream, mode="w"), self.schema)

    def _write(self) -> None:
        try:
            while self._tables:
                self._writer.write_table(self._tables.pop(0))
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            import datasets

            raise from_os_error(error, Path(datasets.config.HF_DATASETS_CACHE), self.bytes) from error


def _with_pictures(table: Any) -> Any:
    """The table, raw bytes typed as pictures where it has no picture column and they begin as one does."""
    import datasets

    kinds = table.features
    shaped = [k for k in kinds.values() if isinstance(k, dict) and {"bytes", "path"} <= set(k)]
    if shaped or any(isinstance(kind, datasets.Image) for kind in kinds.values()):
        return table
    for name, kind in kinds.items():
        raw = isinstance(kind, dict) and set(kind) == {"bytes"}
        raw |= isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary", "binary_view")
        if raw and _begins_as_picture(table, name):
            table = table.cast_column(name, datasets.Image())
    return table


_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"P4")


def _begins_as_picture(table: Any, name: str) -> bool:
    """Whether the first cell that is not empty begins as a file of a decoded kind does."""
    for row in range(min(len(table), 100)):
        cell = table[row][name]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data:
            return bytes(data).startswith(_BEGINNINGS)
    return False
