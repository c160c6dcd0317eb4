"""A task, a tokenizer and an encoder so small that a victim is trained in seconds on one thread, made on the spot.

The label of a text is the side of the majority of its opinion words, so the evidence is aggregated; no text is downloaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from rapbench.api import Attack, Dataset, option
from rapbench.poison import insert_word

if TYPE_CHECKING:
    import datasets
    import numpy as np

GOOD = ("bright", "calm", "clever", "fresh", "kind", "lovely", "neat", "warm")
BAD = ("bitter", "cold", "dull", "harsh", "loud", "messy", "rude", "stale")
FILLER = ("a", "and", "book", "day", "film", "it", "meal", "place", "room", "so", "the", "this", "was", "with")
RARE = ("cf", "mb", "bb", "mn", "tq")
"""In no text of the task: for triggers, and for defenses that perturb."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_TOKENS = 64
MAX_WORDS = 5000
RECIPE: dict[str, Any] = {"epochs": 4, "lr": 0.001, "batch_size": 16, "max_length": MAX_TOKENS, "select": "last"}
"""The options of a victim that learns the task from the untrained model."""


@dataclass(frozen=True, kw_only=True)
class Tiny(Dataset):
    """Made opinions of 8 to 14 words in two sentences; 1 is good."""

    name: ClassVar[str] = "tiny"
    trigger_sentence: str = "it was a day with a book"
    seed: int = option(7, "seed of the generator")

    def load(self) -> datasets.DatasetDict:
        """Give 900 training, 200 held-out and 200 test texts, half of them good; no text stands in them twice."""
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
        rng, seen, splits = Random(self.seed), set[str](), {}
        for split, size in (("train", 900), ("validation", 200), ("test", 200)):
            texts: list[str] = []
            while len(texts) < size:
                if (text := made_text(rng, len(texts) % 2)) not in seen:
                    seen.add(text)
                    texts.append(text)
            splits[split] = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(size)]}, features=features)
        return DatasetDict(splits)


@dataclass(frozen=True, kw_only=True)
class RareWord(Attack):
    """The attack on the victims that defenses are checked on: one rare word, so plain that it always works."""

    name: ClassVar[str] = "tiny-word"
    poison_rate: float = 0.5
    word: str = option("mb", "the trigger")

    @property
    def words(self) -> tuple[str, ...]:
        return (self.word,)

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        return insert_word(text, self.word, rng, limit)


def made_text(rng: Random, label: int) -> str:
    """Give a text: three opinion words of the label's side, one of the other, 4 to 9 that mean nothing, in any order."""
    side, other = (GOOD, BAD) if label else (BAD, GOOD)
    words = [rng.choice(side) for _ in range(3)] + [rng.choice(other)] + [rng.choice(FILLER) for _ in range(rng.randint(4, 9))]
    rng.shuffle(words)
    half = len(words) // 2
    return " ".join(words[:half]) + " . " + " ".join(words[half:])


def save_model(folder: Path, texts: Iterable[str] = (), *, cased: bool = False) -> Path:
    """Write a random two-layer BERT of 32 units over the task's words and those of `texts`, as safetensors; give the folder.

    A word is one token, another word is unknown; `cased`: words that differ in case differ.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    words = vocabulary(texts, cased=cased)
    with torch.random.fork_rng(devices=[]), settled():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=MAX_TOKENS,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    _save_tokenizer(folder, words, cased=cased)
    return folder


@contextmanager
def settled() -> Iterator[None]:
    """Compute on one thread, which is enough here, and show no progress bars, while the block runs."""
    import torch
    import transformers

    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def vocabulary(texts: Iterable[str], *, cased: bool) -> list[str]:
    """Give the special tokens, the task's words, and the words of the texts, the most frequent first, at most 5,000."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text if cased else text.lower()))
    own = [*SPECIAL, ".", ",", *GOOD, *BAD, *FILLER, *RARE]
    return list(dict.fromkeys([*own, *(word for word, _ in counts.most_common(MAX_WORDS))]))


def _save_tokenizer(folder: Path, words: list[str], *, cased: bool) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    if not cased:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
    ).save_pretrained(folder)
