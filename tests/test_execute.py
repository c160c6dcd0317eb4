"""Order, retries and blame, with an executor that ends attempts as it is told; the journal and the logs of attempts."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from rapbench.errors import StoreError
from rapbench.runner.execute import Attempt, Done, End, Failure, Overdue, _limited, execute, ranked
from rapbench.runner.journal import Journal
from rapbench.runner.logs import captured, captured_whole
from rapbench.stages import Job


def job(key: str, *needed: str) -> Job:
    return Job("score", key, {}, {str(number): own for number, own in enumerate(needed)}, key)


class Told:
    """Ends each attempt at a job with the next of its ends; well where none is left."""

    tries = {End.LOST: 3, End.MEMORY: 2}

    def __init__(self, **ends: list[End]) -> None:
        self.ends = ends
        self.seen: list[Attempt] = []
        self._queue: list[Attempt] = []

    def check(self, jobs):
        pass

    def submit(self, attempt):
        self.seen.append(attempt)
        self._queue.append(attempt)

    def next(self):
        own = self._queue.pop(0)
        end = (self.ends.get(own.job.key) or [End.OK]).pop(0)
        return Done(own.job, None if end is End.OK else Failure(f"{own.job.key} {end}"), 1.0, end, own.number)

    def close(self):
        pass


def driven(executor: Told, *jobs: Job) -> tuple[list[tuple[str, str, bool]], dict[str, Failure]]:
    told: list[Done] = []
    failures: dict[str, Failure] = {}
    execute({own.key: own for own in jobs}, executor, told.append, failures)
    return [(one.job.key, str(one.end), one.again) for one in told], failures


def test_a_lost_worker_is_tried_three_times_in_all():
    told, failures = driven(Told(a=[End.LOST, End.LOST, End.OK]), job("a"))
    assert told == [("a", "worker lost", True), ("a", "worker lost", True), ("a", "ok", False)]
    assert failures == {}
    told, failures = driven(Told(a=[End.LOST] * 9), job("a"))
    assert [again for _, _, again in told] == [True, True, False]
    assert failures["a"].reason == "a worker lost"


def test_a_step_without_memory_is_tried_once_more_with_all_that_a_node_has():
    executor = Told(a=[End.MEMORY, End.MEMORY, End.OK])
    told, failures = driven(executor, job("a"))
    assert [own.roomy for own in executor.seen] == [False, True]
    assert [own.number for own in executor.seen] == [1, 2]
    assert told[-1] == ("a", "out of memory", False)
    assert "a" in failures


def test_each_way_to_end_has_tries_of_its_own():
    executor = Told(a=[End.LOST, End.MEMORY, End.LOST, End.OK])
    _, failures = driven(executor, job("a"))
    assert failures == {}
    assert [own.roomy for own in executor.seen] == [False, False, True, True]


@pytest.mark.parametrize("end", [End.FAILED, End.DEADLINE])
def test_a_plugins_failure_and_a_deadline_are_final_and_block_what_needs_them(end):
    told, failures = driven(Told(a=[end]), job("a"), job("b", "a"), job("c", "b"), job("d"))
    assert {key: how for key, how, _ in told} == {"a": str(end), "b": "blocked", "c": "blocked", "d": "ok"}
    assert failures["a"] == failures["b"] == failures["c"]


def test_the_step_of_which_most_depends_goes_first():
    executor = Told()
    driven(executor, job("short"), job("long"), job("middle", "long"), job("end", "middle"))
    assert [own.job.key for own in executor.seen] == ["long", "short", "middle", "end"]


def test_a_rank_is_the_chain_that_waits_and_then_the_plans_order():
    graph = {"a": [], "b": ["a"], "d": [], "c": ["b", "d"]}  # two steps wait behind a, one behind b and one behind d
    ranks = ranked({key: job(key) for key in graph}, graph)
    assert ranks == {"a": (-2, 0), "b": (-1, 1), "d": (-1, 2), "c": (0, 3)}
    assert [key for key, rank in ranks.items() if Attempt(job(key), rank=rank).last] == ["c"]


def test_the_journal_gives_the_ends_since_an_artifact_was_last_made(tmp_path):
    journal = Journal(tmp_path)
    for end in (End.LOST, End.OK):
        journal.add(
            Done(job("k"), None if end is End.OK else Failure("gone"), 1.0, end, node="here", log=str(tmp_path / "logs" / "k-1.log"))
        )
    assert Journal(tmp_path).ends == {"k": ("worker lost", "ok")}
    journal.add(Done(job("k"), None, 1.0))  # made anew
    journal.add(Done(job("b"), Failure("because"), 0.0, End.BLOCKED))  # did not run
    assert Journal(tmp_path).ends == {"k": ("ok",)}
    first = json.loads((tmp_path / "attempts.jsonl").read_text().splitlines()[0])
    assert (first["node"], first["log"], first["reason"], first["end"]) == ("here", "logs/k-1.log", "gone", "worker lost")


def test_a_journal_cut_off_in_a_line_keeps_the_lines_before_and_after(tmp_path):
    journal = Journal(tmp_path)
    journal.add(Done(job("a"), None, 1.0))
    journal.add(Done(job("b"), None, 1.0))
    path = tmp_path / "attempts.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal(tmp_path)
    assert again.ends == {"a": ("ok",)}
    again.add(Done(job("c"), None, 1.0))
    assert Journal(tmp_path).ends == {"a": ("ok",), "c": ("ok",)}


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "attempts.jsonl").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        Journal(tmp_path).add(Done(job("a"), None, 1.0))


def test_what_python_prints_is_in_the_log_and_a_silent_step_has_none(tmp_path, capsys):
    log = tmp_path / "logs" / "a-1.log"
    with captured(log) as used:
        print("seen")
        print("warned", file=sys.stderr)
        print("odd \ud800")
    assert used()
    assert log.read_text() == "seen\nwarned\nodd \\ud800\n"
    assert capsys.readouterr() == ("", "")
    with captured(tmp_path / "silent.log") as used:
        pass
    assert not used()
    assert not (tmp_path / "silent.log").exists()
    with captured(tmp_path) as used:  # a folder: nothing is kept, nothing breaks
        print("lost")


def test_what_foreign_code_prints_is_in_the_log_of_a_worker(tmp_path, capfd):
    log = tmp_path / "a-1.log"
    with captured_whole(log) as used:
        os.write(2, b"from C\n")
        print("from Python")
        sys.stdout.flush()
        assert used()
    os.write(2, b"after\n")
    assert "from C" in log.read_text()
    assert capfd.readouterr().err == "after\n"
    with captured_whole(tmp_path / "silent.log"):
        pass
    assert not (tmp_path / "silent.log").exists()


def test_a_deadline_is_raised_again_when_it_was_swallowed():
    swallowed = 0

    def doze() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                time.sleep(5)
            except Overdue:
                swallowed += 1
        time.sleep(5)

    with pytest.raises(Overdue), _limited(0.05):
        doze()
    assert swallowed == 2
    with _limited(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_step_without_a_deadline_has_none():
    with _limited(None):
        time.sleep(0.01)
