"""The borders that bytes from anywhere come in by. Each function puts them where rapbench reads, in an empty folder, and reads them.

It ends where they were refused in one line, or read rightly; anything else is a finding and raises.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rapbench import artifacts, checkpoint, results
from rapbench.checks import CheckRecord
from rapbench.corpus import general_fragments
from rapbench.errors import RapbenchError
from rapbench.grid import cells_of, read_blocks, recipe_of, victim_spec
from rapbench.probe import ProbeRecord
from rapbench.registry import Kind, discover, spec_of
from rapbench.report.curves import render as curves
from rapbench.report.probe import render as probes
from rapbench.report.tables import Format
from rapbench.report.tables import render as cells
from rapbench.report.theorem import render as checks

Border = Callable[[bytes, Path], None]
LONGEST_LINE = 24_000
"""Characters of an error: it may quote a spec, which has 10,000 at most, twice."""
MOST_CELLS = 2000
"""A grid of more is read, but its cells are not made: that takes time, and is no other code."""
REGISTRY = discover()
KINDS: tuple[Kind, ...] = get_args(Kind)
FILES = ("test.csv", "test.tsv", "test.jsonl", "test.parquet", "test.csv.gz", "test.tsv.gz", "test.jsonl.gz", "unpacked.gz")
CORPORA = ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt.gz", "a.csv.gz")
FOLDERS: dict[type[results.Named], Callable[[Any, Any], str]] = {
    results.Record: cells,
    ProbeRecord: probes,
    CheckRecord: checks,
    results.Curve: curves,
}
KEY = "0" * 32


def refusal(work: Callable[[], object]) -> str | None:
    """Give what the work was refused with, one line, or None where it was done."""
    try:
        work()
    except RapbenchError as error:
        told = str(error)
        assert told, "an error that says nothing"
        assert told.isprintable(), f"an error that is not one plain line: {told!r}"
        assert len(told) < LONGEST_LINE, f"an error of {len(told)} characters"
        return told
    return None


@contextmanager
def untouched(root: Path, work: Path) -> Iterator[None]:
    """Raise where a file below `root` and outside of `work` is another one after the block than before."""
    before = _tree(root, work)
    yield
    assert _tree(root, work) == before, "a file outside of the folder was made, changed or deleted"


def spec(data: bytes, place: Path) -> None:
    """A plugin's or a victim's spec; what it makes is what its canonical text makes."""
    text = data[1:].decode("utf-8", "surrogateescape")
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]

    def read() -> None:
        plugin = REGISTRY.parse(kind, text)
        assert REGISTRY.parse(kind, spec_of(plugin)) == plugin

    def read_recipe() -> None:
        recipe = recipe_of(text)
        assert recipe_of(victim_spec(recipe)) == recipe

    refusal(read)
    refusal(read_recipe)


def grid(data: bytes, place: Path) -> None:
    """A grid file."""
    path = place / "grid.yaml"
    path.write_bytes(data)

    def read() -> None:
        blocks = read_blocks(str(path))
        if sum(block.size for block in blocks) <= MOST_CELLS:
            cells_of(blocks, REGISTRY)

    refusal(read)


def rows(data: bytes, place: Path) -> None:
    """A data file; the first byte says of which kind."""
    name = FILES[data[0] % len(FILES)] if data else FILES[0]
    content = data[1:]
    if name == "unpacked.gz":  # most mutations of a gzip file are no gzip file any more
        name, content = "test.csv.gz", gzip.compress(content, 1, mtime=0)
    (place / "train.csv").write_bytes(b"text,label\nfine,1\ndull,0\n")
    (place / "validation.csv").write_bytes(b"text,label\nfine,1\ndull,0\n")
    (place / name).write_bytes(content)
    read_rows(place)


def read_rows(place: Path) -> tuple[list[tuple[str, int]] | None, str | None]:
    """Give the test rows of a folder, or what it is refused with; all that is written on the way lies in `place`."""
    import datasets

    found: list[tuple[str, int]] = []

    def read() -> None:
        test = REGISTRY.parse("dataset", {"name": "folder", "path": str(place)}).load()["test"]  # type: ignore[union-attr]
        found.extend(zip(test["text"], test["label"], strict=True))

    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, place / "cache"
    try:
        told = refusal(read)
    finally:
        datasets.config.HF_DATASETS_CACHE = before
    assert all(type(text) is str and text.strip() and "\0" not in text and 0 <= label < 1000 for text, label in found)
    return (None, told) if told else (found, None)


def header(data: bytes, place: Path) -> None:
    """The weights of a model folder: no tensor that they do not hold."""
    path = place / checkpoint.WEIGHTS
    path.write_bytes(data)

    def read() -> None:
        sizes = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}
        for one in checkpoint.stored(place).values():
            count = sizes.get(one.dtype, 0)
            for size in one.shape:
                count *= size
            assert count <= len(data)

    refusal(read)


def settings(data: bytes, place: Path) -> None:
    """The settings of a model folder; the first byte says which file."""
    empty = b"{}"
    (place / checkpoint.WEIGHTS).write_bytes(struct.pack("<Q", len(empty)) + empty)
    names = ("config.json", "tokenizer_config.json", checkpoint.INDEX, "tokenizer.json")
    for name in names[:2]:
        (place / name).write_bytes(empty)
    name = names[data[0] % len(names)] if data else names[0]
    (place / name).write_bytes(data[1:])
    if name == checkpoint.INDEX:
        (place / checkpoint.WEIGHTS).rename(place / "a.safetensors")
    refusal(lambda: checkpoint.check_folder(place))


def result(data: bytes, place: Path) -> None:
    """A file of a results folder, and every report on it; the first byte says of which kind."""
    kind = list(FOLDERS)[data[0] % len(FOLDERS)] if data else results.Record
    (place / kind.FOLDER).mkdir()
    (place / kind.FOLDER / "a.json").write_bytes(data[1:])
    report(kind, place)


def report(kind: type[results.Named], place: Path) -> dict[str, str]:
    """Give the reports on a results folder, by format; none where it is refused."""
    told: dict[str, str] = {}

    def read() -> None:
        found = results.read_all(place, kind)
        for form in get_args(Format):
            refusal(lambda form=form: told.update({form: FOLDERS[kind](found, form)}))

    refusal(read)
    if "json" in told:
        json.loads(told["json"], parse_constant=_never)
    if "csv" in told:
        assert len({len(row) for row in csv.reader(io.StringIO(told["csv"], newline=""))}) <= 1
    return told


def manifest(data: bytes, place: Path) -> None:
    """The manifest of an artifact: what it names lies in the store."""
    store = artifacts.Store(place)
    (place / KEY / "a").mkdir(parents=True)
    (place / KEY / "manifest.json").write_bytes(data)

    def read() -> None:
        assert place in Path(os.path.normpath(store.folder(KEY))).parents

    refusal(read)
    refusal(lambda: list(store.faults(KEY)))
    refusal(store.published)
    refusal(store.orphans)


def corpus(data: bytes, place: Path) -> None:
    """A file of general sentences; the first byte says of which kind."""
    name = CORPORA[data[0] % len(CORPORA)] if data else CORPORA[0]
    (place / name).write_bytes(data[1:])

    def read() -> None:
        assert all(one.strip() == one and one for one in general_fragments(str(place / name)))

    refusal(read)


BORDERS: dict[str, Border] = {border.__name__: border for border in (spec, grid, rows, header, settings, result, manifest, corpus)}


def _tree(root: Path, work: Path) -> dict[str, str]:
    """Give a digest of every file below `root` that is not below `work`."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != work]
        for name in (*names, *folders):
            path = Path(folder, name)
            found[str(path)] = hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
    return found


def _never(constant: str) -> None:
    raise AssertionError(f"{constant} in JSON, which no other reader takes")
