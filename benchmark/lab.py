"""What a plugin works with: seeded randomness, training by the recipe, the device, the meter."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapbench.errors import CellError
from rapbench.linear import onednn
from rapbench.meter import Meter
from rapbench.rates import clean_metric
from rapbench.victim import Recipe, Victim

if TYPE_CHECKING:
    import datasets
    import torch

    from rapbench.api import Labelled


WINDOW_BATCHES = 50
"""Batches whose texts are sorted by length together where the recipe says `bucketed`."""
ROWS_AT_ONCE = 1000


def stream_seed(seed: int, stream: str) -> int:
    """Give the 63-bit seed of a named stream; streams of one seed are independent of each other."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{stream}".encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1


def rng(seed: int, stream: str) -> np.random.Generator:
    """Give the random generator of a named stream."""
    return np.random.default_rng(stream_seed(seed, stream))


@dataclass
class Lab:
    """The bench of one plugin call. Everything random comes from `rng` or happens inside `seeded`."""

    seed: int
    recipe: Recipe
    heldout: Labelled
    target_label: int
    n_labels: int
    metric: str = "accuracy"
    device: str = "cpu"
    prepared: Path | None = None
    foreign_words: tuple[str, ...] = ()
    """Words that the attack declares: a defense must not perturb with one of them."""
    meter: Meter = field(default_factory=Meter)
    load_start: Callable[[], Victim] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    read: tuple[Path, ...] = ()
    """The folders that the defense's `read` wrote: what comes of the texts that most likely will be asked about."""
    memo: dict[str, Any] = field(default_factory=dict)
    """For a defense to keep what depends on texts alone: it is fitted once for each protocol."""

    def rng(self, stream: str) -> np.random.Generator:
        """Give the generator of this cell's seed and a stream name (say, the text that it is drawn for)."""
        return rng(self.seed, stream)

    @contextmanager
    def seeded(self, stream: str) -> Iterator[None]:
        """Seed torch for the block (initial weights, dropout), and restore its state after it."""
        import torch

        with torch.random.fork_rng(devices=[] if self.device == "cpu" else None):
            torch.manual_seed(stream_seed(self.seed, stream))
            yield

    def start(self) -> Victim:
        """Give the finished victim of the attack's `starts_from`, to change at will."""
        if self.load_start is None:
            raise CellError("this attack asks for a victim to start from, but declares none: set `starts_from`")
        return self.load_start()

    def train(self, rows: datasets.Dataset, start: Victim | None = None) -> Victim:
        """Fine-tune the recipe's model, or `start`, on these rows; keep the epoch that is best on the clean held-out split.

        Rows are shuffled once and then taken in that order in every epoch (see `bucketed` where the recipe says so);
        AdamW, constant rate, no clipping.
        """
        with self.seeded("train"):
            victim = start or self.fresh()
            keeper = _trained(victim, rows.shuffle(seed=stream_seed(self.seed, "order") % 2**32), self)
        victim.model.load_state_dict(keeper.state)
        victim.model.eval()
        self.log.append({"epochs": keeper.scores, "kept": keeper.kept})
        return victim

    def fresh(self, *, attention: str | None = None) -> Victim:
        """Give the recipe's pretrained model with a new head, metered; `attention="eager"` where gradients of gradients are taken."""
        victim = Victim.load(
            self.recipe.model,
            target_label=self.target_label,
            max_length=self.recipe.max_length,
            device=self.device,
            n_labels=self.n_labels,
            revision=self.recipe.revision,
            layers=self.recipe.layers,
            attention=attention,
            scoring=self.recipe.scoring,
            compiled=self.recipe.compiled,
        )
        self.meter.watch(victim.model, "victim")
        return victim


def bucketed(lengths: Sequence[int] | NDArray[np.int32], batch_size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Give an order of the texts, shape (n,), in which batches hold texts of similar length and come by chance.

    Each window of 50 batches is sorted by length, then all full batches are shuffled; what is left over stays at the end.
    """
    window = WINDOW_BATCHES * batch_size
    parts = [np.argsort(lengths[start : start + window], kind="stable") + start for start in range(0, len(lengths), window)]
    order = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    full = len(order) - len(order) % batch_size
    batches = generator.permutation(order[:full].reshape(-1, batch_size))  # (batches, batch_size)
    return np.concatenate([batches.reshape(-1), order[full:]])


@dataclass
class _Keeper:
    """The held-out metric after each epoch, and the weights of the epoch to keep."""

    scores: list[float] = field(default_factory=list)
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: int = 0

    def see(self, victim: Victim, lab: Lab) -> None:
        score = clean_metric(victim.probabilities(lab.heldout.texts), lab.heldout.labels, lab.metric)
        if lab.recipe.select == "last" or not self.scores or score > max(self.scores):
            self.state = copy.deepcopy(victim.model.state_dict())
            self.kept = len(self.scores) + 1
        self.scores.append(round(score, 6))


def _trained(victim: Victim, rows: datasets.Dataset, lab: Lab) -> _Keeper:
    from transformers import PrinterCallback, Trainer, TrainerCallback

    keeper = _Keeper()

    class AfterEpoch(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            keeper.see(victim, lab)
            victim.model.train()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, onednn(victim.model):  # Windows keeps a file that is mapped
        trainer = Trainer(
            model=victim.model,
            args=_arguments(lab, scratch),
            train_dataset=_tokenised(victim, rows, Path(scratch), lab),
            data_collator=_collator(victim),
            callbacks=[AfterEpoch()],
        )
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, where the result belongs
        trainer.train()
    return keeper


def _arguments(lab: Lab, scratch: str) -> Any:
    from transformers import TrainingArguments

    recipe = lab.recipe
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.lr,
        per_device_train_batch_size=recipe.batch_size,
        optim="adamw_torch_fused",
        adam_epsilon=recipe.adam_eps,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        seed=stream_seed(lab.seed, "train") % 2**31,
        bf16=recipe.precision == "bf16",
        use_cpu=lab.device == "cpu",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a step has one device; several would be wrapped into DataParallel
    return arguments


@dataclass(frozen=True)
class _Tokenised:
    """Texts as token ids, in the order of training. `ids`: all texts one after the other, on the disk; `ends`: of each one there."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.order[place]
        start = self.ends[row - 1] if row else 0
        return {"input_ids": self.ids[start : self.ends[row]].tolist(), "label": int(self.labels[row])}


def _tokenised(victim: Victim, rows: datasets.Dataset, scratch: Path, lab: Lab) -> _Tokenised:
    """Tokenise the rows once for all epochs; the ids wait in a file of `scratch`, so that memory is flat in the rows."""
    lengths, labels, path = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64), scratch / "ids"
    with path.open("wb") as file:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            ids = victim.tokenizer(list(part["text"]), truncation=True, max_length=victim.max_length)["input_ids"]
            lengths[start : start + len(ids)] = [len(own) for own in ids]
            labels[start : start + len(ids)] = part["label"]
            np.concatenate([np.asarray(own, dtype=np.int32) for own in ids]).tofile(file)
    order = bucketed(lengths, lab.recipe.batch_size, lab.rng("buckets")) if lab.recipe.bucketed else np.arange(len(rows))
    ends = np.cumsum(lengths, dtype=np.int64)
    return _Tokenised(np.memmap(path, dtype=np.int32, mode="r") if len(rows) else np.empty(0, np.int32), ends, labels, order)


def _collator(victim: Victim) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    import torch

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = victim.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    return collate
