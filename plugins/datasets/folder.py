"""Anybody's labelled text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rapbench_plugins.datasets.base import Corpus


@dataclass(frozen=True, kw_only=True)
class Folder(Corpus):
    """Labelled text in local files (`path` is required); as many classes as its greatest label says."""

    name: ClassVar[str] = "folder"
