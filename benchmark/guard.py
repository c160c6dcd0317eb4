"""A guard: a defense fitted on a model that somebody received, kept in a folder, and asked about texts as they come.

    guard.json           what it was fitted on and how: the victim's digest, protect label, protocol, threshold, versions
    state.json           what the defense has learnt, as its detector's `state` gave it: plain values ...
    state.safetensors    ... and arrays

Nothing in it is executed or unpickled. It works with that one victim: the digest of the victim's files is compared.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rapbench import protocol
from rapbench.api import Defense, Detector, Labelled, Purifier
from rapbench.artifacts import file_digest, read_json, write_atomically
from rapbench.checkpoint import _found, stored
from rapbench.errors import CellError, DataError, PluginError, SpecError, StoreError, VictimError
from rapbench.judge import Explanation, Judge, Verdict, check_texts, finite
from rapbench.lab import Lab
from rapbench.registry import Registry, discover, spec_of
from rapbench.standin import watching
from rapbench.victim import Recipe, Victim, model_fingerprint

SCHEMA = 1
BATCH = 256
"""Texts that are judged together: sorted by length they make full batches of the victim's."""
ABOUT, VALUES, ARRAYS = "guard.json", "state.json", "state.safetensors"
MOST_STATE = 1 << 30
"""Bytes of what a defense has learnt, of each file."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a guard is asked for."""

    protect_label: int
    """The label that an attacker would want."""
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
        defense = cast(Defense, registry.parse("defense", terms.defense))
        if type(defense).restore is Defense.restore:
            raise _not_keepable(defense)
        folder, digest = _folder(victim)
        guarded = _victim(folder, terms, device)
        _check(heldout, guarded, terms)
        lab = _lab(guarded, terms, heldout)
        told = guarded.undefended(heldout.texts)
        counted = protocol.clean_gate(told, heldout.labels, terms.protect_label)
        calibrates = np.ones(len(heldout.labels), dtype=np.bool_)
        if terms.protocol == "strict":
            calibrates = protocol.calibration_half(heldout.labels, terms.protect_label, lab.rng("strict/calibration"))
            lab = _lab(guarded, terms, heldout.where(~calibrates))
        texts = list(heldout.where(counted & calibrates).texts)
        _check_enough(len(texts), int((heldout.labels == terms.protect_label).sum()), terms)
        fitted = _fitted(defense, guarded, lab)
        if fitted.state() is None:
            raise _not_keepable(defense)
        judge, rejected = _calibrated(guarded, fitted, texts, terms)
        judge.forget()
        about = About(
            terms=Terms(**{**asdict(terms), "defense": spec_of(defense), "max_length": guarded.max_length}),
            victim=str(folder),
            victim_digest=digest,
            plugin=_plugin(defense, registry),
            threshold=judge.threshold,
            n_heldout=len(heldout.labels),
            n_calibration=len(texts),
            frr_calibration=rejected / len(texts),
            notes=dict(fitted.notes()),
            made_by={**_versions(), "device": device},
        )
        return cls(about, judge)

    @classmethod
    def load(cls, folder: str | Path, victim: str | Path | None = None, *, device: str = "cpu", registry: Registry | None = None) -> Self:
        """Restore a guard; `victim`: where its victim is now. A StoreError or VictimError where either is not what it was."""
        registry, place = registry or discover(), Path(folder)
        about = _read_about(place)
        defense = cast(Defense, registry.parse("defense", about.terms.defense))
        if (now := _plugin(defense, registry)) != about.plugin:
            raise StoreError(f"the guard {str(place)!r} was fitted by {about.plugin}, here is {now}: fit it again")
        state = _read_state(place, about)
        found, digest = _folder(victim or about.victim)
        if digest != about.victim_digest:
            raise VictimError(
                f"the guard {str(place)!r} belongs to the victim with the digest {about.victim_digest}, and {str(found)!r} has {digest}: "
                "it is another one or was changed; give the right one, or fit a guard on this one"
            )
        guarded = _victim(found, about.terms, device)
        nothing = Labelled([], np.empty(0, dtype=np.int64))
        try:
            fitted = defense.restore(guarded, state, _lab(guarded, about.terms, nothing))
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"what {str(place)!r} has kept of {defense.name} cannot be restored: {error!r}; fit it again") from error
        return cls(about, Judge(guarded, fitted, about.threshold))

    def save(self, folder: str | Path) -> None:
        """Write the guard into a folder that is new, empty or a guard's."""
        place = Path(folder)
        state = self.judge.fitted.state()
        assert state is not None  # looked at when it was fitted
        try:
            place.mkdir(parents=True, exist_ok=True)
            if any(place.iterdir()) and not (place / ABOUT).is_file():
                raise StoreError(f"{str(place)!r} holds something else than a guard: give another folder")
            (place / ABOUT).unlink(missing_ok=True)  # written last: a save that was cut off leaves no guard
            files = _write_state(place, state)
        except OSError as error:
            raise StoreError(f"cannot write the guard into {str(place)!r}: {error.strerror or error}") from None
        about = {**asdict(self.about), "files": files}
        write_atomically(place / ABOUT, json.dumps(about, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def __call__(self, texts: Iterable[str]) -> list[Verdict]:
        """Give the verdict on each text, in order."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str], batch: int = BATCH) -> Iterator[Verdict]:
        """Give verdicts as texts come in, in order, `batch` at a time; memory does not grow with their number."""
        if isinstance(texts, str):
            raise DataError("a single text was given where several are expected: put it into a list")
        if batch < 1:
            raise DataError(f"batch={batch!r} is below 1")
        waiting, done = iter(texts), 0
        while some := list(islice(waiting, batch)):
            check_texts(some, first=done + 1)
            yield from self.judge(some)
            self.judge.forget()
            done += len(some)

    def explain(self, text: str) -> Explanation:
        """Give the verdict on a text and what it comes from."""
        explanation = self.judge.explain(text)
        self.judge.forget()
        return explanation


def _folder(victim: str | Path) -> tuple[Path, str]:
    """Give the victim's folder and the digest of its files, which are looked at first."""
    folder = Path(victim).expanduser()
    if not folder.is_dir():
        raise VictimError(f"there is no model folder {str(victim)!r}: give the folder of the victim, with its weights in safetensors")
    folder = folder.resolve()
    return folder, model_fingerprint(str(folder), None)


def _victim(folder: Path, terms: Terms, device: str) -> Victim:
    """Load the victim; a copy of it, since kernels may round otherwise where weights lie at another alignment in memory."""
    loaded = Victim.load(folder, target_label=terms.protect_label, max_length=terms.max_length)
    tensors = stored(folder)
    if missing := [name for name, _ in loaded.model.named_parameters() if _found(name, tensors, loaded.model) is None]:
        raise VictimError(f"the model in {str(folder)!r} is no trained classifier: its file has no {missing[0]!r}, which would be made up")
    twin = copy.deepcopy(loaded)
    twin.model, twin.device = twin.model.to(device), device
    return twin


def _lab(victim: Victim, terms: Terms, heldout: Labelled) -> Lab:
    return Lab(
        seed=terms.seed,
        recipe=Recipe(max_length=victim.max_length),
        heldout=heldout,
        target_label=terms.protect_label,
        n_labels=victim.n_labels,
        device=victim.device,
    )


def _check(heldout: Labelled, victim: Victim, terms: Terms) -> None:
    labels, n = heldout.labels, victim.n_labels
    if not 0 <= terms.protect_label < n:
        raise SpecError(f"protect label {terms.protect_label} is none of the victim's labels 0..{n - 1}")
    check_texts(heldout.texts)
    wrong = np.flatnonzero((labels < 0) | (labels >= n))
    if len(wrong):
        raise DataError(f"held-out text {wrong[0] + 1} has the label {labels[wrong[0]]}, the victim knows 0..{n - 1}")


def _check_enough(n: int, protect: int, terms: Terms) -> None:
    """Raise a CellError unless the calibration texts suffice for a threshold at the allowed FRR."""
    needed = protocol.heldout_needed(terms.frr) - (terms.protocol == "strict")
    if n >= needed:
        return
    about = math.ceil(needed / max(n, 1) * protect) if n else 2 * needed
    least = 1 / (n + 1) if terms.protocol == "strict" else 1 / max(n, 1)
    strictly = ", half of which are taken to build the defense," if terms.protocol == "strict" else ""
    raise CellError(
        f"an allowed FRR of {terms.frr:g} needs {needed} held-out texts for the threshold; of {protect} of the protect label "
        f"{terms.protect_label}{strictly} {n} are left that are predicted so: give about {about} of them"
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


def _read_about(folder: Path) -> About:
    if not (folder / ABOUT).is_file():
        raise StoreError(f"no guard in {str(folder)!r}: give the folder of `rapbench guard fit -o`")
    content = read_json(folder / ABOUT)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise StoreError(f"{str(folder / ABOUT)!r} is of no guard that this rapbench reads (schema version {SCHEMA}): fit it again")
    try:
        about: About = TypeAdapter(About).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(f"{str(folder / ABOUT)!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}; fit it again") from None
    if not math.isfinite(about.threshold):
        raise StoreError(f"{str(folder / ABOUT)!r}: the threshold {about.threshold!r} is no number; fit it again")
    return about


def _write_state(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Write what was learnt, and give the digests of the files."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in state.items() if name not in arrays}
    save_file(arrays, folder / ARRAYS)
    write_atomically(folder / VALUES, json.dumps(values, allow_nan=False))
    return {name: file_digest(folder / name) for name in (VALUES, ARRAYS)}


def _read_state(folder: Path, about: About) -> dict[str, Any]:
    """Give what was learnt; a StoreError where a file is not what was written."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for name in (VALUES, ARRAYS):
        path = folder / name
        if not path.is_file() or path.stat().st_size > MOST_STATE or file_digest(path) != about.files.get(name):
            raise StoreError(f"{str(path)!r} is not what was written when the guard was fitted: fit it again")
    try:
        return {**json.loads((folder / VALUES).read_bytes()), **load_file(folder / ARRAYS)}
    except (ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise StoreError(f"the guard {str(folder)!r} cannot be read: {error}; fit it again") from None
