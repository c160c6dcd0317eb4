"""Short names of what a results folder holds: no option that tells nothing apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from rapbench.report.marks import Marks, marks
from rapbench.report.published.ours import bare, options

MOST = 48
"""Characters of a name in a picture."""
JOINERS = "\u200c\u200d"


class Defended(Protocol):
    """What names of one data set, attack, victim and defense are needed for: a record, a curve, a histogram."""

    @property
    def dataset(self) -> str: ...
    @property
    def poisoned_on(self) -> str | None: ...
    @property
    def tuning(self) -> str | None: ...
    @property
    def attack(self) -> str: ...
    @property
    def victim(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def defense(self) -> str: ...


class Names:
    """Names that are one per data set (with its victim), attack and defense, wherever two of them meet.

    STRIP with one k on IMDB and another on Yelp is `strip` on both; with both k on IMDB it is two defenses. Floors and ceilings are
    named as such, and come behind the other defenses. `known`: which they are, by default what is installed says it.
    """

    def __init__(self, ones: Iterable[Defended], known: Marks | None = None) -> None:
        listed = list(ones)
        self.marks = known or marks()
        self._datasets = _short({(): {spec for one in listed for spec in (one.dataset, one.poisoned_on) if spec}})
        self._attacks = _short(_met((_victim(one), one.attack) for one in listed))
        self._defenses = _short(_met(((*_victim(one), one.attack), one.defense) for one in listed))
        self._recipes = _short({(): {spec for one in listed for spec in (one.victim, one.tuning) if spec}})
        plain = defaultdict[str, set[tuple[str, str | None]]](set)
        for one in listed:
            plain[self._home(one)].add((one.victim, one.tuning))
        self._several = {home for home, victims in plain.items() if len(victims) > 1}
        self.homes, self.attacks = (sorted({name(one) for one in listed}) for name in (self.home, self.attack))
        defenses = sorted({(self.marks.place(one.defense), self.defense(one), self.marks.of(one.defense)) for one in listed})
        self.defenses = [name for _, name, _ in defenses]
        self._contenders = {name for _, name, mark in defenses if not mark}

    def home(self, one: Defended) -> str:
        """Name the data set, where the poison came from, and the victim if the data set has several."""
        plain = self._home(one)
        if plain not in self._several:
            return plain
        return ", ".join([plain, *(self._recipes[spec] for spec in (one.victim, one.tuning) if spec)])

    def attack(self, one: Defended) -> str:
        """Name the attack."""
        return self._attacks[one.attack]

    def defense(self, one: Defended) -> str:
        """Name the defense, with its mark."""
        return self.marks.shown(self._defenses[one.defense], one.defense)

    def contends(self, defense: str) -> bool:
        """Tell whether the defense of this name is neither floor nor ceiling."""
        return defense in self._contenders

    def number(self, one: Defended) -> int:
        """Give the defense's place among all: its colour and marker in every figure."""
        return self.defenses.index(self.defense(one))

    def _home(self, one: Defended) -> str:
        return " -> ".join(self._datasets[spec] for spec in (one.poisoned_on, one.dataset) if spec)


def plain(text: str, most: int | None = None) -> str:
    """Give text on one line without what is not to be seen: control signs, halves of pairs, marks that turn the order of reading."""
    shown = "".join(sign if sign.isprintable() or sign in JOINERS else "\ufffd" for sign in " ".join(text.split()))
    return shown if most is None or len(shown) <= most else shown[: most - 1].rstrip() + "…"


def short_names(specs: Iterable[str]) -> dict[str, str]:
    """Give each of these specs, all of which meet, a name as short as it is clear."""
    return _short({(): set(specs)})


def _victim(one: Defended) -> tuple[object, ...]:
    return one.dataset, one.poisoned_on, one.tuning, one.victim, one.seed


def _met(pairs: Iterable[tuple[tuple[object, ...], str]]) -> dict[tuple[object, ...], set[str]]:
    met = defaultdict[tuple[object, ...], set[str]](set)
    for place, spec in pairs:
        met[place].add(spec)
    return met


def _short(met: Mapping[tuple[object, ...], set[str]]) -> dict[str, str]:
    """Give each spec its bare name; where two of that name meet, with the options that they do not share."""
    specs = sorted({spec for own in met.values() for spec in own})
    meeting = {name for own in met.values() for name, n in Counter(bare(spec) for spec in own).items() if n > 1}
    told = {}
    for spec in specs:
        alike = [one for one in specs if bare(one) == bare(spec)]
        told[spec] = plain(_differing(spec, alike) if bare(spec) in meeting else bare(spec), MOST)
    return told


def _differing(spec: str, alike: Sequence[str]) -> str:
    """Give a spec without the options that all of its name have."""
    own, others = options(spec), [options(one) for one in alike]
    shared = {name for name, value in own.items() if all(other.get(name) == value for other in others)}
    told = ",".join(f"{name}={value}" for name, value in own.items() if name not in shared)
    return f"{bare(spec)}:{told}" if told else bare(spec)
