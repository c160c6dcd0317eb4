"""Corpora of general sentences: WikiText-103 from the hub, or a local file. Nothing is executed, nothing unpickled."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rapbench.artifacts import file_digest
from rapbench.errors import DataError
from rapbench.hub import reachable

WIKITEXT = "wikitext-103"
HUB_ID = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
SHARDS = "wikitext-103-raw-v1/train-*.parquet"

MOST_FRAGMENTS = 1_000_000
"""Sentences that are read of a corpus, from its start: about a fifth of WikiText-103, and six times what a probe takes."""
MOST_CHARACTERS = 200_000_000
"""Characters that are read of a corpus, whatever its sentences look like."""
LINE_CHARACTERS = 1 << 20
PARQUET_ROWS = 100
"""Unpacked at a time."""

READERS = {"txt": "lines", "tokens": "lines", "raw": "lines", "csv": "csv", "tsv": "csv", "jsonl": "jsonl", "parquet": "parquet"}
REMEDY = "--general FILE: .txt, .csv, .tsv, .jsonl (plain or .gz) or .parquet, the latter four with a column text"


def general_state(general: str) -> str:
    """Give what tells two states of a corpus apart: the hub's id and revision, or a file's kind and digest. No download."""
    if general == WIKITEXT:
        return f"{HUB_ID}@{REVISION}"
    path = _local(general)
    try:
        return f"{_reader(path)}@{file_digest(path)}"
    except OSError as error:
        raise _unreadable(general, error) from None


def general_fragments(general: str) -> list[str]:
    """Give the sentences of a corpus in its order: what stands between full stops, stripped, none empty.

    They are those of its first 200 million characters, a million at most; a DataError where it has none.
    """
    files = _wikitext() if general == WIKITEXT else [_local(general)]
    fragments: list[str] = []
    characters = 0
    try:
        for text in (text for path in files for text in _texts(path)):
            if "\0" in text:
                raise ValueError("it holds a zero byte, so it is no text")
            fragments += filter(None, map(str.strip, text.split(".")))
            characters += len(text)
            if len(fragments) >= MOST_FRAGMENTS or characters >= MOST_CHARACTERS:
                break
    # EOFError and zlib.error: a gzip file that was cut off or damaged; RecursionError: JSON nested too deep
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, RecursionError) as error:
        raise _unreadable(general, error) from None
    if not fragments:
        raise DataError(f"the general corpus {general!r} has no sentence: give another with {REMEDY}")
    return fragments[:MOST_FRAGMENTS]


def _local(general: str) -> Path:
    path = Path(os.path.expanduser(general))
    if not path.is_file():
        raise DataError(f"there is no file {general!r} of general sentences: give {WIKITEXT} or {REMEDY}")
    if _reader(path) not in READERS:
        raise DataError(f"the general corpus {general!r} has a name of no kind that is read: give {REMEDY}")
    return path


def _reader(path: Path) -> str:
    """Give what the name says of the file's kind, without `.gz` (a Parquet file has its own compression)."""
    name = path.name.lower()
    kind = name.removesuffix(".gz").rpartition(".")[2]
    return "" if kind == "parquet" and name.endswith(".gz") else kind


def _unreadable(general: str, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"the general corpus {general!r} cannot be read: {reason}; give another with {REMEDY}")


def _wikitext() -> list[Path]:
    """Give the shards of WikiText-103 from the hub or, where it cannot be reached, from the cache of an earlier fetch."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, of the version that the hub uses

    online = reachable()
    try:
        folder = snapshot_download(HUB_ID, repo_type="dataset", revision=REVISION, allow_patterns=[SHARDS], local_files_only=not online)
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0] if online else "the hub cannot be reached"
        raise DataError(f"there is no {WIKITEXT} ({HUB_ID!r}) on this machine: {reason}; {_elsewhere()}") from error
    files = sorted(Path(folder).glob(SHARDS))
    wanted = re.search(r"-of-(\d+)\.", files[0].name) if files else None
    if not files or (wanted and len(files) != int(wanted[1])):
        raise DataError(f"the copy of {WIKITEXT} ({HUB_ID!r}) in {folder} lacks files {SHARDS!r}; {_elsewhere()}")
    return files


def _elsewhere() -> str:
    return f"fetch it once where there is a network, or give {REMEDY}"


def _texts(path: Path) -> Iterator[str]:
    """Give the texts of a file, one by one; a ValueError, or what reading raises, where it has none to give."""
    kind = READERS[_reader(path)]
    if kind == "parquet":
        yield from _parquet(path)
        return
    how: dict[str, Any] = {"encoding": "utf-8-sig", "newline": "" if kind == "csv" else None}
    with gzip.open(path, "rt", **how) if path.name.lower().endswith(".gz") else path.open(**how) as file:
        if kind == "csv":
            yield from _csv(file, _reader(path))
        elif kind == "jsonl":
            yield from _jsonl(file)
        else:
            yield from iter(lambda: file.readline(LINE_CHARACTERS), "")  # in pieces: a file may be one line


def _csv(file: TextIO, kind: str) -> Iterator[str]:
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if kind == "tsv" else csv.DictReader(file)
    _check_columns(rows.fieldnames or ())
    for row in rows:
        yield row["text"] or ""  # a row that is too short has no text


def _jsonl(file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        value = json.loads(line)
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ValueError(f'line {number} is no object with a string "text"')
        yield text


def _parquet(path: Path) -> Iterator[str]:
    from pyarrow import types
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema = file.schema_arrow
        _check_columns(schema.names)
        if not (types.is_string(kind := schema.field("text").type) or types.is_large_string(kind)):
            raise ValueError(f"its column text is of the type {kind}, not string")
        for batch in file.iter_batches(columns=["text"], batch_size=PARQUET_ROWS):
            yield from filter(None, batch.column(0).to_pylist())


def _check_columns(names: Sequence[str]) -> None:
    if "text" not in names:
        shown = ", ".join(map(repr, names[:8])) or "none"
        raise ValueError(f"it has no column text (its columns: {shown})")
