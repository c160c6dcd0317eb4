"""The border that every data set crosses: its splits are checked, row by row, and capped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rapbench.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from rapbench.api import Dataset

SPLITS = ("train", "validation", "test")
BATCH_ROWS = 10_000


def check(splits: datasets.DatasetDict, name: str) -> None:
    """Raise a DataError that names data set, split and row (from 0) unless the splits are what `Dataset.load` promises."""
    for split in SPLITS:
        if split not in splits:
            raise DataError(f"{name}: the split {split!r} is missing (there are: {', '.join(sorted(map(str, splits))) or 'none'})")
        check_split(splits[split], name, split)
        own, first = (splits[part].features["label"].names for part in (split, "train"))
        if own != first:
            raise DataError(f"{name}: {split} has the classes {', '.join(own)}, but train has {', '.join(first)}")


def check_split(rows: datasets.Dataset, name: str, split: str) -> None:
    """Raise a DataError unless every row has a text (string, not blank) and a label (ClassLabel, in range)."""
    where = f"{name}: {split}"
    _check_columns(rows, where)
    classes = rows.features["label"].num_classes
    # the stored table is quick to scan; its rows in the order of a shuffle are not, and count only where there is a fault
    if any(_fault(batch, classes) for batch in rows.data.to_reader(BATCH_ROWS)):
        for start, batch in _batches(rows):
            if fault := _fault(batch, classes):
                raise DataError(f"{where} row {start + fault[0]}: {fault[1]}")


def capped(splits: datasets.DatasetDict, dataset: Dataset) -> datasets.DatasetDict:
    """Give the three splits with the columns text, label alone, each sampled down to its cap by `sample_seed`."""
    from datasets import DatasetDict

    caps = {"train": dataset.max_train, "validation": dataset.max_heldout, "test": dataset.max_test}
    kept = {}
    for stream, (split, cap) in enumerate(caps.items()):
        if cap is not None and cap < 1:
            raise DataError(f"{dataset.name}: the cap {cap!r} leaves no row of {split}: give at least 1, or none for all rows")
        kept[split] = _sample(splits[split].select_columns(["text", "label"]), cap, [dataset.sample_seed, stream])
    return DatasetDict(kept)


def blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give, as booleans, which texts hold nothing but white space; a null stays null."""
    import pyarrow.compute as pc

    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)


def _sample(rows: datasets.Dataset, cap: int | None, seed: list[int]) -> datasets.Dataset:
    import numpy as np

    if cap is None or cap >= len(rows):
        return rows
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:cap])


def _check_columns(rows: datasets.Dataset, where: str) -> None:
    from datasets import ClassLabel, Value

    for column in ("text", "label"):
        if column not in rows.column_names:
            raise DataError(f"{where} has no column {column!r} (there are: {', '.join(sorted(rows.column_names)) or 'none'})")
    if not len(rows):
        raise DataError(f"{where} has no rows")
    if rows.features["text"] != Value("string"):
        raise DataError(f"{_first_other(rows, where, 'text', str)}: the column must be Value('string')")
    if not isinstance(rows.features["label"], ClassLabel):
        raise DataError(f"{_first_other(rows, where, 'label', int)}: the column must be ClassLabel")


def _first_other(rows: datasets.Dataset, where: str, column: str, kind: type) -> str:
    """Word the first value of another kind, or the first value where only the column's declaration is wrong."""
    other = ((row, value) for row, value in enumerate(rows[column]) if type(value) is not kind)
    row, value = next(other, (0, rows[0][column]))
    return f"{where} row {row}: the {column} is {value!r} in a column of {rows.features[column]}"


def _batches(rows: datasets.Dataset) -> Iterator[tuple[int, pa.Table]]:
    arrow = rows.select_columns(["text", "label"]).with_format("arrow")
    for number, batch in enumerate(arrow.iter(batch_size=BATCH_ROWS)):
        yield number * BATCH_ROWS, batch


def _fault(batch: pa.Table | pa.RecordBatch, classes: int) -> tuple[int, str] | None:
    """Give the first row that is wrong, and how."""
    import pyarrow.compute as pc

    texts, labels = batch["text"], batch["label"]
    masks = {
        "the text is null": pc.is_null(texts),
        "the text is empty": blank(texts),
        "the label is null": pc.is_null(labels),
        f"the label {{}} is not in 0..{classes - 1}": pc.or_(pc.less(labels, 0), pc.greater_equal(labels, classes)),
    }
    faults = [(row, reason) for reason, mask in masks.items() if (row := first_true(mask)) is not None]
    if not faults:
        return None
    row, reason = min(faults)
    return row, reason.format(labels[row].as_py())


def first_true(mask: Any) -> int | None:
    """Give the index of the first true value of a boolean Arrow array, or None."""
    import pyarrow.compute as pc

    row: int = pc.index(mask, value=True).as_py()
    return row if row >= 0 else None
