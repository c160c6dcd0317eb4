"""The command about what defenses cost."""

from __future__ import annotations

from collections import defaultdict
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
    typer.echo(costs.render(records, _steps(folder, records), form))


def _steps(folder: Path, records: Sequence[Record]) -> dict[str, float]:
    """Give the seconds that the steps behind these records took, by stage; those whose artifacts are not here are left out."""
    from rapbench.artifacts import store_of

    store, seconds = store_of(folder), defaultdict[str, float](float)
    for key in sorted({key for one in records for key in one.artifacts.values()}):
        try:
            made = store.provenance(key)
        except StoreError:
            continue
        seconds[str(made["stage"])] += float(made["seconds"])
    return {stage: round(own, 3) for stage, own in sorted(seconds.items())}
