"""Results as a DataFrame and as a `datasets` table, against the JSON files they come from."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from made_results import RECORD

from rapbench import results
from rapbench.cost import Cost
from rapbench.errors import StoreError
from rapbench.interop import COLUMNS, RATED, frame, to_dataset
from rapbench.report.tables import render

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BARE = {"cost": None, "far": None, "auroc": None, "asr": None, "n_heldout": None, "intervals": {}, "made_by": {}, "trigger": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One cell that is ok and one that failed; by their names the first is the first."""
    cost = replace(RECORD.cost, helper_rows_per_input={"lm": 10.5, "other": 0.5}, peak_mib=7.0, threads=2)
    notes = {"false_trigger_rate": {"": 0.125, "mean": 0.5}}
    ok = replace(RECORD, far_at_frr={"0.01": 0.25, "0.05": None}, warnings=("few texts", "old"), cost=cost, attack_notes=notes)
    failed = replace(RECORD, attack="ep", status="failed", reason="no such word", **BARE)
    results.write([ok, failed], tmp_path)
    return tmp_path


def test_a_frame_says_what_the_files_say(folder):
    """Worked by hand from `made_results.RECORD` and the changes above."""
    table = frame(folder)
    assert list(table.attack) == ["badnet-rw", "ep"]
    ok = table.iloc[0]
    names = {"dataset": "imdb", "defense": "rap", "protocol": "paper", "status": "ok", "seed": 1, "device": "cpu", "torch": "2.13"}
    figures = {"frr": 0.01, "far": 0.03, "far_low": 0.017, "far_high": 0.052, "far_at_frr_1": 0.25, "n_heldout": 1000, "threads": 2}
    figures |= {"ftr": 0.5, "ftr_plain": 0.125}
    costs = {"helper_rows_per_input": 11.0, "ms_per_input": 8.0, "ms_per_input_q1": 7.0, "ms_per_input_q3": 9.0, "cost_ratio": 2.0}
    more = {"plain_ms_per_input": 4.0, "peak_mib": 7.0, "warnings": "few texts; old", "device_name": "made up"}
    expected = names | figures | costs | more
    assert {name: ok[name] for name in expected} == expected
    assert ok[["far_at_frr_5", "asr_before", "survival_low", "flops_per_input"]].isna().tolist() == [True, True, True, False]

    failed = table.iloc[1]
    assert (failed.status, failed.reason, failed.warnings) == ("failed", "no such word", "")
    assert failed[["far", "ftr", "far_low", "n_heldout", "cost_ratio", "helper_rows_per_input", "threads", "torch", "trigger"]].isna().all()


def test_each_value_of_a_frame_is_that_of_its_file(folder):
    table = frame(folder)
    for _, row in table.iterrows():
        content = json.loads((folder / "cells" / row.file).read_text())
        plain = {name for name in COLUMNS if name in content and name != "warnings"}
        assert {"dataset", "far", "n_clean", "trigger", "clean_metric_defended"} <= plain
        found = {name: None if row.isna()[name] else row[name] for name in plain}
        assert found == {name: content[name] for name in plain}


def test_a_frame_has_every_column_with_its_type_whatever_the_folder_holds(tmp_path):
    results.write([replace(RECORD, status="skipped", reason="no sense", **BARE)], tmp_path)
    table = frame(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    dtypes = {"name": "category", "text": "string", "count": "Int64", "figure": "float64"}
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {name: dtypes[column.kind] for name, column in COLUMNS.items()}


def test_every_scalar_of_a_record_has_a_column_and_every_interval_its_ends():
    left_out = {"schema_version", "attempts", "verdicts", "notes", "attack_notes", "artifacts", "cost", "made_by"}
    left_out |= {"far_at_frr", "intervals"}
    assert {field.name for field in fields(results.Record)} - left_out <= COLUMNS.keys()
    cost = {"inputs", "fit_rows", "fit_tokens", "calibration_rows", "calibration_tokens", "plain_tokens_per_input", "ratio"}
    cost |= {"samples_ms", "by_length", "repaired", "seconds", "dtype", "load"}
    assert {field.name for field in fields(Cost)} - cost <= COLUMNS.keys()
    assert {f"{rate}_{end}" for rate in RATED for end in ("low", "high")} <= COLUMNS.keys()


def test_the_csv_report_has_the_same_figures_under_the_same_names(folder):
    table = frame(folder).set_index("attack")
    rows = list(csv.DictReader(io.StringIO(render(results.read(folder), "csv"))))
    shared = [name for name in rows[0] if name in COLUMNS and name != "attack"]
    assert {"far", "far_high", "far_at_frr_1", "ftr", "ftr_plain", "cost_ratio", "fit_s", "warnings"} <= set(shared)
    for row in rows:
        own = table.loc[row["attack"]]
        for name in shared:
            value = "" if own.isna()[name] else str(own[name])
            assert row[name] == value or float(row[name]) == float(own[name]), name


def test_a_datasets_table_holds_the_same_and_survives_parquet(folder, tmp_path):
    import datasets

    table = to_dataset(folder)
    first, second = table
    assert (first["attack"], first["far"], first["n_heldout"], first["asr_before"]) == ("badnet-rw", 0.03, 1000, None)
    assert (second["status"], second["far"], second["n_heldout"]) == ("failed", None, None)
    kinds = {"name": "string", "text": "string", "count": "int64", "figure": "float64"}
    assert {name: feature.dtype for name, feature in table.features.items()} == {name: kinds[one.kind] for name, one in COLUMNS.items()}
    table.to_parquet(str(tmp_path / "cells.parquet"))
    again = datasets.Dataset.from_parquet(str(tmp_path / "cells.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again.to_list() == table.to_list()


def test_a_folder_without_cells_and_one_with_a_number_beyond_all_bounds_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no results in"):
        frame(tmp_path)
    results.write([replace(RECORD, seed=2**63)], tmp_path)
    for take in (frame, to_dataset):
        with pytest.raises(StoreError, match="seed 9223372036854775808"):
            take(tmp_path)


def test_neither_pandas_nor_datasets_is_imported_before_it_is_needed():
    import subprocess
    import sys

    code = "import sys, rapbench.interop; sys.exit(any(name in sys.modules for name in ('pandas', 'datasets', 'numpy', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_examples_of_the_document_run(tmp_path, monkeypatch, capsys):
    strict = [replace(RECORD, protocol="strict", defense=defense, far=far) for defense, far in (("rap", 0.25), ("onion", 0.75))]
    results.write([RECORD, *strict], tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["onion", "0.75"] in lines
    assert ["rap", "0.25"] in lines
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"cells.parquet", "paper.parquet"}


def test_every_column_and_file_of_the_folder_is_in_the_document():
    text = DOCS.read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z0-9_.*/]+)`", text))
    ends = {f"{rate}_{end}" for rate in RATED for end in ("low", "high")}
    assert COLUMNS.keys() - ends - told == set()
    files = {"cells/*.json", "plan.json", "attempts.jsonl", "store.json", "artifacts/", ".lock"}
    assert files <= told
