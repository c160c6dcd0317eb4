"""What the data sets that are read from files have in common: options, validation, the held-out split, the fingerprint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rapbench.api import Dataset, option
from rapbench.data import check_split
from rapbench.errors import DataError
from rapbench_plugins.datasets import hub, local, parquet, rows
from rapbench_plugins.datasets.hub import Hub
from rapbench_plugins.datasets.local import Source

if TYPE_CHECKING:
    import datasets

RESULTS_DEPEND_ON = (hub.__file__, local.__file__, parquet.__file__, rows.__file__)


@dataclass(frozen=True, kw_only=True)
class Corpus(Dataset):
    """Labelled text in a folder. The split rule is the paper's: no validation file, then a share of train is held out."""

    classes: ClassVar[tuple[str, ...]] = ()
    """The names of the labels, in order; empty: as many as the data have."""

    path: str | None = option(None, "folder with train, test and, if there is one, validation: .csv, .tsv, .jsonl (plain or .gz), .parquet")
    text_column: str = option("text", "column of the local files that holds the text")
    label_column: str = option("label", "column of the local files that holds the label, an integer from 0")
    heldout_share: float = option(0.1, "share of train that is held out where the source has no validation split")
    split_seed: int = option(1234, "seed of the shuffle before that cut")
    drop_empty: bool = option(False, "leave rows without text out; otherwise they are an error")

    def __post_init__(self) -> None:
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share!r} is no share: give a number between 0 and 1")

    def load(self) -> datasets.DatasetDict:
        """Give the splits; a DataError names file, or split and row (from 0, in the file's order), and the remedy."""
        from datasets import DatasetDict

        with local.quiet():
            splits = rows.labelled(self.raw(self.origin()), self.classes, self.name)
            splits = {split: self._whole(own, split) for split, own in splits.items()}
            if "validation" not in splits:
                splits["train"], splits["validation"] = rows.cut(splits["train"], self.heldout_share, self.split_seed, self.name)
            return DatasetDict({split: splits[split] for split in ("train", "validation", "test")})

    def fingerprint(self) -> str:
        """Give a digest of the names and bytes of the files."""
        return local.digest(path for files in self.origin().files.values() for path in files)

    def origin(self) -> Source:
        """Give the files that the splits are read from."""
        if self.path is None:
            raise DataError(
                f"{self.name}: which folder? put train.csv and test.csv (columns text,label) there and say {self.name}:path=FOLDER"
            )
        return Source(local.split_files(Path(os.path.expanduser(self.path)), self.name), self.text_column, self.label_column)

    def raw(self, source: Source) -> Mapping[str, datasets.Dataset]:
        """Give the splits as they are stored: a text column, then a label column."""
        columns = {source.text: "text_column", source.label: "label_column"}
        return {split: local.table(files, columns, self.name) for split, files in source.files.items()}

    def _whole(self, split_rows: datasets.Dataset, split: str) -> datasets.Dataset:
        if self.drop_empty:
            split_rows = rows.without_blanks(split_rows)
        try:
            check_split(split_rows, self.name, split)
        except DataError as error:
            remedy = f"; {self.name}:drop_empty=true leaves such rows out" if "the text is" in str(error) else ""
            raise DataError(f"{error}{remedy}") from None
        return split_rows


@dataclass(frozen=True, kw_only=True)
class HubCorpus(Corpus):
    """A data set of the hub, or the same in a local folder (`path`)."""

    hub: ClassVar[Hub]

    revision: str = option("main", "commit, tag or branch on the hub; a commit makes the data immutable")

    def origin(self) -> Source:
        if self.path is not None:
            return super().origin()
        return Source(hub.fetch(self.hub, self.revision, self.name), self.hub.text, self.hub.label)

    def fingerprint(self) -> str:
        """Give the digest of local files, or the hub's id and revision."""
        return super().fingerprint() if self.path is not None else f"{self.hub.id}@{self.revision}"
