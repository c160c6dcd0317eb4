"""All attacks against all defenses as one table per data set. Figures are worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import COST, RECORD

from rapbench import cli_report, results
from rapbench.errors import SpecError, StoreError
from rapbench.report import matrix
from rapbench.report.marks import Marks
from rapbench.results import Record

KNOWN = Marks({"rap": "", "strip": "", "cube": "", "noise": "floor"})
WHY = "seer looks for the words of a trigger, and ep declares none"


def skipped(one: Record, reason: str = WHY) -> Record:
    bare = {"far": None, "auroc": None, "asr": None, "asr_defended": None, "cost": None, "intervals": {}}
    return replace(one, status="skipped", reason=reason, **bare)


OWN = [
    RECORD,  # rap against badnet-rw: FAR 3 % at 1 %, AUROC 0.99, ASR 98 % and 3 %, 2 rows, 2 times
    replace(RECORD, frr=0.05, far=0.01),
    replace(RECORD, attack="ep", far=0.5, auroc=0.75, asr=0.9, asr_defended=0.45, cost=replace(COST, victim_rows_per_input=4.0, ratio=3.0)),
    replace(RECORD, attack="ep", frr=0.05, far=0.25),
    replace(RECORD, defense="noise", far=0.99, auroc=0.5, asr_defended=0.97, cost=replace(COST, helper_rows_per_input={"lm": 30.0})),
    skipped(replace(RECORD, defense="noise", attack="ep")),
    skipped(replace(RECORD, defense="noise", attack="ep", frr=0.05)),
    replace(RECORD, attack="clean", far=None, auroc=None, asr=0.02, asr_control=None, asr_defended=None),
]


def table(text: str, number: int = 0) -> list[list[str]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for place, line in enumerate(blocks[number]) if place != 1]


def shown(*records: Record, form: str = "github", protocol: str = "paper") -> str:
    return matrix.render(records, form, protocol, KNOWN)


def test_each_block_has_a_row_per_defense_and_a_column_per_attack() -> None:
    text = shown(*OWN)
    assert text.startswith("**imdb**\n")
    assert table(text) == [
        ["figure", "defense", "badnet-rw", "ep", "rows/text", "x time"],
        ["ASR", "none", "98.0", "90.0", "1.0", "1.0"],
        ["AUROC", "rap", "0.990", "0.750", "3.0", "2.5"],  # rows (2 + 4) / 2, time (2 + 3) / 2
        ["", "noise (floor)", "0.500", "- [1]", "2.0 + 30.0", "2.0"],
        ["FRR at 1 %", "rap", "1.2", "1.2", "3.0", "2.5"],
        ["", "noise (floor)", "1.2", "- [1]", "2.0 + 30.0", "2.0"],
        ["FAR at 1 %", "rap", "3.0", "50.0", "3.0", "2.5"],
        ["", "noise (floor)", "99.0", "- [1]", "2.0 + 30.0", "2.0"],
        ["FAR at 5 %", "rap", "1.0", "25.0", "3.0", "2.5"],
        ["", "noise (floor)", "", "- [1]", "2.0 + 30.0", "2.0"],  # 5 % is not in its grid
        ["ASR after, 1 %", "rap", "3.0", "45.0", "3.0", "2.5"],
        ["", "noise (floor)", "97.0", "- [1]", "2.0 + 30.0", "2.0"],
    ]
    assert text.splitlines()[-1] == f"- [1] skipped: {WHY}"
    assert text.count(WHY) == 1
    assert "Protocol `paper`." in text
    assert "neither is a contender" in text


def test_each_data_set_has_a_table_and_footnotes_are_numbered_once() -> None:
    other = skipped(replace(RECORD, dataset="yelp", attack="ep"), reason="another")
    text = shown(*OWN, replace(RECORD, dataset="yelp"), other, skipped(replace(RECORD, dataset="yelp", defense="noise", attack="ep")))
    assert [line for line in text.splitlines() if line.startswith("**")] == ["**imdb**", "**yelp**"]
    assert table(text, 1)[2] == ["AUROC", "rap", "0.990", "- [2]", "2.0", "2.0"]
    assert table(text, 1)[3] == ["", "noise (floor)", "", "- [1]", "--", "--"]


def test_a_figure_is_the_mean_over_seeds() -> None:
    own = [replace(RECORD, seed=seed, far=far, asr=asr) for seed, far, asr in ((1, 0.1, 0.9), (2, 0.3, 1.0))]
    rows = table(shown(*own))
    assert (rows[1][2], rows[4][2]) == ("95.0", "20.0")


def test_a_filter_has_its_one_far_under_every_allowed_frr() -> None:
    own = [replace(RECORD, defense="cube", threshold=None, far=0.2, frr=frr) for frr in (0.005, 0.01)]
    rows = table(shown(*OWN, *own))
    assert [row[2] for row in rows if row[1] == "cube"] == ["0.990", "1.2", "20.0", "20.0", "3.0"]


def test_without_one_per_cent_the_nearest_allowed_frr_stands_for_it() -> None:
    rows = table(shown(replace(RECORD, frr=0.03)))
    assert [row[0] for row in rows[1:]] == ["ASR", "AUROC", "FRR at 3 %", "FAR at 3 %", "ASR after, 3 %"]


def test_many_attacks_go_on_in_a_second_table_with_all_rows() -> None:
    text = shown(*(replace(RECORD, attack=f"a{n:02}") for n in range(13)))
    assert [line for line in text.splitlines() if line.startswith("**")] == [
        "**imdb, attacks 1 to 6 of 13**",
        "**imdb, attacks 7 to 13 of 13**",
    ]
    assert table(text, 0)[0][2:-2] == [f"a{n:02}" for n in range(6)]
    assert table(text, 1)[0][2:-2] == [f"a{n:02}" for n in range(6, 13)]
    assert len(table(text, 0)) == len(table(text, 1)) == 6


def test_what_could_not_be_counted_is_two_dashes() -> None:
    rows = table(shown(RECORD, replace(RECORD, attack="ep", far=None, asr_defended=None)))
    assert [row[3] for row in rows[1:]] == ["98.0", "0.990", "1.2", "--", "--"]


def test_what_poisons_nothing_has_no_column_though_a_cell_of_it_was_skipped() -> None:
    clean = replace(RECORD, attack="clean", far=None, auroc=None, asr_defended=None)
    text = shown(RECORD, clean, skipped(replace(clean, defense="noise")))
    assert table(text)[0] == ["figure", "defense", "badnet-rw", "rows/text", "x time"]
    assert WHY not in text


def test_an_attack_that_never_works_keeps_its_column() -> None:
    failing = replace(RECORD, attack="ep", asr=0.0, far=None, auroc=None, asr_defended=0.0)  # no triggered text passes the gate
    rows = table(shown(RECORD, failing))
    assert rows[0][2:4] == ["badnet-rw", "ep"]
    assert [row[3] for row in rows[1:]] == ["0.0", "--", "1.2", "--", "0.0"]


def test_csv_and_json_have_a_row_per_meeting_in_fractions_with_intervals() -> None:
    rows = list(csv.DictReader(io.StringIO(shown(*OWN, form="csv"))))
    told = json.loads(shown(*OWN, form="json"))["matrix"]
    assert [(row["attack"], row["defense"], row["mark"]) for row in rows] == [
        ("badnet-rw", "rap", "contender"), ("badnet-rw", "noise (floor)", "floor"),
        ("ep", "rap", "contender"), ("ep", "noise (floor)", "floor"),
    ]  # fmt: skip
    assert [rows[0][name] for name in ("far_allowed_1", "far_allowed_1_low", "far_allowed_1_high", "far_allowed_5", "asr_defended")] == [
        "0.03", "0.017", "0.052", "0.01", "0.03",
    ]  # fmt: skip
    assert (rows[3]["reason"], rows[3]["far_allowed_1"], rows[1]["far_allowed_5"]) == (f"skipped: {WHY}", "", "")
    assert [list(one) for one in told] == [list(rows[0])] * 4
    assert (told[1]["helper_rows_per_input"], told[2]["cost_ratio"], told[3]["auroc"]) == (30.0, 3.0, None)


def test_latex_has_the_same_rows_and_the_reasons_in_comments() -> None:
    text = shown(*OWN, form="latex")
    assert [line.split("&")[1].strip() for line in text.splitlines() if line.startswith(" AUROC")] == ["rap"]
    assert text.splitlines()[-1] == f"% [1] skipped: {WHY}"
    assert text.count(r"\begin{tabular}") == 1


def test_a_hostile_name_or_reason_breaks_no_table() -> None:
    bad = "a|b\n<script>{frr}"
    text = shown(replace(RECORD, attack=bad, defense=bad), skipped(replace(RECORD, attack="ep"), reason=bad))
    assert "<script>" not in text
    assert {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")} == {7}
    lines = shown(skipped(RECORD, reason=bad), form="latex").splitlines()
    assert all(line.startswith("%") for line in lines if "script" in line)


def test_the_command_takes_protocol_and_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write([*OWN, replace(RECORD, protocol="strict", far=0.125)], tmp_path)
    cli_report.report(tmp_path, table="matrix", protocol="strict")
    printed = capsys.readouterr().out
    assert table(printed)[4][:3] == ["FAR at 1 %", "rap", "12.5"]
    assert "Protocol `strict`." in printed
    cli_report.report(tmp_path, table="matrix", form="json")
    assert len(json.loads(capsys.readouterr().out)["matrix"]) == 4
    with pytest.raises(SpecError, match=r"^unknown table 'matrx', did you mean 'matrix'\?"):
        cli_report.report(tmp_path, table="matrx")


def test_a_protocol_without_cells_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"^no cell of the protocol strict here: give the other --protocol$"):
        shown(RECORD, protocol="strict")
