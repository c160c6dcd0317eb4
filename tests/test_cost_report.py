"""`rapbench cost`: one row per defense and victim, by length, summed, drawn; what has no cost has a row with its reason."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapbench import results
from rapbench.cost import Cost, Spread
from rapbench.errors import StoreError
from rapbench.lengths import Timed
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
TUNED = replace(OK, setting="fine-tuned", poisoned_on="yelp", tuning="tiny:epochs=1")


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """Give the rows of the first table, or a later one, of a printed report, by their heads."""
    lines = [part for part in text.split("\n\n") if part.startswith("|")][number].splitlines()
    heads, _, *rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(heads, row, strict=True)) for row in rows]


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


def test_the_mark_of_a_defense_that_failed_is_told_below_the_table() -> None:
    assert "not known whether they are floors or ceilings: stranger." in render([OK, replace(FAILED, defense="stranger")], {}, "github")


def test_texts_that_were_cut_and_memory_that_was_short_are_told_below_the_table_once() -> None:
    usual, short = replace(COST, longest_tokens=31, max_tokens=32), replace(COST, longest_tokens=32, max_tokens=32, batch_tokens=512)
    assert "at once" not in render([replace(OK, cost=usual)], {}, "github")
    told = render([replace(OK, cost=short), replace(OK, cost=short, attack="badnet-rw")], {}, "github")
    assert told.count("Of imdb, tiny reads 32 tokens of a text at most: some have as many, or were cut.") == 1
    assert told.count("Memory held 512 tokens of tiny at once, no more (rap).") == 1
    (row,) = rows_of(render([replace(OK, cost=short)], {}, "csv"))
    assert (row["longest_tokens"], row["max_tokens"], row["batch_tokens"]) == ("32", "32", "512")


def test_flops_that_the_rows_do_not_explain_are_told_below_the_table() -> None:
    bare = replace(COST, helper_rows_per_input={}, helper_tokens_per_input={})  # 3e9 FLOPs, of which 2 rows would take 2e9
    around = replace(bare, flops_per_input=21e9, victim_rows_per_input=1.0)
    longer = replace(bare, flops_per_input=9e9, victim_tokens_per_input=180.0, plain_tokens_per_input=20.0)  # nine times the tokens
    told = render([replace(OK, cost=around), replace(OK, cost=replace(around, flops_per_input=4e9), attack="badnet-rw")], {}, "github")
    assert "More FLOPs than their rows explain, so work of their own or calls of parts of the victim: rap (21.0 times)." in told
    for cost in (bare, longer, replace(COST, flops_per_input=21e9), replace(around, plain_flops_per_input=None)):  # the third has a helper
        assert "explain" not in render([replace(OK, cost=cost)], {}, "github")


def test_what_a_defense_says_of_its_cost_stands_below_the_table() -> None:
    assert "rap: it read half." in render([replace(OK, notes={"cost": "it read half"})], {}, "github")
    assert "rap: " not in render([replace(OK, notes={"cost": 3})], {}, "github")


def test_a_failed_cell_beside_a_measured_one_is_no_second_row() -> None:
    assert unmeasured([OK, replace(OK, frr=0.005, status="failed", cost=None)]) == []


def test_lengths_are_pooled_over_attacks() -> None:
    other = replace(OK, attack="badnet-rw", cost=replace(COST, by_length=(Timed(12, 2, 0.008, 0.003),)))
    got = lengths(measurements([OK, other]))
    # (10 * 6 + 12 * 2) / 8 words, (4 * 6 + 8 * 2) / 8 ms, (1 * 6 + 3 * 2) / 8 ms
    assert got == {("tiny", "cpu", "rap"): [Timed(10.5, 8, 0.005, 0.0015), Timed(40, 4, 0.012, 0.004)]}
    printed = [[part.strip() for part in line.split("|")[1:-1]] for line in render([OK, other], {}, "github").splitlines()]
    assert ["1-15", "rap", "8", "1.50", "6.50", "4.33"] in printed


def test_lengths_on_two_victims_or_devices_are_rows_of_their_own_that_say_which() -> None:
    big = replace(OK, victim="bert-base", cost=replace(COST, by_length=(Timed(12, 2, 0.008, 0.002),)))
    on_gpu = replace(big, cost=replace(big.cost, device="cuda", device_name="H200"))
    first = [list(table(render(own, {}, "github"), 1)[0].items()) for own in ([OK], [OK, big], [OK, on_gpu])]
    figures = [("texts", "2"), ("ms undefended", "2.00"), ("ms defended", "10.00"), ("x time", "5.00")]
    assert [head for head, _ in first[0]][:3] == ["words", "defense", "texts"]
    assert first[1] == [("words", "1-15"), ("victim", "bert-base"), ("defense", "rap"), *figures]
    assert first[2] == [("words", "1-15"), ("victim", "bert-base"), ("device", "cuda, H200"), ("defense", "rap"), *figures]


def test_rows_that_differ_by_seed_or_fine_tuning_alone_say_by_which_and_others_do_not() -> None:
    other = replace(TUNED, tuning="tiny:epochs=2")
    told = [
        render(own, {}, "github") for own in ([OK], [TUNED], [OK, replace(FAILED, seed=2)], [TUNED, other], [other, replace(OK, seed=2)])
    ]
    more = ("seed", "fine-tuned as")
    assert [[tuple(row[head] for head in more if head in row) for row in table(text.replace(r"\|", "/"))] for text in told] == [
        [()],
        [()],
        [("1",), ("2",)],
        [("tiny:epochs=1",), ("tiny:epochs=2",)],
        [("2", "--"), ("1", "tiny:epochs=2")],
    ]
    assert list(table(told[0])[0]) == HEADS


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        # held-out texts: 31 rows of the language model as published, 7 as computed, and 930 of the victim
        (
            {},
            {
                "fit_rows": "40",
                "fit_rows_computed": "40",
                "fit_tokens": "1234",
                "calibration_rows": "961",
                "calibration_rows_computed": "937",
            },
        ),
        ({}, {"helper_rows": "31.0", "helper_rows_computed": "7.5", "helper_tokens": "930.0", "helper_tokens_computed": "100.0"}),
        ({"fit_tokens": {}}, {"fit_rows": "40", "fit_tokens": "", "fit_tokens_computed": ""}),  # as of older results
        ({"fit_tokens": {}, "fit_rows": {}}, {"fit_rows": "0", "fit_tokens": "0"}),
        ({"calibration_s": None, "calibration_rows": {}}, {"calibration_rows": "", "calibration_tokens": ""}),
        ({"calibration_s": None, "calibration_tokens": {}}, {"calibration_rows": "961", "calibration_tokens": ""}),
    ],
)
def test_the_csv_has_the_counts_as_published_and_as_computed(changes: dict[str, Any], told: dict[str, str]) -> None:
    cost = replace(
        COST,
        helper_rows_per_input={"lm": 31.0, "lm_computed": 7.5},
        helper_tokens_per_input={"lm": 930.0, "lm_computed": 100.0},
        calibration_s=1.0,
        calibration_rows={"lm": 31, "lm_computed": 7, "victim": 930},
    )
    (row,) = rows_of(render([replace(OK, cost=replace(cost, **changes))], {}, "csv"))
    assert {name: row[name] for name in told} == told


def publish(out: Path, key: str, stage: str, seconds: float, **inputs: str) -> Path:
    """Write an artifact without files; give its manifest."""
    (out / "artifacts" / key / "a").mkdir(parents=True)
    manifest = out / "artifacts" / key / "manifest.json"
    made = {"stage": stage, "seconds": seconds, "inputs": inputs}
    manifest.write_text(json.dumps({"key": key, "attempt": "a", "files": {}, "provenance": made}))
    return manifest


DATA, CLEAN, CONTROL, READ, SCORE = (32 * sign for sign in "abcde")


def stored(out: Path) -> Path:
    """Write a cell and its steps, of which the record names the score and the control's prediction alone; give the score's manifest."""
    results.write([replace(OK, artifacts={"score": SCORE, "control": CONTROL, "victim": 32 * "f"})], out)  # f: not in the store
    publish(out, DATA, "data", 1.0)
    publish(out, CLEAN, "victim", 64.0, data=DATA)
    publish(out, CONTROL, "predict", 2.0, victim=CLEAN, data=DATA)
    publish(out, READ, "read", 16.0, data=DATA)
    return publish(out, SCORE, "score", 8.0, data=DATA, read_clean=READ)


def test_the_seconds_of_all_steps_have_the_controls_victim_and_what_was_read_each_once(tmp_path: Path) -> None:
    stored(tmp_path)
    last = "behind these rows, as far as the store has them, 91.0 s: data 1.0, predict 2.0, read 16.0, score 8.0, victim 64.0."
    ran = cli("cost", tmp_path)
    assert (ran.stderr, ran.stdout.rstrip().endswith(last)) == ("", True), ran.stdout


def test_a_step_that_does_not_say_what_it_took_is_left_out(tmp_path: Path) -> None:
    content = json.loads((manifest := stored(tmp_path)).read_text())
    manifest.write_text(json.dumps({**content, "provenance": {"stage": "score"}}))
    ran = cli("cost", tmp_path)
    assert (ran.stderr, "67.0 s: data 1.0, predict 2.0, victim 64.0." in ran.stdout) == ("", True)


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
    (tmp_path / "0001_grid.json").write_text(render([OK, TUNED], {}, "pytest-benchmark"))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(tmp_path / "0001_grid.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "'imdb/ep': 1 tests" in ran.stdout
    assert "'yelp -> imdb/ep': 1 tests" in ran.stdout
    assert "rap[tiny-1]" in ran.stdout
    assert "rap[tiny -> tiny:epochs=1-1]" in ran.stdout


def exported(*records: Record) -> dict[str, Any]:
    pytest.importorskip("pytest_benchmark")
    return json.loads(render(records, {}, "pytest-benchmark"))


def test_no_two_exported_rows_have_one_name() -> None:
    alike = [OK, TUNED, replace(TUNED, tuning="tiny:epochs=2"), replace(TUNED, poisoned_on="amazon")]
    alike += [replace(OK, **{name: value}) for name, value in {"seed": 2, "victim": "big", "defense": "onion", "attack": "sos"}.items()]
    assert sorted(row["fullname"] for row in exported(*alike)["benchmarks"]) == [
        "amazon -> imdb/ep::rap[tiny -> tiny:epochs=1-1]",
        "imdb/ep::onion[tiny-1]",
        "imdb/ep::rap[big-1]",
        "imdb/ep::rap[tiny-1]",
        "imdb/ep::rap[tiny-2]",
        "imdb/sos::rap[tiny-1]",
        "yelp -> imdb/ep::rap[tiny -> tiny:epochs=1-1]",
        "yelp -> imdb/ep::rap[tiny -> tiny:epochs=2-1]",
    ]


def test_the_exported_machine_is_that_of_the_measurement_and_each_row_has_its_own() -> None:
    here = replace(OK, cost=replace(COST, device_name="EPYC", threads=4), made_by={"python": "3.1", "torch": "0.9", "threads": 4})
    there = replace(here, seed=2, cost=replace(here.cost, device="cuda", device_name="H200"), made_by={**here.made_by, "rapbench": "7"})
    one, two, unknown = exported(here), exported(here, there), exported(OK)
    known = {"python_version": "3.1", "torch": "0.9", "threads": 4}
    assert one["machine_info"] == {**known, "device": "cpu", "device_name": "EPYC"}
    assert two["machine_info"] == known
    assert [row["extra_info"]["device_name"] for row in two["benchmarks"]] == ["EPYC", "H200"]
    assert two["benchmarks"][1]["extra_info"]["made_by"]["rapbench"] == "7"
    assert unknown["machine_info"] == {"device": "cpu", "threads": 1}
    assert exported(replace(OK, cost=replace(COST, samples_ms=())))["machine_info"] == {}


def test_the_exported_date_is_that_of_the_last_score_and_is_left_out_where_no_score_is_here(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    os.utime(stored(tmp_path / "whole"), (0, 86400))  # a day after 1970 began
    results.write([OK], tmp_path / "bare")
    told = [json.loads(cli("cost", tmp_path / name, "--format", "pytest-benchmark").stdout) for name in ("whole", "bare")]
    assert [one.get("datetime") for one in told] == ["1970-01-02T00:00:00+00:00", None]
