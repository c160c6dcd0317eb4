"""The trackers of docs/trackers.md against the real libraries, offline. They skip where a library is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rapbench.lifecycle import Herald
from rapbench.registry import discover
from rapbench.results import Record

TRACKERS = Path(__file__).parent / "third_party" / "trackers"
NAMES = {"dataset": "demo", "attack": "ep", "victim": "tiny", "seed": 1, "protocol": "paper"}
RAP = Record(**NAMES, defense="rap", frr=0.01, status="ok", far=0.25, frr_test=0.03, auroc=0.9, asr=1.0)
LATE = Record(**NAMES, defense="strip", frr=0.01, status="failed", reason="no memory")


def herald(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Herald:
    """Install one tracker as pip would, and give what tells it of cells."""
    source = (TRACKERS / f"{module}.py").read_text()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{module}.py").write_text(source)
    info = tmp_path / "site" / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rapbench]\ntracker = {module}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.chdir(tmp_path)
    return Herald.of(discover())


@pytest.mark.parametrize("module", ["rapbench_mlflow", "rapbench_wandb"])
def test_the_documents_quote_a_tracker_as_it_is(module):
    text = (Path(__file__).parents[1] / "docs" / "trackers.md").read_text(encoding="utf-8")
    assert f"```python\n# {module}.py\n{(TRACKERS / f'{module}.py').read_text()}```" in text


@pytest.mark.parametrize("module", ["rapbench_mlflow", "rapbench_wandb"])
def test_a_tracker_is_registered_without_its_library_being_imported(module, tmp_path, monkeypatch):
    library = module.removeprefix("rapbench_")
    monkeypatch.setitem(sys.modules, library, None)  # an import of it raises
    assert f"{module.replace('_', '-')}:tracker" in herald(module, tmp_path, monkeypatch).listeners


@pytest.mark.parametrize("module", ["rapbench_mlflow", "rapbench_wandb"])
def test_a_tracker_whose_library_is_missing_is_one_line_and_stops_nothing(module, tmp_path, monkeypatch, capsys):
    library = module.removeprefix("rapbench_")
    monkeypatch.setitem(sys.modules, library, None)
    own = herald(module, tmp_path, monkeypatch)
    own.cell_finished(RAP)
    own.cell_finished(LATE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"rapbench: {module.replace('_', '-')}:tracker: rapbench_cell_finished failed: ModuleNotFoundError")


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="no mlflow: pip install mlflow-skinny sqlalchemy alembic")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_a_run_per_cell_and_one_of_the_whole(tmp_path, monkeypatch, capsys):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    own = herald("rapbench_mlflow", tmp_path, monkeypatch)
    own.cell_finished(RAP)
    own.cell_finished(LATE)
    own.run_finished([RAP, LATE], tmp_path / "results")
    assert "failed" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("rapbench").experiment_id], order_by=["attributes.start_time"])
    assert len(runs) == 3
    whole, rap, late = (next(run for run in runs if mark in run.info.run_name) for mark in ("all of", "rap", "strip"))
    assert (rap.data.metrics["far"], rap.data.metrics["auroc"]) == (0.25, 0.9)
    assert rap.data.params["defense"] == "rap"
    assert (late.data.tags["status"], late.data.tags["reason"]) == ("failed", "no memory")
    assert whole.data.metrics == {"cells_ok": 1.0, "cells_failed": 1.0}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_one_run_with_a_table_of_the_cells(tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    own = herald("rapbench_wandb", tmp_path, monkeypatch)
    own.cell_finished(RAP)
    own.cell_finished(LATE)
    assert wandb.run.summary[f"{RAP.file_name.removesuffix('.json')}/far"] == 0.25
    own.run_finished([RAP, LATE], tmp_path / "results")
    told = capsys.readouterr()
    assert "failed" not in told.err
    assert told.out == ""
    assert wandb.run is None  # finished
    table = next((tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json"))
    content = json.loads(table.read_text())
    assert [row[content["columns"].index("status")] for row in content["data"]] == ["ok", "failed"]
