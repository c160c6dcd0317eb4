"""Guards of all labels: a defense fitted for each label of a received model in turn, where nobody knows which one an attacker wants.

    guards.json          which labels are watched, what was asked for, the victim's digest, the digests of the labels' guard.json
    label-0/ label-1/    the guard of each label, which is one like any other (see `rapbench.guard`)

A text is judged by the defense of the label that the victim gives it, at that label's threshold: the allowed FRR holds for each label.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from rapbench.api import Labelled
from rapbench.artifacts import file_digest, write_atomically
from rapbench.errors import CellError, StoreError
from rapbench.guard import BATCH, About, Asked, Guard, check_heldout, keepable, parted, read_about, streamed, to_give
from rapbench.guard_folder import ABOUT, INDEX, SCHEMA, read_kept, writing
from rapbench.judge import Explanation, Judge, Verdict, check_texts
from rapbench.protocol import predicted
from rapbench.received import Received
from rapbench.registry import Registry, discover
from rapbench.victim import Victim

TOLD = 5
"""Labels that an error tells of, at most."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What guards.json tells."""

    asked: Asked
    victim: str
    """The folder, where it was."""
    victim_digest: str
    labels: tuple[int, ...]
    """Those that are watched."""
    unwatched: tuple[int, ...] = ()
    """Those that had too few held-out texts: what the victim gives these labels is accepted."""
    files: Mapping[int, str] = field(default_factory=dict)
    """The blake2b digest of each label's guard.json."""
    schema_version: int = SCHEMA

    def __post_init__(self) -> None:
        every = (*self.labels, *self.unwatched)
        if not self.labels or sorted(every) != list(range(len(every))):
            raise ValueError(f"labels and unwatched must name each label from 0 once, and one is watched: they name {len(every)}")


@dataclass(frozen=True)
class Guards:
    """A victim with the guard of each label. `guards(texts)` gives a verdict for each: its `prediction` is the label that judged."""

    about: Index
    guards: Mapping[int, Guard]

    @classmethod
    def fit(
        cls,
        victim: str | Path,
        heldout: Labelled,
        asked: Asked,
        *,
        skip_few: bool = False,
        device: str = "cpu",
        registry: Registry | None = None,
    ) -> Self:
        """Fit a defense for each label of the victim. `skip_few`: leave labels unwatched that have too few held-out texts."""
        registry = registry or discover()
        keepable(asked, registry)
        received = Received.at(victim, asked.max_length, device)
        check_heldout(heldout, received.victim)
        told = received.victim.undefended(heldout.texts)
        few = _few(received, heldout, asked)
        if few and not (skip_few and len(few) < received.victim.n_labels):
            raise CellError(_too_few(few, asked))
        fitted = {}
        for label in sorted(set(range(received.victim.n_labels)) - few.keys()):
            received.victim.remember(heldout.texts, told)  # each guard forgets them
            fitted[label] = _fitted(received, heldout, asked, label, registry)
        return cls(_index(fitted, few), fitted)

    @classmethod
    def load(cls, folder: str | Path, victim: str | Path | None = None, *, device: str = "cpu", registry: Registry | None = None) -> Self:
        """Restore the guards around one victim; `victim`: where it is now. A StoreError or VictimError as of `Guard.load`."""
        registry, place = registry or discover(), Path(folder)
        if not (place / INDEX).is_file():
            raise StoreError(f"no guards of all labels in {str(place)!r}: give the folder of `rapbench guard fit --protect-label all -o`")
        index = read_kept(place / INDEX, Index)
        abouts = {label: _about(place, label, index, registry) for label in index.labels}
        received = Received.at(victim or index.victim, index.asked.max_length, device, digest=index.victim_digest)
        if (n := len(index.labels) + len(index.unwatched)) != received.victim.n_labels:
            raise StoreError(f"{str(place / INDEX)!r} names {n} labels, the victim has {received.victim.n_labels}: fit it again")
        return cls(index, {label: Guard.restored(_folder(place, label), own, received, registry) for label, own in abouts.items()})

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that are watched."""
        return self.about.labels

    @property
    def judge(self) -> Judges:
        """What judges texts of all labels."""
        return Judges({label: own.judge for label, own in self.guards.items()})

    def save(self, folder: str | Path) -> None:
        """Write the guards into a folder that is new, empty or one of guards of all labels, which they replace."""
        place = Path(folder)
        with writing(place, INDEX):
            for old in place.glob("label-*"):
                if re.fullmatch(r"label-\d+", old.name) and not old.is_symlink():
                    shutil.rmtree(old)
            for label, own in self.guards.items():
                own.save(_folder(place, label))
            files = {label: file_digest(_folder(place, label) / ABOUT) for label in self.guards}
        about = asdict(replace(self.about, files=files))
        write_atomically(place / INDEX, json.dumps(about, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def __call__(self, texts: Iterable[str]) -> list[Verdict]:
        """Give the verdict on each text, in order."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str], batch: int = BATCH) -> Iterator[Verdict]:
        """Give verdicts as texts come in, in order, `batch` at a time; memory does not grow with their number."""
        return streamed(self.judge, texts, batch)

    def explain(self, text: str) -> Explanation:
        """Give the verdict on a text and what it comes from."""
        judge = self.judge
        explanation = judge.explain(text)
        judge.forget()
        return explanation


@dataclass(frozen=True)
class Judges:
    """The judges of a victim's labels. Their victims share weights and remembered predictions: a text is predicted once."""

    by_label: Mapping[int, Judge]

    @property
    def victim(self) -> Victim:
        """The victim, as one of the judges has it."""
        return next(iter(self.by_label.values())).victim

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        """Give the verdict on each text, in order, by the judge of its label. Of a label without one, all are accepted unscored."""
        check_texts(texts)
        guesses = predicted(self.victim.undefended(texts))
        verdicts: dict[int, Verdict] = {}
        for label in np.unique(guesses).tolist():
            rows = np.flatnonzero(guesses == label).tolist()
            verdicts.update(zip(rows, self._of_label(label, [texts[row] for row in rows]), strict=True))
        return [verdicts[row] for row in range(len(texts))]

    def explain(self, text: str) -> Explanation:
        """Give the verdict on a text with what the defense of its label says of it."""
        verdict = self([text])[0]
        judge = self.by_label.get(verdict.prediction)
        return judge.explain(text) if judge else Explanation(text, verdict)

    def forget(self) -> None:
        """Drop what is kept of the texts that were judged: they may come without end."""
        for judge in self.by_label.values():
            judge.forget()

    def _of_label(self, label: int, texts: list[str]) -> list[Verdict]:
        if judge := self.by_label.get(label):
            return judge(texts)
        anyone = next(iter(self.by_label.values()))  # to whom these are texts of another label
        return [replace(verdict, threshold=None) for verdict in anyone(texts)]


def load(folder: str | Path, victim: str | Path | None = None, *, device: str = "cpu", registry: Registry | None = None) -> Guard | Guards:
    """Restore what a folder of `rapbench guard fit` holds: the guard of one label, or those of all."""
    if (Path(folder) / INDEX).is_file():
        return Guards.load(folder, victim, device=device, registry=registry)
    return Guard.load(folder, victim, device=device, registry=registry)


def _few(received: Received, heldout: Labelled, asked: Asked) -> dict[int, tuple[int, int]]:
    """Give the labels that leave too few texts for a threshold: how many they leave, of how many."""
    found = {}
    for label in range(received.victim.n_labels):
        _, texts = parted(received.protecting(label), heldout, asked)
        if len(texts) < asked.needed:
            found[label] = (len(texts), int((heldout.labels == label).sum()))
    return found


def _too_few(few: Mapping[int, tuple[int, int]], asked: Asked) -> str:
    strictly = ", of the half that does not build the defense" if asked.protocol == "strict" else ""
    told = [f"label {label} has {n} of {own} (give about {to_give(n, own, asked)})" for label, (n, own) in few.items()]
    more = f", and {len(told) - TOLD} other labels have too few" if len(told) > TOLD else ""
    return (
        f"an allowed FRR of {asked.frr:g} needs {asked.needed} held-out texts for the threshold of each label, predicted so{strictly}: "
        f"{', '.join(told[:TOLD])}{more}; give more of them, allow more, or leave such labels unwatched (--skip-few)"
    )


def _fitted(received: Received, heldout: Labelled, asked: Asked, label: int, registry: Registry) -> Guard:
    try:
        return Guard.on(received, heldout, asked.protecting(label), registry)
    except CellError as error:
        raise CellError(f"protect label {label}: {error}") from error


def _index(fitted: Mapping[int, Guard], unwatched: Iterable[int]) -> Index:
    first = next(iter(fitted.values())).about
    own = {name: value for name, value in asdict(first.terms).items() if name != "protect_label"}
    return Index(
        asked=Asked(**own),
        victim=first.victim,
        victim_digest=first.victim_digest,
        labels=tuple(fitted),
        unwatched=tuple(unwatched),
    )


def _folder(place: Path, label: int) -> Path:
    return place / f"label-{label}"


def _about(place: Path, label: int, index: Index, registry: Registry) -> About:
    """Give what a label's guard tells; a StoreError where it is not the one that the index was written with."""
    folder = _folder(place, label)
    about = read_about(folder, registry)
    if file_digest(folder / ABOUT) != index.files.get(label) or about.terms != index.asked.protecting(label):
        raise StoreError(f"{str(folder / ABOUT)!r} is not what was written when the guards were fitted: fit them again")
    return about
