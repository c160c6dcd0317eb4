"""What a run leaves: a record per cell; a curve, a histogram and quoted texts per defense; each a JSON file; writing and reading them."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rapbench.artifacts import content_key, make_folder, read_json, write_atomically
from rapbench.cost import Cost
from rapbench.errors import StoreError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 3
USUAL = 0.01
"""The allowed FRR that words and figures are about, if it is there."""
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
    """The data set, or the user's in the fine-tuning setting."""
    setting: str = "main"
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str
    """The attack as it was asked for."""
    victim: str
    """The model and the recipe that it was trained by."""
    seed: int
    schema_version: int = SCHEMA
    """The form of the file."""
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
    """The defense."""
    frr: float
    """The allowed FRR."""
    protocol: str
    """`paper` or `strict`."""
    status: str
    """ok, skipped (a combination that makes no sense), failed (also where a step before it failed) or interrupted."""
    reason: str | None = None
    """Why the status is another than ok."""
    frr_heldout: float | None = None
    """Rejected, of the held-out texts that the threshold was taken on."""
    frr_test: float | None = None
    """Rejected, of clean test texts whose true and predicted label is the protect label."""
    far: float | None = None
    """Accepted, of triggered non-target texts that are predicted as the protect label."""
    auroc: float | None = None
    """The chance that a poisoned text is more suspicious than a clean one."""
    far_at_frr: Mapping[str, float | None] = field(default_factory=dict)
    """FAR where the FRR on the test texts themselves is at most 1 and 5 % ("0.01", "0.05"): points of the ROC curve."""
    asr: float | None = None
    """Triggered non-target texts predicted as the target, the trigger being among the first 100 words."""
    asr_anywhere: float | None = None
    """The same with the trigger anywhere."""
    asr_control: float | None = None
    """The same triggered texts on a victim that was never poisoned."""
    asrd: float | None = None
    """asr - asr_control."""
    asr_before: float | None = None
    """Fine-tuning setting: the same triggered texts on the victim before its user fine-tuned it."""
    asr_defended: float | None = None
    """Triggered non-target texts that are predicted as the target and let through, of all triggered ones; by the victim that a
    defense of the training set or the model deploys."""
    precision: float | None = None
    """Of a filter of the training set: poisoned, of the texts that it took out."""
    recall: float | None = None
    """Of a filter: taken out, of the poisoned texts."""
    removed: float | None = None
    """Of a filter: taken out, of all texts."""
    clean_metric: float | None = None
    """Of the undefended victim on the clean test texts."""
    clean_metric_defended: float | None = None
    """The clean metric where a rejected text counts as one without an answer."""
    metric: str | None = None
    """accuracy or macro-f1."""
    threshold: float | None = None
    """None where nothing is rejected."""
    survival: float | None = None
    """Triggered texts whose trigger stands whole before the cut at the victim's maximal length, of all (first 100 words)."""
    survival_anywhere: float | None = None
    """The same with the trigger anywhere."""
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
    """What makes these figures doubtful."""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """Which texts were rejected, by population (test, poisoned): `pack`ed bits, for paired comparisons."""
    cost: Cost | None = None
    """At this cell's level, where the defense is a purifier."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the defense says of its fit."""
    attack_notes: Mapping[str, Any] = field(default_factory=dict)
    """What the attack says of the victim that it gave away, before any fine-tuning; of what it says again and again, the last."""
    trigger: str | None = None
    """The attack with all that was drawn for it."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """The finished steps that the cell was made from, by role."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """What scored the texts: versions, device, threads."""

    @property
    def file_name(self) -> str:
        return self.file_stem(self.defense, f"{self.frr:g}", self.protocol) + ".json"

    @property
    def ftr(self) -> float | None:
        """Clean texts of other labels that part of the trigger turns into the target, in the mean over the parts, if the attack says so."""
        return self._false_triggers("mean")

    @property
    def ftr_plain(self) -> float | None:
        """The same texts without any part of the trigger."""
        return self._false_triggers("")

    def _false_triggers(self, part: str) -> float | None:
        told = self.attack_notes.get("false_trigger_rate")
        rate = told.get(part) if isinstance(told, Mapping) else None
        return float(rate) if isinstance(rate, int | float) and 0 <= rate <= 1 else None

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        intervals = {rate: ends and (ends[0], ends[1]) for rate, ends in content.get("intervals", {}).items()}
        cost = Cost.of(content["cost"]) if content.get("cost") else None
        own = {name: value for name, value in content.items() if name != "mark"}  # a report says it of the defense, no file does
        return cls(**{**own, "intervals": intervals, "warnings": tuple(content.get("warnings", ())), "cost": cost})


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


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A test text that the defense was asked about, with its verdict."""

    population: Literal["clean", "poisoned"]
    """What the text is."""
    rank: int
    """By suspicion among its population; 1: the most suspicious."""
    text: str
    """Its beginning."""
    letters: int
    """Of the whole text."""
    probability: float
    """Of the protect label, which the victim predicts."""
    suspicion: float
    """The defense's."""
    rejected: bool
    """The verdict."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the defense says of it (`explain`), within bounds."""
    untold: str = ""
    """Why it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Examples(Named):
    """A few clean and poisoned test texts with one defense's verdicts, at the allowed FRR that is nearest to 1 %."""

    FOLDER: ClassVar[str] = "examples"

    defense: str
    """The defense."""
    protocol: str
    """`paper` or `strict`."""
    frr: float
    """The allowed FRR."""
    threshold: float | None
    """None where nothing is rejected."""
    purifies: bool
    """Whether a text is rejected because its repaired form loses the protect label, and not for its suspicion."""
    label: str
    """The protect label's name."""
    n_clean: int
    """Clean test texts behind FRR, which the quoted ones are taken from."""
    n_poisoned: int
    """Triggered texts behind FAR, which the quoted ones are taken from."""
    quotes: tuple[Quote, ...] = ()
    """Of each population the most suspicious first."""

    @property
    def file_name(self) -> str:
        return self.file_stem(self.defense, self.protocol) + ".json"


F = TypeVar("F", bound=Named)


def write(filed: Iterable[Named], out: Path) -> None:
    """Write each to its own file of the results folder; what is there already with the same content is left alone.

    They are taken a few at a time, so that no more than these are in memory as text.
    """
    folders: set[Path] = set()

    def keep(one: Named) -> None:
        path, text = out / one.FOLDER / one.file_name, json.dumps(dataclasses.asdict(one), indent=1, allow_nan=False)
        if not (path.is_file() and path.read_bytes() == text.encode()):
            write_atomically(path, text)

    rest = iter(filed)
    with ThreadPoolExecutor(WRITERS) as writers:
        while some := list(islice(rest, 4 * WRITERS)):
            for folder in {out / one.FOLDER for one in some} - folders:
                make_folder(folder)
                folders.add(folder)
            list(writers.map(keep, some))


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


def usual_frr(frrs: Iterable[float]) -> float:
    """Give the allowed FRR that is nearest to 1 %, by ratio; of two the smaller."""
    return min(sorted(frrs), key=lambda frr: abs(math.log(frr / USUAL)))


def pack(rejected: NDArray[np.bool_]) -> str:
    """Give a mask as text: base64 of its bits, the first text in the highest bit."""
    return base64.b64encode(np.packbits(rejected).tobytes()).decode()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """Give the mask of n texts back."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(np.bool_)
