"""A run tells its listeners of cells as they get finished, and of its end."""

from __future__ import annotations

import sys

import pytest

from rapbench.grid import Block, cells_of, checked_block, read_blocks
from rapbench.lifecycle import Herald
from rapbench.registry import discover
from rapbench.results import read
from rapbench.runner.session import Session, planned
from rapbench.scaffold.grid import write_grid

TRACKER = """
from rapbench import hookimpl
heard = []

@hookimpl
def rapbench_cell_finished(record):
    heard.append(("cell", record.defense, record.status))

@hookimpl
def rapbench_run_finished(records, folder):
    heard.append(("run", sorted(record.status for record in records), folder))
    raise OSError("disk full")
"""


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """Install a tracker; give what it hears."""
    site = tmp_path / "site"
    info = site / "own_tracker-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_tracker.py").write_text(TRACKER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-tracker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rapbench]\ntracker = own_tracker\n")
    monkeypatch.syspath_prepend(site)
    discover()
    yield sys.modules["own_tracker"].heard
    sys.modules.pop("own_tracker")


def test_each_computed_or_failed_cell_is_told_of_once_and_the_run_at_its_end(heard, tmp_path, capsys):
    registry = discover()
    block = read_blocks(str(write_grid(tmp_path / "try", [registry.parse("defense", "strip")])), Block)[0]
    own = {"attacks": ["badnet-rw:poison_rate=0.5"], "defenses": ["strip:copies=2", "onion:lm=./nowhere"], "frr": [0.05]}
    cells = cells_of([checked_block({**block.model_dump(exclude_unset=True), **own}, "here")], registry)
    out = tmp_path / "out"

    def run() -> None:
        plan, bench = planned(cells, registry, out, device="cpu", threads=1)
        Session(plan, bench, out, "serial", herald=Herald.of(registry)).run(lambda done: None, lambda total: None)

    run()
    *told, end = heard
    assert sorted(told) == [("cell", "onion:lm=./nowhere", "failed")] * 2 + [("cell", "strip:copies=2", "ok")] * 2  # both protocols
    assert end == ("run", ["failed", "failed", "ok", "ok"], out)
    assert len(read(out)) == 4
    assert "rapbench: own-tracker:tracker: rapbench_run_finished failed: OSError: disk full; the run goes on" in capsys.readouterr().err

    heard.clear()
    run()  # what was there before is told of at the end only; what failed is tried again
    *told, end = heard
    assert told == [("cell", "onion:lm=./nowhere", "failed")] * 2
    assert end[1] == ["failed", "failed", "ok", "ok"]
