"""The built-in datasets: the five of the paper, two quick ones, made reviews, and any folder of labelled text."""

from rapbench import Dataset, hookimpl
from rapbench_plugins.datasets.demo import Demo
from rapbench_plugins.datasets.folder import Folder
from rapbench_plugins.datasets.sentiment import SST2, Amazon, Imdb, Yelp
from rapbench_plugins.datasets.topics import AGNews
from rapbench_plugins.datasets.toxic import Jigsaw, Twitter


@hookimpl
def rapbench_datasets() -> list[type[Dataset]]:
    return [Demo, Imdb, Yelp, Amazon, Twitter, Jigsaw, SST2, AGNews, Folder]
