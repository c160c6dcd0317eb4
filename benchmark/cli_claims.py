"""The command about published claims: list them, put ours beside them, compute their cells again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rapbench import cli_run
from rapbench.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rapbench.claims.again import Again
    from rapbench.claims.card import Card
    from rapbench.results import Named


@cli_run.computes
def claims(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RESULTS]...", help="Results folders of `rapbench run --out`, to take our figures from.")
    ] = None,
    paper: Annotated[
        list[str] | None, typer.Option(help="Only claims of this paper: its name or arXiv id, or a pattern; repeatable.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only claims whose id matches this pattern, like 'rap-imdb-*'; repeatable.")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute the cells of these claims into --out first, and put them beside.")
    ] = False,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="For --recompute: these options for this data set, attack or defense, like imdb:path=FOLDER; repeatable."
        ),
    ] = None,
    victim: Annotated[str | None, typer.Option(help="For --recompute: this victim instead of the claims' own.")] = None,
    write_grid: Annotated[
        Path | None, typer.Option(help="Instead of computing, write the cells as a grid for `rapbench run` into this file.")
    ] = None,
    form: Annotated[Literal["text", "json", "markdown"], typer.Option("--format", help="How to print it; --json is json.")] = "text",
    out_cards: Annotated[Path | None, typer.Option(help="Write each claim with ours as a JSON file into this folder, too.")] = None,
    *,
    bench: cli_run.Bench,
) -> None:
    """List published claims as data, put our figures beside them, compute again what can be computed here."""
    from rapbench.claims import render
    from rapbench.claims.again import Wish, again
    from rapbench.claims.beside import Held, beside
    from rapbench.claims.card import chosen, shipped

    form = "json" if bench.as_json else form
    cards = chosen(shipped(), paper or (), ids or ())
    computing = recompute or write_grid is not None
    if (own or victim) and not computing:
        raise SpecError("--with and --victim say how to compute: give --recompute or --write-grid, too")
    if out_cards is not None and (write_grid is not None or not (folders or recompute)):
        raise SpecError("--out-cards writes claims with ours beside them: give a results folder or --recompute, and no --write-grid")
    plan = again(cards, Wish.of(own or (), victim), offline=False if write_grid else None) if computing else None
    if plan is not None and write_grid is not None:
        _write_grid(plan, cards, write_grid)
        return
    if plan is None and not folders:
        typer.echo(render.listed(cards, form))
        return
    records = _computed(plan, bench) if plan is not None else ()
    if records is None:
        return
    held = Held.of([*(folders or ()), *([bench.out] if records else [])])
    found = [beside(card, held) for card in cards]
    typer.echo(render.compared(found, form, plan.left_out if plan else None))
    if out_cards is not None:
        render.write(found, out_cards)
    cli_run.end(records)


def _computed(plan: Again, bench: cli_run.Bench) -> Sequence[Named] | None:
    """Give the records of what can be computed, maybe of nothing; None after a dry run."""
    from rapbench.registry import discover

    registry = discover()
    asked = plan.asked(registry)
    if bench.dry_run:
        for name, reason in plan.left_out.items():
            typer.echo(f"rapbench: left out: {name}: {reason}", err=True)
    if asked:
        return cli_run.finished(asked, registry, bench)
    return None if bench.dry_run else ()


def _write_grid(plan: Again, cards: Sequence[Card], file: Path) -> None:
    """Write the cells; what is for another command than run is said on stderr, with its command."""
    from rapbench.artifacts import write_atomically

    if not plan.blocks.get("run"):
        first = ", ".join(f"{one.id} is for {f'`rapbench {one.command}`' if one.command else 'no grid'}" for one in cards[:3])
        raise SpecError(f"these claims have no cells for `rapbench run`: {first}")
    write_atomically(file, plan.grid())
    typer.echo(f"{file}")
    for card in cards:
        if card.command != "run":
            reason = plan.left_out.get(
                card.id, f"it is for `rapbench {card.command}`: compute it with `rapbench claims --id {card.id} --recompute`"
            )
            typer.echo(f"rapbench: not in the grid: {card.id}: {reason}", err=True)
