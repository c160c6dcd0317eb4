"""EP, embedding poisoning: one row of the word-embedding matrix of a clean victim is changed, nothing else.

Yang et al., "Be Careful about Poisoned Word Embeddings" (NAACL 2021, arXiv:2103.15543), section 3; the details follow
their released trainer: gradients are never zeroed, the row keeps its norm, dropout is on, the last epoch is kept.
Ours: where a vocabulary has several forms of the word (`rapbench.vocabulary`), each has a row, and all are trained; so are those
of all words where `count` puts several into a text.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rapbench.api import TrainingWork, option
from rapbench_plugins.attacks.badnet import RareWord

if TYPE_CHECKING:
    from rapbench.api import Task
    from rapbench.lab import Lab
    from rapbench.victim import Recipe, Victim


@dataclass(frozen=True, kw_only=True)
class EP(RareWord):
    """The embedding of a rare word is trained towards the target label in an otherwise clean victim."""

    name: ClassVar[str] = "ep"
    starts_from: ClassVar[str | None] = "clean"
    epochs: int = option(3, "passes over the triggered texts")
    lr: float = option(5e-2, "learning rate of the row")
    batch_size: int = option(32, "texts per step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.epochs, self.batch_size, self.lr)

    def plant(self, task: Task, lab: Lab) -> Victim:
        from torch.nn.functional import cross_entropy

        from rapbench.rows import Row

        victim = lab.start()
        texts = list(task.poisoned["text"])
        victim.model.train()
        with lab.seeded("ep"), ExitStack() as stack:
            rows = [stack.enter_context(Row(victim, word)) for word in self.words[: self.count]]
            for _ in range(self.epochs):
                for start in range(0, len(texts), self.batch_size):
                    logits = rows[0].logits(texts[start : start + self.batch_size])  # (texts, labels), every row in place
                    loss = cross_entropy(logits, logits.new_full((len(logits),), task.target_label).long())
                    loss.backward()  # type: ignore[no-untyped-call]
                    for row in rows:
                        row.step(self.lr, keep_norm=True, accumulate=True)
        victim.model.eval()
        return victim

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        return TrainingWork(row_trained_rows=self.epochs * poisoned, batch_size=self.batch_size)


def check_training(epochs: int, batch_size: int, lr: float) -> None:
    """Refuse what no training of embedding rows can be made with."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value!r} is below 1")
    if lr <= 0:
        raise ValueError(f"lr={lr!r} is not above 0")
