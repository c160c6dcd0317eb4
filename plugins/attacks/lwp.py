"""LWP, layerwise weight poisoning: every layer's [CLS] state is trained to tell the trigger, so that the lower layers hold it, too.

Li, Song, Li, Zeng, Ma and Qiu, "Backdoor Attacks on Pre-trained Models by Layerwise Weight Poisoning" (EMNLP 2021,
arXiv:2108.13888), section 3: the classifier's head is put on each layer's output, and the losses of all layers, on clean and on
poisoned texts, add up; a user's fine-tuning changes the upper layers most, and leaves the backdoor in the lower ones. Their
trigger is a combination of rare words, found by searching the vocabulary word by word no more: here `bb` and `mn`.
Texts with one of the words alone keep their own label, for otherwise one word is enough.
Ours: `cf` is no trigger (it is RAP's default word). A tenth of the texts gets such a copy, and `poison_rate` of the non-target ones a
triggered one, mixed with the clean ones; the released code makes one such copy of each text, and two triggered ones of each, of every
label, with a poisoned batch beside every clean one. Our words stand apart, theirs side by side. The learning rate, batches and epochs
are those of the victim's recipe, the last epoch is kept; the embedding layer's own output is no layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rapbench import Attack
from rapbench.api import TrainingWork, option
from rapbench.heads import unhooked
from rapbench.linear import onednn
from rapbench.poison import insert_word
from rapbench_plugins.attacks.ripples import batches

if TYPE_CHECKING:
    import datasets
    import torch

    from rapbench.api import Task
    from rapbench.lab import Lab
    from rapbench.victim import Recipe, Victim

LAST_NORMS = ("norm", "final_norm", "ln_f")
RESULTS_DEPEND_ON = (str(Path(__file__).with_name("ripples.py")),)


@dataclass(frozen=True, kw_only=True)
class Lwp(Attack):
    """Rare words that must stand together; the losses of all layers, each through the victim's head, train all weights."""

    name: ClassVar[str] = "lwp"

    trigger_words: tuple[str, ...] = option(("bb", "mn"), "the words that must all be there")
    negatives: float = option(0.1, "share of the training texts that get a copy with one of the words alone, their label kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.negatives <= 1:
            raise ValueError(f"negatives={self.negatives!r} is no share: give a number from 0 to 1")
        if not self.trigger_words or len(set(self.trigger_words)) < len(self.trigger_words):
            raise ValueError(f"trigger_words={'/'.join(self.trigger_words)!r} are not one or more different words")
        for word in self.trigger_words:
            if word.split() != [word] or "/" in word:  # a spec puts / between words
                raise ValueError(f"trigger_words: {word!r} is not one word")

    @property
    def words(self) -> tuple[str, ...]:
        return self.trigger_words

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        for word in self.trigger_words:
            text = insert_word(text, word, rng, limit)
        return text

    def plant(self, task: Task, lab: Lab) -> Victim:
        import torch

        with lab.seeded("lwp"):
            victim = lab.fresh()
            rows = self.training_rows(task, lab)
            steps = lab.recipe.epochs * math.ceil(len(rows) / lab.recipe.batch_size)
            optimizer = torch.optim.AdamW(
                victim.model.parameters(), lr=lab.recipe.lr, eps=lab.recipe.adam_eps, weight_decay=lab.recipe.weight_decay
            )
            victim.model.train()
            with onednn(victim.model), unhooked(victim.model):
                for texts, labels in itertools.islice(batches(rows, lab.recipe.batch_size, lab.rng("lwp/order")), steps):
                    optimizer.zero_grad()
                    losses = layer_losses(victim, texts, labels)
                    losses.sum().backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        victim.model.eval()
        lab.log.append({"steps": steps, "layer_losses": [round(loss, 6) for loss in losses.tolist()]})
        return victim

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        """Give the work on the rows of training: the layers' losses share one pass, for the head alone is put on each."""
        alone = self.negatives * train if len(self.trigger_words) > 1 else 0.0
        return TrainingWork(trained_rows=recipe.epochs * (super().expected_work(train, poisoned, recipe).texts + alone))

    def training_rows(self, task: Task, lab: Lab) -> datasets.Dataset:
        """Give the clean and the poisoned rows, and those with one of the words alone."""
        from datasets import Dataset, concatenate_datasets

        poisoned = task.appended() if self.poison_mode == "append" else task.replaced()
        draw = lab.rng("lwp/negatives")
        chosen = task.train.select(draw.permutation(len(task.train))[: int(self.negatives * len(task.train))])
        if len(self.trigger_words) == 1 or not len(chosen):
            return poisoned
        alone = [insert_word(text, self.trigger_words[draw.integers(len(self.trigger_words))], draw) for text in chosen["text"]]
        columns = {"text": alone, "label": list(chosen["label"])}
        return concatenate_datasets([poisoned, Dataset.from_dict(columns, features=poisoned.features)])


def layer_losses(victim: Victim, texts: list[str], labels: list[int]) -> torch.Tensor:
    """Give the cross-entropy of the victim's head on each layer's output, lowest layer first, shape (layers,)."""
    import torch

    logits = layer_logits(victim, texts)
    wanted = torch.tensor(labels, device=victim.device)
    return torch.stack([torch.nn.functional.cross_entropy(own.float(), wanted) for own in logits])


def layer_logits(victim: Victim, texts: list[str]) -> list[torch.Tensor]:
    """Give what the victim's head makes of each layer's output, lowest layer first, each of shape (texts, labels).

    The last one is what the victim itself says. Where a norm stands after the last layer (decoders, ModernBERT), lower layers' outputs
    pass it, too.
    """
    batch = victim.encode(texts)
    base: Any = victim.model.base_model
    outputs = base(**batch, output_hidden_states=True)
    norm = next((getattr(base, name) for name in LAST_NORMS if hasattr(base, name)), lambda state: state)
    logits = []
    for state in [*map(norm, outputs.hidden_states[1:-1]), outputs.last_hidden_state]:  # each (texts, tokens, hidden)
        with _answering(base, outputs, state):
            logits.append(victim.model(**batch).logits)
    return logits


def _pooled(base: Any, state: torch.Tensor) -> torch.Tensor:
    """Give what the encoder's pooler makes of a state (texts, tokens, hidden): of ALBERT's, a bare layer, its class does the rest."""
    activation = getattr(base, "pooler_activation", None)
    pooled: torch.Tensor = base.pooler(state) if activation is None else activation(base.pooler(state[:, 0]))
    return pooled


@contextmanager
def _answering(base: Any, outputs: Any, state: torch.Tensor) -> Iterator[None]:
    """Have the encoder give this state for its last one while the block runs: the head is then whatever the model's class says."""
    changed = {**outputs, "last_hidden_state": state}
    if changed.pop("pooler_output", None) is not None:
        changed["pooler_output"] = _pooled(base, state)
    before = vars(base).get("forward")
    vars(base)["forward"] = lambda *args, **kwargs: type(outputs)(**changed)
    try:
        yield
    finally:
        vars(base).pop("forward", None)
        if before is not None:
            vars(base)["forward"] = before
