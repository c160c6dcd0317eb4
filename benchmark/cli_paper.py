"""The commands about the RAP paper's studies: probe, theorem, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from rapbench import cli_run
from rapbench.cli_report import Protocol
from rapbench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from rapbench.checks import CheckRecord
    from rapbench.probe import ProbeRecord

VICTIMS = ("datasets", "attacks")


@cli_run.computes
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
    *,
    bench: cli_run.Bench,
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
    records = cli_run.finished(asked, registry, bench)
    if records is not None:
        typer.echo(render(cast("list[ProbeRecord]", records), "json" if bench.as_json else "github"))
        cli_run.end(records)


@cli_run.computes
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
    *,
    bench: cli_run.Bench,
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
    records = cli_run.finished(asked, registry, bench)
    if records is not None:
        typer.echo(render(cast("list[CheckRecord]", records), "json" if bench.as_json else "github"))
        cli_run.end(records)


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
