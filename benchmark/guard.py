"""A guard: a defense fitted on a model that somebody received, kept in a folder, and asked about texts as they come.

    guard.json           what it was fitted on and how: the victim's digest, protect label, protocol, threshold, versions
    state.json           what the defense has learnt, as its detector's `state` gave it: plain values ...
    state.safetensors    ... and arrays

Nothing in it is executed or unpickled. It works with that one victim: the digest of the victim's files is compared.
One for each label of a victim: `rapbench.guards`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, Self, cast

import numpy as np

from rapbench import protocol
from rapbench.api import Defense, Detector, Labelled, Purifier
from rapbench.artifacts import write_atomically
from rapbench.errors import CellError, DataError, PluginError, SpecError, StoreError
from rapbench.guard_folder import ABOUT, INDEX, SCHEMA, read_kept, read_state, write_state, writing
from rapbench.judge import Explanation, Judge, Verdict, check_texts, finite
from rapbench.lab import Lab, rng
from rapbench.received import Received
from rapbench.registry import Registry, discover, spec_of
from rapbench.standin import watching
from rapbench.victim import Recipe, Victim

BATCH = 256
"""Texts that are judged together: sorted by length they make full batches of the victim's."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a guard is asked for, whichever label it protects."""

    defense: str = "rap"
    frr: float = 0.01
    """The share of clean texts of the protect label that may be rejected."""
    protocol: Literal["strict", "paper"] = "strict"
    seed: int = 1234
    max_length: int = 512
    """Tokens that the victim reads of a text: as where it is deployed."""

    def __post_init__(self) -> None:
        if not 0 < self.frr < 1:
            raise SpecError(f"allowed FRR {self.frr!r} is not in (0, 1): 1 % is 0.01")
        if self.max_length < 1:
            raise SpecError(f"max_length={self.max_length!r} is below 1")

    def protecting(self, label: int) -> Terms:
        """Give the same for one protect label."""
        return Terms(protect_label=label, **asdict(self))

    @property
    def needed(self) -> int:
        """How many texts a threshold takes at the least, of those that calibrate and are predicted rightly."""
        return protocol.heldout_needed(self.frr) - (self.protocol == "strict")


@dataclass(frozen=True, kw_only=True)
class Terms(Asked):
    """What a guard of one label is asked for."""

    protect_label: int
    """The label that an attacker would want."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What guard.json tells."""

    terms: Terms
    victim: str
    """The folder, where it was."""
    victim_digest: str
    plugin: str
    """Package and version of the defense."""
    threshold: float
    """Reject above this suspicion; of a purifier, the level at which texts are repaired."""
    n_heldout: int
    n_calibration: int
    """Held-out texts that the threshold was taken on: truly and by prediction of the protect label."""
    frr_calibration: float
    """The share of those that it rejects."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """blake2b digests."""
    schema_version: int = SCHEMA


@dataclass(frozen=True)
class Guard:
    """A victim with a fitted defense and its threshold. `guard(texts)` gives a verdict for each."""

    about: About
    judge: Judge

    @classmethod
    def fit(cls, victim: str | Path, heldout: Labelled, terms: Terms, *, device: str = "cpu", registry: Registry | None = None) -> Self:
        """Fit a defense on the victim in this folder with clean held-out texts; nothing is known of any attack."""
        registry = registry or discover()
        keepable(terms, registry)
        return cls.on(Received.at(victim, terms.max_length, device), heldout, terms, registry)

    @classmethod
    def on(cls, received: Received, heldout: Labelled, terms: Terms, registry: Registry) -> Self:
        """Fit a defense on a victim that is loaded, and may be guarded by others."""
        defense, guarded = keepable(terms, registry), received.protecting(terms.protect_label)
        check_heldout(heldout, guarded)
        builds, texts = parted(guarded, heldout, terms)
        _check_enough(len(texts), int((heldout.labels == terms.protect_label).sum()), terms)
        fitted = _fitted(defense, guarded, _lab(guarded, terms, builds))
        if fitted.state() is None:
            raise _not_keepable(defense)
        judge, rejected = _calibrated(guarded, fitted, texts, terms)
        judge.forget()
        about = About(
            terms=replace(terms, defense=spec_of(defense), max_length=guarded.max_length),
            victim=str(received.folder),
            victim_digest=received.digest,
            plugin=_plugin(defense, registry),
            threshold=judge.threshold,
            n_heldout=len(heldout.labels),
            n_calibration=len(texts),
            frr_calibration=rejected / len(texts),
            notes=dict(fitted.notes()),
            made_by={**_versions(), "device": guarded.device},
        )
        return cls(about, judge)

    @classmethod
    def load(cls, folder: str | Path, victim: str | Path | None = None, *, device: str = "cpu", registry: Registry | None = None) -> Self:
        """Restore a guard; `victim`: where its victim is now. A StoreError or VictimError where either is not what it was."""
        registry, place = registry or discover(), Path(folder)
        about = read_about(place, registry)
        received = Received.at(victim or about.victim, about.terms.max_length, device, digest=about.victim_digest)
        return cls.restored(place, about, received, registry)

    @classmethod
    def restored(cls, folder: Path, about: About, received: Received, registry: Registry) -> Self:
        """Restore a guard around a victim that is loaded, and may be guarded by others."""
        defense, guarded = cast(Defense, registry.parse("defense", about.terms.defense)), received.protecting(about.terms.protect_label)
        state, nothing = read_state(folder, about.files), Labelled([], np.empty(0, dtype=np.int64))
        try:
            fitted = defense.restore(guarded, state, _lab(guarded, about.terms, nothing))
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"what {str(folder)!r} has kept of {defense.name} cannot be restored: {error!r}; fit it again") from error
        return cls(about, Judge(guarded, fitted, about.threshold))

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that are watched: one."""
        return (self.about.terms.protect_label,)

    def save(self, folder: str | Path) -> None:
        """Write the guard into a folder that is new, empty or a guard's."""
        place = Path(folder)
        state = self.judge.fitted.state()
        assert state is not None  # looked at when it was fitted
        with writing(place, ABOUT):
            files = write_state(place, state)
        about = {**asdict(self.about), "files": files}
        write_atomically(place / ABOUT, json.dumps(about, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def __call__(self, texts: Iterable[str]) -> list[Verdict]:
        """Give the verdict on each text, in order."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str], batch: int = BATCH) -> Iterator[Verdict]:
        """Give verdicts as texts come in, in order, `batch` at a time; memory does not grow with their number."""
        return streamed(self.judge, texts, batch)

    def explain(self, text: str) -> Explanation:
        """Give the verdict on a text and what it comes from."""
        explanation = self.judge.explain(text)
        self.judge.forget()
        return explanation


class Judging(Protocol):
    """What gives verdicts on texts and forgets them: the judge of one label, or of several."""

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        """Give the verdict on each text, in order."""

    def forget(self) -> None:
        """Drop what is kept of the texts that were judged."""


def streamed(judge: Judging, texts: Iterable[str], batch: int) -> Iterator[Verdict]:
    """Give verdicts as texts come in, in order, `batch` at a time."""
    if isinstance(texts, str):
        raise DataError("a single text was given where several are expected: put it into a list")
    if batch < 1:
        raise DataError(f"batch={batch!r} is below 1")
    waiting, done = iter(texts), 0
    while some := list(islice(waiting, batch)):
        check_texts(some, first=done + 1)
        yield from judge(some)
        judge.forget()
        done += len(some)


def keepable(asked: Asked, registry: Registry) -> Defense:
    """Give the defense; a PluginError where its class cannot be restored."""
    defense = cast(Defense, registry.parse("defense", asked.defense))
    if type(defense).restore is Defense.restore:
        raise _not_keepable(defense)
    return defense


def check_heldout(heldout: Labelled, victim: Victim) -> None:
    """Raise an error in one line where the victim does not know its protect label or the label of a text."""
    labels, n = heldout.labels, victim.n_labels
    if not 0 <= victim.target_label < n:
        raise SpecError(f"protect label {victim.target_label} is none of the victim's labels 0..{n - 1}")
    check_texts(heldout.texts)
    wrong = np.flatnonzero((labels < 0) | (labels >= n))
    if len(wrong):
        raise DataError(f"held-out text {wrong[0] + 1} has the label {labels[wrong[0]]}, the victim knows 0..{n - 1}")


def parted(victim: Victim, heldout: Labelled, asked: Asked) -> tuple[Labelled, list[str]]:
    """Give the texts that build a defense of the victim's protect label, and those that its threshold is taken on."""
    protect = victim.target_label
    counted = protocol.clean_gate(victim.undefended(heldout.texts), heldout.labels, protect)
    if asked.protocol == "paper":
        return heldout, list(heldout.where(counted).texts)
    half = protocol.calibration_half(heldout.labels, protect, rng(asked.seed, "strict/calibration"))
    return heldout.where(~half), list(heldout.where(counted & half).texts)


def to_give(n: int, own: int, asked: Asked) -> int:
    """Give about how many texts of a label would do, of which `own` leave `n` for the threshold, too few."""
    return math.ceil(asked.needed / n * own) if n else 2 * max(asked.needed, own)


def read_about(folder: Path, registry: Registry) -> About:
    """Give what a guard's folder tells; a StoreError where that makes no sense, or the defense is another one here."""
    if (folder / INDEX).is_file():
        raise StoreError(f"{str(folder)!r} holds a guard for each label: read it by rapbench.guards.load, or give the folder of one label")
    if not (folder / ABOUT).is_file():
        raise StoreError(f"no guard in {str(folder)!r}: give the folder of `rapbench guard fit -o`")
    about = read_kept(folder / ABOUT, About)
    if not math.isfinite(about.threshold):
        raise StoreError(f"{str(folder / ABOUT)!r}: the threshold {about.threshold!r} is no number; fit it again")
    if (now := _plugin(cast(Defense, registry.parse("defense", about.terms.defense)), registry)) != about.plugin:
        raise StoreError(f"the guard {str(folder)!r} was fitted by {about.plugin}, here is {now}: fit it again")
    return about


def _lab(victim: Victim, terms: Terms, heldout: Labelled) -> Lab:
    return Lab(
        seed=terms.seed,
        recipe=Recipe(max_length=victim.max_length),
        heldout=heldout,
        target_label=terms.protect_label,
        n_labels=victim.n_labels,
        device=victim.device,
    )


def _check_enough(n: int, protect: int, terms: Terms) -> None:
    """Raise a CellError unless the calibration texts suffice for a threshold at the allowed FRR."""
    if n >= terms.needed:
        return
    least = 1 / (n + 1) if terms.protocol == "strict" else 1 / max(n, 1)
    strictly = ", half of which are taken to build the defense," if terms.protocol == "strict" else ""
    raise CellError(
        f"an allowed FRR of {terms.frr:g} needs {terms.needed} held-out texts for the threshold; of {protect} of the protect label "
        f"{terms.protect_label}{strictly} {n} are left that are predicted so: give about {to_give(n, protect, terms)} of them"
        + (f", or allow at least {math.ceil(least * 1e4) / 1e4:g}" if n else "")
    )


def _fitted(defense: Defense, victim: Victim, lab: Lab) -> Detector | Purifier:
    """Fit the defense; what it would make of the training split, which a defender has not, it makes of a half that the fit does not see."""
    if defense.prepares() is None:
        return watching(defense.fit(victim, lab.heldout, lab), defense)
    prepares = np.zeros(len(lab.heldout.labels), dtype=np.bool_)
    prepares[lab.rng("guard/prepare").permutation(len(prepares))[: len(prepares) // 2]] = True
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        own = replace(lab, heldout=lab.heldout.where(~prepares), prepared=Path(scratch))
        defense.prepare(lab.heldout.where(prepares).texts, Path(scratch), own)
        return watching(defense.fit(victim, own.heldout, own), defense)


def _calibrated(victim: Victim, fitted: Detector | Purifier, texts: list[str], terms: Terms) -> tuple[Judge, int]:
    """Give the judge with its threshold, and how many of the calibration texts it rejects."""
    n, strict = len(texts), terms.protocol == "strict"
    if not isinstance(fitted, Purifier):
        scores = finite(fitted.suspicion(texts), n)
        at = protocol.conformal_threshold(scores, terms.frr) if strict else protocol.threshold(scores, terms.frr)
        return Judge(victim, fitted, at), int((scores > at).sum())
    levels = [float(level) for level in fitted.levels()]
    every = Judge(victim, fitted, math.inf)
    rejected = np.array([every.lost(texts, level).sum() for level in levels], dtype=np.int64)
    chosen = protocol.conformal_level(rejected, n, terms.frr) if strict else protocol.choose_level(rejected / n, terms.frr)
    if chosen is None:
        raise CellError(
            f"every level of {terms.defense} rejects more of the {n} held-out texts than an allowed FRR of {terms.frr:g} has room for: "
            "allow more, or give it higher levels"
        )
    return Judge(victim, fitted, levels[chosen]), int(rejected[chosen])


def _not_keepable(defense: Defense) -> PluginError:
    return PluginError(
        f"the defense {defense.name!r} cannot be kept in a guard: its class needs restore(victim, state, lab), "
        "and what its fit gives a state() (docs/plugins.md)"
    )


def _plugin(defense: Defense, registry: Registry) -> str:
    found = registry.get("defense", defense.name)
    return f"{found.package} {found.version}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("rapbench", "torch", "transformers", "tokenizers", "numpy")}
