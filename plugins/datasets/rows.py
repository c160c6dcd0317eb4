"""From raw rows to the columns text and label, and the cut of the held-out split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapbench.data import blank, first_true
from rapbench.errors import DataError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

MOST_CLASSES = 1000


def labelled(raw: Mapping[str, datasets.Dataset], classes: Sequence[str], name: str) -> dict[str, datasets.Dataset]:
    """Give each split's raw rows (a text column, then a label column) with the columns text and label.

    Without `classes` there are as many as the greatest label says.
    """
    labels = {split: integers(rows, len(classes) or MOST_CLASSES, f"{name}: {split}") for split, rows in raw.items()}
    classes = classes or [str(label) for label in range(max(1, *(int(own.max(initial=0)) for own in labels.values())) + 1)]
    return {split: _with_labels(raw[split], own, classes) for split, own in labels.items()}


def integers(rows: datasets.Dataset, classes: int, where: str) -> NDArray[np.int64]:
    """Give the last column's labels, int64, shape (n,); a DataError names the first that is no integer in 0..classes-1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column, wanted = rows.data.column(rows.column_names[-1]), f"is no integer in 0..{classes - 1}"
    if pa.types.is_floating(column.type):
        # a gap or a fraction makes a column of integers floating: that row is the one to name
        _refuse(pc.fill_null(pc.not_equal(pc.floor(column), column), True), rows, wanted, where)
    if pa.types.is_integer(column.type):
        labels = column
    else:
        texts = pc.utf8_trim_whitespace(_as_strings(rows, column))
        _refuse(pc.invert(pc.match_substring_regex(texts, r"^[+-]?\d{1,9}$")), rows, wanted, where)
        labels = pc.cast(texts, pa.int64())
    outside = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, classes))
    _refuse(pc.fill_null(outside, True), rows, wanted, where)
    values: NDArray[np.int64] = labels.cast(pa.int64()).to_numpy()
    return values


def without_blanks(rows: datasets.Dataset) -> datasets.Dataset:
    """Give the rows whose text is not null, empty or white space."""
    import numpy as np
    import pyarrow.compute as pc

    empty = pc.fill_null(blank(rows.data.column("text")), True).to_numpy()
    return rows.select(np.flatnonzero(~empty)) if empty.any() else rows


def cut(rows: datasets.Dataset, share: float, seed: int, name: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Give the rows, shuffled, in two parts, the second of them this share: 10 % of train is held out in the paper."""
    import numpy as np

    kept = round((1 - share) * len(rows))
    if not 0 < kept < len(rows):
        raise DataError(f"{name}: {len(rows)} rows cannot be cut by the share {share!r}: there must be a row on each side")
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(order[:kept]), rows.select(order[kept:])


def _as_strings(rows: datasets.Dataset, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give the labels as text: as they stand, or where a JSON file mixes kinds, as Python prints them."""
    import pyarrow as pa

    if getattr(rows.features[rows.column_names[-1]], "dtype", None) in ("string", "large_string"):
        return column
    return pa.chunked_array([pa.array([None if value is None else str(value) for value in rows[rows.column_names[-1]]], pa.string())])


def _refuse(mask: Any, rows: datasets.Dataset, reason: str, where: str) -> None:
    if (row := first_true(mask)) is not None:
        raise DataError(f"{where} row {row}: the label {rows[row][rows.column_names[-1]]!r} {reason}")


def _with_labels(rows: datasets.Dataset, labels: NDArray[np.int64], classes: Sequence[str]) -> datasets.Dataset:
    from datasets import ClassLabel, Value

    source = rows.column_names[0]
    texts = rows.select_columns([source]).rename_column(source, "text") if source != "text" else rows.select_columns([source])
    if texts.features["text"] == Value("large_string"):
        texts = texts.cast_column("text", Value("string"))
    return texts.add_column("label", labels, feature=ClassLabel(names=list(classes)))
