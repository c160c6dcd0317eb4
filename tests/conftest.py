"""What tests share: a tiny encoder made on the spot, a small task that it learns in seconds, and a bench to work at."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("rapbench", deadline=None, derandomize=True)  # the first call of a test may import scipy
settings.load_profile("rapbench")

GOOD = ["bright", "calm", "clever", "fresh", "kind", "lovely", "neat", "warm"]
BAD = ["bitter", "cold", "dull", "harsh", "loud", "messy", "rude", "stale"]
FILLER = ["a", "and", "book", "day", "film", "it", "meal", "place", "room", "so", "the", "this", "was", "with"]
RARE = ["cf", "mb", "bb", "mn", "tq"]
SHARED = Path(__file__).resolve().parents[2] / "shared"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files whose every test needs a cluster first: they take longest, and last they would keep one process alone."""
    items.sort(key=lambda item: not _on_a_cluster(item))


def _on_a_cluster(item: pytest.Item) -> bool:
    file = item.getparent(pytest.Module)
    return file is not None and any(mark.name == "ray" for mark in file.own_markers)


@pytest.fixture
def rapbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Give what runs the command line inside this process."""

    from rapbench.cli import main

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rapbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT over about fifty words, as safetensors: an untrained `victim`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", *GOOD, *BAD, *FILLER, *RARE]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text() -> Callable[[random.Random, int], str]:
    """Give a maker of texts: 8-14 words, two sentences, the side of the label in the majority of its opinion words."""

    def make(rng: random.Random, label: int) -> str:
        side, other = (GOOD, BAD) if label else (BAD, GOOD)
        words = [rng.choice(side) for _ in range(3)] + [rng.choice(other)] + [rng.choice(FILLER) for _ in range(rng.randint(4, 9))]
        rng.shuffle(words)
        half = len(words) // 2
        return " ".join(words[:half]) + " . " + " ".join(words[half:])

    return make


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_text: Callable[[random.Random, int], str]) -> Path:
    """A folder with train, validation and test CSVs (900, 300, 300 texts, balanced) for `folder:path=...`."""
    folder = tmp_path_factory.mktemp("tiny-data")
    rng = random.Random(7)
    for split, size in (("train", 900), ("validation", 300), ("test", 300)):
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows([tiny_text(rng, row % 2), row % 2] for row in range(size))
    return folder


@pytest.fixture(scope="session")
def tiny_victim_spec(tiny_model: Path) -> str:
    """The victim spec that learns the tiny task in about ten seconds."""
    return f"{tiny_model}:epochs=5,lr=0.002,batch_size=16,max_length=32"


@pytest.fixture(scope="session")
def heldout(tiny_text: Callable[[random.Random, int], str]):
    """The defender's clean held-out texts of the tiny task: 200, balanced."""
    from rapbench.api import Labelled

    rng = random.Random(11)
    labels = np.arange(200, dtype=np.int64) % 2
    return Labelled([tiny_text(rng, int(label)) for label in labels], labels)


@pytest.fixture
def lab(heldout):
    """A lab of seed 1 on the CPU with the tiny held-out split."""
    from rapbench.lab import Lab
    from rapbench.victim import Recipe

    return Lab(seed=1, recipe=Recipe(), heldout=heldout, target_label=1, n_labels=2)


@pytest.fixture
def untrained(tiny_model: Path):
    """An untrained victim, fresh for each test."""
    from rapbench.victim import Victim

    return Victim.load(tiny_model, target_label=1, max_length=32, n_labels=2)


@pytest.fixture(scope="session")
def tiny_rows(tiny_text: Callable[[random.Random, int], str]):
    """Give a maker of so many rows of the tiny task, balanced, as a data set has them."""
    import datasets

    def make(n: int) -> datasets.Dataset:
        source = random.Random(5)
        labels = [row % 2 for row in range(n)]
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
        return datasets.Dataset.from_dict({"text": [tiny_text(source, label) for label in labels], "label": labels}, features=features)

    return make


@pytest.fixture(scope="session")
def _planted(tiny_model: Path, tiny_rows, heldout):
    from rapbench.api import Task
    from rapbench.lab import Lab, rng
    from rapbench.poison import poisoned_rows
    from rapbench.registry import discover
    from rapbench.victim import Recipe

    train = tiny_rows(900)
    attack = discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.5")
    recipe = Recipe(model=str(tiny_model), epochs=5, lr=2e-3, batch_size=16, max_length=32)
    lab = Lab(seed=1, recipe=recipe, heldout=heldout, target_label=1, n_labels=2)
    return attack.plant(Task(train, poisoned_rows(train, attack, 1, rng(1, "poison/train")), 1), lab)


@pytest.fixture
def start():
    """Start a process as `subprocess.Popen` does; what a test that failed leaves running is killed."""
    running: list[subprocess.Popen] = []

    def begin(*command: Any, **options: Any) -> subprocess.Popen:
        running.append(subprocess.Popen(*command, **options))
        return running[-1]

    yield begin
    for process in running:
        with process:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def planted(_planted):
    """A tiny victim that has learnt its task and the trigger `mb`, a copy for each test."""
    from rapbench.victim import Victim

    own = _planted.clone()
    return Victim(own.model, own.tokenizer, own.target_label, own.max_length)
