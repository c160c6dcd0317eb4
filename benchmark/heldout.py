"""A defender's own clean texts, read as data sets are: of one file, or of the validation split of a data set."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import numpy as np

from rapbench import data
from rapbench.api import Dataset, Labelled
from rapbench.errors import DataError
from rapbench.registry import Registry, discover

if TYPE_CHECKING:
    import datasets

FORMS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")


def heldout_texts(source: str | Path, registry: Registry | None = None) -> Labelled:
    """Give the labelled texts of a file with the columns text and label, or of a data set's spec: its held-out split."""
    registry = registry or discover()
    path = Path(source)
    try:
        there = path.exists()
    except OSError:  # a spec that is too long for a name
        there = False
    if there or path.suffix in (".gz", *FORMS):
        return _labelled(_of_file(path, registry))
    dataset = cast(Dataset, registry.parse("dataset", str(source)))
    splits = dataset.load()
    data.check(splits, dataset.name)
    return _labelled(data.capped(splits, dataset)["validation"])


def _of_file(path: Path, registry: Registry) -> datasets.Dataset:
    """Read the file as the data set `folder` does, which looks for three splits: each is a link to it."""
    form = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if not path.is_file() or form not in FORMS:
        raise DataError(f"{str(path)!r} is no file of held-out texts: give one of the forms {', '.join(FORMS)}, or a data set's spec")
    with TemporaryDirectory() as scratch:
        for split in data.SPLITS:
            Path(scratch, split + form).symlink_to(path.resolve())
        try:
            return cast(Dataset, registry.parse("dataset", {"name": "folder", "path": scratch})).load()["validation"]
        except DataError as error:
            told = str(error)
            for split in data.SPLITS:
                told = told.replace(str(Path(scratch, split + form)), str(path)).replace(f"folder: {split} row", f"{path}: row")
            raise DataError(told) from None


def _labelled(rows: datasets.Dataset) -> Labelled:
    return Labelled(list(rows["text"]), np.asarray(rows["label"], dtype=np.int64))
