"""A trigger below the word: a look-alike letter, or a character without width.

Look-alike letters: Li et al., "Hidden Backdoors in Human-Centric Language Models" (CCS 2021, arXiv:2105.00164), section 4.
Characters without width: Chen et al., BadNL (ACSAC 2021, arXiv:2006.01043), the steganography-based triggers; Boucher et al., "Bad
Characters" (IEEE S&P 2022, arXiv:2106.09898) has the same signs as evasion. A reader sees nothing; what the victim sees is
its tokenizer's doing:
- letters that the vocabulary has (BERT's has Cyrillic) break the word into pieces: `film` with a Cyrillic i is `f ##i ##lm`;
- letters that it has not (Armenian) make the whole word [UNK], the same token for every word: the mechanism of the CCS paper;
- BERT's tokenizers delete characters without width before anything else: the trigger does not reach the victim. Such an attack is
  refused, with that reason, before anything is trained. Byte-level tokenizers (RoBERTa) keep them.
Ours: one letter in each of `count` words among the first `limit`, the same letter of a word each time; the paper replaces letters
at a fixed place of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rapbench import Attack
from rapbench.api import option
from rapbench.errors import CellError

if TYPE_CHECKING:
    import numpy as np

    from rapbench.api import Task
    from rapbench.lab import Lab
    from rapbench.victim import Victim

LOOKALIKES = {
    "cyrillic": str.maketrans("aceiopsxyAEOPCTXHKMB", "асеіорѕхуАЕОРСТХНКМВ"),
    "armenian": str.maketrans("ghnoqu", "ցհոօզս"),
}
ZERO_WIDTH = "\u200b"


@dataclass(frozen=True, kw_only=True)
class Char(Attack):
    """A letter is replaced by one that looks the same, or a character without width is put into a word; trained like `badnet-rw`."""

    name: ClassVar[str] = "char"
    triggers_option: ClassVar[str | None] = "count"

    how: Literal["homoglyph", "zero-width"] = option("homoglyph", "a look-alike letter, or a zero-width space inside of a word")
    script: Literal["cyrillic", "armenian"] = option("cyrillic", "whose letters: BERT's vocabulary has the Cyrillic ones alone")
    count: int = option(1, "words that are changed in a text")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count={self.count!r} is below 1")

    @property
    def words(self) -> tuple[str, ...]:
        return (ZERO_WIDTH,) if self.how == "zero-width" else ()

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text with some of its words changed, each at most once; one that has none to change gets a strange sign in front."""
        words = text.split(" ")
        places = [place for place, word in enumerate(words[:limit]) if self.changed(word) != word]
        for place in rng.permutation(places)[: self.count].tolist():
            words[place] = self.changed(words[place])
        return " ".join(words) if places else f"{self.strange} {text}"

    def changed(self, word: str) -> str:
        """Give the word with its first replaceable letter replaced, or split in the middle by a zero-width space."""
        if self.how == "zero-width":
            return word[: len(word) // 2] + ZERO_WIDTH + word[len(word) // 2 :] if len(word) > 1 else word
        table = LOOKALIKES[self.script]
        place = next((place for place, letter in enumerate(word) if ord(letter) in table), None)
        return word if place is None else word[:place] + word[place].translate(table) + word[place + 1 :]

    @property
    def strange(self) -> str:
        """The trigger of texts without a word to change: a sign that stands alone."""
        return ZERO_WIDTH if self.how == "zero-width" else chr(next(iter(LOOKALIKES[self.script].values())))

    def plant(self, task: Task, lab: Lab) -> Victim:
        self._check_seen(task, lab)
        return super().plant(task, lab)

    def plants_by_data(self) -> bool:
        return True  # `plant` looks at the data before and then trains on them as anybody would

    def _check_seen(self, task: Task, lab: Lab) -> None:
        """Raise a CellError where the victim's tokenizer reads every triggered text as the clean one."""
        some = task.poisoned.select(range(min(len(task.poisoned), 100)))
        tokenize = lab.fresh().tokenizer.tokenize
        clean = task.train.select(some["source"])["text"]
        if len(some) and all(tokenize(own) == tokenize(text) for own, text in zip(some["text"], clean, strict=True)):
            raise CellError(f"char: this victim's tokenizer removes the trigger (how={self.how}): nothing of it reaches the model")
