"""The commands that show results: report and plot."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapbench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rapbench.probe import ProbeRecord
    from rapbench.results import Record

Results = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of `rapbench run --out`.")]
Form = Annotated[Literal["github", "latex", "csv", "json", "html"], typer.Option("--format", help="How to print it; html: one page.")]
Protocol = Annotated[Literal["paper", "strict"], typer.Option(help="By which protocol, for tables and figures of one alone.")]
TABLES = ("1", "2", "3", "4", "7", "8", "9", "10", "11", "12")


def report(
    folder: Results,
    table: Annotated[
        str,
        typer.Option(help=f"cells, matrix, axes, curves, probes, theorem; the RAP paper's: {', '.join(TABLES)}; paper: all of those."),
    ] = "cells",
    form: Form = "github",
    protocol: Protocol = "paper",
    figure: Annotated[
        Path | None, typer.Option(help="Draw FAR against FRR (the paper's Figure 3) into this .svg, .png or .pdf file instead.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write into this file instead of printing.")] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="[SECONDS]", help="Write --output again as results come, until the run has ended; looked for every 5 s."
        ),
    ] = None,
    texts: Annotated[bool, typer.Option("--texts/--no-texts", help="Quote example texts of the data sets in the page.")] = True,
) -> None:
    """Show what is in a results folder: its cells, the RAP paper's tables from them, or all of it as an HTML page."""
    from rapbench.status import to_come

    if watch is not None and (output is None or figure is not None):
        raise SpecError("--watch writes one file again and again: give --output, and no --figure")
    if figure is not None:
        _draw(folder, figure, protocol)
        return
    if form == "html":
        _check_page(table, output)

    def text(refresh_s: float = 0.0) -> str:
        if form != "html":
            return _text(folder, table, form, protocol)
        from rapbench.report.html import page

        return page(folder, protocol, remark=to_come(folder), refresh_s=math.ceil(refresh_s), texts=texts)

    if watch is not None and output is not None:
        from rapbench import watching
        from rapbench.artifacts import write_atomically

        file, every_s = output, watch
        watching.watch(folder, lambda again: write_atomically(file, text(every_s if again else 0.0) + "\n"), every_s, _say)
        return
    _give(text(), output)
    if form != "html" and (remark := to_come(folder)):
        _say(remark)


def plot(
    folder: Results,
    names: Annotated[list[str] | None, typer.Argument(metavar="FIGURE", help="Which figures; all by default.")] = None,
    form: Annotated[Literal["svg", "png", "pdf"], typer.Option("--format", help="The kind of the files.")] = "svg",
    protocol: Protocol = "paper",
    output: Annotated[Path, typer.Option(help="The folder that they are written into; made where there is none.")] = Path("figures"),
) -> None:
    """Draw the figures of the HTML page into files: heatmap, choice, curves, suspicion, length, axes."""
    from rapbench.artifacts import make_folder
    from rapbench.report.figures import sheet
    from rapbench.report.pictures import asked

    made = asked(folder, protocol, names)
    make_folder(output, "--output")
    for picture in made:
        file = output / f"{picture.name}.{form}"
        sheet(picture, file)
        typer.echo(f"{file}")


def _say(line: str) -> None:
    typer.echo(f"rapbench: {line}", err=True)


def _draw(folder: Path, figure: Path, protocol: Literal["paper", "strict"]) -> None:
    """Draw the curves of a results folder into a file."""
    from rapbench import results
    from rapbench.report.curves import draw

    curves = results.read_all(folder, results.Curve)
    if not curves:
        results.read(folder)  # a folder without results is told as such
    draw(curves, figure, protocol)
    typer.echo(f"{figure}")


def _check_page(table: str, output: Path | None) -> None:
    if table != "cells":
        raise SpecError(f"the page holds all tables: leave --table {table} out, or give another --format")
    if output is None and sys.stdout.isatty():
        raise SpecError("a page is not for the terminal: give --output report.html, or send it into a file")


def _give(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {str(output)!r}: {error.strerror or error}; choose another --output") from None
    typer.echo(f"{output}")


def _text(folder: Path, table: str, form: Any, protocol: Literal["paper", "strict"]) -> str:
    from rapbench import results
    from rapbench.probe import ProbeRecord

    records, probes = results.read_all(folder, results.Record), results.read_all(folder, ProbeRecord)
    if not records and not probes and table != "theorem":
        raise StoreError(f"no results in {str(folder)!r}: give the folder of `rapbench run --out`")
    if table in ("paper", *TABLES):
        from rapbench.report.layout import paper_table

        numbers = TABLES if table == "paper" else (table,)
        return "\n\n".join(paper_table(int(number), records, probes, _tabular(form), protocol=protocol) for number in numbers)
    if table in ("matrix", "axes"):
        return _overview(folder, records, table, form, protocol)
    return _shown(folder, records, probes, table, form)


def _overview(folder: Path, records: Sequence[Record], table: str, form: str, protocol: Literal["paper", "strict"]) -> str:
    from rapbench.report import axes, matrix

    if not records:
        raise StoreError(f"no cells in {str(folder)!r}: give the folder of `rapbench run --out`")
    return matrix.render(records, form, protocol) if table == "matrix" else axes.render(records, form, protocol)


def _tabular(form: str) -> Any:
    if form == "json":
        raise SpecError("the paper's tables are printed as github, latex or csv: for json give --table cells")
    return form


def _shown(folder: Path, records: Sequence[Record], probes: Sequence[ProbeRecord], table: str, form: Any) -> str:
    from rapbench import results
    from rapbench.registry import unknown

    if table == "cells" and records:
        from rapbench.report.tables import render

        return render(records, form)
    if table == "probes" or (table == "cells" and probes):
        from rapbench.report import probe

        return probe.render(probes, form)
    if table == "curves":
        from rapbench.report import curves

        return curves.render(results.read_all(folder, results.Curve), form)
    if table == "theorem":
        from rapbench.checks import CheckRecord
        from rapbench.report import theorem as checks

        return checks.render(results.read_all(folder, CheckRecord), form)
    raise SpecError(unknown("table", table, ["cells", "matrix", "axes", "curves", "probes", "theorem", "paper", *TABLES]))
