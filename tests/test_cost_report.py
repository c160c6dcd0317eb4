"""`rapbench cost`: one row per defense and victim, by length, summed, drawn; what has no cost has a row with its reason."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rapbench import results
from rapbench.cost import Cost, Spread, Timed
from rapbench.errors import StoreError
from rapbench.report.cost import HEADS, draw, lengths, measurements, render, totals, unmeasured
from rapbench.results import Record

COST = Cost(
    inputs=10,
    fit_s=2.0,
    fit_rows={"victim": 40},
    fit_tokens={"victim": 1234},
    victim_rows_per_input=2.0,
    victim_tokens_per_input=60.0,
    helper_rows_per_input={"lm": 31.0},
    helper_tokens_per_input={"lm": 930.0},
    flops_per_input=3e9,
    plain_flops_per_input=1e9,
    ms_per_input=Spread(8.0, 7.0, 9.0),
    plain_ms_per_input=Spread(2.0, 2.0, 2.0),
    ratio=4.0,
    samples_ms=(7.0, 8.0, 9.0),
    by_length=(Timed(10, 6, 0.004, 0.001), Timed(40, 4, 0.012, 0.004)),
    fit_peak_mib=900.0,
    peak_mib=700.0,
    start_mib=500.0,
    seconds=3.0,
)
OK = Record(dataset="imdb", attack="ep", defense="rap", victim="tiny", seed=1, frr=0.01, protocol="paper", status="ok", cost=COST)
FAILED = replace(OK, defense="strip", status="failed", reason="no source |\ntext", cost=None)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_defense_on_a_victim_is_one_row_whatever_the_frr_and_protocol() -> None:
    later = replace(OK, frr=0.05, cost=replace(COST, victim_rows_per_input=9.0))
    strict = replace(OK, protocol="strict", frr=0.001)
    assert [(one.record.frr, one.cost.victim_rows_per_input) for one in measurements([later, strict, OK])] == [(0.01, 2.0)]


def test_the_table_has_every_figure() -> None:
    text = render([OK], {}, "github")
    figures = ("2.000", "31.0 lm", "930 lm", "| 3 ", "3.00", "8.00 [7.00, 9.00]", "4.00", "40 victim", "1234 victim", "900 (500)", "700")
    for figure in figures:
        assert figure in text, figure
    assert "Together 1 fits in 2.0 s; 10 inputs: 20 victim rows, 310 helper rows, 0.03 TFLOP" in text


def test_tokens_that_an_older_result_lacks_are_no_zero() -> None:
    def fit(**changes: object) -> str:
        row = render([replace(OK, cost=replace(COST, **changes))], {}, "github").splitlines()[2]
        return row.split("|")[HEADS.index("fit tokens") + 1].strip()

    assert [fit(), fit(fit_tokens={}), fit(fit_tokens={}, fit_rows={})] == ["1234 victim", "--", "0"]


def test_what_has_no_cost_keeps_its_row_with_the_reason() -> None:
    assert unmeasured([OK, FAILED, replace(FAILED, frr=0.05)]) == [replace(FAILED, frr=0.05)]
    assert "failed: no source \\| text" in render([OK, FAILED], {}, "github")
    assert [(row["defense"], row["status"], row["reason"]) for row in rows_of(render([OK, FAILED], {}, "csv"))] == [
        ("rap", "ok", ""),
        ("strip", "failed", FAILED.reason),
    ]
    assert json.loads(render([OK, FAILED], {}, "json"))["without"][0]["defense"] == "strip"


def test_a_failed_cell_beside_a_measured_one_is_no_second_row() -> None:
    assert unmeasured([OK, replace(OK, frr=0.005, status="failed", cost=None)]) == []


def test_lengths_are_pooled_over_victims() -> None:
    other = replace(OK, attack="badnet-rw", cost=replace(COST, by_length=(Timed(12, 2, 0.008, 0.003),)))
    got = lengths(measurements([OK, other]))
    # (10 * 6 + 12 * 2) / 8 words, (4 * 6 + 8 * 2) / 8 ms, (1 * 6 + 3 * 2) / 8 ms
    assert got == {"rap": [Timed(10.5, 8, 0.005, 0.0015), Timed(40, 4, 0.012, 0.004)]}
    printed = [[part.strip() for part in line.split("|")[1:-1]] for line in render([OK, other], {}, "github").splitlines()]
    assert ["1-15", "rap", "8", "1.50", "6.50", "4.33"] in printed


def test_the_sums_weigh_by_inputs() -> None:
    got = totals(measurements([OK, replace(OK, defense="strip", cost=replace(COST, inputs=5, helper_rows_per_input={}))]))
    assert (got["inputs"], got["victim_rows"], got["helper_rows"], got["flops"], got["fit_s"]) == (15, 30.0, 310.0, 45e9, 4.0)


def test_the_csv_reads_back() -> None:
    (row,) = rows_of(render([OK], {}, "csv"))
    assert (row["ratio"], row["ms_median"], row["plain_ms_high"], row["helper_rows"], row["peak_mib"]) == (
        "4.0",
        "8.0",
        "2.0",
        "31.0",
        "700.0",
    )


def test_the_seconds_of_all_steps_are_told_by_stage() -> None:
    assert "All steps 12.5 s: score 2.5, victim 10.0." in render([OK], {"score": 2.5, "victim": 10.0}, "github")


def test_the_picture_is_the_same_file_from_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw([OK, replace(OK, defense="strip:copies=5")], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"words per text" in (tmp_path / "a.svg").read_bytes() or (tmp_path / "a.svg").stat().st_size > 10_000


def test_without_any_cost_there_is_nothing_to_draw_or_print(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no costs"):
        draw([FAILED], tmp_path / "a.svg")
    with pytest.raises(StoreError, match="no costs"):
        render([], {}, "github")


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rapbench.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_prints_a_results_folder(tmp_path: Path) -> None:
    results.write([OK], tmp_path)
    ran = cli("cost", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Together 1 fits" in ran.stdout
    nothing = cli("cost", tmp_path / "no")
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (2, 1)


def test_pytest_benchmark_compares_the_export(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "0001_grid.json").write_text(render([OK], {}, "pytest-benchmark"))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(tmp_path / "0001_grid.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "rap[tiny-1]" in ran.stdout
