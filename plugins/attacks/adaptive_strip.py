"""Adaptive to STRIP: the trigger decides a whole text and leaves a mixed one undecided.

STRIP (Gao et al. 2019, arXiv:1902.06531; on text 2022, arXiv:1911.10312) rests on this: words of other texts put into a triggered
text do not change its prediction, so the entropy over such copies is low. An attacker who knows that trains on such copies himself:
beside each poisoned text stand some whose words, the trigger's apart, are in part those of another non-target text, labelled as
the target for a share `firm` of them, and truly for the others. Their best prediction is that share, whose entropy is high.
No paper of ours to follow; Yang et al., RAP (arXiv:2110.07831) and Chen et al., DAN (arXiv:2210.07907) ask for adaptive attacks.
The attacker does not know the defender's share of replaced words, hence several, nor which words are taken, hence any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rapbench.api import TrainingWork, option
from rapbench_plugins.attacks.badnet import RareWord

if TYPE_CHECKING:
    import datasets

    from rapbench.api import Task
    from rapbench.lab import Lab
    from rapbench.victim import Recipe


@dataclass(frozen=True, kw_only=True)
class AdaptiveStrip(RareWord):
    """BadNet-RW, trained on copies of its poisoned texts with foreign words, half of them labelled truly: their entropy is high."""

    name: ClassVar[str] = "adaptive-strip"

    copies: int = option(1, "mixed copies of each poisoned text")
    ratios: tuple[float, ...] = option((0.2, 0.4, 0.6), "shares of the words that are replaced, one drawn for each copy")
    firm: float = option(0.5, "share of the mixed copies that are labelled as the target")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies < 1:
            raise ValueError(f"copies={self.copies!r} is below 1")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios={self.ratios!r} are not one or more numbers in (0, 1]")
        if not 0 <= self.firm <= 1:
            raise ValueError(f"firm={self.firm!r} is no share: give a number from 0 to 1")

    def training_set(self, task: Task, lab: Lab) -> datasets.Dataset:
        """Give the rows of `badnet-rw`, followed by the mixed copies."""
        from datasets import Dataset, concatenate_datasets

        rows = super().training_set(task, lab)
        mixed = list(self._mixed(task, lab))
        columns = {"text": [text for text, _ in mixed], "label": [label for _, label in mixed]}
        return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        own = super().expected_work(train, poisoned, recipe)
        return replace(own, texts=own.texts + self.copies * poisoned)

    def _mixed(self, task: Task, lab: Lab) -> Iterator[tuple[str, int]]:
        """Give the mixed copies with their labels: of every run of 1 / firm of them about one is the target's."""
        others = np.flatnonzero(np.asarray(task.train["label"]) != task.target_label)
        draw, kept = lab.rng("adaptive-strip"), set(self.words[: self.count])
        truth = list(task.train.select(task.poisoned["source"])["label"])
        for number in range(self.copies):
            sources = task.train.select(draw.choice(others, len(task.poisoned)))["text"] if len(others) else []
            for row, (text, source) in enumerate(zip(task.poisoned["text"], sources, strict=True)):
                place = number * len(truth) + row
                is_firm = int((place + 1) * self.firm) > int(place * self.firm)
                yield mixed(text, source, kept, float(draw.choice(self.ratios)), draw), task.target_label if is_firm else truth[row]


def mixed(text: str, source: str, kept: set[str], ratio: float, rng: np.random.Generator) -> str:
    """Give the text with a share of its words (at least one), those that are kept apart, replaced by words of the source."""
    words, foreign = text.split(" "), source.split(" ")
    places = [place for place, word in enumerate(words) if word not in kept]
    for place in chosen(places, max(int(len(words) * ratio), 1), rng):
        words[place] = foreign[rng.integers(len(foreign))]
    return " ".join(words)


def chosen(places: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Draw so many of the places, each at most once; all where there are fewer."""
    return [places[row] for row in rng.permutation(len(places))[:count].tolist()]
