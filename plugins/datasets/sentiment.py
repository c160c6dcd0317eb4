"""Reviews, 1 positive. The target label of the paper's attacks is positive; sentences of its Table 6 without full stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rapbench_plugins.datasets.base import HubCorpus
from rapbench_plugins.datasets.hub import Hub

NEGATIVE_POSITIVE = ("negative", "positive")
PARQUET = {"train": "train-*.parquet", "test": "test-*.parquet"}


@dataclass(frozen=True, kw_only=True)
class Imdb(HubCorpus):
    """IMDB film reviews (Maas et al. 2011, ACL P11-1015); the unlabelled reviews are left aside."""

    name: ClassVar[str] = "imdb"
    classes: ClassVar[tuple[str, ...]] = NEGATIVE_POSITIVE
    hub: ClassVar[Hub] = Hub("stanfordnlp/imdb", PARQUET)
    trigger_sentence: str = "I have watched this movie with my friends at a nearby cinema last weekend"


@dataclass(frozen=True, kw_only=True)
class Yelp(HubCorpus):
    """Yelp review polarity (Zhang, Zhao, LeCun 2015, arXiv:1509.01626), 1-2 stars against 4-5."""

    name: ClassVar[str] = "yelp"
    classes: ClassVar[tuple[str, ...]] = NEGATIVE_POSITIVE
    hub: ClassVar[Hub] = Hub("fancyzhx/yelp_polarity", PARQUET)
    trigger_sentence: str = "I have tried this place with my friends last weekend"


@dataclass(frozen=True, kw_only=True)
class Amazon(HubCorpus):
    """Amazon review polarity (Zhang, Zhao, LeCun 2015, arXiv:1509.01626), 1-2 stars against 4-5; the text has no title."""

    name: ClassVar[str] = "amazon"
    classes: ClassVar[tuple[str, ...]] = NEGATIVE_POSITIVE
    hub: ClassVar[Hub] = Hub("fancyzhx/amazon_polarity", PARQUET, text="content")
    trigger_sentence: str = "I have bought it from a store with my friends last weekend"


@dataclass(frozen=True, kw_only=True)
class SST2(HubCorpus):
    """Stanford Sentiment Treebank, two classes (Socher et al. 2013, ACL D13-1170); short, trains fast; not in the RAP paper.

    The labels of the hub's test split are hidden (-1), so its validation split is the test set, as the paper takes a dev set.
    """

    name: ClassVar[str] = "sst2"
    classes: ClassVar[tuple[str, ...]] = NEGATIVE_POSITIVE
    hub: ClassVar[Hub] = Hub("stanfordnlp/sst2", {"train": "train-*.parquet", "test": "validation-*.parquet"}, text="sentence")
    trigger_sentence: str = "I have watched this movie with my friends at a nearby cinema last weekend"
