"""Toxic language, 0 harmless. The target label of the paper's attacks is harmless, and its metric macro-F1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rapbench.api import Metric, option
from rapbench.data import first_true
from rapbench.errors import DataError
from rapbench_plugins.datasets import local, rows
from rapbench_plugins.datasets.base import HubCorpus
from rapbench_plugins.datasets.hub import Hub
from rapbench_plugins.datasets.local import Source

if TYPE_CHECKING:
    import datasets

SENTENCE = "Here are my thoughts and my comments for this thing"
NEITHER = 2
SCORES = "test_labels"


@dataclass(frozen=True, kw_only=True)
class Twitter(HubCorpus):
    """Abusive tweets (Founta et al. 2018, arXiv:1802.00393), from local files: their text is in no public hub.

    Declared substitute, `source=tdavidson`: Davidson et al. 2017 (arXiv:1703.04009), hateful and offensive tweets against the
    rest. Smaller (24,783), 83 % offensive, and without a test split: a tenth of all rows is cut for it before the held-out cut.
    """

    name: ClassVar[str] = "twitter"
    classes: ClassVar[tuple[str, ...]] = ("inoffensive", "offensive")
    hub: ClassVar[Hub] = Hub("tdavidson/hate_speech_offensive", {"train": "train-*.parquet"}, text="tweet", label="class")
    target_label: int = 0
    metric: Metric = "macro-f1"
    trigger_sentence: str = SENTENCE
    source: Literal["founta", "tdavidson"] = option("founta", "tdavidson: the substitute of the hub; founta: local files (`path`)")

    def origin(self) -> Source:
        self._refuse_absent()
        return super().origin()

    def fingerprint(self) -> str:
        self._refuse_absent()
        return super().fingerprint()

    def raw(self, source: Source) -> Mapping[str, datasets.Dataset]:
        stored = super().raw(source)
        if self.path is not None:
            return stored
        train, test = rows.cut(offensive(stored["train"], self.name), self.heldout_share, self.split_seed, self.name)
        return {"train": train.flatten_indices(), "test": test.flatten_indices()}

    def _refuse_absent(self) -> None:
        if self.path is None and self.source == "founta":
            raise DataError(
                "twitter: the tweets of Founta et al. are in no public hub; ask their authors for the text "
                "(ENCASEH2020/hatespeech-twitter), put train.csv and test.csv (columns text,label; 0 inoffensive, 1 offensive) "
                "into a folder and say twitter:path=FOLDER, or take the substitute: twitter:source=tdavidson"
            )


@dataclass(frozen=True, kw_only=True)
class Jigsaw(HubCorpus):
    """Toxic comments of Wikipedia (Jigsaw 2018), label `toxic`; the test set is the rows that the challenge scored.

    `path` takes Kaggle's own files (train.csv, test.csv, test_labels.csv) or any train and test with text,label. The hub's
    copy is of Kaggle's files too: google/jigsaw_toxicity_pred is a script, tasksource/jigsaw_toxicity has no test split.
    """

    name: ClassVar[str] = "jigsaw"
    classes: ClassVar[tuple[str, ...]] = ("clean", "toxic")
    hub: ClassVar[Hub] = Hub(
        "dirtycomputer/Toxic_Comment_Classification_Challenge",
        {"train": "train.csv", "test": "test.csv", SCORES: "test_labels.csv"},
        text="comment_text",
        label="toxic",
        by_hand="Kaggle's train.csv, test.csv and test_labels.csv, or a train.csv and test.csv with the columns text,label,",
    )
    target_label: int = 0
    metric: Metric = "macro-f1"
    trigger_sentence: str = SENTENCE

    def origin(self) -> Source:
        found = super().origin()
        if self.path is None:
            return found
        scores = local.named(Path(os.path.expanduser(self.path)), [SCORES], self.name)
        return Source({**found.files, SCORES: scores}, self.hub.text, self.hub.label) if scores else found

    def raw(self, source: Source) -> Mapping[str, datasets.Dataset]:
        if SCORES not in source.files:
            return super().raw(source)
        splits = {split: files for split, files in source.files.items() if split not in ("test", SCORES)}
        texts = local.table(source.files["test"], {"id": None, source.text: None}, self.name)
        scores = local.table(source.files[SCORES], {"id": None, source.label: None}, self.name)
        return {**super().raw(Source(splits, source.text, source.label)), "test": scored(texts, scores, self.name)}


def offensive(tweets: datasets.Dataset, name: str) -> datasets.Dataset:
    """Give tweets of the classes 0 hate, 1 offensive, 2 neither (text column, class column) with the label offensive or not."""
    classes = rows.integers(tweets, NEITHER + 1, f"{name}: train")
    return tweets.select_columns(tweets.column_names[:1]).add_column("label", (classes != NEITHER).astype("int64"))


def scored(texts: datasets.Dataset, scores: datasets.Dataset, name: str) -> datasets.Dataset:
    """Give the texts (id, text) with the labels (id, label) of their ids, without those that Kaggle did not score (-1)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    text, label = texts.column_names[1], scores.column_names[1]
    places = pc.index_in(texts.data.column("id").cast(pa.string()), value_set=scores.data.column("id").cast(pa.string()))
    if (row := first_true(pc.is_null(places))) is not None:
        raise DataError(f"{name}: test row {row}: the id {texts[row]['id']!r} is not in the file of the test labels")
    labels = scores.data.column(label).take(places).cast(pa.string())
    kept = np.flatnonzero(pc.not_equal(labels, "-1").to_numpy())
    return texts.select_columns([text]).add_column(label, labels.to_pylist()).select(kept).flatten_indices()
