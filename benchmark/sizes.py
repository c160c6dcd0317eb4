"""How many texts a data set has and how long they are: what is published, what a folder's files say, what the store has.

Nothing is loaded for it: of files, the beginnings are read.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import IO, Any, cast

from rapbench.artifacts import Store
from rapbench.errors import RapbenchError
from rapbench.shapes import Shape

WORD_TOKENS = 1.3
"""Word pieces a word: 1.2 to 1.4 for English under the vocabularies of BERT and GPT-2."""
UNKNOWN_WORDS, UNKNOWN_SIZES = 100.0, (10_000.0, 1_000.0, 1_000.0)
SPREAD = 0.5
"""Standard deviation of the logarithm of text lengths where their mean alone is known."""
SAMPLE_TEXTS, SAMPLE_BYTES = 1000, 1 << 18


@dataclass(frozen=True)
class Texts:
    """So many texts. `words`: the word counts of a sample of them, ascending."""

    rows: float
    words: tuple[float, ...]

    def share(self, part: float) -> Texts:
        return replace(self, rows=self.rows * part)

    def lengths(self, limit: float) -> list[float]:
        """Give the tokens of each text of the sample, the two special ones included, cut at `limit`."""
        return [min(words * WORD_TOKENS + 2, limit) for words in self.words]

    def forward(self, shape: Shape, limit: float) -> float:
        """Give the FLOPs of one prediction of each, without padding: they are sorted by length."""
        return self.rows * fmean(shape.row(length) for length in self.lengths(limit)) if self.rows else 0.0

    def padded(self, shape: Shape, limit: float, batch: int) -> float:
        """Give the FLOPs of one forward pass of each, in batches of any texts: all as long as their longest."""
        return self.rows * shape.row(longest(self.lengths(limit), batch))


@dataclass(frozen=True)
class Sizes:
    """The splits of a data set. `shares`: of each label."""

    train: Texts
    heldout: Texts
    test: Texts
    shares: tuple[float, ...] = (0.5, 0.5)

    def protect(self, label: int) -> float:
        """Give the share of the texts that have this label."""
        return self.shares[label] if label < len(self.shares) else 0.5


@dataclass(frozen=True)
class Known:
    """Published sizes of a data set. `words`: the mean."""

    sizes: tuple[float, float, float]
    words: float
    shares: tuple[float, ...] = (0.5, 0.5)


KNOWN: Mapping[str, Known] = {
    "imdb": Known((23_000, 2_000, 25_000), 234),
    "yelp": Known((504_000, 56_000, 38_000), 136),
    "amazon": Known((3_240_000, 360_000, 400_000), 79),
    "twitter": Known((70_000, 8_000, 9_000), 17, (0.63, 0.37)),
    "jigsaw": Known((144_000, 16_000, 64_000), 70, (0.9, 0.1)),
    "demo": Known((1_200, 440, 300), 29),
}
"""Table 5 of the RAP paper (arXiv:2110.07831); shares of the harmless texts from Founta et al. (spam left out) and Jigsaw's train file."""


def kept_sizes(key: str, store: Store) -> Sizes | None:
    """Give the true sizes of a data set whose artifact is in the store, or None."""
    try:
        folder = store.folder(key)
        counts = json.loads((folder / "about.json").read_text(encoding="utf-8"))["counts"]
        train, heldout, test = (
            Texts(float(sum(counts[split])), tuple(sorted(_arrow_words(folder / split)))) for split in ("train", "validation", "test")
        )
        shares = tuple(count / max(sum(counts["test"]), 1) for count in counts["test"])
        return Sizes(train, heldout, test, shares) if train.words and heldout.words and test.words else None
    except (OSError, ValueError, KeyError, TypeError, RapbenchError):
        return None


def expected_sizes(options: Mapping[str, Any], assume: Callable[[str], None]) -> Sizes:
    """Give what is known of a data set with these options before it is loaded, its caps applied; say what had to be assumed."""
    name = str(options["name"])
    known = KNOWN.get(name) or Known(UNKNOWN_SIZES, UNKNOWN_WORDS)
    splits = _folder(options)
    if splits:
        assume(f"{name}: sizes from the beginning and the bytes of its files")
    else:
        own = (options.get(f"n_{split}") for split in ("train", "heldout", "test"))
        sizes = [float(size or other) for size, other in zip(own, known.sizes, strict=True)]
        splits = [Texts(size, spread_words(known.words)) for size in sizes]
        where = "" if name in KNOWN else ", not known before it is loaded"
        assume(f"{name}: {'/'.join(f'{size:,.0f}' for size in sizes)} texts before caps, of {known.words:g} words{where}")
    caps = [options.get(f"max_{split}") for split in ("train", "heldout", "test")]
    train, heldout, test = (replace(texts, rows=min(texts.rows, float(cap or texts.rows))) for texts, cap in zip(splits, caps, strict=True))
    if name not in KNOWN:
        assume(f"{name}: half of the texts have the target label")
    return Sizes(train, heldout, test, known.shares)


def longest(lengths: Sequence[float], batch: int) -> float:
    """Give the expected length of the longest of `batch` texts drawn from these, which are ascending."""
    n = len(lengths)
    return sum(length * ((rank / n) ** batch - ((rank - 1) / n) ** batch) for rank, length in enumerate(lengths, 1))


def spread_words(mean: float) -> tuple[float, ...]:
    """Give the word counts of a sample of texts of which the mean length alone is known: log-normal."""
    normal = NormalDist(0, SPREAD)
    spread = [math.exp(normal.inv_cdf((rank + 0.5) / 99)) for rank in range(99)]
    return tuple(mean * one / fmean(spread) for one in spread)


def joined(one: Texts, other: Texts) -> Texts:
    """Give two lots of texts as one; the lengths are those of the second lot."""
    return Texts(one.rows + other.rows, other.words)


def _arrow_words(folder: Path) -> list[float]:
    """Give the words of the first texts of a split that is kept as Arrow."""
    import pyarrow as pa

    words: list[float] = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                words += (float(len(text.split())) for text in batch.column("text").slice(0, SAMPLE_TEXTS).to_pylist())
                if len(words) >= SAMPLE_TEXTS:
                    return words
    return words


_STEMS = (("train",), ("validation", "valid", "dev", "heldout"), ("test",))


def _folder(options: Mapping[str, Any]) -> list[Texts]:
    """Give the splits of the text files in the folder `path`, or none where there is no such folder or file."""
    path = options.get("path")
    if not isinstance(path, str):
        return []
    try:
        train, heldout, test = (_file(Path(os.path.expanduser(path)), stems) for stems in _STEMS)
    except (OSError, ValueError, EOFError):
        return []
    if train is None or test is None:
        return []
    share = float(options.get("heldout_share") or 0.1)
    return [train, heldout, test] if heldout else [train.share(1 - share), train.share(share), test]


def _file(folder: Path, stems: Sequence[str]) -> Texts | None:
    """Give the lines of the text file of a split, counted at its beginning and carried on to its size."""
    for path in sorted(folder.iterdir()):
        stem, _, suffix = path.name.partition(".")
        if stem in stems and suffix.removesuffix(".gz") in ("csv", "tsv", "jsonl"):
            lines, share = _beginning(path)
            rows = lines if suffix.startswith("jsonl") else lines[1:]
            words = tuple(sorted(float(len(line.split())) for line in rows))
            return Texts(len(rows) / share, words) if rows else None
    return None


def _beginning(path: Path) -> tuple[list[str], float]:
    """Give the whole lines at a file's beginning, and the share of the file's bytes that they take."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            return _lines(raw, raw, path.stat().st_size)
        with gzip.open(raw) as text:
            return _lines(cast("IO[bytes]", text), raw, path.stat().st_size)


def _lines(text: IO[bytes], raw: IO[bytes], size: int) -> tuple[list[str], float]:
    piece = text.read(SAMPLE_BYTES)
    whole = len(piece) < SAMPLE_BYTES
    lines = list(_decoded(piece if whole else piece[: piece.rfind(b"\n") + 1]))
    return lines, 1.0 if whole else min(max(raw.tell() / size, 1e-9), 1.0)


def _decoded(piece: bytes) -> Iterator[str]:
    return (line for line in piece.decode("utf-8", errors="replace").splitlines() if line.strip())
