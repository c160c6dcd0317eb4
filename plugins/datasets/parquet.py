"""A Parquet file, looked at before it is unpacked: 100 kB of one can hold a gigabyte of text, and its footer does not tell.

What is left to the file's maker is one page, of 2 GiB at most: a reader learns its size by unpacking it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
MOST_ROWS = 100_000_000
MOST_SHOWN = 100


@dataclass(frozen=True)
class Most:
    """What columns may hold once they are unpacked, in bytes: all together, and one value."""

    total: int
    value: int


def check(path: Path, columns: Sequence[str], most: Most) -> None:
    """Raise a ValueError where the columns are no plain values or hold more than they may; no value is unpacked for it.

    Texts are read as numbers into a dictionary, which holds what stands in the file once.
    """
    from pyarrow.parquet import ParquetFile, read_schema

    with ParquetFile(path, read_dictionary=_texts(read_schema(path), columns)) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it says that it has {file.metadata.num_rows:,} rows: at most {MOST_ROWS:,} are read")
        rows = total = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            rows += len(batch)
            total += sum(_unpacked(column, most) for column in batch.columns)
            if total > most.total:
                raise ValueError(f"it holds more than {most.total >> 20:,} MiB of text")
            if rows > MOST_ROWS:
                raise ValueError(f"it holds more than {MOST_ROWS:,} rows")


def _texts(found: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Give which of the columns hold texts; a ValueError where one holds other than plain values."""
    from pyarrow import types

    kinds = {name: _plain(found.field(name).type) for name in columns}
    for name, kind in kinds.items():
        if types.is_nested(kind) or types.is_dictionary(kind) or hasattr(kind, "storage_type"):  # the last: somebody's own type
            raise ValueError(f"its column {name!r} is of the type {str(kind)[:MOST_SHOWN]}: give plain strings or numbers")
    variable = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary, types.is_binary_view)
    return [name for name, kind in kinds.items() if any(holds(kind) for holds in variable)]


def _plain(kind: pa.DataType) -> pa.DataType:
    """Give the type of a column's values, where it is one of categories."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _unpacked(column: pa.Array, most: Most) -> int:
    """Give the bytes of a column's values written out; a ValueError where one of them is too long."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary)
    if (pc.max(lengths).as_py() or 0) > most.value:
        raise ValueError(f"it holds a text of more than {most.value >> 20:,} MiB")
    return pc.sum(lengths.take(column.indices)).as_py() or 0
