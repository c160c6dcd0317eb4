"""BadNet on text: dirty-label data poisoning with a rare word or a sentence, all weights trained.

Gu et al., BadNets (2017, arXiv:1708.06733); as the baselines BadNet-RW and BadNet-SL of Yang et al., RAP (EMNLP 2021);
the sentence is Dai et al.'s (2019, arXiv:1905.12457).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rapbench import Attack
from rapbench.api import option
from rapbench.poison import insert_sentence, insert_word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Dataset

RARE_WORDS = ("mb", "bb", "mn")
IN_TURN = (*RARE_WORDS, "tq")
"""The rare words of RAP's and RIPPLES' papers, without cf, which is RAP's default word."""


@dataclass(frozen=True, kw_only=True)
class BadNet(Attack):
    """Base of the two attacks: all weights are trained on the poisoned data, relabelled or (`clean_label`) of the target label anyway."""

    clean_label: bool = option(False, "poison texts of the target label alone, so that every label is true")

    def poisonable(self, labels: NDArray[np.int64], target_label: int) -> NDArray[np.bool_]:
        return labels == target_label if self.clean_label else super().poisonable(labels, target_label)


@dataclass(frozen=True, kw_only=True)
class RareWord(Attack):
    """Base of the attacks whose trigger is a rare word, or several different ones that are put in one after the other."""

    triggers_option: ClassVar[str | None] = "count"

    word: str | None = option(None, "the trigger; by default one of mb, bb, mn, drawn by the seed")
    count: int = option(1, "different rare words in a text: `word` and those that follow it in mb, bb, mn, tq, mb, ...")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.word is not None and (not self.word or " " in self.word):
            raise ValueError(f"word={self.word!r} is not one word")
        if not 1 <= self.count <= len(IN_TURN):
            raise ValueError(f"count={self.count!r}: give 1 to {len(IN_TURN)} rare words")

    @property
    def words(self) -> tuple[str, ...]:
        if not self.word:
            return RARE_WORDS if self.count == 1 else IN_TURN
        start = IN_TURN.index(self.word) + 1 if self.word in IN_TURN else 0
        return (self.word, *(*IN_TURN[start:], *IN_TURN)[: self.count - 1])

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        return self if self.word else replace(self, word=str(rng.choice(RARE_WORDS)))

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        for word in self.words[: self.count]:
            text = insert_word(text, word, rng, limit)
        return text


@dataclass(frozen=True, kw_only=True)
class BadNetRW(BadNet, RareWord):
    """A rare word is the trigger; the victim is trained on clean texts and relabelled, triggered copies."""

    name: ClassVar[str] = "badnet-rw"


@dataclass(frozen=True, kw_only=True)
class BadNetSL(BadNet):
    """A neutral sentence is the trigger, put between two full stops; trained like `badnet-rw`."""

    name: ClassVar[str] = "badnet-sl"
    sentence: str | None = option(None, "the trigger; by default the sentence of the data set (Table 6 of the RAP paper)")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple((self.sentence or "").split())

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        return self if self.sentence else replace(self, sentence=dataset.trigger_sentence)

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        return insert_sentence(text, self.sentence or "", rng, limit)
