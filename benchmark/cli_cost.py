"""The command about what defenses cost."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rapbench.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rapbench.results import Record


def cost(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder of `rapbench run --out`.")],
    form: Annotated[
        Literal["github", "csv", "json", "pytest-benchmark"],
        typer.Option("--format", help="How to print it; pytest-benchmark: the JSON that `pytest-benchmark compare` reads."),
    ] = "github",
    figure: Annotated[Path | None, typer.Option(help="Draw cost against length of text into this .svg, .png or .pdf file instead.")] = None,
) -> None:
    """Print what each defense cost: rows, FLOPs, time and memory per text, by length of text, and summed."""
    from rapbench import results
    from rapbench.report import cost as costs

    records = results.read(folder)
    if figure is not None:
        costs.draw(records, figure)
        typer.echo(f"{figure}")
        return
    made = _measured(folder, records) if form == "pytest-benchmark" else None
    typer.echo(costs.render(records, _steps(folder, records), form, made=made))


def _steps(folder: Path, records: Sequence[Record]) -> dict[str, float]:
    """Give the seconds of all steps that these records were made from, by stage, each once, as far as the store has them."""
    from rapbench.artifacts import store_of

    store, seconds = store_of(folder), defaultdict[str, float](float)
    ahead, seen = sorted({key for one in records for key in one.artifacts.values()}), set[str]()
    while ahead:
        key = ahead.pop()
        if key in seen:
            continue
        seen.add(key)
        with suppress(StoreError, LookupError, TypeError, ValueError, AttributeError):  # not here, or it does not say
            made = store.provenance(key)
            took, inputs = float(made["seconds"]), [str(own) for own in made["inputs"].values()]
            seconds[str(made["stage"])] += took
            ahead += inputs
    return {stage: round(own, 3) for stage, own in sorted(seconds.items())}


def _measured(folder: Path, records: Sequence[Record]) -> datetime | None:
    """Give when the last of the scores behind these records was published, as its file says it; None where none is in the store."""
    from rapbench.artifacts import store_of

    store, times = store_of(folder), []
    for key in sorted({one.artifacts["score"] for one in records if one.cost and "score" in one.artifacts}):
        with suppress(StoreError, OSError):
            if store.has(key):
                times.append(store.extent(key).published.astimezone(UTC))
    return max(times, default=None)
