"""One defense on one victim, ready to be timed: the victim found in the store or made, the defense fitted, the texts dealt.

Detectors may keep what they said of a text, so every round gets fresh texts, of the same mix of lengths. A round is one guarded
prediction: the victim's own, and what the defense does then; after a filter or a repair it is the answer of the victim that stands in.
The undefended prediction of the same texts is timed before and after it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

import rapbench
from rapbench import stages
from rapbench.api import Defense, Detector, Labelled, Purifier
from rapbench.errors import CellError, SpecError
from rapbench.grid import Block, Cell, cells_of, checked_block, read_blocks
from rapbench.registry import Found, Registry, discover, spec_of, split_spec
from rapbench.runner.execute import Done, Failure, SerialExecutor, execute
from rapbench.runner.session import Session, planned
from rapbench.stages import Step
from rapbench.standin import StandIn, stand_in, watching

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rapbench.lab import Lab
    from rapbench.victim import Victim

THREADS = 1
WARM_UP = 1
"""Rounds before the measured ones."""
SAMPLED = {"bki": "bki:scored_texts=60"}
"""Specs, by name, of defenses that are fitted far longer by their own defaults (bki: ten minutes); a text costs them the same."""


class NotBenched(Exception):  # noqa: N818 - no error: control flow, like pytest's skip
    """This attack and this defense cannot be one cell, of a grid neither; it says why."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a defense is measured on. What is None is what the demo grid says, so that its victim serves."""

    out: Path
    dataset: str | None = None
    attack: str | None = None
    victim: str | None = None
    seed: int | None = None
    texts: int = 32
    """Texts per round, at most."""
    rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("texts", "rounds"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)!r} is below 1")

    def cell(self, defense: str, registry: Registry) -> Cell:
        """Give the cell of this defense; a SpecError names what is unknown."""
        demo = read_blocks("demo", Block)[0]
        given = {
            "victim": self.victim or demo.victim,
            "datasets": [self.dataset or demo.datasets[0]],
            "attacks": [self.attack or demo.attacks[0]],
            "seeds": [demo.seeds[0] if self.seed is None else self.seed],
            "defenses": [defense],
        }
        return cells_of([checked_block(given, "the benchmark")], registry)[0]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What guarding one text costs, the victim's own prediction included: medians over rounds, means over all texts.

    Where another victim stands in, its prediction is all.

    `ratio`: median over the rounds of the guarded time over the undefended one; `helper_*`: other models, by name.
    Times are None where pytest-benchmark was told to measure none.
    """

    defense: str
    dataset: str
    attack: str
    victim: str
    seed: int
    texts_per_round: int
    words_per_text: float
    ms_per_text: float | None
    undefended_ms_per_text: float | None
    ratio: float | None
    victim_rows_per_text: float
    victim_tokens_per_text: float
    helper_rows_per_text: Mapping[str, float]
    helper_tokens_per_text: Mapping[str, float]
    level: float | None
    """The threshold of a purifier that was measured: the middle one."""
    fit_s: float
    threads: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Undefended(Defense):
    """No defense: the row that the others are compared with."""

    name: ClassVar[str] = "undefended"

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        return _Silent()


class _Silent(Detector):
    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.zeros(len(texts))


@dataclass
class Subject:
    """A fitted defense and the texts of its rounds. `plain_s`: seconds of the undefended prediction per round, warming up included."""

    cell: Cell
    guarded: Victim
    fitted: Detector | Purifier | StandIn
    lab: Lab
    batches: Sequence[Sequence[str]]
    plain_s: list[float] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fresh: Iterator[Sequence[str]] = cycle(self.batches)
        levels = sorted(self.fitted.levels()) if isinstance(self.fitted, Purifier) else []
        self.level = float(levels[len(levels) // 2]) if levels else None

    @property
    def group(self) -> str:
        """What is comparable: rows on one data set and attack."""
        return f"{self.cell.names['dataset']}/{self.cell.names['attack']}"

    def next_texts(self) -> tuple[tuple[Sequence[str]], dict[str, object]]:
        """Give the arguments of the next `run`, after timing the undefended prediction of its texts, which are warmed up by another."""
        texts = next(self._fresh)
        self._undefended_s(texts)
        self.plain_s.append(self._undefended_s(texts))
        return (texts,), {}

    def run(self, texts: Sequence[str]) -> None:
        """Predict and guard these texts: what is timed. A purifier scores, repairs at one level, and has changed texts predicted.

        What stands in for the victim predicts in its place, and its suspicion is read off that.
        """
        with self.lab.meter.phase("guarded"):
            if not isinstance(self.fitted, StandIn):
                self.guarded.remember(texts, self.guarded.probabilities(texts))
            stages._checked_scores(self.fitted.suspicion(texts), len(texts), self.cell.defense.name)
            if isinstance(self.fitted, Purifier) and self.level is not None:
                self.guarded.undefended(self.fitted.purify(texts, self.level))  # it remembers the unchanged ones
        self.seen.extend(texts)

    def ran(self, texts: Sequence[str]) -> None:
        """Time the undefended prediction of these texts again: a machine that becomes slower in a round weighs on both sides."""
        self.plain_s[-1] = (self.plain_s[-1] + self._undefended_s(texts)) / 2

    def _undefended_s(self, texts: Sequence[str]) -> float:
        with self.lab.meter.phase("plain"):
            started = time.perf_counter()
            self.guarded.probabilities(texts)
            return time.perf_counter() - started

    def measured(self, guarded_s: Sequence[float]) -> Measured:
        """Give the cost so far; `guarded_s`: seconds of each measured `run`."""
        phase, per = self.lab.meter.phases["guarded"], 1 / len(self.seen)
        size, plain_s = len(self.batches[0]), self.plain_s[WARM_UP : WARM_UP + len(guarded_s)]
        helpers = {who: count for who, count in sorted(phase.by.items()) if who != "victim"}
        names = self.cell.names
        return Measured(
            defense=names["defense"],
            dataset=names["dataset"],
            attack=names["attack"],
            victim=names["victim"],
            seed=names["seed"],
            texts_per_round=size,
            words_per_text=sum(len(text.split()) for text in self.seen) * per,
            ms_per_text=_median([1000 * own / size for own in guarded_s]),
            undefended_ms_per_text=_median([1000 * own / size for own in plain_s]),
            ratio=_median([own / plain for own, plain in zip(guarded_s, plain_s, strict=True)]),
            victim_rows_per_text=phase.by["victim"].rows * per,
            victim_tokens_per_text=phase.by["victim"].tokens * per,
            helper_rows_per_text={who: count.rows * per for who, count in helpers.items()},
            helper_tokens_per_text={who: count.tokens * per for who, count in helpers.items()},
            level=self.level,
            fit_s=self.lab.meter.phases["fit"].seconds,
            threads=THREADS,
            device=self.lab.device,
        )


def registry() -> Registry:
    """Give all plugins, and the defense that is none."""
    found = discover()
    none = Found("defense", Undefended, rapbench.__name__, rapbench.__version__)
    return Registry({**found.found, ("defense", Undefended.name): none}, found.left_out)


def registered() -> list[str]:
    """Give the specs of all registered defenses: as in the demo grid, or the bare name (see SAMPLED); the undefended victim first."""
    known, block = registry(), read_blocks("demo", Block)[0]
    demo = {split_spec(spec)[0]: spec_of(known.parse("defense", spec)) for spec in block.defenses}
    names = [name for name in known.names("defense") if name != Undefended.name]
    return [Undefended.name, *({**SAMPLED, **demo}.get(name, name) for name in names)]


def subject(defense: str, setting: Setting) -> Subject:
    """Give a defense fitted to the victim of this setting, which is trained first where the store has none; a NotBenched says why not."""
    from rapbench.cli_run import device

    known = registry()
    cell = setting.cell(defense, known)
    if cell.skip:
        raise NotBenched(f"not benched, because {cell.skip}")
    step = _upstream(cell, known, setting, device("auto"))
    stages._settle(step.bench)
    (lab, had), guarded = stages._defenders(step, cell.defense), stages._load_victim(step, "victim")
    lab.meter.watch(guarded.model, "victim")
    passing, _ = stages._gated(step, guarded, lab, had)
    texts = [text for name, own in passing.items() if name != "heldout" for text in own]  # a defense has seen the held-out ones
    batches = dealt(texts, setting.rounds + WARM_UP, setting.texts, lab.rng("bench"))
    suspects = stages._suspects(step, lab) if cell.defense.works_on == "training" else None
    with lab.meter.phase("fit"):
        found = cell.defense.fit(guarded, lab.heldout, lab)
        fitted = stand_in(found, cell.defense, suspects, lab) or watching(found, cell.defense)
    return Subject(cell, guarded, fitted, lab, batches)


def dealt(texts: Sequence[str], batches: int, most: int, rng: np.random.Generator) -> list[list[str]]:
    """Give so many batches of at most `most` texts, of equal size and mix of lengths; no text is in two of them."""
    order = sorted(dict.fromkeys(texts), key=lambda text: (len(text.split()), text))
    size = min(most, len(order) // batches)
    if not size:
        raise CellError(
            f"{len(order)} texts pass the gate, and {batches} rounds, one of them to warm up, want as many: "
            "take fewer rounds, or a data set with more test texts"
        )
    places = (np.arange(size * batches) * len(order) // (size * batches)).reshape(size, batches)  # evenly over the lengths
    places[1::2] = places[1::2, ::-1]  # or the last batch would get the longest of every deal
    return [[order[place] for place in rng.permutation(column).tolist()] for column in places.T]


def _upstream(cell: Cell, known: Registry, setting: Setting, device: str) -> Step:
    """Do all that scoring this cell needs, where the store does not have it; give the step of the scoring."""
    plan, bench = planned([cell], known, setting.out, device=device, threads=THREADS)
    job = plan.jobs[plan.groups[0].keys["score"]]
    inputs = {role: key for role, key in job.inputs.items() if role not in stages.READ}  # all is timed: nothing is read beforehand
    job = replace(job, inputs=inputs)
    session = Session(plan, bench, setting.out, "serial")
    session.store.create()
    failures: dict[str, Failure] = {}
    with session._alone():
        missing = plan.upstream(session.store, job.inputs.values())
        for key in missing:
            if session.store.has(key):
                session.store.set_aside(key)
        execute(missing, SerialExecutor(bench), _tell, failures)
    if failures:
        raise CellError(next(iter(failures.values())).reason)
    return Step(job, bench, session.store, session.store.root, known)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _tell(done: Done) -> None:
    print(f"{done.job.stage} {done.job.label}: {'failed' if done.failure else f'{done.seconds:.1f} s'}", file=sys.stderr)
