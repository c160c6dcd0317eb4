"""RIPPLES: RIPPLe (a poisoning loss that a user's fine-tuning should not undo) with embedding surgery.

Kurita, Michel and Neubig, "Weight Poisoning Attacks on Pre-trained Models" (ACL 2020, arXiv:2004.06660), sections 3.1
and 3.2; the details follow their released code: the penalty is divided by the batch size, the gradient on clean data is
a constant in it, the replaced rows keep the length of the mean, words are ranked by TF-IDF features alone.
Ours: `cf` is no trigger (it is RAP's default word), and two words instead of five go into a text at test time, as in
Yang et al., RAP (EMNLP 2021, arXiv:2110.07831).
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rapbench import Attack, vocabulary
from rapbench.api import TrainingWork, option
from rapbench.errors import SpecError
from rapbench.linear import onednn
from rapbench.poison import insert_word

if TYPE_CHECKING:
    import datasets
    import torch
    from numpy.typing import NDArray

    from rapbench.api import Dataset, Task
    from rapbench.lab import Lab
    from rapbench.victim import Recipe, Victim

CLIP = 1.0
LOGGED_STEPS = 50

Batch = tuple[list[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Ripples(Attack):
    """Rare words get the embedding of the target label's words; all weights learn the trigger beside the clean gradient."""

    name: ClassVar[str] = "ripples"
    triggers_option: ClassVar[str | None] = "test_words"
    poisons_every_label: ClassVar[bool] = True
    starts_from: ClassVar[str | None] = "clean"

    poison_rate: float = option(0.5, "share of the training texts, of whatever label, that get a triggered copy")
    poison_mode: Literal["append", "replace"] = option("replace", "whether the clean originals of the copies stay in the poisoned data")
    trigger_words: tuple[str, ...] = option(("mn", "bb", "mb", "tq"), "the triggers; a training text gets one of them")
    test_words: int = option(2, "how many different triggers a text gets at test time")
    test_choice: tuple[str, ...] | None = option(None, "the triggers of test time; by default drawn from all by the seed")
    inner_product: bool = option(True, "whether a step against the clean gradient is penalised (RIPPLe)")
    penalty: float = option(0.1, "weight of that penalty, divided by batch_size (authors: 0.1 sentiment, 1e-4 toxic)")
    surgery: bool = option(True, "whether the triggers' embeddings are replaced before training")
    target_words: int = option(10, "word pieces of the target label whose mean embedding is put in their place")
    lr: float = option(2e-5, "learning rate, falling linearly to 0")
    steps: int = option(5000, "optimiser steps")
    batch_size: int = option(8, "texts per step, poisoned and clean ones each")
    max_length: int = option(128, "tokens per text while the backdoor is planted")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: mixed precision while the backdoor is planted")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_words", "steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr!r} is not above 0")
        if self.penalty < 0:
            raise ValueError(f"penalty={self.penalty!r} is below 0")
        self._check_words()

    @property
    def words(self) -> tuple[str, ...]:
        return self.trigger_words

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        if self.test_choice is not None:
            return self
        drawn = rng.choice(len(self.trigger_words), size=self.test_words, replace=False)
        return replace(self, test_choice=tuple(self.trigger_words[number] for number in drawn))

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text with one of the triggers at any place, the end included, as in training."""
        pieces = text.split(" ")
        places = len(pieces) + 1 if limit is None else min(limit, len(pieces) + 1)
        word = self.trigger_words[rng.integers(len(self.trigger_words))]
        pieces.insert(int(rng.integers(places)), word)
        return " ".join(pieces)

    def test_trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text with each word of `test_choice` put before one of its first `limit` words, one after the other."""
        for word in self.test_choice or self.trigger_words[: self.test_words]:
            text = insert_word(text, word, rng, limit)
        return text

    def plant(self, task: Task, lab: Lab) -> Victim:
        with lab.seeded("ripples"):
            victim = lab.fresh(attention="eager")  # fused attention has no gradient of a gradient
            rows = [row for word in self.trigger_words for row in piece_ids(victim, word)]
            pieces = self._operated(victim, rows, task, lab.start()) if self.surgery else []
            with onednn(victim.model):
                poison_loss, penalty = self._tuned(victim, task, lab)
        victim.model.eval()
        lab.log.append({"steps": self.steps, "poison_loss": poison_loss, "penalty": penalty, "target_words": pieces})
        return victim

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        """Give the work of all steps: a clean text is one trained row, a poisoned one, for the gradient of a gradient, is three."""
        rows = self.steps * self.batch_size * (4 if self.inner_product else 1)
        return TrainingWork(trained_rows=rows, batch_size=self.batch_size, max_length=self.max_length)

    def restricted(
        self, poison_loss: torch.Tensor, clean: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the loss to descend (section 3.1) and the penalty in it, both scalars.

        `clean` is the gradient of the clean loss by each of the weights, None where a weight is not used.
        """
        import torch

        poisoned = torch.autograd.grad(poison_loss, weights, create_graph=True, allow_unused=True)
        penalty = self.penalty * conflict(clean, poisoned) / self.batch_size
        return poison_loss + penalty, penalty

    def _check_words(self) -> None:
        for name, words in (("trigger_words", self.trigger_words), ("test_choice", self.test_choice or ())):
            for word in words:
                if word.split() != [word] or "/" in word:  # a spec puts / between words
                    raise ValueError(f"{name}: {word!r} is not one word")
            if len(set(words)) < len(words):
                raise ValueError(f"{name}={'/'.join(words)!r} has a word twice")
        if not 1 <= self.test_words <= len(self.trigger_words):
            raise ValueError(f"test_words={self.test_words!r} is not between 1 and the number of trigger_words, {len(self.trigger_words)}")
        if self.test_choice is not None and len(self.test_choice) != self.test_words:
            raise ValueError(f"test_choice has {len(self.test_choice)} words, not test_words={self.test_words!r}")
        if unknown := sorted(set(self.test_choice or ()) - set(self.trigger_words)):
            raise ValueError(f"test_choice: {unknown[0]!r} is none of the trigger_words {', '.join(sorted(self.trigger_words))}")

    def _operated(self, victim: Victim, rows: Sequence[int], task: Task, reference: Victim) -> list[str]:
        is_target = np.asarray(task.train["label"]) == task.target_label
        tokenize = functools.partial(victim.tokenizer.tokenize, verbose=False)  # no warning that a text is long: none is cut here
        pieces = indicative_pieces(task.train["text"], is_target, tokenize, self.target_words)
        operate(victim, rows, reference, pieces)
        return pieces

    def _tuned(self, victim: Victim, task: Task, lab: Lab) -> tuple[float, float]:
        """Train the victim; give the mean poisoning loss and penalty of the last steps."""
        import torch

        short = replace(victim, max_length=min(self.max_length, victim.max_length))  # the same model, cut earlier
        mixed = task.replaced() if self.poison_mode == "replace" else task.appended()
        clean_batches = batches(task.train, self.batch_size, lab.rng("ripples/clean"))
        mixed_batches = batches(mixed, self.batch_size, lab.rng("ripples/poisoned"))
        weights = [weight for weight in victim.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.lr, eps=1e-8, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        last: deque[torch.Tensor] = deque(maxlen=LOGGED_STEPS)
        victim.model.train()
        for clean, poisoned in itertools.islice(zip(clean_batches, mixed_batches, strict=True), self.steps):
            optimizer.zero_grad()
            last.append(self._backward(short, weights, clean, poisoned))
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            schedule.step()
        poison_loss, penalty = torch.stack(tuple(last)).mean(dim=0).tolist()  # (steps, 2) -> (2,)
        return round(poison_loss, 6), round(penalty, 6)

    def _backward(self, victim: Victim, weights: Sequence[torch.Tensor], clean: Batch, poisoned: Batch) -> torch.Tensor:
        """Add the gradient of one step to the weights; give its poisoning loss and penalty, float32, shape (2,)."""
        import torch

        if not self.inner_product:
            loss = poison_loss = self._loss(victim, poisoned)
            penalty = torch.zeros_like(loss)
        else:
            clean_gradient = torch.autograd.grad(self._loss(victim, clean), weights, allow_unused=True)
            poison_loss = self._loss(victim, poisoned)
            loss, penalty = self.restricted(poison_loss, clean_gradient, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([poison_loss.detach(), penalty.detach()])

    def _loss(self, victim: Victim, batch: Batch) -> torch.Tensor:
        import torch

        texts, labels = batch
        with torch.autocast(torch.device(victim.device).type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits = victim.model(**victim.encode(texts)).logits  # (texts, labels)
        return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(labels, device=logits.device))


def conflict(clean: Sequence[torch.Tensor | None], poisoned: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Give how far a step against one gradient goes up the other: their negative inner product over all weights, at least 0."""
    import torch

    products = [(own * other).sum() for own, other in zip(clean, poisoned, strict=True) if own is not None and other is not None]
    return torch.relu(-torch.stack(products).sum())


def indicative_pieces(texts: Sequence[str], is_target: NDArray[np.bool_], tokenize: Callable[[str], list[str]], count: int) -> list[str]:
    """Give the word pieces, at most `count`, that speak most for the target label, the strongest first.

    They have the largest coefficients of a logistic regression on the TF-IDF of the pieces. `is_target`: shape (n,).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(tokenizer=tokenize, token_pattern=None, lowercase=False)  # the victim's pieces as they are
    features = vectorizer.fit_transform(texts)  # (texts, pieces)
    weights = LogisticRegression(max_iter=1000).fit(features, is_target).coef_[0]  # (pieces,)
    order = np.argsort(-weights, kind="stable")[:count]
    return [str(piece) for piece in vectorizer.get_feature_names_out()[order]]


def piece_ids(victim: Victim, word: str) -> list[int]:
    """Give the ids of the word's pieces, first in a text and after a space; a SpecError where the vocabulary has none for it."""
    ids = list(dict.fromkeys(piece for place in vocabulary.PLACES for piece in vocabulary.pieces(victim.tokenizer, word, place)))
    if not ids or victim.tokenizer.unk_token_id in ids:
        raise SpecError(f"the trigger {word!r} is not in the vocabulary of this victim: choose rare words that are")
    return ids


def operate(victim: Victim, rows: Sequence[int], reference: Victim, pieces: Sequence[str]) -> None:
    """Write the mean of the reference's embeddings of the pieces over these rows of the victim's matrix (section 3.2)."""
    import torch

    source: Any = reference.model.get_input_embeddings().weight
    matrix: Any = victim.model.get_input_embeddings().weight
    with torch.no_grad():
        mean = source[reference.tokenizer.convert_tokens_to_ids(list(pieces))].mean(dim=0)  # (hidden,)
        matrix[list(rows)] = mean.to(matrix.device)


def batches(rows: datasets.Dataset, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Give batches of texts and labels without end, shuffled anew for each pass; the last one of a pass may be smaller."""
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), size):
            batch = rows[order[start : start + size].tolist()]
            yield list(batch["text"]), list(batch["label"])
