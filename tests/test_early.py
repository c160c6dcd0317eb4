"""A report of a half-done run: results are there while the run goes on, and are those of its end."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path

import pytest
from made_results import RECORD

from rapbench import results
from rapbench.grid import Block, cells_of
from rapbench.registry import discover
from rapbench.runner.execute import Done
from rapbench.runner.session import Session, planned
from rapbench.status import State, status, to_come

PLAN = """{"started": 1, "pid": 1, "host": "elsewhere", "command": [], "attempts_at": 0, "skipped": {}, "refused": {},
"steps": [["a", "score", "imdb ep rap", []]], "lots": [["b", 1, [], []], ["a", 3, [0], []]]}"""
"""Four cells, three of which wait for a step."""
FAULTS = Path(__file__).resolve().parent / "faults"


@pytest.fixture
def saboteur(tmp_path, monkeypatch):
    """The package `saboteur`, whose attack trains nothing."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.syspath_prepend(str(FAULTS))
    import saboteur

    saboteur.install(tmp_path / "site")
    yield
    sys.modules.pop("saboteur", None)


def session(model: Path, out: Path) -> Session:
    """Three scores, of which the second fails; each is two cells: both protocols."""
    defenses = ["saboteur:number=1", "saboteur:number=2,way=fail", "saboteur:number=3"]
    block = Block(victim=f"{model}:max_length=32", datasets=["few"], attacks=["idle"], defenses=defenses, frr=[0.05], seeds=[1])
    registry = discover()
    plan, bench = planned(cells_of([block], registry), registry, out, device="cpu", threads=1)
    return Session(plan, bench, out, "serial")


def content(out: Path) -> dict[str, bytes]:
    found = (path for name in ("cells", "curves", "histograms", "examples") for path in (out / name).glob("*.json"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def wait_for(out: Path, count: int) -> list[results.Record]:
    """Wait until so many cells are there, a minute at most."""
    for _ in range(600):
        if len(list((out / "cells").glob("*.json"))) >= count:
            break
        time.sleep(0.1)
    return results.read(out)


@pytest.mark.usefixtures("saboteur")
def test_results_are_there_while_the_run_goes_on_and_stay_as_they_are(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("rapbench.early.EVERY_S", 0.01)
    out, seen = tmp_path / "out", []

    def look(done: Done) -> None:
        if done.job.stage == "score":
            seen.append((done.job.key, status(out), wait_for(out, 2 * len(seen)) if seen else []))

    session(tiny_model, out).run(look, lambda total: None)
    first, second, third = (found for _, found, _ in seen)
    assert [found.state for found in (first, second, third)] == [State.RUNNING] * 3
    assert first.by == f"process {os.getpid()} on {platform.node()}"
    assert [(found.cells["ok"], found.cells["failed"], found.waiting) for found in (first, second, third)] == [
        (2, 0, 4),
        (2, 2, 2),
        (4, 2, 0),
    ]
    assert [sorted(one.status for one in there) for _, _, there in seen] == [[], ["ok"] * 2, ["failed"] * 2 + ["ok"] * 2]

    over = status(out)
    assert (over.state, over.cells) == (State.ENDED, {"ok": 4, "waiting": 0, "failed": 2, "skipped": 0})
    assert over.reasons == {"failed": {"score few idle saboteur: ZeroDivisionError: on purpose": 2}}
    assert to_come(out) == ""
    assert len(results.read_all(out, results.Curve)) == 4

    before = content(out)
    for path in before:
        (out / path).unlink()
    session(tiny_model, out).run(lambda done: None, lambda total: None)  # all but the failed one is read off the store
    after = content(out)
    failed = {path for path, text in before.items() if b'"status": "failed"' in text}
    assert after.keys() == before.keys()
    assert {path: text for path, text in after.items() if path not in failed} == {
        path: text for path, text in before.items() if path not in failed
    }


def test_a_report_of_a_run_that_was_stopped_says_how_much_is_to_come(tmp_path, rapbench):
    results.write([RECORD], tmp_path)
    (tmp_path / "plan.json").write_text(PLAN)
    ended = rapbench("report", tmp_path)
    assert (ended.code, ended.err) == (0, "rapbench: the run ended early: 3 of 4 cells are still to come; the same command goes on\n")
    assert "imdb" in ended.out
    page = rapbench("report", tmp_path, "--format", "html", "--output", tmp_path / "page.html")
    assert page.code == 0
    assert "3 of 4 cells are still to come" in (tmp_path / "page.html").read_text()


def test_a_page_loads_itself_anew_only_while_it_is_watched(tmp_path, rapbench, monkeypatch):
    results.write([RECORD], tmp_path)
    page, looks, pages = tmp_path / "page.html", iter([True, False]), []
    monkeypatch.setattr("rapbench.watching.under_way", lambda folder: next(looks))
    monkeypatch.setattr("rapbench.watching.time.sleep", lambda seconds: pages.append((seconds, page.read_text())))
    ended = rapbench("report", tmp_path, "--format", "html", "--output", page, "--watch")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines() == ["rapbench: written with 1 of 1 cells", "rapbench: written with 1 of 1 cells; no run is under way"]
    ((seconds, watched),) = pages
    assert (seconds, re.findall(r'<meta http-equiv="refresh"[^>]*>', watched)) == (5.0, ['<meta http-equiv="refresh" content="5">'])
    assert "refresh" not in page.read_text().partition("</head>")[0].partition("<style>")[0]


def test_watching_needs_a_file_to_write(tmp_path, rapbench):
    ended = rapbench("report", tmp_path, "--watch", "2.5")
    assert (ended.code, ended.out) == (2, "")
    assert "give --output" in ended.err
