"""Texts of a .parquet file: its column of that name, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

_ROWS = 1024
_BATCH_BYTES = 1 << 22
_BUFFER_BYTES = 1 << 20
MISSING = "reading .parquet needs pyarrow; pip install 'liquidnet-dual[parquet]'"


def parquet_texts(path: Path, advance: Callable[[int], None]) -> Iterator[str]:
    """The strings of the column `text`, in order; the file format is Apache Parquet's, read by pyarrow (18 or later).

    Args:
        path: the file.
        advance: called with the bytes of the file that are done since the last call.

    Raises:
        ValueError: if pyarrow is missing, the file is damaged, or it has no such column, of strings without nulls.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(MISSING) from error
    size, done = path.stat().st_size, 0
    try:
        # Without pre_buffer the pages of a group are read one after the other, not the group at once.
        # Arrow itself opens no name that is not UTF-8.
        with (
            path.open("rb") as opened,
            parquet.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
        ):
            _require_text(file.schema_arrow, path)
            for batch in _batches(file):
                for row, text in enumerate(batch.to_pylist(), start=done):
                    if text is None:
                        raise _Unusable(f"{path}: row {row} of the column text is null; leave such rows out")
                    yield text
                rows = file.metadata.num_rows
                advance(size * (done + len(batch)) // rows - size * done // rows)
                done += len(batch)
    except _Unusable as error:
        raise ValueError(str(error)) from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged, or no parquet ({reason}); download or write it again") from error


def _batches(file: parquet.ParquetFile) -> Iterator[pyarrow.StringArray]:
    """The column in pieces of about _BATCH_BYTES, however long the rows are."""
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        mean = described.total_byte_size // max(described.num_rows, 1)
        rows = max(1, min(_ROWS, _BATCH_BYTES // max(mean, 1)))
        for batch in file.iter_batches(rows, [group], ["text"], use_threads=False):
            yield batch.column(0)


class _Unusable(Exception):
    """Whole, but not what is asked for; Arrow's own errors are ValueErrors too."""


def _require_text(schema: pyarrow.Schema, path: Path) -> None:
    from pyarrow import types

    if schema.names.count("text") != 1:
        columns = ", ".join(schema.names[:8]) + (", ..." if len(schema.names) > 8 else "")
        raise _Unusable(f"{path}: no column text among its columns ({columns}); rename the one that holds the text")
    kind = schema.field("text").type
    strings = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(strings) or types.is_large_string(strings) or types.is_string_view(strings)):
        raise _Unusable(f"{path}: the column text holds {kind}, not string; convert it first")
