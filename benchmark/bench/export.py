"""Figures -> the JSON that `pytest-benchmark compare` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any

from rapbench.errors import SpecError

MISSING = "pytest-benchmark is not installed: pip install 'rapbench[bench]'"


@dataclass(frozen=True)
class Row:
    """One line of the comparison. `seconds`: per text, one for each batch; `extra_info`: plain JSON values."""

    name: str
    group: str
    seconds: Sequence[float]
    extra_info: Mapping[str, Any] = field(default_factory=dict)


def document(rows: Sequence[Row], machine: Mapping[str, Any] | None = None, made: datetime | None = None) -> dict[str, Any]:
    """Give the content of the file. `machine`, `made`: where and when the seconds were measured, as far as it is known.

    Rows of one group and name in two files are compared. A row without seconds is left out: the format has no place for it.
    """
    try:
        version = import_module("pytest_benchmark").__version__
    except ImportError:
        raise SpecError(MISSING) from None
    return {
        "machine_info": dict(machine or {}),
        "commit_info": {},
        "benchmarks": [_benchmark(row) for row in rows if row.seconds],
        **({"datetime": made.isoformat()} if made else {}),
        "version": version,
    }


def _benchmark(row: Row) -> dict[str, Any]:
    stats = import_module("pytest_benchmark.stats").Stats()
    for seconds in row.seconds:
        stats.update(float(seconds))
    return {
        "group": row.group,
        "name": row.name,
        "fullname": f"{row.group}::{row.name}",
        "params": None,
        "param": None,
        "extra_info": dict(row.extra_info),
        "options": {},
        "stats": {**stats.as_dict(), "data": list(stats.data), "iterations": 1},
    }
