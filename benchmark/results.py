"""What a run leaves: one record per cell, one curve and one histogram per defense, each a JSON file; writing and reading them."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rapbench.artifacts import content_key, make_folder, read_json, write_atomically
from rapbench.cost import Cost
from rapbench.errors import StoreError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 3
WRITERS = 8
"""Files on their way to the disk at once: it takes several in one go, and one by one each waits for it."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """What every file of a results folder knows before anything is computed: canonical specs and the seed.

    `setting`: `main`, or `fine-tuned` where the victim was poisoned on `poisoned_on` and then fine-tuned on `dataset`
    with the recipe `tuning`.
    """

    FOLDER: ClassVar[str]

    dataset: str
    setting: str = "main"
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str
    victim: str
    seed: int
    schema_version: int = SCHEMA
    attempts: Mapping[str, str] = field(default_factory=dict)
    """How the attempts at an artifact ended, by its role: of those that took more than one. "worker lost, ok"."""

    @property
    def file_name(self) -> str:
        """The name of the file: readable, safe, and one per combination."""
        raise NotImplementedError

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Give the object of its plain JSON form."""
        return cls(**content)

    def file_stem(self, *more: object) -> str:
        """Give a readable, safe name, one per combination of these names and `more`."""
        names = [self.dataset, self.poisoned_on, self.tuning, self.attack, self.victim, self.seed, *more]
        shown = [name for name in (self.dataset, self.poisoned_on, self.attack, *more) if name is not None]
        readable = re.sub(r"[^a-z0-9.-]+", "_", "_".join(str(name).partition(":")[0] for name in shown).lower())
        return f"{readable[:80]}_{content_key(names)[:10]}"


@dataclass(frozen=True, kw_only=True)
class Record(Named):
    """One cell's result. Rates are fractions; None where nothing could be counted."""

    FOLDER: ClassVar[str] = "cells"

    defense: str
    frr: float
    """The allowed FRR."""
    protocol: str
    """`paper` or `strict`."""
    status: str
    """ok, skipped (a combination that makes no sense), failed, blocked (a step before it failed) or interrupted."""
    reason: str | None = None
    frr_heldout: float | None = None
    frr_test: float | None = None
    far: float | None = None
    auroc: float | None = None
    far_at_frr: Mapping[str, float | None] = field(default_factory=dict)
    """FAR where the FRR on the test texts themselves is at most 1 and 5 % ("0.01", "0.05"): points of the ROC curve."""
    asr: float | None = None
    asr_anywhere: float | None = None
    asr_control: float | None = None
    """The same triggered texts on a victim that was never poisoned."""
    asrd: float | None = None
    """asr - asr_control."""
    asr_before: float | None = None
    """Fine-tuning setting: the same triggered texts on the victim before its user fine-tuned it."""
    asr_defended: float | None = None
    """Triggered non-target texts that are predicted as the target and let through, of all triggered ones."""
    clean_metric: float | None = None
    clean_metric_defended: float | None = None
    """The clean metric where a rejected text counts as one without an answer."""
    metric: str | None = None
    threshold: float | None = None
    """None where nothing is rejected."""
    survival: float | None = None
    """Triggered texts whose trigger stands whole before the cut at the victim's maximal length, of all (first 100 words)."""
    survival_anywhere: float | None = None
    n_heldout: int | None = None
    """Held-out texts that the threshold was taken on."""
    n_clean: int | None = None
    """Clean test texts behind FRR."""
    n_poisoned: int | None = None
    """Triggered texts behind FAR."""
    n_test: int | None = None
    """Clean test texts behind the clean metric."""
    n_triggered: int | None = None
    """Triggered texts behind ASR."""
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    """95 % Wilson interval of each rate, by the rate's name."""
    warnings: tuple[str, ...] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """Which texts were rejected, by population (test, poisoned): `pack`ed bits, for paired comparisons."""
    cost: Cost | None = None
    """At this cell's level, where the defense is a purifier."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    trigger: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """What scored the texts: versions, device, threads."""

    @property
    def file_name(self) -> str:
        return self.file_stem(self.defense, f"{self.frr:g}", self.protocol) + ".json"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        intervals = {rate: ends and (ends[0], ends[1]) for rate, ends in content.get("intervals", {}).items()}
        cost = Cost.of(content["cost"]) if content.get("cost") else None
        return cls(**{**content, "intervals": intervals, "warnings": tuple(content.get("warnings", ())), "cost": cost})


@dataclass(frozen=True, kw_only=True)
class Curve(Named):
    """FRR and FAR of one defense over allowed FRRs from 0.1 to 20 %."""

    FOLDER: ClassVar[str] = "curves"

    defense: str
    protocol: str
    points: tuple[tuple[float, float, float], ...]
    """(allowed FRR, test FRR, FAR), fractions; an allowed FRR that cannot be set is left out."""

    @property
    def file_name(self) -> str:
        return self.file_stem(self.defense, self.protocol) + ".json"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        return cls(**{**content, "points": tuple((float(a), float(b), float(c)) for a, b, c in content["points"])})


@dataclass(frozen=True, kw_only=True)
class Histogram(Named):
    """How suspicious one defense finds clean and poisoned texts, and its thresholds."""

    FOLDER: ClassVar[str] = "histograms"

    defense: str
    protocol: str
    edges: tuple[float, ...]
    """Ends of the bins, rising; the first and the last bin hold what lies beyond them, too."""
    clean: tuple[int, ...]
    """Per bin: clean test texts behind FRR."""
    poisoned: tuple[int, ...]
    """Per bin: triggered texts behind FAR."""
    thresholds: tuple[tuple[float, float], ...] = ()
    """(allowed FRR, suspicion above which a text is rejected); without those at which nothing is."""

    @property
    def file_name(self) -> str:
        return self.file_stem(self.defense, self.protocol) + ".json"

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise(self.edges))
        if not len(self.edges) == len(self.clean) + 1 == len(self.poisoned) + 1 or not rising:
            raise ValueError("edges: rising numbers, one more than the bins of clean and of poisoned, make a histogram")


F = TypeVar("F", bound=Named)


def write(filed: Iterable[Named], out: Path) -> None:
    """Write each to its own file of the results folder; what is there already with the same content is left alone."""
    texts = {out / one.FOLDER / one.file_name: json.dumps(dataclasses.asdict(one), indent=1, allow_nan=False) for one in filed}
    for folder in {path.parent for path in texts}:
        make_folder(folder)
    changed = [path for path, text in texts.items() if not (path.is_file() and path.read_bytes() == text.encode())]
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda path: write_atomically(path, texts[path]), changed))


def read(out: Path) -> list[Record]:
    """Give the cells of a results folder, in the order of their names; a StoreError where there is none."""
    records = read_all(out, Record)
    if not records:
        raise StoreError(f"no results in {str(out)!r}: give the folder of `rapbench run --out`")
    return records


def read_all(out: Path, cls: type[F]) -> list[F]:
    """Give what a results folder holds of this kind; a StoreError names the file that is no such thing."""
    return [_read(path, cls) for path in sorted((out / cls.FOLDER).glob("*.json"))]


def _read(path: Path, cls: type[F]) -> F:
    """Give the object of a file, every field of its type."""
    from pydantic import ValidationError

    try:
        content = read_json(path, finite=True)
    except StoreError as error:
        raise _no_result(path, str(error)) from None
    if not isinstance(content, dict):
        raise _no_result(path, "no JSON object")
    if (version := content.get("schema_version")) != SCHEMA:
        raise StoreError(
            f"{str(path)!r} has schema version {reprlib.repr(version)}, this rapbench reads {SCHEMA}: "
            "run the same command again with --out on another folder, or read it with the rapbench that wrote it"
        )
    adapter, known = _adapter(cast(Any, cls))
    try:
        found: F = adapter.validate_python({key: value for key, value in content.items() if key in known})
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _no_result(path, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def _no_result(path: Path, reason: str) -> StoreError:
    return StoreError(f"{str(path)!r} is no result of rapbench: {reason}; move it away and run again")


@cache
def _adapter(cls: type[Named]) -> tuple[TypeAdapter[Any], frozenset[str]]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls), frozenset(f.name for f in dataclasses.fields(cls))


def pack(rejected: NDArray[np.bool_]) -> str:
    """Give a mask as text: base64 of its bits, the first text in the highest bit."""
    return base64.b64encode(np.packbits(rejected).tobytes()).decode()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """Give the mask of n texts back."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(np.bool_)
