"""The commands about the RAP paper's studies and about results: probe, theorem, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from rapbench import cli_run
from rapbench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from rapbench.checks import CheckRecord
    from rapbench.probe import ProbeRecord

Results = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of `rapbench run --out`.")]
Form = Annotated[Literal["github", "latex", "csv", "json"], typer.Option("--format", help="How to print it.")]
Protocol = Annotated[Literal["paper", "strict"], typer.Option(help="By which protocol, for the paper's tables and figure.")]
TABLES = ("1", "2", "3", "4", "7", "8", "9", "10", "11", "12")
VICTIMS = ("datasets", "attacks")


def probe(
    grid: cli_run.Grid = None,
    dataset: cli_run.Datasets = None,
    attack: cli_run.Attacks = None,
    poisoned_on: cli_run.PoisonedOn = None,
    finetune: cli_run.Finetune = None,
    general: Annotated[
        str | None, typer.Option(help="General sentences: wikitext-103 (the hub's), or a local file (.txt, .csv, .tsv, .jsonl, .parquet).")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Texts per probe.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Words per made text.")] = None,
    victim: cli_run.Victim = None,
    seed: cli_run.Seeds = None,
    out: cli_run.Out = cli_run.OUT,
    executor: cli_run.Executor = "ray",
    threads: cli_run.Threads = 1,
    device: cli_run.Device = "auto",
    dry_run: cli_run.DryRun = False,
    as_json: cli_run.Json = False,
) -> None:
    """Probe backdoored victims with the trigger in their data set's texts, in general sentences, in random words (Table 1)."""
    from rapbench.probe import ProbeBlock, probes_of
    from rapbench.registry import discover
    from rapbench.report.probe import render

    registry = discover()
    given = {
        "datasets": dataset,
        "poisoned_on": poisoned_on,
        "finetune": finetune,
        "attacks": attack,
        "general": general,
        "count": count,
        "length": length,
        "victim": victim,
        "seeds": seed,
    }
    asked = probes_of(cli_run.blocks(grid, given, ProbeBlock, VICTIMS), registry)
    records = cli_run.finished(asked, registry, cli_run.Bench(out, executor, threads, device, dry_run, as_json))
    if records is not None:
        typer.echo(render(cast("list[ProbeRecord]", records), "json" if as_json else "github"))
        cli_run.end(records)


def theorem(
    grid: cli_run.Grid = None,
    dataset: cli_run.Datasets = None,
    attack: cli_run.Attacks = None,
    poisoned_on: cli_run.PoisonedOn = None,
    finetune: cli_run.Finetune = None,
    word: Annotated[str | None, typer.Option(help="The rare word whose embedding is the perturbation; cf by default.")] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Test texts per population, at most; 200 by default.")] = None,
    victim: cli_run.Victim = None,
    seed: cli_run.Seeds = None,
    out: cli_run.Out = cli_run.OUT,
    executor: cli_run.Executor = "ray",
    threads: cli_run.Threads = 1,
    device: cli_run.Device = "auto",
    dry_run: cli_run.DryRun = False,
    as_json: cli_run.Json = False,
) -> None:
    """Check on victims whether the condition of the RAP paper's Theorem 1, 2a*sigma(delta)/b < delta, holds."""
    from rapbench.checks import CheckBlock, checks_of
    from rapbench.registry import discover
    from rapbench.report.theorem import render

    registry = discover()
    given = {
        "datasets": dataset,
        "poisoned_on": poisoned_on,
        "finetune": finetune,
        "attacks": attack,
        "word": word,
        "texts": texts,
        "victim": victim,
        "seeds": seed,
    }
    asked = checks_of(cli_run.blocks(grid, given, CheckBlock, VICTIMS), registry)
    records = cli_run.finished(asked, registry, cli_run.Bench(out, executor, threads, device, dry_run, as_json))
    if records is not None:
        typer.echo(render(cast("list[CheckRecord]", records), "json" if as_json else "github"))
        cli_run.end(records)


def report(
    folder: Results,
    table: Annotated[
        str, typer.Option(help=f"cells, curves, probes, theorem, or a table of the RAP paper: {', '.join(TABLES)}; paper: all of them.")
    ] = "cells",
    form: Form = "github",
    protocol: Protocol = "paper",
    figure: Annotated[
        Path | None, typer.Option(help="Draw FAR against FRR (the paper's Figure 3) into this .svg, .png or .pdf file instead.")
    ] = None,
) -> None:
    """Print what is in a results folder: its cells, or the RAP paper's tables from them."""
    from rapbench import results
    from rapbench.probe import ProbeRecord

    records, probes = results.read_all(folder, results.Record), results.read_all(folder, ProbeRecord)
    if not records and not probes and table != "theorem":
        raise StoreError(f"no results in {str(folder)!r}: give the folder of `rapbench run --out`")
    if figure is not None:
        from rapbench.report.curves import draw

        draw(results.read_all(folder, results.Curve), figure, protocol)
        typer.echo(f"{figure}")
        return
    if table in ("paper", *TABLES):
        from rapbench.report.layout import paper_table

        numbers = TABLES if table == "paper" else (table,)
        typer.echo("\n\n".join(paper_table(int(number), records, probes, _tabular(form), protocol=protocol) for number in numbers))
        return
    typer.echo(_shown(folder, records, probes, table, form))


def compare(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder of `rapbench run --out`.")],
    paper: Annotated[bool, typer.Option("--paper", help="Lay the RAP paper's own figures beside ours, and test its shape claims.")] = False,
    form: Annotated[Literal["github", "csv", "json"], typer.Option("--format", help="How to print it.")] = "github",
    protocol: Protocol = "paper",
) -> None:
    """Compare a results folder with published figures."""
    from rapbench import results
    from rapbench.probe import ProbeRecord
    from rapbench.report import claims
    from rapbench.report import compare as comparison

    if not paper:
        raise SpecError("compare with what? --paper compares with the RAP paper, the only published figures that there are")
    records, probes = results.read_all(folder, results.Record), results.read_all(folder, ProbeRecord)
    if not records and not probes:
        raise StoreError(f"no results in {str(folder)!r}: give the folder of `rapbench run --out`")
    typer.echo(
        comparison.render(comparison.compare(records, probes, protocol=protocol), claims.claims(records, probes, protocol=protocol), form)
    )


def _tabular(form: str) -> Any:
    if form == "json":
        raise SpecError("the paper's tables are printed as github, latex or csv: for json give --table cells")
    return form


def _shown(folder: Path, records: Any, probes: Any, table: str, form: Any) -> str:
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
    raise SpecError(unknown("table", table, ["cells", "curves", "probes", "theorem", "paper", *TABLES]))
