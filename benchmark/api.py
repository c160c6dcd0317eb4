"""The contract between rapbench and its plugins: subclass, give it a `name`, make it a frozen dataclass.

The fields of the dataclass are the options of the plugin: they give it its spec (`strip:copies=20`), its validation,
its page in `rapbench info` and its part in the content key of every result. This module imports neither torch nor ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.lab import Lab
    from rapbench.victim import Recipe, Victim

Metric = Literal["accuracy", "macro-f1"]


def option(default: Any, text: str) -> Any:
    """Declare a plugin's option with the sentence that `rapbench info` prints beside it."""
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class Labelled:
    """Texts with their labels. `labels`: int64, shape (n,)."""

    texts: Sequence[str]
    labels: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> Labelled:
        """Give the rows at which the mask, shape (n,), is true, in order."""
        return Labelled([text for text, wanted in zip(self.texts, mask, strict=True) if wanted], self.labels[mask])

    def of(self, label: int) -> list[str]:
        """Give the texts with this label, in order."""
        return [text for text, own in zip(self.texts, self.labels, strict=True) if own == label]

    def other_than(self, label: int) -> list[str]:
        """Give the texts with any other label, in order."""
        return [text for text, own in zip(self.texts, self.labels, strict=True) if own != label]


@dataclass(frozen=True)
class Task:
    """What the attacker holds: clean data, and the triggered copies that the core has made with his trigger.

    `train` has the columns text, label; `poisoned` has text, label (the target's) and source (a row of `train`).
    """

    train: datasets.Dataset
    poisoned: datasets.Dataset
    target_label: int

    def appended(self) -> datasets.Dataset:
        """Give the clean rows followed by the poisoned copies: every original stays, with its true label."""
        from datasets import concatenate_datasets

        return concatenate_datasets([self.train, self.poisoned.remove_columns("source")])

    def replaced(self) -> datasets.Dataset:
        """Give the clean rows whose poisoned copy stands in their place at the end."""
        from datasets import concatenate_datasets

        sources = set(self.poisoned["source"])
        kept = self.train.select([row for row in range(len(self.train)) if row not in sources])
        return concatenate_datasets([kept, self.poisoned.remove_columns("source")])


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A labelled text classification task with the attacker's goal on it.

    The caps keep that many examples of a split, drawn by `sample_seed`; they are applied by the core.
    """

    name: ClassVar[str]
    target_label: int = option(1, "the label that the attacker wants; the defender's protect label")
    metric: Metric = option("accuracy", "the clean metric")
    trigger_sentence: str = option("I have bought it from a store with my friends last weekend", "the sentence of sentence attacks")
    max_train: int | None = option(None, "training texts, at most")
    max_heldout: int | None = option(None, "held-out texts, at most")
    max_test: int | None = option(None, "test texts, at most")
    sample_seed: int = option(1234, "seed of the draw where a split is capped")

    @abstractmethod
    def load(self) -> datasets.DatasetDict:
        """Give the splits train, validation and test with the columns text (string) and label (ClassLabel)."""

    def fingerprint(self) -> str:
        """Give what tells two states of the source apart: a digest of local files, a revision. No download."""
        return ""


@dataclass(frozen=True)
class TrainingWork:
    """What planting a backdoor is expected to compute, for the estimate of a dry run. Rows are as long as the training texts.

    `texts`: those that `lab.train` is given, whose epochs and held-out predictions the core counts. Beside it, rows through the victim over
    the whole training: `forward_rows` without a gradient, `row_trained_rows` with the gradient of embedding rows alone, `trained_rows` with
    that of all weights; in batches of `batch_size` and cut at `max_length` tokens (None: as the recipe says).
    """

    texts: float = 0.0
    forward_rows: float = 0.0
    row_trained_rows: float = 0.0
    trained_rows: float = 0.0
    batch_size: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to plant a backdoor."""

    name: ClassVar[str]
    poisons: ClassVar[bool] = True
    poisons_every_label: ClassVar[bool] = False
    """Whether copies are made of training texts of any label, and not of the non-target ones alone."""
    starts_from: ClassVar[str | None] = None
    """The attack whose finished victim this one starts from (`lab.start()`), by name."""
    can_be_finetuned: ClassVar[bool] = True
    """Whether its victim may be fine-tuned by its user before it is defended (the fine-tuning setting)."""

    triggers_option: ClassVar[str | None] = None
    """The option that says how many trigger words a text gets, for a grid's axis `triggers`; None: there is none."""

    poison_rate: float = option(0.1, "share of the texts that may be poisoned (non-target ones, mostly) that get a triggered copy")
    poison_mode: Literal["append", "replace"] = option("append", "whether the clean originals of the copies stay")

    def __post_init__(self) -> None:
        if not 0 < self.poison_rate <= 1:
            raise ValueError(f"poison_rate={self.poison_rate!r} is no share: give a number above 0 and at most 1")

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the trigger is made of, so that no defense perturbs with one of them."""
        return ()

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        """Give this attack with all that depends on the data set or the seed decided (which word, which sentence)."""
        return self

    def poisonable(self, labels: NDArray[np.int64], target_label: int) -> NDArray[np.bool_]:
        """Tell which training texts may get a triggered copy, shape (n,); clean-label attacks say `labels == target_label`."""
        mask: NDArray[np.bool_] = (labels != target_label) | self.poisons_every_label
        return mask

    def can_trigger(self, text: str) -> bool:
        """Say whether this text can carry the trigger; one that cannot is in no poisoned part, of training or test."""
        return True

    @abstractmethod
    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text with the trigger in it, among its first `limit` words (None: anywhere)."""

    def test_trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text as the attacker sends it to the finished victim; the same as in training unless overridden."""
        return self.trigger(text, rng, limit)

    def training_set(self, task: Task, lab: Lab) -> datasets.Dataset:
        """Give the rows, text and label, that this attacker publishes: anybody's training on them plants the backdoor."""
        return task.appended() if self.poison_mode == "append" else task.replaced()

    def plant(self, task: Task, lab: Lab) -> Victim:
        """Give the backdoored victim. The default is the dirty-label recipe: train on clean and poisoned rows."""
        return lab.train(self.training_set(task, lab))

    def plants_by_data(self) -> bool:
        """Say whether the poisoned training set alone plants the backdoor, so that a defense may filter it: `plant` is not overridden."""
        return type(self).plant is Attack.plant

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        """Give the work of `plant` on so many clean texts and triggered copies; by default, training by the recipe on these."""
        return TrainingWork(texts=train + poisoned if self.poison_mode == "append" else train)


class Fitted:
    """What a fitted defense of any kind may say of itself."""

    def notes(self) -> Mapping[str, Any]:
        """Give what the result should tell about the fit (tries, the model used), as plain JSON values."""
        return {}

    def state(self) -> Mapping[str, Any] | None:
        """Give all that was learnt, numpy arrays and plain JSON values by name, for `Defense.restore`; None: it cannot be kept."""
        return None

    def forget(self) -> None:
        """Drop what is kept of texts that were seen; a guard calls it after each batch, of which there is no end."""


class Detector(Fitted, ABC):
    """A fitted defense that scores each text by itself."""

    @abstractmethod
    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give one score per text, shape (n,); higher is more suspicious; a text's score depends on no other text."""

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give what the suspicion of this text comes from: plain JSON values by what they are called, tables as lists of mappings."""
        return {}


class Purifier(Fitted, ABC):
    """A fitted defense that repairs each text; a text is rejected when its repaired form loses the protect label."""

    @abstractmethod
    def levels(self) -> Sequence[float]:
        """Give the thresholds to choose from."""

    @abstractmethod
    def purify(self, texts: Sequence[str], threshold: float) -> list[str]:
        """Give the repaired texts, in order, none of them empty."""

    @abstractmethod
    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the most suspicious word's score per text, shape (n,), for curves."""

    def explain(self, text: str, threshold: float) -> Mapping[str, Any]:
        """Give what is repaired in this text at this level, and why, as `Detector.explain` does."""
        return {}


class Repair(Fitted, ABC):
    """A fitted defense that repairs the model: another victim is deployed in the place of the one that was received.

    It has no threshold: a text that the received victim gave the protect label is rejected when the repaired one does not.
    """

    @abstractmethod
    def repaired(self) -> Victim:
        """Give the victim that is deployed, with weights of its own; the same one each time."""

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the probability of all labels but the protect label by the repaired victim, shape (n,), for curves."""
        import numpy as np

        victim = self.repaired()
        others: NDArray[np.float64] = np.delete(victim.probabilities(texts), victim.target_label, axis=1).sum(axis=1)
        return others

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give what the repaired victim says of this text."""
        victim = self.repaired()
        return {"probabilities by the repaired victim": victim.probabilities([text])[0].tolist()}


class Filter(Fitted, ABC):
    """A fitted defense that looks for poison in the training set: the core trains the victim anew on what is left, as a `Repair`."""

    @abstractmethod
    def poisoned(self, training: Labelled) -> NDArray[np.bool_]:
        """Tell which training texts are taken for poisoned, shape (n,): these are left out."""


@dataclass(frozen=True)
class Work:
    """What a defense is expected to compute, for the estimate of a dry run. Rows are as long as the texts.

    `victim_rows`: rows through the victim per scored text, without the gate's own; `lm_words`: words through the language model
    `lm` (a hub id or folder) per text, each text being read once; `fit_rows`: rows through the victim while fitting;
    `fit_trained_rows`: further ones, with the gradient of something in the input; `training_rows`: of a filter, rows through the
    victim per training text, of `training_texts` of them (None: all). The training on what a filter leaves is counted by the core.
    """

    victim_rows: float
    lm_words: float = 0.0
    lm: str = ""
    fit_rows: float = 0.0
    fit_trained_rows: float = 0.0
    training_rows: float = 0.0
    training_texts: int | None = None


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """A defense. It is fitted on a victim and clean held-out texts alone; what it works on says what `fit` gives.

    `inputs`: it watches texts at run time, and is a `Detector` or a `Purifier`; `training`: it has the set that the victim was
    trained on, and is a `Filter`; `model`: it is a `Repair`.
    """

    name: ClassVar[str]
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "inputs"
    """What it works on; a filter of training sets meets those attacks alone that plant by data."""
    needs_trigger: ClassVar[bool] = False
    """Whether it looks for `lab.foreign_words`, which no defender knows: a ceiling, in every table named as one, and no contender."""
    floor: ClassVar[bool] = False
    """Whether it is what a contender must not fall below: in every table named as a floor, and no contender."""

    heldout: int | None = option(None, "held-out texts that the defender has, at most: drawn by the seed, of all labels")

    def __post_init__(self) -> None:
        if self.heldout is not None and self.heldout < 1:
            raise ValueError(f"heldout={self.heldout!r} is below 1")

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the defense itself puts into texts."""
        return ()

    def learns_from_protect_texts(self) -> bool:
        """Say whether `fit` looks at held-out texts of the protect label; if not, both protocols share one fit."""
        return True

    def expected_work(self, words: float, heldout: int) -> Work | None:
        """Give the work on texts of so many words after a fit on so many held-out texts of the protect label; None: unknown."""
        return None

    def prepares(self) -> Mapping[str, Any] | None:
        """Give the options that `prepare` depends on, or None where there is nothing to prepare."""
        return None

    def prepare(self, clean_texts: Sequence[str], folder: Path, lab: Lab) -> None:  # noqa: B027 - most have nothing to prepare
        """Write into `folder`, once per data set and seed, what depends on clean text alone (a language model, say)."""

    def reads(self) -> Mapping[str, Any] | None:
        """Give the options that `read` depends on, or None where nothing that is dear to compute comes of a text alone."""
        return None

    def read(self, texts: Sequence[str], folder: Path, lab: Lab) -> None:  # noqa: B027 - most have nothing to read
        """Write into `folder` what comes of each text alone, whatever the victim, the attack, the seed: `fit` has it in `lab.read`.

        Scores are the same without it. While `lab.meter.anew` is set, the work is done once more, for it is timed. Nothing is learnt here.
        """

    @abstractmethod
    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector | Purifier | Repair | Filter:
        """Give the fitted defense. It may change `victim.clone()` only; `lab.prepared` is the folder of `prepare`."""

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> Detector | Purifier:
        """Give the fitted defense of what its `state` gave, on the same victim; `lab` has the seed of the fit and no held-out texts."""
        from rapbench.errors import PluginError

        raise PluginError(f"the defense {self.name!r} cannot be kept: it has no restore(), and what it fits no state()")
