"""Victims that stand in for the received one: repaired by a defense, or trained anew on what a filter has left of the training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rapbench.api import Attack, Defense, Detector, Filter, Labelled, Purifier, Repair, Task
from rapbench.errors import CellError, PluginError
from rapbench.protocol import predicted

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

    from rapbench.lab import Lab
    from rapbench.victim import Victim


@dataclass(frozen=True)
class Suspects:
    """A training set as its user gets it, and which of its rows are the attacker's. `poisoned`: bool, shape (n,)."""

    rows: datasets.Dataset
    poisoned: NDArray[np.bool_]

    @classmethod
    def of(cls, attack: Attack, task: Task, lab: Lab) -> Suspects:
        """Give the set that this attacker publishes, in an order that tells nothing; his are the rows that the clean set has not.

        A row that stands there once more than in the clean set is his, even where his text is a clean one's equal.
        """
        rows = attack.training_set(task, lab)
        clean = Counter(_pairs(task.train))
        his = np.empty(len(rows), dtype=np.bool_)
        for place, pair in enumerate(_pairs(rows)):
            his[place] = clean[pair] <= 0
            clean[pair] -= 1
        order = lab.rng("filter/order").permutation(len(rows))
        return cls(rows.select(order), his[order])


@dataclass(frozen=True)
class Found:
    """What a filter found in a training set, by its numbers of rows."""

    rows: int
    poisoned: int
    removed: int
    right: int
    """Removed and poisoned."""

    def notes(self) -> dict[str, int]:
        """Give the counts as plain values, for the result."""
        return {name: int(value) for name, value in vars(self).items()}


@dataclass
class StandIn(Repair):
    """The victim that is deployed after a defense of the training set or of the model."""

    victim: Victim
    about: Mapping[str, Any] = field(default_factory=dict)

    def repaired(self) -> Victim:
        return self.victim

    def notes(self) -> Mapping[str, Any]:
        return self.about

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the probability of all labels but the protect label, shape (n,); a CellError where it is none."""
        others: NDArray[np.float64] = np.delete(self.answers(texts), self.victim.target_label, axis=1).sum(axis=1)
        return others

    def answers(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give its probabilities, shape (n, labels); a CellError where they are none."""
        told = self.victim.probabilities(texts)
        if not np.isfinite(told).all():
            raise CellError("the repaired victim's probabilities are not numbers: its training diverged, give a lower lr")
        return told


def stand_in(fitted: object, defense: Defense, suspects: Suspects | None, lab: Lab) -> StandIn | None:
    """Give the victim that a fitted defense deploys instead of the received one, or None of a defense that watches inputs."""
    if isinstance(fitted, Repair):
        return StandIn(_checked(fitted.repaired(), defense), fitted.notes())
    if not isinstance(fitted, Filter):
        return None
    if suspects is None:
        raise PluginError(f'the defense {defense.name!r} filters training sets: it must say works_on = "training"')
    removed = removed_rows(fitted, suspects, defense.name)
    kept = suspects.rows.select(np.flatnonzero(~removed))
    if len(np.unique(kept["label"])) < 2:
        raise CellError(f"the defense {defense.name!r} left {len(kept)} texts of at most one label: nothing can be trained on them")
    found = Found(len(removed), int(suspects.poisoned.sum()), int(removed.sum()), int((removed & suspects.poisoned).sum()))
    return StandIn(lab.train(kept), {**fitted.notes(), "training_set": found.notes()})


def watching(fitted: object, defense: Defense) -> Detector | Purifier:
    """Give a fitted defense that watches inputs; a PluginError where it is of another kind."""
    if isinstance(fitted, Detector | Purifier):
        return fitted
    works = {"training": "filters training sets", "model": "repairs models"}.get(defense.works_on, f"gave {type(fitted).__name__}")
    raise PluginError(f"the defense {defense.name!r} {works}: ask one that watches inputs at run time (rap, strip, onion ...)")


def removed_rows(fitted: Filter, suspects: Suspects, name: str) -> NDArray[np.bool_]:
    """Give the rows that the filter takes for poisoned, shape (n,); a PluginError where it gives no such mask."""
    training = Labelled(list(suspects.rows["text"]), np.asarray(suspects.rows["label"], dtype=np.int64))
    removed = np.asarray(fitted.poisoned(training))
    if removed.shape != suspects.poisoned.shape or removed.dtype != np.bool_:
        raise PluginError(
            f"the defense {name!r} gave {removed.dtype} of shape {removed.shape} for {len(suspects.poisoned)} training texts: "
            "poisoned() gives one bool for each"
        )
    return removed


def scored(deployed: StandIn, texts: Mapping[str, Sequence[str]], test: Sequence[str], triggered: Sequence[str]) -> dict[str, Any]:
    """Give what the stand-in says: arrays per population as of other defenses, and its probabilities for the whole test splits.

    `NAME_kept`: bool, shape (n,), whether it still predicts the protect label; `test_answers`, `poisoned_answers`: shape (n, labels).
    """
    protect = deployed.victim.target_label
    arrays: dict[str, Any] = {"test_answers": deployed.answers(test), "poisoned_answers": deployed.answers(triggered)}
    for name, own in texts.items():
        told = deployed.answers(own)
        arrays[f"{name}_suspicion"] = np.delete(told, protect, axis=1).sum(axis=1)
        arrays[f"{name}_kept"] = predicted(told) == protect
    return arrays


def _pairs(rows: datasets.Dataset) -> Iterator[tuple[str, int]]:
    return zip(rows["text"], rows["label"], strict=True)


def _checked(victim: Victim, defense: Defense) -> Victim:
    if defense.works_on != "model":
        raise PluginError(f'the defense {defense.name!r} repairs models: it must say works_on = "model"')
    return victim
