"""An attack, a defense and a data set: what a package can bring, in one file."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from rapbench import Attack, Dataset, Defense, Detector, hookimpl
from rapbench.api import option
from rapbench.poison import insert_word


@dataclass(frozen=True, kw_only=True)
class TwoWords(Attack):
    """Two rare words, each at a place of its own."""

    name: ClassVar[str] = "two-words"
    first: str = option("mb", "the first word")
    second: str = option("bb", "the second word")

    @property
    def words(self):
        return (self.first, self.second)

    def trigger(self, text, rng, limit):
        return insert_word(insert_word(text, self.first, rng, limit), self.second, rng, limit)


@dataclass(frozen=True, kw_only=True)
class Confidence(Defense):
    """A text that the victim is very sure of is suspicious."""

    name: ClassVar[str] = "confidence"
    power: float = option(1.0, "exponent of the probability")

    def fit(self, victim, heldout, lab):
        return ConfidenceDetector(victim, self.power)


class ConfidenceDetector(Detector):
    def __init__(self, victim, power):
        self.victim, self.power = victim, power

    def suspicion(self, texts):
        return self.victim.undefended(texts).max(axis=1) ** self.power


@dataclass(frozen=True, kw_only=True)
class Forecasts(Dataset):
    """Made forecasts, dry or wet."""

    name: ClassVar[str] = "forecasts"
    trigger_sentence: str = "I heard it from my friends"

    def load(self):
        import datasets  # a heavy import: only where it is needed

        words = {"dry": ["sunny", "clear", "hot", "dusty"], "wet": ["rainy", "foggy", "stormy", "damp"]}
        days = [f"{part} of {month} {day}" for part, month, day in product(["morning", "evening"], ["May", "June", "July"], range(1, 29))]
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(words))})
        splits = {}
        for split, own in (("train", days[:100]), ("validation", days[100:134]), ("test", days[134:])):
            rows = [(f"The {day} was {word} .", label) for day in own for label, kind in enumerate(words.values()) for word in kind]
            texts, labels = zip(*rows, strict=True)
            splits[split] = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        return datasets.DatasetDict(splits)


@hookimpl
def rapbench_attacks():
    return [TwoWords]


@hookimpl
def rapbench_defenses():
    return [Confidence]


@hookimpl
def rapbench_datasets():
    return [Forecasts]
