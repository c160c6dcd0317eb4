"""Triggers made elsewhere: each text is replaced by its paraphrase from a file.

For attacks whose trigger is a style, a syntax or a phrasing and takes a generator to make: Qi et al., Hidden Killer (ACL 2021,
arXiv:2105.12400); Qi et al., style transfer (EMNLP 2021, arXiv:2110.07139). The file has one pair per row: a text of the data set
and what it becomes. Texts without a pair carry no trigger (`can_trigger`).

The file is hostile: it is read as CSV, TSV or JSONL and nothing else, as UTF-8, up to 512 MiB and a million pairs. Its digest
becomes part of the resolved attack, so another file is another cell, and a worker that finds another file says so.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rapbench import Attack
from rapbench.api import option
from rapbench.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from rapbench.api import Dataset

MOST_BYTES = 512 << 20
MOST_PAIRS = 1_000_000
MOST_LINE = 1 << 20
"""Characters of a line, and so of a JSON object; a CSV field may have 128 KiB, Python's own limit."""
KINDS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Precomputed(Attack):
    """Texts are replaced by paraphrases from a file (`path` is required); trained like `badnet-rw`."""

    name: ClassVar[str] = "precomputed"

    path: str | None = option(None, "file of pairs: .csv or .tsv with a header, or .jsonl")
    text_column: str = option("text", "column of the texts as they stand in the data set")
    paraphrase_column: str = option("paraphrase", "column of what they become")
    digest: str | None = option(None, "digest of the file, by default taken when the attack is resolved")

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        return self if self.digest or self.path is None else replace(self, digest=file_digest(_file(self.path)))

    def can_trigger(self, text: str) -> bool:
        """Say whether this text has a paraphrase."""
        return _plain(text) in self._pairs()

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the paraphrase, wherever its trigger is, or the text itself where it has none."""
        return self._pairs().get(_plain(text), text)

    def _pairs(self) -> Mapping[str, str]:
        if self.path is None:
            raise DataError("precomputed: which file? give columns text, paraphrase and say precomputed:path=FILE.csv")
        return read_pairs(self.path, self.digest, self.text_column, self.paraphrase_column)


@functools.lru_cache(maxsize=2)
def read_pairs(path: str, digest: str | None, text_column: str, paraphrase_column: str) -> Mapping[str, str]:
    """Give text -> paraphrase; texts are the same that differ in white space alone, and of several paraphrases the first stands.

    A DataError names the file and the row, counted from 0; a pair that changes nothing is left out.
    """
    file = _file(path)
    if digest is not None and (now := file_digest(file)) != digest:
        raise DataError(f"precomputed: {path} has the digest {now}, the attack was resolved with {digest}: it has changed, or is another")
    pairs: dict[str, str] = {}
    try:
        for number, row in enumerate(_rows(file)):
            if number >= MOST_PAIRS:
                raise ValueError(f"it has more than {MOST_PAIRS:,} rows")
            text, paraphrase = (_cell(row, column, number) for column in (text_column, paraphrase_column))
            if _plain(text) != _plain(paraphrase):
                pairs.setdefault(_plain(text), paraphrase)
    except (OSError, ValueError, csv.Error, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"precomputed: {path} cannot be read: {error}") from None
    if not pairs:
        raise DataError(f"precomputed: {path} has no pair of a text and another text")
    return pairs


def file_digest(path: Path) -> str:
    """Give a digest of the bytes of a file, 16 hexadecimal digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise DataError(f"precomputed: {path} cannot be read: {error.strerror}") from None


def _file(path: str) -> Path:
    """Give a file that may be opened: a regular one, of a kind we read, and not too large."""
    try:
        file = Path(path).expanduser()
        if not file.is_file():  # a pipe would be waited for, a device has no end
            raise DataError(f"precomputed: {path!r} is no file")
        size = file.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file system takes; a ~user that nobody is
        raise DataError(f"precomputed: {path!r} cannot be read: {error}") from None
    if file.suffix not in KINDS:
        raise DataError(f"precomputed: {path!r} is none of {', '.join(KINDS)}")
    if size > MOST_BYTES:
        raise DataError(f"precomputed: {path!r} is larger than {MOST_BYTES >> 20} MiB")
    return file


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = _lines(stream)
        if file.suffix == ".jsonl":
            yield from (_object(line) for line in lines if line.strip())
        elif file.suffix == ".tsv":
            yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            yield from csv.DictReader(lines, strict=True)


def _lines(stream: Any) -> Iterator[str]:
    while line := stream.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(f"it has a line of {MOST_LINE:,} characters or more")
        yield line


def _object(line: str) -> Mapping[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"{line[:40]!r} is no JSON object")
    return found


def _cell(row: Mapping[str, Any], column: str, number: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"row {number} has no text in the column {column!r}")
    if "\0" in value:
        raise ValueError(f"row {number} holds a zero byte in the column {column!r}")
    value.encode()  # half of a surrogate pair, which JSON can spell, is a UnicodeEncodeError: a ValueError
    return value


def _plain(text: str) -> str:
    return " ".join(text.split())
