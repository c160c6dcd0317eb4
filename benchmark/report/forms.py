"""How tables are written: GitHub Markdown, LaTeX (booktabs), CSV. Specs, reasons and texts of results are escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rapbench.errors import SpecError

MISSING = "--"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with to some spreadsheet; the last four are the full-width forms of the first four."""

TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "{}$&%#_"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "±": r"$\pm$",
    "†": r"\dag{}",
}


@dataclass(frozen=True)
class Entry:
    """One field of a table; `notes` become footnotes. Text, not yet escaped."""

    text: str
    bold: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Laid:
    """A table laid out, in no format yet. The first `labels` columns say what a row is."""

    number: int
    caption: str
    heads: Sequence[str]
    labels: int
    rows: Sequence[Sequence[Entry]]
    remarks: Sequence[str]
    made_with: str


def written(tables: Sequence[Laid], form: str) -> str:
    """Give the tables in a form: github, latex or csv."""
    if form not in WRITERS:
        raise SpecError(f"form {form!r} is unknown (there are: {', '.join(sorted(WRITERS))})")
    return WRITERS[form](tables)


@dataclass
class Footnotes:
    """Numbers reasons in the order of their first use; an equal reason has one number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def marks(self, notes: Iterable[str]) -> str:
        """Give the numbers of some notes, like `1,3`; empty where there are none."""
        return ",".join(str(self.numbers.setdefault(note, len(self.numbers) + 1)) for note in notes)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a GitHub table; the cells are escaped already (`md`)."""
    from tabulate import tabulate

    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def md(text: str) -> str:
    """Give text that is one line and no Markdown table, tag or comment by itself."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def tex(text: str) -> str:
    """Give text whose LaTeX specials are letters, on one line."""
    return "".join(TEX.get(sign, sign) for sign in " ".join(text.split()))


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give CSV: no text is a formula to a spreadsheet, no value is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_harmless(value) for value in row] for row in (heads, *rows))
    return stream.getvalue().removesuffix("\n")


def _github(tables: Sequence[Laid]) -> str:
    return "\n\n".join(_github_one(one) for one in tables)


def _github_one(laid: Laid) -> str:
    footnotes = Footnotes()
    rows = [[_md_entry(entry, footnotes) for entry in row] for row in _blanked(laid)]
    foot = [*(f"- {md(remark)}" for remark in laid.remarks), *(f"- [{number}] {md(note)}" for note, number in footnotes.numbers.items())]
    parts = [f"**Table {laid.number}.** {md(laid.caption)}", markdown([md(head) for head in laid.heads], rows), "\n".join(foot)]
    return "\n\n".join(part for part in parts if part)


def _md_entry(entry: Entry, footnotes: Footnotes) -> str:
    text = f"**{md(entry.text)}**" if entry.bold else md(entry.text)
    return f"{text} [{footnotes.marks(entry.notes)}]" if entry.notes else text


def _latex(tables: Sequence[Laid]) -> str:
    return "\n\n".join(["% needs \\usepackage{booktabs}", *(_latex_one(one) for one in tables)])


def _latex_one(laid: Laid) -> str:
    footnotes = Footnotes()
    lines = []
    for number, row in enumerate(_blanked(laid)):
        if number and row[0].text:
            lines.append(r"\midrule")
        lines.append(" & ".join(_tex_entry(entry, footnotes) for entry in row) + r" \\")
    numbered = (rf"\textsuperscript{{{number}}} {tex(note)}." for note, number in footnotes.numbers.items())
    foot = " ".join([*(f"{tex(remark)}." for remark in laid.remarks), *numbered])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{The paper's Table {laid.number}, our figures. {tex(laid.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * laid.labels}{'r' * (len(laid.heads) - laid.labels)}}}",
            r"\toprule",
            " & ".join(tex(head) for head in laid.heads) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip{{\footnotesize {foot}}}"] if foot else []),
            r"\end{table}",
        ]
    )


def _tex_entry(entry: Entry, footnotes: Footnotes) -> str:
    text = rf"\textbf{{{tex(entry.text)}}}" if entry.bold else tex(entry.text)
    return rf"{text}\textsuperscript{{{footnotes.marks(entry.notes)}}}" if entry.notes else text


def _blanked(laid: Laid) -> list[list[Entry]]:
    """Give the rows without the leading labels that the row above has already."""
    rows, above = [], [""] * laid.labels
    for row in laid.rows:
        labels = [entry.text for entry in row[: laid.labels]]
        same = 0
        while same < laid.labels - 1 and labels[same] == above[same]:
            same += 1
        rows.append([*[Entry("")] * same, *row[same:]])
        above = labels
    return rows


def _csv(tables: Sequence[Laid]) -> str:
    """Every row whole, a missing figure empty, and what footnotes would say in the last column."""
    heads = ["Table", "Made with", *tables[0].heads, "Notes"]
    rows = [[str(one.number), one.made_with, *_csv_row(one, row, first=row is one.rows[0])] for one in tables for row in one.rows]
    return csv_text(heads, rows)


def _csv_row(laid: Laid, row: Sequence[Entry], *, first: bool) -> list[str]:
    columns: dict[str, list[str]] = {}
    for head, entry in zip(laid.heads, row, strict=True):
        for note in entry.notes:
            columns.setdefault(" ".join(note.split()), []).append(head)
    notes = [f"{', '.join(heads)}: {note}" for note, heads in columns.items()]
    return [*("" if entry.text == MISSING else entry.text for entry in row), "; ".join([*notes, *(laid.remarks if first else [])])]


def _harmless(value: object) -> object:
    """Give a number or None as it is, and text such that no spreadsheet computes it: with an apostrophe before a formula's sign."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return ("'" if text.startswith(FORMULA) and not _is_number(text) else "") + text.replace("\r", " ")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


WRITERS: dict[str, Callable[[Sequence[Laid]], str]] = {"github": _github, "latex": _latex, "csv": _csv}
