"""Labelled text in local files: which file is which split, and its rows as an Arrow table on disk.

CSV, TSV and JSONL may be gzip'd. Nothing is executed and nothing unpickled: the readers are `datasets`' csv, json, parquet.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapbench.errors import DataError
from rapbench_plugins.datasets import parquet

if TYPE_CHECKING:
    import datasets

STEMS = {"train": ("train",), "validation": ("validation", "valid", "dev", "heldout"), "test": ("test",)}
MOST_BYTES = 4 << 30
"""Bytes of a file's text, unpacked: a gzip or Parquet file of 4 MB can hold that many."""
MOST_LINE = 64 << 20
MOST_SHOWN = 20
PIECE = 1 << 20
READERS = {"csv": "csv", "csv.gz": "csv", "tsv": "csv", "tsv.gz": "csv", "jsonl": "json", "jsonl.gz": "json", "parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """The files that hold the splits, and the columns that hold text and label. `files`: by split, in order."""

    files: Mapping[str, Sequence[Path]]
    text: str
    label: str


def split_files(folder: Path, name: str) -> dict[str, list[Path]]:
    """Give the file of each split in the folder; train and test must be there, and none may be there twice."""
    if not _is_folder(folder):
        raise DataError(f"{name}: path={str(folder)!r} is no folder; it should hold train.csv and test.csv (or .csv.gz, .jsonl, .parquet)")
    files = {split: found for split, stems in STEMS.items() if (found := named(folder, stems, name))}
    for split in ("train", "test"):
        if split not in files:
            raise DataError(f"{name}: {folder} has no {split} file: put {split}.csv, .tsv, .jsonl (plain or .gz) or .parquet there")
    return files


def named(folder: Path, stems: Sequence[str], name: str) -> list[Path]:
    """Give the one data file of the folder that is called by one of the stems, or an empty list."""
    try:
        found = [path for path in sorted(folder.iterdir()) if _stem(path) in stems and _suffix(path) in READERS]
    except OSError as error:
        raise DataError(f"{name}: {folder} cannot be read: {error.strerror}") from None
    if len(found) > 1:
        raise DataError(f"{name}: {folder} has {found[0].name} and {found[1].name} for one split: keep one")
    for path in found:
        if not path.is_file():  # a pipe would be waited for, a device has no end
            raise DataError(f"{name}: {path} is no file")
    return found


def table(paths: Sequence[Path], columns: Mapping[str, str | None], name: str) -> datasets.Dataset:
    """Give these columns of the files' rows, memory-mapped; CSV columns as strings, others as they are stored.

    `columns` maps each column to the option that names it, for the error where a file lacks it.
    """
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    for path in paths:
        _check_header(path, columns, name)
    try:
        for path in paths:
            if READERS[_suffix(path)] == "parquet":
                parquet.check(path, list(columns), parquet.Most(MOST_BYTES, MOST_LINE))
        rows = _load(paths, list(columns)).select_columns(list(columns))
        rows.data.validate(full=True)  # Parquet may hold strings that are no UTF-8, and nobody else looks
        return rows
    # EOFError: a gzip file that was cut off; ArrowException: a kind of Parquet that Arrow does not know
    except (DatasetsError, OSError, ValueError, EOFError, ArrowException) as error:
        raise DataError(f"{name}: {_names(paths)} cannot be read: {_reason(error)}") from error


def digest(paths: Iterable[Path]) -> str:
    """Give a digest of the files' names and bytes."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        total.update(path.name.encode() + b"\0")
        try:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return total.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `datasets` from writing bars and log lines meanwhile."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.utils import logging

    shown, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            enable_progress_bars()


def _is_folder(path: Path) -> bool:
    """Tell whether this is a folder; a name that no file system takes is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _suffix(path: Path) -> str:
    return path.name.partition(".")[2]


def _check_header(path: Path, columns: Mapping[str, str | None], name: str) -> None:
    try:
        _check_bytes(path)
        found = _header(path)
    # EOFError and zlib.error: a gzip file that was cut off or damaged; RecursionError: JSON nested too deep
    except (OSError, ValueError, EOFError, csv.Error, zlib.error, RecursionError) as error:
        raise DataError(f"{name}: {path} cannot be read: {_reason(error)}") from error
    for column, option in columns.items():
        if column not in found:
            there = ", ".join([repr(own)[:80] for own in found[:MOST_SHOWN]] + ["..."] * (len(found) > MOST_SHOWN)) or "none"
            remedy = f"; say {name}:{option}=COLUMN" if option else ""
            raise DataError(f"{name}: {path} has no column {column!r}, its columns are {there}{remedy}")


def _check_bytes(path: Path) -> None:
    """Refuse, piece by piece, text that is too much for this machine or none: far too many bytes, no line's end, zero bytes."""
    suffix, size, line = _suffix(path), 0, 0
    if READERS[suffix] == "parquet":
        return
    with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as file:
        while piece := file.read(PIECE):
            size += len(piece)
            line = len(piece) - end - 1 if (end := piece.rfind(b"\n")) >= 0 else line + len(piece)
            if size > MOST_BYTES:
                raise ValueError(f"it holds more than {MOST_BYTES >> 30} GiB of text")
            if line > MOST_LINE:
                raise ValueError(f"it holds a line of more than {MOST_LINE >> 20} MiB")
            if b"\0" in piece:
                raise ValueError("it holds a zero byte, so it is no text")


def _header(path: Path) -> list[str]:
    suffix = _suffix(path)
    if READERS.get(suffix) == "parquet":
        from pyarrow.parquet import read_schema

        return list(read_schema(path).names)
    with gzip.open(path, "rt", encoding="utf-8-sig") if suffix.endswith(".gz") else path.open(encoding="utf-8-sig") as file:
        if READERS[suffix] == "json":
            first = json.loads(next((line for line in file if line.strip()), "{}"))
            return list(first) if isinstance(first, dict) else []
        with _long_fields():
            lines = csv.reader(file, **_dialect(suffix))
            header, first = next(lines, []), next((line for line in lines if line), [])
    # pandas would take the surplus of the first row as an index, and shift every column; later rows it refuses itself
    if len(first) > len(header) > 0:
        raise ValueError(f"row 0 has {len(first)} fields under {len(header)} columns: a text with commas needs quotes")
    return header


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let Python's csv read texts that are longer than 128 KiB, as pandas' does, meanwhile."""
    before = csv.field_size_limit(MOST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _dialect(suffix: str) -> dict[str, Any]:
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix.startswith("tsv") else {}


def _load(paths: Sequence[Path], columns: list[str]) -> datasets.Dataset:
    """Read through the cache of `datasets`, which knows a file by its path and time; the digest is there for the bytes.

    Not by `load_dataset`, which reports each call to the hub, and waits for it where there is none.
    """
    from datasets import Dataset

    suffix = _suffix(paths[0])
    read = {"csv": Dataset.from_csv, "json": Dataset.from_json, "parquet": Dataset.from_parquet}[READERS[suffix]]
    return read([_literal(path) for path in paths], config_name=digest(paths), **_options(suffix, columns))


def _options(suffix: str, columns: list[str]) -> dict[str, Any]:
    from datasets import Features, Value

    if READERS[suffix] == "parquet":
        return {"columns": columns, "batch_size": parquet.BATCH_ROWS}
    if READERS[suffix] == "json":
        return {}
    # as strings, without pandas' own ideas: a review that says "null" is a text
    strings = Features({column: Value("string") for column in columns})
    return {"features": strings, "keep_default_na": False, **_dialect(suffix)}


def _literal(path: Path) -> str:
    """Give the path as a pattern that matches it alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path.absolute()))


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).splitlines()[0]
