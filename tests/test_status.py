"""What `rapbench status` says of a folder, worked out by hand; and what is seen of a run while it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from made_results import RECORD

from rapbench import results
from rapbench.artifacts import alone
from rapbench.cli_status import lines
from rapbench.early import Early
from rapbench.errors import StoreError
from rapbench.outline import outline, read_plan, write_plan
from rapbench.pace import Ended, pace
from rapbench.runner.plan import Group, Plan
from rapbench.stages import Job
from rapbench.status import State, Status, held, status, to_come, under_way
from rapbench.watching import watch

STARTED = 1_000_000.0
A, B, C, D = (sign * 32 for sign in "abcd")
STEPS = [
    [A, "victim", "imdb ep", []],
    [B, "score", "imdb ep rap", [0]],
    [C, "score", "imdb ep onion", [0]],
    [D, "predict", "imdb clean first100", []],
]
"""A victim, two scores on it, and the control's prediction, which is welcome."""
LOTS = [[B, 8, [0, 1], [3]], [C, 4, [0, 2], [3]]]


def plan(**changes: object) -> dict[str, object]:
    made = {
        "started": STARTED,
        "pid": os.getpid(),
        "host": platform.node(),
        "command": ["rapbench", "run"],
        "attempts_at": 0,
        "steps": STEPS,
        "lots": LOTS,
        "skipped": {"ep does not go with it": 2},
        "refused": {},
        "schema_version": 1,
    }
    return {**made, **changes}


def tried(key: str, end: str = "ok", seconds: float = 1.0, **more: object) -> dict[str, object]:
    stage, label = next((stage, label) for own, stage, label, _ in STEPS if own == key)
    return {"key": key, "stage": stage, "of": label, "number": 1, "end": end, "seconds": seconds, "node": "box", "reason": "", **more}


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a plan and attempts into a folder, and give it; its attempts were written 100 s after the start."""

    def write(made: object, *attempts: object) -> Path:
        (tmp_path / "plan.json").write_text(json.dumps(made))
        path = tmp_path / "attempts.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in attempts))
        os.utime(path, (STARTED + 100, STARTED + 100))
        return tmp_path

    return write


def counts(found: Status) -> dict[str, tuple[int, int, int, int | None]]:
    return {one.name: (one.done, one.failed, one.retried, one.to_come) for one in found.stages}


def test_an_empty_folder_is_one_line_and_no_folder_an_error(tmp_path, rapbench):
    assert list(lines(status(tmp_path))) == ["nothing was run here yet"]
    with pytest.raises(StoreError, match="no folder"):
        status(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_cells_wait_until_all_their_steps_have_ended_and_fail_with_the_first_that_they_need(put):
    begun = status(put(plan()))
    assert begun.cells == {"ok": 0, "waiting": 12, "failed": 0, "skipped": 2}
    assert counts(begun) == {"victim": (0, 0, 0, 1), "score": (0, 0, 0, 2), "predict": (0, 0, 0, 1)}
    assert begun.state is State.STOPPED
    assert begun.last is None
    assert begun.pace is None

    welcome_lacks = status(put(plan(), tried(A), tried(B)))
    assert welcome_lacks.cells == {"ok": 0, "waiting": 12, "failed": 0, "skipped": 2}

    half = status(put(plan(), tried(A), tried(B, seconds=3.0), tried(D, "failed", reason="predict: no memory")))
    assert half.cells == {"ok": 8, "waiting": 4, "failed": 0, "skipped": 2}
    assert counts(half) == {"victim": (1, 0, 0, 0), "score": (1, 0, 0, 1), "predict": (0, 1, 0, 0)}

    over = status(put(plan(), tried(A), tried(B, seconds=3.0), tried(D), tried(C, "failed", reason="no such model")))
    assert over.cells == {"ok": 8, "waiting": 0, "failed": 4, "skipped": 2}
    assert over.reasons == {"failed": {"no such model": 4}, "skipped": {"ep does not go with it": 2}}
    assert over.state is State.ENDED
    assert over.seconds == 100.0
    assert over.last is not None
    assert (over.last.stage, over.last.end, over.last.node) == ("score", "failed", "box")


def test_what_needs_a_failed_step_has_failed_with_its_reason(put):
    found = status(put(plan(), tried(A, "failed", reason="it does not learn")))
    assert found.cells == {"ok": 0, "waiting": 0, "failed": 12, "skipped": 2}
    assert found.reasons["failed"] == {"it does not learn": 12}
    assert counts(found) == {"victim": (0, 1, 0, 0), "score": (0, 2, 0, 0), "predict": (0, 0, 0, 1)}


def test_an_attempt_that_another_follows_is_no_failure(put):
    lost = tried(A, "worker lost", 2.0, again=True)
    assert status(put(plan(), lost)).cells["waiting"] == 12
    found = status(put(plan(), lost, tried(A, seconds=3.0)))
    assert counts(found)["victim"] == (1, 0, 1, 0)
    assert found.stages[0].seconds == 5.0


def test_attempts_of_earlier_runs_do_not_count(put):
    earlier = json.dumps(tried(A, "failed", reason="earlier")) + "\n"
    found = status(put(plan(attempts_at=len(earlier)), tried(A, "failed", reason="earlier"), tried(A)))
    assert counts(found)["victim"] == (1, 0, 0, 0)


def test_cells_without_a_threshold_have_failed_though_their_steps_ended_well(put):
    out = put(plan(), tried(A), tried(B), tried(C), tried(D))
    bare = {"cost": None, "far": None, "status": "failed", "reason": "no level fits", "artifacts": {"victim": A, "score": B}}
    results.write([replace(RECORD, frr=frr, **bare) for frr in (0.01, 0.05)], out)
    found = status(out)
    assert found.cells == {"ok": 10, "waiting": 0, "failed": 2, "skipped": 2}
    assert found.reasons["failed"] == {"no level fits": 2}
    for path in (out / "cells").iterdir():  # of an earlier run, and tried again
        os.utime(path, (STARTED - 1, STARTED - 1))
    assert status(out).cells["ok"] == 12


def test_a_folder_without_a_plan_is_told_from_its_results_and_attempts(tmp_path):
    one = replace(RECORD, status="interrupted", reason="the run ended", cost=None)
    results.write([RECORD, replace(one, frr=0.03), replace(one, frr=0.05)], tmp_path)
    (tmp_path / "attempts.jsonl").write_text(json.dumps(tried(A, "worker lost")) + "\n" + json.dumps(tried(A)) + "\n")
    found = status(tmp_path)
    assert found.state is State.ENDED
    assert found.cells == {"ok": 1, "interrupted": 2}
    assert found.reasons == {"interrupted": {"the run ended": 2}}
    assert counts(found) == {"victim": (1, 0, 1, None)}
    assert to_come(tmp_path) == ""


def _hold(folder: Path, ready, over) -> None:
    with alone(folder):
        ready.set()
        over.wait(30)


@pytest.fixture
def elsewhere():
    """Give what holds the lock of a folder in another process, whose id it gives, until the test's end."""
    context = get_context("spawn")
    over, begun = context.Event(), []

    def hold(folder: Path) -> int:
        ready = context.Event()
        process = context.Process(target=_hold, args=(folder, ready, over))
        process.start()
        begun.append(process)
        assert ready.wait(60)
        return process.pid

    yield hold
    over.set()
    for process in begun:
        process.join(30)


def test_a_run_is_under_way_while_its_process_holds_the_lock(put, elsewhere, tmp_path):
    assert not held(tmp_path)
    assert not under_way(tmp_path)
    pid = elsewhere(tmp_path)
    planning = status(tmp_path)
    assert (planning.state, planning.by, planning.cells) == (State.RUNNING, None, {})
    assert under_way(tmp_path)

    out = put(plan(pid=pid), tried(A))
    found = status(out)
    assert (found.state, found.by) == (State.RUNNING, f"process {pid} on {platform.node()}")
    assert found.seconds > 1e6  # it began in 1970
    assert to_come(out) == "a run is under way: 12 of 14 cells are still to come"
    with pytest.raises(StoreError, match="another run"), alone(out):
        pass  # looking has not taken the lock from it

    ended = status(put(plan(pid=2**22 + 1), tried(A)))  # no process has that id: the holder is another, like a clean-up
    assert (ended.state, ended.locked, ended.by) == (State.STOPPED, True, None)
    assert "another process keeps runs out now" in next(lines(ended))


def test_the_time_left_is_told_from_like_steps_alone():
    """Two scores of rap in 10 s each, while 40 s passed: half of the time is computing. One of 10 s is to come: 20 s."""
    done = [Ended("score", "imdb ep rap", 10.0), Ended("score", "imdb badnet-rw rap", 10.0)]
    like = pace(done, [("score", "imdb ripples rap")], busy_s=40.0)
    assert like is not None
    assert (like.computing_s, like.left_s, like.like) == (10.0, 20.0, 2)
    assert pace(done, [("score", "imdb ripples rap"), ("score", "imdb ep onion")], busy_s=40.0) is None
    assert pace(done, [("score", "yelp ep rap")], busy_s=40.0) is None
    assert pace([Ended("victim", "imdb ep", 30.0)], [("victim", "imdb badnet-rw")], busy_s=30.0) is not None
    assert pace(done, [("score", "imdb ep rap")], busy_s=40.0, quiet_s=5.0).left_s == 15.0
    assert pace(done, [("score", "imdb ep rap")], busy_s=40.0, quiet_s=25.0) is None  # it takes longer than they did
    assert pace(done, [], busy_s=40.0) is None
    assert pace([], [("score", "imdb ep rap")], busy_s=40.0) is None


def test_the_plan_that_a_run_writes_is_the_one_that_is_read(tmp_path):
    (tmp_path / "attempts.jsonl").write_text("123456\n")
    data, victim, score = (
        Job("data", A, {}, {}, "imdb"),
        Job("victim", B, {}, {"data": A}, "imdb ep"),
        Job("score", C, {}, {"victim": B}, "x"),
    )
    control = Job("predict", D, {}, {"data": A}, "imdb clean")
    made = Plan(jobs={job.key: job for job in (data, victim, score, control)})
    keys = {"data": A, "victim": B, "clean": A, "poisoned": A, "score": C, "control": D}
    made.groups.append(Group((_cell(), _cell()), keys))
    made.skipped.append(replace(_cell(), skip="no sense"))
    made.refused.append((_cell(), "not there"))
    missing = {key: job for key, job in made.jobs.items() if key != A}  # the data are there
    write_plan(made, missing, tmp_path)
    found = read_plan(tmp_path)
    assert found == dataclasses.replace(outline(made, missing, tmp_path), started=found.started)
    assert [tuple(step) for step in found.steps] == [
        (B, "victim", "imdb ep", ()),
        (C, "score", "x", (0,)),
        (D, "predict", "imdb clean", ()),
    ]
    assert [tuple(lot) for lot in found.lots] == [(C, 2, (0, 1), (2,))]
    assert (found.attempts_at, found.pid, found.skipped, found.refused) == (7, os.getpid(), {"no sense": 1}, {"not there": 1})


def _cell():
    from rapbench.grid import Block, cells_of
    from rapbench.registry import discover

    block = Block(victim="minilm-l6", datasets=["imdb"], attacks=["ep"], defenses=["rap"], frr=[0.05], seeds=[1])
    return cells_of([block], discover())[0]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [[A, "victim", "x", [0]]]},
        {"lots": [[A, 1, [9], []]]},
        {"lots": [[A, -1, [], []]]},
        {"lots": [[A, 1e300, [], []]]},
        {"started": "soon"},
        {"started": 1e300},
        {"pid": -1},
        {"command": "rapbench"},
        {"schema_version": 2},
    ],
)
def test_a_plan_that_is_none_is_named_in_one_line(put, change):
    out = put(plan(**change))
    with pytest.raises(StoreError, match=r"plan\.json") as told:
        status(out)
    assert "\n" not in str(told.value)
    assert to_come(out) == ""  # a report goes without


def test_attempts_that_are_none_are_passed_over_and_signs_are_shown_harmless(put, rapbench):
    out = put(plan(host="x\x1b]0;own\x07"), tried(A, "failed", reason="red \x1b[31m\u202e\nnews", seconds=float("9" * 300)))
    with (out / "attempts.jsonl").open("ab") as stream:
        odd = [
            b"[]",
            b'{"key": 1}',
            b"[" * 5000,
            b"\xff\xfe",
            json.dumps({**tried(B), "seconds": [1], "of": {}}).encode(),
            b"x" * 3_000_000,
        ]
        stream.write(b"\n".join([*odd, json.dumps({**tried(C), "seconds": 10**400}).encode()]) + b'\n{"key": "' + A.encode())
    found = status(out)
    assert counts(found)["victim"] == (0, 1, 0, 0)
    assert counts(found)["score"] == (2, 0, 0, 0)
    shown = rapbench("status", out).out
    assert "red \ufffd[31m\ufffd news" in shown
    assert all(sign.isprintable() or sign == "\n" for sign in shown)


def test_a_result_that_is_none_is_named(tmp_path, rapbench):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "odd.json").write_text("[]")
    ended = rapbench("status", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "odd.json" in ended.err


def test_status_for_people_and_as_json(put, rapbench):
    out = put(plan(), tried(A, seconds=42.0), tried(B, seconds=3.0), tried(D), tried(C, "failed", reason="no such model"))
    shown = rapbench("status", out).out.splitlines()
    assert shown[0] == "ended after 1.7 min, begun 1970-01-12T13:46:40+00:00"
    assert shown[1] == "  rapbench run"
    assert "cells: 8 ok, 4 failed, 2 skipped, of 14" in shown
    assert "failed: 4 cells: no such model" in shown
    assert ["victim", "1", "0", "0", "0", "42", "s"] in [line.split() for line in shown]
    plain = json.loads(rapbench("status", out, "--json").out)
    assert plain["cells"] == {"ok": 8, "waiting": 0, "failed": 4, "skipped": 2}
    assert (plain["state"], plain["seconds"], plain["stages"][0]["seconds"]) == ("ended", 100.0, 42.0)


def test_finished_cells_are_written_while_the_run_goes_on_and_the_rest_at_its_end(tmp_path, monkeypatch):
    first, second, odd = RECORD, replace(RECORD, frr=0.05), replace(RECORD, frr=0.03)
    monkeypatch.setattr("rapbench.early.EVERY_S", 0.01)
    early = Early(tmp_path)
    early.add(lambda: [first])

    def broken() -> list[results.Named]:
        raise ValueError("no such artifact")

    early.add(broken)  # is left for the end
    for _ in range(1000):
        if list((tmp_path / "cells").glob("*.json")):
            break
        early._over.wait(0.01)
    early.add(lambda: [second])
    early.end()
    assert [early.has(results.Record, one.file_name) for one in (first, second, odd)] == [True, True, False]
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def test_what_cannot_be_written_early_is_tried_at_the_end_which_says_why(tmp_path, monkeypatch):
    (tmp_path / "cells").write_text("in the way")
    monkeypatch.setattr("rapbench.early.EVERY_S", 0.01)
    early = Early(tmp_path)
    early.add(lambda: [RECORD])
    early._over.wait(0.1)
    assert not early.has(results.Record, RECORD.file_name)
    with pytest.raises(StoreError, match="cannot make the folder"):
        early.end()


def test_a_watched_report_is_written_at_each_change_until_the_run_has_ended(tmp_path, monkeypatch):
    """The folder changes before the second and the fourth look; the lock is free at the fifth."""
    looks, written, said = [], [], []
    monkeypatch.setattr("rapbench.watching.under_way", lambda folder: len(looks) < 4)

    def sleep(seconds: float) -> None:
        assert seconds == 7.0
        looks.append(seconds)
        if len(looks) in (1, 3):
            results.write([replace(RECORD, frr=0.01 * len(looks))], tmp_path)

    monkeypatch.setattr("rapbench.watching.time.sleep", sleep)

    def write(again: bool) -> None:
        written.append((len(looks), again))
        if not looks:
            raise StoreError("no results yet")

    watch(tmp_path, write, 7.0, said.append)
    assert written == [(0, True), (1, True), (3, True), (4, False)]
    assert said[0] == "no results yet"
    assert said[-1] == "written with 2 of 2 cells; no run is under way"


def test_ctrl_c_ends_the_watching_with_a_last_page_that_is_not_watched(tmp_path, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rapbench.watching.under_way", lambda folder: True)
    monkeypatch.setattr("rapbench.watching.time.sleep", interrupt)
    written, said = [], []
    watch(tmp_path, written.append, 1.0, said.append)
    assert written == [True, False]
    assert said[-1] == "written with 0 of 0 cells; no longer watched"
