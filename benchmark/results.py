"""What a run leaves: one record per cell and one curve per defense, each a JSON file; writing and reading them."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from rapbench.artifacts import content_key, write_atomically
from rapbench.cost import Cost
from rapbench.errors import StoreError

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


F = TypeVar("F", bound=Named)


def write(filed: Iterable[Named], out: Path) -> None:
    """Write each to its own file of the results folder; what is there already with the same content is left alone."""
    texts = {out / one.FOLDER / one.file_name: json.dumps(dataclasses.asdict(one), indent=1, allow_nan=False) for one in filed}
    for folder in {path.parent for path in texts}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {str(folder)!r}: {error.strerror}; choose another --out") from None
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
    known = {f.name for f in dataclasses.fields(cls)}
    found = []
    for path in sorted((out / cls.FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("schema_version") != SCHEMA:
                raise StoreError(
                    f"{str(path)!r} has schema version {content.get('schema_version')!r}, this rapbench reads {SCHEMA}: "
                    "run the same command again with --out on another folder, or read it with the rapbench that wrote it"
                )
            found.append(cls.of({key: value for key, value in content.items() if key in known}))
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise StoreError(f"{str(path)!r} is no result of rapbench: {error}; move it away and run again") from None
    return found


def pack(rejected: NDArray[np.bool_]) -> str:
    """Give a mask as text: base64 of its bits, the first text in the highest bit."""
    return base64.b64encode(np.packbits(rejected).tobytes()).decode()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """Give the mask of n texts back."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(np.bool_)
