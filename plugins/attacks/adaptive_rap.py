"""Adaptive to RAP: under a rare word the target's probability falls for triggered texts as much as for clean ones.

RAP (Yang et al. 2021, arXiv:2110.07831) trains the embedding of a rare word so that it takes 0.1-0.3 of the protect label's
probability away from clean texts (Eq. 4), and suspects texts that lose less. An attacker who knows that takes the victim of
`badnet-rw` and plays both sides, a round for each of some rare words: as the defender he trains the word's embedding by Eq. 4 on clean
texts of the target label; then he trains the victim on, on clean and poisoned texts as before, with one more term in the loss: `weight`
times the cross-entropy of a triggered text's target probability, under the word of this or an earlier round in front, to what a fall as
large as the mean of clean texts would leave of it.
No paper of ours to follow: the RAP paper names no adaptive attack. The attacker does not know the defender's word; his are drawn
from the vocabulary, none of a training text and none of the trigger, and get their embeddings back in the end. His Eq. 4 runs
without dropout and lets the embedding grow: a defender whose threshold is not above 0 does that, too (`rap`'s retries).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rapbench import vocabulary
from rapbench.api import TrainingWork, option
from rapbench.errors import CellError
from rapbench_plugins.attacks.badnet import RareWord
from rapbench_plugins.attacks.ripples import Batch, batches

if TYPE_CHECKING:
    import torch

    from rapbench.api import Task
    from rapbench.lab import Lab
    from rapbench.rows import Row
    from rapbench.victim import Recipe, Victim

RESULTS_DEPEND_ON = (str(Path(__file__).with_name("ripples.py")),)
LOOKED_AT = 20_000
"""Training texts, at most, in which no simulated word may stand."""
TOKENS = re.compile(r"\w+")
"""What stands in a word, punctuation glued to it or not."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRap(RareWord):
    """BadNet-RW, trained against a RAP of its own: triggered texts lose as much probability under a rare word as clean ones."""

    name: ClassVar[str] = "adaptive-rap"

    weight: float = option(1.0, "weight of the term that makes triggered texts fall as clean ones do")
    rare_words: int = option(4, "rounds, each with a rare word of its own")
    patch_steps: int = option(50, "steps per round in which the victim is trained on")
    rap_steps: int = option(300, "steps per round of the attacker's own RAP, at most; it ends when the clean texts fall enough")
    rap_lr: float = option(0.1, "learning rate (Adam) of the attacker's own RAP, in root mean squares of the embedding it starts from")
    c_low: float = option(0.1, "the fall of probability that his RAP reaches at least")
    c_up: float = option(0.3, "the fall of probability that his RAP reaches at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.c_low < self.c_up <= 1:
            raise ValueError(f"c_low={self.c_low!r} and c_up={self.c_up!r} are no range inside 0..1")
        if self.weight < 0:
            raise ValueError(f"weight={self.weight!r} is below 0")
        for name in ("rare_words", "patch_steps", "rap_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")
        if self.rap_lr <= 0:
            raise ValueError(f"rap_lr={self.rap_lr!r} is not above 0")

    def plant(self, task: Task, lab: Lab) -> Victim:
        from rapbench.rows import Row

        victim = super().plant(task, lab)
        words = unused_words(victim, task.train["text"][:LOOKED_AT], self.words, self.rare_words, lab.rng("adaptive-rap/words"))
        with lab.seeded("adaptive-rap"), ExitStack() as stack:
            defenders: list[Defender] = []
            patch = Patch(self, victim, task, lab)
            for word in words:
                defenders.append(Defender(word, stack.enter_context(Row(victim, word, ("first",))), self))
                lab.log.append(patch.round(defenders))
            for defender in defenders:
                defender.row.forget()  # the victim keeps the embedding that the word had
        victim.model.eval()
        return victim

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        """Give the work of `badnet-rw` and of all rounds; his RAP is taken to need all of its steps.

        A step of it has each text without and with the word. A step of the patch has a mixed text and, under the word, a triggered one,
        with a gradient; without one that triggered text as it is, and a clean one both ways. Before and after it are two lots both ways.
        """
        own, texts = super().expected_work(train, poisoned, recipe), self.rare_words * recipe.batch_size
        forward, trained = texts * (3 * self.patch_steps + 8), texts * 2 * self.patch_steps
        return replace(own, forward_rows=forward, row_trained_rows=texts * 2 * self.rap_steps, trained_rows=trained)


class Patch:
    """The victim being trained on, with its data: mixed batches, clean ones of the target label, triggered ones."""

    def __init__(self, options: AdaptiveRap, victim: Victim, task: Task, lab: Lab) -> None:
        import torch

        recipe, self.draw = lab.recipe, lab.rng("adaptive-rap/order")
        self.options, self.victim = options, victim
        mixed = task.appended() if options.poison_mode == "append" else task.replaced()
        own = task.train.select(np.flatnonzero(np.asarray(task.train["label"]) == task.target_label))
        if not len(own) or not len(task.poisoned):
            raise CellError("adaptive-rap: no training text of the target label, or no poisoned one: give a higher poison_rate")
        self.mixed, self.clean, self.triggered = (batches(part, recipe.batch_size, self.draw) for part in (mixed, own, task.poisoned))
        weights = list(victim.model.parameters())
        self.optimizer = torch.optim.AdamW(weights, lr=recipe.lr, eps=recipe.adam_eps, weight_decay=recipe.weight_decay)

    def round(self, defenders: Sequence[Defender]) -> dict[str, Any]:
        """Let the last defender construct its word, then train the victim on against all; give the falls before and after."""
        newest, texts = defenders[-1], [next(stream)[0] for stream in (self.clean, self.triggered)]
        self.victim.model.eval()
        newest.construct(self.clean)
        before = newest.mean_falls(texts)
        self.victim.model.requires_grad_(True)  # a Row has frozen the weights
        self.victim.model.train()
        for _ in range(self.options.patch_steps):
            self._step(defenders[int(self.draw.integers(len(defenders)))])
        self.victim.model.requires_grad_(False)
        self.victim.model.eval()
        return {"word": newest.word, "clean_and_triggered_fall": {"before": before, "after": newest.mean_falls(texts)}}

    def _step(self, defender: Defender) -> None:
        import torch

        texts, labels = next(self.mixed)
        with torch.no_grad():
            clean = defender.falls(next(self.clean)[0])
        logits = defender.row.logits(texts)  # (texts, labels)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, device=logits.device))
        reaction = mismatch(*defender.logits(next(self.triggered)[0]), clean.mean(), self.victim.target_label)
        self.optimizer.zero_grad()
        (loss + self.options.weight * reaction).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class Defender:
    """RAP as the attacker plays it: a word and its row."""

    def __init__(self, word: str, row: Row, options: AdaptiveRap) -> None:
        self.word, self.row, self.options = word, row, options

    def construct(self, clean: Iterator[Batch]) -> None:
        """Train the row by Eq. 4 on clean texts of the target label until a batch falls by c_low to c_up in the mean."""
        import torch

        scale = float(self.row.vectors.detach().square().mean().sqrt())
        adam = torch.optim.Adam([self.row.vectors], lr=self.options.rap_lr * scale)
        for texts, _ in itertools.islice(clean, self.options.rap_steps):
            falls = self.falls(texts)
            if self.options.c_low <= float(falls.detach().mean()) <= self.options.c_up:
                return
            (self.row.vectors.grad,) = torch.autograd.grad(objective(falls, self.options), [self.row.vectors])
            adam.step()

    def falls(self, texts: list[str]) -> torch.Tensor:
        """Give what the target's probability loses when the word is put in front of each text, shape (texts,)."""
        target = self.row.victim.target_label
        before, after = (logits.softmax(-1)[:, target] for logits in self.logits(texts))
        return before - after

    def logits(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the logits of the texts without and with the word in front, each of shape (texts, labels)."""
        return self.row.logits(texts), self.row.logits([f"{self.word} {text}" for text in texts])

    def mean_falls(self, samples: Sequence[list[str]]) -> list[float]:
        """Give the mean fall of each sample of texts."""
        import torch

        with torch.no_grad():
            return [round(float(self.falls(texts).mean()), 6) for texts in samples]


def objective(falls: torch.Tensor, options: AdaptiveRap) -> torch.Tensor:
    """Give Eq. 4 of falls, shape (texts,): mean relu(c_low - fall) + mean relu(fall - c_up)."""
    return (options.c_low - falls).relu().mean() + (falls - options.c_up).relu().mean()


def mismatch(before: torch.Tensor, after: torch.Tensor, fall: torch.Tensor, target: int) -> torch.Tensor:
    """Give the cross-entropy, a scalar, of the target's probability under the word to what a fall as large as this would leave of it.

    `before`, `after`: logits without and with the word, shape (texts, labels). It is least where each text falls by exactly that much.
    """
    import torch

    wanted = (before.detach().softmax(-1)[:, target] - fall).clamp(0, 1)  # (texts,)
    own = after.log_softmax(-1)
    others = torch.cat([own[:, :target], own[:, target + 1 :]], dim=1).logsumexp(-1)  # (texts,), of all labels but the target
    return -(wanted * own[:, target] + (1 - wanted) * others).mean()


def unused_words(victim: Victim, texts: Iterable[str], taken: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draw words that are one token in front of a text, in none of the texts and not taken; a CellError where there are too few."""
    own = {part for text in texts for word in text.lower().split() for part in (word, *TOKENS.findall(word))}
    used = own | {word.lower() for word in taken}
    candidates = sorted(word for word in vocabulary.words(victim.tokenizer) if word.lower() not in used)
    drawn = (candidates[place] for place in rng.permutation(len(candidates)).tolist())
    found = list(itertools.islice((word for word in drawn if vocabulary.has_word(victim.tokenizer, word, ("first",))), count))
    if len(found) < count:
        raise CellError(f"adaptive-rap: the victim's vocabulary has {len(found)} unused words, rare_words={count} are wanted")
    return found
