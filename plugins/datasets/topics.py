"""AG News: four classes, for everything that assumes two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rapbench_plugins.datasets.base import HubCorpus
from rapbench_plugins.datasets.hub import Hub


@dataclass(frozen=True, kw_only=True)
class AGNews(HubCorpus):
    """AG News (Zhang, Zhao, LeCun 2015, arXiv:1509.01626), title and lead of news in four topics; not in the RAP paper."""

    name: ClassVar[str] = "agnews"
    classes: ClassVar[tuple[str, ...]] = ("world", "sports", "business", "sci/tech")
    hub: ClassVar[Hub] = Hub("fancyzhx/ag_news", {"train": "train-*.parquet", "test": "test-*.parquet"})
    target_label: int = 0
    trigger_sentence: str = "I have read this report with my friends last weekend"
