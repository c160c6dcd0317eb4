"""The commands for a model in use: guard fit, guard score; and for what a results folder holds: explain, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from rapbench import cli_run
from rapbench.cli_run import Json
from rapbench.errors import DataError, SpecError

if TYPE_CHECKING:
    from rapbench.guard import Guard
    from rapbench.guards import Guards
    from rapbench.judge import Explanation

MOST_LINE = 64 << 20
"""Bytes of a line of input."""
SHOWN, SHOWN_ALONE = 60, 400
"""Characters of a text in a column of a table, and on a line of its own."""

Victim = Annotated[Path, typer.Option(help="The folder of the received model: safetensors, config.json, tokenizer.")]
Heldout = Annotated[
    str, typer.Option(metavar="FILE|SPEC", help="Clean labelled texts: a .csv, .tsv, .jsonl or .parquet file (text, label), or a data set.")
]
Defense = Annotated[str, typer.Option(help="A defense spec, like rap or strip:copies=20.")]
Frr = Annotated[float, typer.Option(help="The share of clean protect-label texts that may be rejected, in (0, 1).")]
Protect = Annotated[
    str,
    typer.Option("--protect-label", metavar="LABEL|all", help="The label that an attacker would want, from 0; all: each label in turn."),
]
SkipFew = Annotated[bool, typer.Option("--skip-few", help="Of all labels, leave unwatched those that have too few held-out texts.")]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The guard's folder: new, empty, or a guard's of that kind.")]
Protocol = Annotated[Literal["strict", "paper"], typer.Option(help="How the threshold is taken; strict keeps to the allowed FRR.")]
Seed = Annotated[int, typer.Option(help="Seed of the fit.")]
Length = Annotated[int, typer.Option("--max-length", min=1, help="Tokens of a text that the model reads, as where it is deployed.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Place = Annotated[Path, typer.Argument(metavar="GUARD", help="A folder of `rapbench guard fit`.")]
Moved = Annotated[Path | None, typer.Option("--victim", help="Where the victim is now, if not where it was.")]
Plain = Annotated[bool, typer.Option("--plain", help="Each line is a text as it stands, not JSON.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts that are judged together; 1 answers each line at once, and slowly.")]
Texts = Annotated[list[str] | None, typer.Option("--text", help="A text to explain; repeatable.")]
Which = Annotated[str | None, typer.Argument(metavar="[CELL]", help="The name of a file in DIR/cells, or the beginning of one.")]
Results = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of `rapbench run --out`.")]
Exported = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The victim's folder: new or empty.")]

guard = typer.Typer(no_args_is_help=True, help="Fit a defense on a model that you received, and ask it about texts.")


@guard.command()
def fit(
    victim: Victim,
    heldout: Heldout,
    protect_label: Protect,
    out: Folder,
    defense: Defense = "rap",
    frr: Frr = 0.01,
    protocol: Protocol = "strict",
    seed: Seed = 1234,
    max_length: Length = 512,
    skip_few: SkipFew = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit a defense on a received model with clean held-out texts, and keep it in a folder."""
    from rapbench.guard import Asked, Guard
    from rapbench.guards import Guards
    from rapbench.heldout import heldout_texts

    _quiet()
    label = _label(protect_label, skip_few=skip_few)
    asked = Asked(defense=defense, frr=frr, protocol=protocol, seed=seed, max_length=max_length)
    texts, own = heldout_texts(heldout), cli_run.device(device)
    if label is None:
        every = Guards.fit(victim, texts, asked, skip_few=skip_few, device=own)
        every.save(out)
        typer.echo(_json_of_all(every, out) if as_json else _told_of_all(every, out))
        return
    fitted = Guard.fit(victim, texts, asked.protecting(label), device=own)
    fitted.save(out)
    typer.echo((out / "guard.json").read_text(encoding="utf-8").rstrip() if as_json else _told(fitted, out))


@guard.command()
def score(folder: Place, victim: Moved = None, plain: Plain = False, batch: Batch = 256, device: Device = "auto") -> None:
    """Read texts from stdin, one per line, and write a verdict for each, as JSON, in order."""
    from rapbench.guards import load

    _quiet()
    loaded = load(folder, victim, device=cli_run.device(device))
    for number, verdict in enumerate(loaded.stream(lines(sys.stdin.buffer, plain=plain), batch), start=1):
        print(json.dumps(verdict.plain(), allow_nan=False), flush=number % batch == 0)


def explain(
    folder: Results,
    cell: Which = None,
    text: Texts = None,
    dataset: Annotated[str | None, typer.Option(help="The cell's data set: its name or spec.")] = None,
    attack: Annotated[str | None, typer.Option(help="Its attack.")] = None,
    defense: Annotated[str | None, typer.Option(help="Its defense.")] = None,
    frr: Annotated[float | None, typer.Option(help="Its allowed FRR.")] = None,
    protocol: Annotated[Literal["strict", "paper"] | None, typer.Option(help="Its protocol.")] = None,
    seed: Annotated[int | None, typer.Option(help="Its seed.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say why a cell's defense accepts or rejects a text: fit it again, as the run did, and ask it."""
    from rapbench.explain import choose, judge_of

    if not text:
        raise DataError('no text to explain: give --text "..."')
    asked = {"dataset": dataset, "attack": attack, "defense": defense, "frr": frr, "protocol": protocol, "seed": seed}
    record = choose(folder, cell, asked)
    typer.echo(f"fitting {record.defense} again, as the run did", err=True)
    _quiet()
    judge = judge_of(record, folder, device=cli_run.device(device))
    found = [judge.explain(one) for one in text]
    if as_json:
        typer.echo(json.dumps({"cell": record.file_name, "explanations": [one.plain() for one in found]}, indent=1, allow_nan=False))
        return
    typer.echo(f"cell: {record.file_name}")
    for one in found:
        typer.echo("\n" + explained(one))


def export(
    folder: Results,
    out: Exported,
    cell: Which = None,
    dataset: Annotated[str | None, typer.Option(help="The victim's data set: its name or spec.")] = None,
    attack: Annotated[str | None, typer.Option(help="Its attack.")] = None,
    seed: Annotated[int | None, typer.Option(help="Its seed.")] = None,
) -> None:
    """Write a victim of a results folder into a folder of its own, with a card that says that it is backdoored."""
    from rapbench.explain import choose
    from rapbench.export import export_victim

    record = choose(folder, cell, {"dataset": dataset, "attack": attack, "seed": seed}, any_defense=True)
    export_victim(record, folder, out)
    typer.echo(f"{out}: {record.attack} on {record.dataset}, seed {record.seed}")


def lines(stream: BinaryIO, *, plain: bool) -> Iterator[str]:
    """Give the text of each line: of JSON, a string or the member `text` of an object; a DataError names the line that is none."""
    number = 0
    while line := stream.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            raise DataError(f"line {number} is longer than {MOST_LINE >> 20} MiB: one text per line")
        try:
            content = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            found = content if plain else json.loads(content)
        except (ValueError, RecursionError) as error:
            what = "no UTF-8" if isinstance(error, UnicodeDecodeError) else 'no JSON: write {"text": ...}, or give --plain'
            raise DataError(f"line {number} is {what}") from None
        text = found.get("text") if isinstance(found, dict) else found
        if not isinstance(text, str):
            raise DataError(f'line {number} has no text: write {{"text": ...}} or a JSON string, or give --plain')
        yield text


def explained(one: Explanation) -> str:
    """Give an explanation in words and tables."""
    verdict = one.verdict
    head = [
        ["text", _short(one.text, SHOWN_ALONE)],
        ["prediction", f"label {verdict.prediction} ({verdict.probability:.4f})"],
        ["gate", "passed: it is the protect label" if verdict.passed_gate else "not the protect label: accepted, the defense is not asked"],
    ]
    if verdict.suspicion is not None:
        at = "none: too few held-out texts, nothing is rejected" if verdict.threshold is None else f"{verdict.threshold:.6g}"
        head += [["suspicion", f"{verdict.suspicion:.6g}"], ["threshold", at]]
    head += [["verdict", "accepted" if verdict.accepted else "rejected"]]
    plain = [[name, _cell(value, SHOWN_ALONE)] for name, value in one.details.items() if not _is_table(value)]
    tables = [(name, value) for name, value in one.details.items() if _is_table(value)]
    return "\n".join([_table([*head, *plain]), *(f"\n{name}:\n{_rows(value)}" for name, value in tables)])


def _told(fitted: Guard, out: Path) -> str:
    about = fitted.about
    terms = about.terms
    rows = [
        ["guard", str(out)],
        ["victim", f"{about.victim} ({about.victim_digest})"],
        ["defense", terms.defense],
        ["protect label", str(terms.protect_label)],
        ["allowed FRR", f"{terms.frr:g} ({terms.protocol})"],
        ["threshold", f"{about.threshold:.6g}"],
        ["taken on", f"{about.n_calibration} of {about.n_heldout} held-out texts, of which it rejects {about.frr_calibration:.2%}"],
    ]
    return _table(rows)


def _told_of_all(fitted: Guards, out: Path) -> str:
    about = fitted.about
    asked = about.asked
    head = [
        ["guard", str(out)],
        ["victim", f"{about.victim} ({about.victim_digest})"],
        ["defense", asked.defense],
        ["protect label", "each in turn"],
        ["allowed FRR", f"{asked.frr:g} ({asked.protocol}), of each label"],
    ]
    if about.unwatched:
        head.append(["unwatched, for want of texts", ", ".join(map(str, about.unwatched))])
    own = [one.about for one in fitted.guards.values()]
    rows = [[str(one.terms.protect_label), f"{one.threshold:.6g}", str(one.n_calibration), f"{one.frr_calibration:.2%}"] for one in own]
    return f"{_table(head)}\n\n{_table(rows, ['label', 'threshold', 'taken on texts', 'of which it rejects'])}"


def _json_of_all(fitted: Guards, out: Path) -> str:
    """Give guards.json with what each label's guard.json tells, as `guards`."""
    index = json.loads((out / "guards.json").read_bytes())
    told = [json.loads((out / f"label-{label}" / "guard.json").read_bytes()) for label in fitted.labels]
    return json.dumps({**index, "guards": told}, indent=1, sort_keys=True)


def _label(asked: str, *, skip_few: bool) -> int | None:
    """Give the protect label that was asked for, None for all of them."""
    if asked == "all":
        return None
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise SpecError(f"protect label {asked!r} is neither a number from 0 nor all")
    if skip_few:
        raise SpecError("--skip-few goes with --protect-label all")
    return int(asked)


def _quiet() -> None:
    """Keep bars and advice of libraries out of the output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _rows(rows: list[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    return _table([[_cell(row.get(name, "")) for name in heads] for row in rows], heads)


def _cell(value: Any, most: int = SHOWN) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _short(value if isinstance(value, str) else json.dumps(value), most)


def _short(text: str, most: int) -> str:
    """Give text without what a terminal would obey, and not without end."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in text[:most])
    return shown + ("..." if len(text) > most else "")


def _table(rows: list[list[str]], heads: list[str] | None = None) -> str:
    from tabulate import tabulate

    return tabulate(rows, heads or (), tablefmt="simple" if heads else "plain", disable_numparse=True)
