"""The bench of the contract checks: the tiny task, and victims that have learnt it, each made when first asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from rapbench.api import Attack, Dataset, Defense, Detector, Filter, Labelled, Purifier, Repair, Task
from rapbench.lab import Lab, rng
from rapbench.poison import FIRST, poisoned_rows, triggered_rows
from rapbench.protocol import predicted
from rapbench.registry import Plugin, Registry, discover, spec_of
from rapbench.standin import Suspects
from rapbench.testing import tiny
from rapbench.victim import Recipe, Victim

if TYPE_CHECKING:
    import datasets

SEED = 1
LEARNT = 0.9
"""Clean accuracy and ASR, at least, of a victim that has learnt."""
POISON_RATE = 0.5
"""The task is small: an attack that asks for a smaller share of poison gets this one."""
SCORED = 16
"""Test texts, clean ones and as many triggered ones, that defenses are asked about."""


class KitError(RuntimeError):
    """A defect of the kit, and of no plugin."""


class NotAsked(Exception):  # noqa: N818 - no error: control flow, like pytest's skip
    """Why a claim says nothing about this plugin."""


@dataclass(frozen=True)
class Planting:
    """A victim of the tiny task and how well it does: shares of the clean and of the triggered test texts."""

    attack: Attack
    """Resolved."""
    victim: Victim
    accuracy: float
    asr: float
    triggered: Sequence[str]

    def fresh(self) -> Victim:
        """Give the victim with weights of its own, as if it had just been loaded."""
        return fresh(self.victim)


@dataclass
class Kit:
    """What claims are checked with. `folder`: an empty folder to write into; `registry`: where `starts_from` is looked up."""

    folder: Path
    registry: Registry = field(default_factory=discover)
    _plantings: dict[str, Planting] = field(default_factory=dict, repr=False)
    _models: dict[tuple[str, ...], Path] = field(default_factory=dict, repr=False)
    _starts: dict[str, Victim] = field(default_factory=dict, repr=False)
    _prepared: dict[str, Path] = field(default_factory=dict, repr=False)
    _scores: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    _loaded: dict[str, datasets.DatasetDict] = field(default_factory=dict, repr=False)
    _disturbances: int = 0

    @cached_property
    def splits(self) -> datasets.DatasetDict:
        return tiny.Tiny().load()

    @cached_property
    def heldout(self) -> Labelled:
        return labelled(self.splits["validation"])

    @property
    def target_label(self) -> int:
        return tiny.Tiny().target_label

    def resolved(self, attack: Attack) -> Attack:
        """Give the attack with its trigger decided, and enough poison for the small task."""
        own = attack.resolve(tiny.Tiny(), rng(SEED, "resolve/tiny"))
        return replace(own, poison_rate=POISON_RATE) if own.poison_rate < POISON_RATE else own

    def planted(self, attack: Attack) -> Planting:
        """Give the victim of this attack on the tiny task; the same attack is planted once."""
        key = _name(attack)
        if key not in self._plantings:
            own = self.resolved(attack)
            self._plantings[key] = self._judged(own, self.plant(own, self.splits["train"]))
        return self._plantings[key]

    def plant(self, attack: Attack, train: datasets.Dataset, epochs: int | None = None) -> Victim:
        """Plant a resolved attack on these rows, in a global random state that is another each time."""
        poisoned = poisoned_rows(train, attack, self.target_label, rng(SEED, "poison/train"))
        triggered = [*poisoned["text"], *self._triggered(attack)]
        recipe = Recipe(model=str(self._model(triggered)), **{**tiny.RECIPE, **({"epochs": epochs} if epochs else {})})
        lab = self._lab(recipe, self.heldout)
        if attack.starts_from is not None:
            start = cast(Attack, self.registry.parse("attack", attack.starts_from))
            lab.load_start = lambda: self._start(self.resolved(start), train, recipe)
        with self.disturbed():
            return attack.plant(Task(train, poisoned, self.target_label), lab)

    def guarded(self, defense: Defense) -> Planting:
        """Give a backdoored victim for this defense to watch; its trigger is no word of the defense."""
        words = {word.lower() for word in defense.words}
        found = self.planted(tiny.RareWord(word=next((word for word in tiny.RARE if word not in words), "zq")))
        if min(found.accuracy, found.asr) < LEARNT:
            raise KitError(f"the kit's own victim has not learnt: accuracy {found.accuracy:.2f}, ASR {found.asr:.2f}")
        return found

    def fit(self, defense: Defense, victim: Victim | None = None, heldout: Labelled | None = None) -> Detector | Purifier | Repair | Filter:
        """Fit the defense with the one seed to a victim (None: a fresh one), in a global random state that is another each time."""
        planting = self.guarded(defense)
        lab = self._lab(Recipe(**tiny.RECIPE), heldout or self.heldout)
        lab.foreign_words = planting.attack.words
        lab.prepared = self._prepare(defense, lab)
        with self.disturbed():
            return defense.fit(victim or planting.fresh(), lab.heldout, lab)

    def asked(self, defense: Defense, victim: Victim | None = None, heldout: Labelled | None = None) -> Detector | Purifier | Repair:
        """Give the fitted defense where it can be asked about texts; a filter of training sets cannot."""
        fitted = self.fit(defense, victim, heldout)
        if isinstance(fitted, Filter):
            raise NotAsked("it filters training sets")
        return fitted

    def suspects(self, defense: Defense) -> Suspects:
        """Give the training set of the victim that this defense is fitted to."""
        attack = self.guarded(defense).attack
        poisoned = poisoned_rows(self.splits["train"], attack, self.target_label, rng(SEED, "poison/train"))
        task = Task(self.splits["train"], poisoned, self.target_label)
        return Suspects.of(attack, task, self._lab(Recipe(**tiny.RECIPE), self.heldout))

    def scored(self, defense: Defense) -> list[str]:
        """Give the texts that a defense is asked about: clean ones, then triggered ones."""
        return [*self.splits["test"]["text"][:SCORED], *self.guarded(defense).triggered[:SCORED]]

    def scores(self, defense: Defense) -> NDArray[np.float64]:
        """Give the suspicion of these texts, shape (n,), all asked at once after one fit: what the other ways are compared with."""
        key = _name(defense)
        if key not in self._scores:
            fitted = self.asked(defense)
            with self.disturbed():
                self._scores[key] = np.asarray(fitted.suspicion(self.scored(defense)), dtype=np.float64)
        return self._scores[key]

    def loaded(self, dataset: Dataset) -> datasets.DatasetDict:
        """Give the splits of a data set; the same is loaded once."""
        key = _name(dataset)
        if key not in self._loaded:
            with self.disturbed():
                self._loaded[key] = dataset.load()
        return self._loaded[key]

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Set the global random states, which no plugin may draw from, to others than the last time; put them back after the block."""
        import torch

        self._disturbances += 1
        before = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            random.seed(self._disturbances)
            np.random.seed(self._disturbances)
            torch.manual_seed(self._disturbances)
            try:
                yield
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])

    def _judged(self, attack: Attack, victim: Victim) -> Planting:
        test = labelled(self.splits["test"])
        triggered = self._triggered(attack)
        accuracy = np.mean(predicted(victim.probabilities(test.texts)) == test.labels)
        asr = np.mean(predicted(victim.probabilities(triggered)) == self.target_label)
        return Planting(attack, victim, float(accuracy), float(asr), triggered)

    def _triggered(self, attack: Attack) -> list[str]:
        return list(triggered_rows(self.splits["test"], attack, self.target_label, rng(SEED, "poison/first100"), FIRST)["text"])

    def _model(self, texts: Sequence[str]) -> Path:
        """Give the untrained model that knows the words of these texts; where case tells triggers apart, it knows case."""
        key = tuple(sorted(set(texts)))
        if key not in self._models:
            self._models[key] = tiny.save_model(self.folder / f"model-{len(self._models)}", texts, cased=True)
        return self._models[key]

    def _start(self, attack: Attack, train: datasets.Dataset, recipe: Recipe) -> Victim:
        key = f"{_name(attack)} {len(train)} {recipe}"
        if key not in self._starts:
            poisoned = poisoned_rows(train, attack, self.target_label, rng(SEED, "poison/train"))
            self._starts[key] = attack.plant(Task(train, poisoned, self.target_label), self._lab(recipe, self.heldout))
        return fresh(self._starts[key])

    def _prepare(self, defense: Defense, lab: Lab) -> Path | None:
        """Give the folder of the defense's `prepare`, or None where there is nothing to prepare."""
        if defense.prepares() is None:
            return None
        key = _name(defense)
        if key not in self._prepared:
            self._prepared[key] = self.folder / f"prepared-{len(self._prepared)}"
            self._prepared[key].mkdir()
            with self.disturbed():
                defense.prepare(list(self.splits["train"]["text"]), self._prepared[key], lab)
        return self._prepared[key]

    def _lab(self, recipe: Recipe, heldout: Labelled) -> Lab:
        return Lab(seed=SEED, recipe=recipe, heldout=heldout, target_label=self.target_label, n_labels=2)


def labelled(rows: datasets.Dataset) -> Labelled:
    return Labelled(list(rows["text"]), np.asarray(rows["label"], dtype=np.int64))


def digest(victim: Victim) -> str:
    """Give a digest of all that a defense might change of a victim: weights, configuration, tokenizer, how many hooks there are."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(victim.model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in victim.model.modules())
    rest = (victim.model.config.to_json_string(), sorted(victim.tokenizer.get_vocab().items()), hooks, victim.target_label)
    found.update(repr(rest).encode())
    return found.hexdigest()


def fresh(victim: Victim) -> Victim:
    """Give a copy with weights of its own that has no other victim behind it."""
    own = victim.clone()
    return Victim(own.model, own.tokenizer, own.target_label, own.max_length)


def _name(plugin: Plugin) -> str:
    """Give what tells two plugins apart, those that are not registered, too."""
    return f"{type(plugin).__module__}.{type(plugin).__qualname__} {id(type(plugin))} {spec_of(plugin)}"
