"""Results for other tools: a pandas DataFrame or a Hugging Face `datasets` table, one row per cell. Nothing is uploaded.

Both have all of `COLUMNS`, in that order, whatever the folder holds; docs/results.md says what each is. Rates are fractions; None
(NaN, NA in pandas) is where nothing could be counted. `mark` is what the plugins that are installed say of a defense. Where
`rapbench report --format csv` has a column of that name, it is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rapbench.errors import StoreError

if TYPE_CHECKING:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]

    from rapbench.report.marks import Marks
    from rapbench.results import Record

Value = str | int | float | None
Kind = Literal["name", "text", "count", "figure"]
"""In pandas a category, a text, Int64, float64; in `datasets` string, string, int64, float64."""

RATED = (
    *("frr_heldout", "frr_test", "far"),
    *("asr", "asr_anywhere", "asr_control", "asr_before", "asr_defended"),
    *("clean_metric", "clean_metric_defended", "survival", "survival_anywhere"),
    *("precision", "recall", "removed"),
)
"""Rates that have an interval."""


@dataclass(frozen=True)
class Column:
    """What a column holds, and where a record has it."""

    kind: Kind
    of: Callable[[Record, Marks], Value]


def frame(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Give the cells of a results folder as a DataFrame; also while a run writes them. A StoreError where there are none."""
    import pandas as pd

    dtypes = {"name": "category", "text": "string", "count": "Int64", "figure": "float64"}
    return pd.DataFrame({name: pd.Series(values, dtype=dtypes[COLUMNS[name].kind]) for name, values in _values(folder).items()})


def to_dataset(folder: str | os.PathLike[str]) -> datasets.Dataset:
    """Give the cells of a results folder as a `datasets.Dataset`; to save or publish it is up to the caller."""
    import datasets

    types = {"name": "string", "text": "string", "count": "int64", "figure": "float64"}
    features = datasets.Features({name: datasets.Value(types[column.kind]) for name, column in COLUMNS.items()})
    return datasets.Dataset.from_dict(_values(folder), features=features)


def _values(folder: str | os.PathLike[str]) -> dict[str, list[Value]]:
    """Give the values of each column, cells in the order of their files' names."""
    from rapbench.report.marks import marks
    from rapbench.results import read

    records, known = read(Path(folder)), marks()
    found = {name: [column.of(one, known) for one in records] for name, column in COLUMNS.items()}
    for name, values in found.items():
        if COLUMNS[name].kind == "count" and (odd := next((one for one in values if abs(int(one or 0)) >= 2**63), None)) is not None:
            raise StoreError(f"{name} {odd} in {str(folder)!r} is beyond 64 bits: no run of rapbench writes that")
    return found


def _field(name: str) -> Callable[[Record], Value]:
    return lambda one: getattr(one, name)


def _far_at(frr: str) -> Callable[[Record], Value]:
    return lambda one: one.far_at_frr.get(frr)


def _end(rate: str, place: int) -> Callable[[Record], Value]:
    return lambda one: ends[place] if (ends := one.intervals.get(rate)) else None


def _cost(name: str) -> Callable[[Record], Value]:
    return lambda one: getattr(one.cost, name, None)


def _helpers(name: str) -> Callable[[Record], Value]:
    return lambda one: sum(getattr(one.cost, name).values()) if one.cost else None


def _spread(name: str, part: str) -> Callable[[Record], Value]:
    return lambda one: getattr(getattr(one.cost, name, None), part, None)


def _made_by(name: str) -> Callable[[Record], Value]:
    return lambda one: str(one.made_by[name]) if name in one.made_by else None


def _columns(kind: Kind, of: Callable[[str], Callable[[Record], Value]], *names: str) -> dict[str, Column]:
    return {name: _column(kind, of(name)) for name in names}


def _column(kind: Kind, of: Callable[[Record], Value]) -> Column:
    return Column(kind, lambda one, _: of(one))


COLUMNS: Mapping[str, Column] = {
    **_columns("name", _field, "dataset", "setting", "poisoned_on", "tuning", "attack", "victim"),
    **_columns("count", _field, "seed"),
    **_columns("name", _field, "defense"),
    "mark": Column("name", lambda one, known: known.word(one.defense)),
    **_columns("figure", _field, "frr"),
    **_columns("name", _field, "protocol", "status"),
    **_columns("text", _field, "reason"),
    **_columns("figure", _field, "frr_heldout", "frr_test", "far", "auroc"),
    **{f"far_at_frr_{percent}": _column("figure", _far_at(frr)) for percent, frr in (("1", "0.01"), ("5", "0.05"))},
    **_columns("figure", _field, "asr", "asr_anywhere", "asr_control", "asrd", "asr_before", "asr_defended"),
    **_columns("figure", _field, "ftr", "ftr_plain"),
    **_columns("figure", _field, "precision", "recall", "removed"),
    **_columns("name", _field, "metric"),
    **_columns("figure", _field, "clean_metric", "clean_metric_defended", "threshold", "survival", "survival_anywhere"),
    **_columns("count", _field, "n_heldout", "n_clean", "n_poisoned", "n_test", "n_triggered"),
    **{f"{rate}_{end}": _column("figure", _end(rate, place)) for rate in RATED for place, end in enumerate(("low", "high"))},
    **_columns("figure", _cost, "victim_rows_per_input", "victim_tokens_per_input"),
    **_columns("figure", _helpers, "helper_rows_per_input", "helper_tokens_per_input"),
    **_columns("figure", _cost, "flops_per_input", "plain_flops_per_input"),
    "cost_ratio": _column("figure", _cost("ratio")),
    "ms_per_input": _column("figure", _spread("ms_per_input", "median")),
    "ms_per_input_q1": _column("figure", _spread("ms_per_input", "low")),
    "ms_per_input_q3": _column("figure", _spread("ms_per_input", "high")),
    "plain_ms_per_input": _column("figure", _spread("plain_ms_per_input", "median")),
    **_columns("figure", _cost, "fit_s", "calibration_s", "start_mib", "fit_peak_mib", "peak_mib"),
    "device_name": _column("name", _cost("device_name")),
    **_columns("name", _made_by, "device"),
    **_columns("count", _cost, "threads", "longest_tokens", "max_tokens", "batch_tokens"),
    **_columns("name", _made_by, "rapbench", "torch", "transformers", "python"),
    "trigger": _column("text", _field("trigger")),
    "warnings": _column("text", lambda one: "; ".join(one.warnings)),
    "file": _column("text", lambda one: one.file_name),
}
"""The columns by name, in order."""
