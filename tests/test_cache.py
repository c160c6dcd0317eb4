"""`rapbench cache`: what it lists, what it finds corrupted, what it deletes and, above all, what it does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock

from rapbench.artifacts import Store, alone, occupied, read_json, store_at
from rapbench.errors import StoreError
from rapbench.manifest import ABOUT, MOST_BYTES

DATA, POISON, VICTIM, SCORE, START, OLD, OLDER = (letter * 32 for letter in "abcdef0")
RECIPE = {"recipe": {"epochs": 1}}


@pytest.fixture
def rapbench(rapbench: Callable[..., Any]) -> Callable[..., Any]:
    """Give what runs `rapbench cache` inside this process."""
    return lambda *arguments: rapbench("cache", *arguments)


def publish(store: Store, key: str, stage: str, spec: Mapping[str, Any], size: int, **inputs: str) -> Path:
    """Publish an artifact of one file with so many bytes."""
    with store.attempt(key, {"stage": stage, "spec": dict(spec), "inputs": inputs}) as folder:
        (folder / "file").write_bytes(b"x" * size)
    path = store.root / key / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["seconds"] = 1.5
    path.write_text(json.dumps(manifest))
    return store.folder(key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of a results folder: one cell, what it was made from, and two artifacts of cells that are no more.

    The cell names its data, poison, victim and score; its victim was trained from START, which only the victim names.
    """
    store = Store(tmp_path / "results" / "artifacts").create()
    named = {"attack": {"name": "ep"}}
    publish(store, DATA, "data", {"dataset": {"name": "imdb"}}, 10)
    publish(store, POISON, "poison", named, 20, data=DATA)
    publish(store, START, "victim", {**RECIPE, "attack": {"name": "clean"}}, 30, data=DATA)
    publish(store, VICTIM, "victim", {**RECIPE, **named}, 40, data=DATA, poison=POISON, start=START)
    publish(store, SCORE, "score", {**RECIPE, "defense": {"name": "rap"}}, 50, data=DATA, poison=POISON, victim=VICTIM)
    publish(store, OLD, "victim", {**RECIPE, **named}, 60, data=OLDER)
    publish(store, OLDER, "data", {"dataset": {"name": "yelp"}}, 70)
    write_cell(store, {"data": DATA, "poison": POISON, "victim": VICTIM, "score": SCORE})
    return store


def write_cell(store: Store, artifacts: Mapping[str, str], folder: str = "cells") -> Path:
    path = store.root.parent / folder / "one.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"schema_version": 0, "artifacts": artifacts}))
    return path


def kill(store: Store, key: str = DATA) -> Path:
    """Leave what a killed attempt leaves: 100 bytes that no manifest names."""
    folder = store.root / key / "killed"
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"x" * 100)
    return folder


def rewrite(store: Store, key: str, **changes: object) -> None:
    path = store.root / key / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


# --- ls


def test_each_artifact_is_listed_with_what_it_is_about(store, rapbench):
    ended = rapbench("ls", store.root.parent)
    assert (ended.code, ended.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines() if re.match("[0-9a-f]{10} ", line)}
    assert set(rows) == {key[:10] for key in (DATA, POISON, VICTIM, SCORE, START, OLD, OLDER)}
    assert rows[SCORE[:10]][1:5] == ["score", "imdb", "ep", "rap"]  # of the data set and the attack it says nothing itself
    assert rows[START[:10]][1:4] == ["victim", "imdb", "clean"]
    assert rows[OLD[:10]][1:4] == ["victim", "yelp", "ep"]
    assert [rows[key[:10]][-1] for key in (SCORE, START, OLD, OLDER)] == ["yes", "yes", "no", "no"]


def test_sums_are_those_of_the_artifacts_by_stage(store, rapbench):
    found = json.loads(rapbench("ls", store.root.parent, "--json").out)
    assert found["stages"]["victim"] == {"artifacts": 3, "seconds": 4.5, "bytes": 30 + 40 + 60}
    assert found["stages"]["data"] == {"artifacts": 2, "seconds": 3.0, "bytes": 80}
    assert found["stages"]["all"] == {"artifacts": 7, "seconds": 10.5, "bytes": 280}
    [score] = [one for one in found["artifacts"] if one["key"] == SCORE]
    assert {name: score[name] for name in ("stage", "dataset", "attack", "defense", "seconds", "bytes", "used")} == {
        "stage": "score",
        "dataset": "imdb",
        "attack": "ep",
        "defense": "rap",
        "seconds": 1.5,
        "bytes": 50,
        "used": True,
    }


def test_an_empty_store_is_listed(tmp_path, rapbench):
    Store(tmp_path / "artifacts").create()
    assert rapbench("ls", tmp_path).code == 0


@pytest.mark.parametrize("content", ['{"key"', "[]", "[" * 100_000, '{"key": "' + OLD + '", "attempt": "../x", "files": {}}'])
def test_an_unreadable_manifest_is_one_line_and_the_rest_is_listed(store, rapbench, content):
    (store.root / OLD / "manifest.json").write_text(content)
    before = files(store.root)
    ended = rapbench("ls", store.root.parent)
    assert ended.code == 0
    assert len(ended.err.splitlines()) == 1
    assert OLD in ended.err
    assert SCORE[:10] in ended.out
    assert files(store.root) == before


def test_a_name_in_a_manifest_does_not_command_the_terminal(store, rapbench):
    made = store.provenance(OLD)
    rewrite(store, OLD, provenance={**made, "spec": {"attack": {"name": "\x1b[2J\nep"}}})
    assert "\x1b" not in rapbench("ls", store.root.parent).out


def test_artifacts_that_name_each_other_are_listed(store, rapbench):
    for one, other in ((OLD, OLDER), (OLDER, OLD)):
        rewrite(store, one, provenance={**store.provenance(one), "inputs": {"data": other}})
    assert rapbench("ls", store.root.parent).code == 0


# --- verify


def test_a_sound_store_is_said_to_be_so(store, rapbench):
    ended = rapbench("verify", store.root.parent)
    assert (ended.code, ended.out, ended.err) == (0, "7 artifacts, 0 corrupted\n", "")


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda path: path.write_bytes(b"x" * 39), "'file' has 39 bytes instead of 40"),
        (lambda path: path.write_bytes(b"y" * 40), "'file' has the right size and another content"),
        (lambda path: path.unlink(), "'file' is not there"),
        (lambda path: path.parent.rename(path.parent.with_name("elsewhere")), "the folder of its files, is not there"),
    ],
)
def test_a_corrupted_artifact_is_named_with_the_file_and_what_is_wrong(store, rapbench, harm, fault):
    harm(store.folder(VICTIM) / "file")
    before = files(store.root)
    ended = rapbench("verify", store.root.parent)
    assert ended.code == 1
    assert f"corrupted: {VICTIM[:10]} victim imdb ep: " in ended.out
    assert fault in ended.out
    assert "7 artifacts, 1 corrupted" in ended.out
    assert files(store.root) == before


def test_what_was_cut_off_and_what_was_set_aside_is_named_and_is_no_fault(store, rapbench):
    kill(store)
    away = store.set_aside(OLD)
    ended = rapbench("verify", store.root.parent)
    assert ended.code == 0
    assert f"{DATA[:10]}/killed" in ended.out
    assert f"set aside: {away.name}" in ended.out
    assert "6 artifacts, 0 corrupted" in ended.out


# --- what a manifest may say


@pytest.mark.parametrize("attempt", ["..", ".", "", "a/b", "/etc", "..\\x", "a\0", None, 3, ["a"]])
def test_an_artifact_whose_attempt_is_no_plain_name_is_not_sound(store, attempt):
    rewrite(store, OLD, attempt=attempt)
    assert not store.sound(OLD)
    with pytest.raises(StoreError, match="names no folder beside it"):
        store.folder(OLD)
    assert store.orphans() == []  # nobody can tell which attempt was meant: none is swept


@pytest.mark.parametrize("name", ["../file", "/etc/hostname", "a/../../file"])
def test_a_file_that_leads_out_of_the_artifact_is_a_fault(store, name):
    rewrite(store, OLD, files={name: {"bytes": 60, "blake2b": "0"}})
    assert list(store.faults(OLD)) == [f"{name!r} leads out of the artifact"]


@pytest.mark.parametrize("about", [None, {"bytes": 60}, [], {"file": None}])
def test_a_manifest_that_does_not_list_its_files_is_a_fault(store, about):
    rewrite(store, OLD, files={"file": about})
    assert not store.sound(OLD)


def test_a_pipe_in_the_place_of_a_file_hangs_nobody(store):
    path = store.folder(OLD) / "file"
    path.unlink()
    os.mkfifo(path)
    rewrite(store, OLD, files={"file": {"bytes": 0, "blake2b": "0"}})
    assert list(store.faults(OLD)) == ["'file' is not there"]


def test_a_manifest_without_end_is_not_read(store):
    rewrite(store, OLD, provenance="x" * MOST_BYTES)
    assert not store.sound(OLD)
    with pytest.raises(StoreError, match="larger than 16 MiB"):
        store.provenance(OLD)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_what_is_no_json_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        read_json(tmp_path / "x.json")


# --- gc


def test_gc_without_yes_says_what_it_would_free_and_deletes_nothing(store, rapbench):
    kill(store)
    before = files(store.root.parent)
    away = sum(occupied(store.root / key) for key in (OLD, OLDER))
    ended = rapbench("gc", store.root.parent)
    assert (ended.code, ended.err) == (0, "")
    assert "3 to delete" in ended.out
    assert f"{(away + 100) / 2**20:,.2f} MiB; --yes deletes them" in ended.out
    assert f"{DATA[:10]}/killed" in ended.out
    assert files(store.root.parent) == before


def test_gc_deletes_what_no_result_needs_and_nothing_else(store, rapbench):
    kill(store)
    kill(store, "9" * 32)
    publish(store, "8" * 32, "data", {"dataset": {"name": "sst2"}}, 5)
    away = store.set_aside("8" * 32)
    ended = rapbench("gc", store.root.parent, "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert "5 deleted" in ended.out
    assert store.published() == sorted([DATA, POISON, VICTIM, SCORE, START])  # START: only the victim's manifest names it
    assert all(store.sound(key) for key in store.published())
    assert store.orphans() == []
    assert not away.exists()
    assert (store.root.parent / "cells" / "one.json").is_file()
    assert "0 to delete, 0.00 MiB\n" in rapbench("gc", store.root.parent).out


@pytest.mark.parametrize("folder", ["probes", "theorem"])
def test_probes_and_checks_keep_what_they_were_made_from(store, rapbench, folder):
    write_cell(store, {"victim": OLD}, folder)
    assert "0 to delete" in rapbench("gc", store.root.parent).out


def test_keep_victims_keeps_them_and_what_they_were_made_from(store, rapbench):
    publish(store, "8" * 32, "predict", RECIPE, 5, victim=OLD, texts=OLDER)
    rapbench("gc", store.root.parent, "--keep-victims", "--yes")
    assert store.published() == sorted([DATA, POISON, VICTIM, SCORE, START, OLD, OLDER])


def test_gc_keeps_all_where_there_is_no_result_yet(store, rapbench):
    (store.root.parent / "cells" / "one.json").unlink()
    ended = rapbench("gc", store.root.parent, "--yes")
    assert "no result in" in ended.err
    assert len(store.published()) == 7


@pytest.mark.parametrize("content", ["", '{"artifacts": {"da', "[" * 100_000])
def test_gc_deletes_nothing_where_a_record_cannot_be_read(store, rapbench, content):
    (store.root.parent / "cells" / "two.json").write_text(content)
    kill(store)
    before = files(store.root.parent)
    ended = rapbench("gc", store.root.parent, "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "two.json" in ended.err
    assert files(store.root.parent) == before


@pytest.mark.parametrize(("key", "left"), [(VICTIM, 7), (OLD, 6)])
def test_gc_leaves_an_unreadable_manifest_and_what_it_may_be_needed_for(store, rapbench, key, left):
    (store.root / key / "manifest.json").write_text("{")
    ended = rapbench("gc", store.root.parent, "--yes")
    assert ended.code == 0
    assert f"left where it is: {str(store.root / key / 'manifest.json')!r}" in ended.err
    assert len(store.published()) == left  # of an artifact that a result needs, nobody knows what it was made from


def test_gc_waits_for_no_run(store, rapbench):
    before = files(store.root.parent)
    with FileLock(store.root.parent / ".lock"):
        ended = rapbench("gc", store.root.parent, "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "another run is writing" in ended.err
    assert files(store.root.parent) == before


def test_who_has_the_folder_alone_has_it_alone_and_gives_it_back(tmp_path):
    with alone(tmp_path), pytest.raises(StoreError, match="another run is writing"), alone(tmp_path):
        pytest.fail("two at once")
    with alone(tmp_path):
        pass


# --- nothing outside the store is ever deleted


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that looks like attempts and artifacts, and is somebody's own."""
    folder = tmp_path / "outside"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "thesis").write_text("years")
    return folder


def link_set_aside(store: Store, outside: Path) -> None:
    (store.root / "set-aside").symlink_to(outside)


def link_into_set_aside(store: Store, outside: Path) -> None:
    (store.root / "set-aside").mkdir()
    (store.root / "set-aside" / "x").symlink_to(outside)


def link_key(store: Store, outside: Path) -> None:
    (store.root / ("9" * 32)).symlink_to(outside)


def link_attempt(store: Store, outside: Path) -> None:
    (store.root / DATA / "attempt").symlink_to(outside)


def link_in_attempt(store: Store, outside: Path) -> None:
    (kill(store) / "link").symlink_to(outside)


def link_claimed_attempt(store: Store, outside: Path) -> None:
    (store.root / OLD / "attempt").symlink_to(outside)
    rewrite(store, OLD, attempt="attempt", files={"mine/thesis": {"bytes": 5, "blake2b": "0"}})


def link_artifact(store: Store, outside: Path) -> None:
    (store.root / OLDER).rename(outside / OLDER)
    (store.root / OLDER).symlink_to(outside / OLDER)


def leave_by_attempt(store: Store, outside: Path) -> None:
    rewrite(store, OLD, attempt=f"../../../{outside.name}")


def leave_by_input(store: Store, outside: Path) -> None:
    rewrite(store, OLD, provenance={**store.provenance(OLD), "inputs": {"data": f"../../{outside.name}"}})


@pytest.mark.parametrize(
    "trap",
    [
        *(link_set_aside, link_into_set_aside, link_key, link_attempt, link_in_attempt, link_claimed_attempt, link_artifact),
        *(leave_by_attempt, leave_by_input),
    ],
)
def test_nothing_outside_the_store_is_deleted(store, rapbench, outside, trap):
    trap(store, outside)
    before = files(outside)
    for arguments in (["verify"], ["ls"], ["gc"], ["gc", "--yes"]):
        assert rapbench(arguments[0], store.root.parent, *arguments[1:]).code in (0, 1)
    store.sweep()
    assert files(outside) == before
    assert "mine/thesis" in before


def test_of_an_artifact_behind_a_link_the_link_goes(store, rapbench, outside):
    link_artifact(store, outside)
    rapbench("gc", store.root.parent, "--yes")
    assert not (store.root / OLDER).is_symlink()
    assert (outside / OLDER / "manifest.json").is_file()


def test_a_link_beside_an_attempt_is_not_swept(store, outside):
    link_attempt(store, outside)
    assert store.sweep() == 0
    assert (store.root / DATA / "attempt").is_symlink()


def test_what_a_cut_off_deletion_leaves_is_published_no_more(store, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(StoreError, match=r"cannot delete .*: Permission denied"):
        store.discard(store.root / OLD)
    assert not store.has(OLD)


def test_gc_refuses_a_store_that_is_a_link(store, rapbench, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "artifacts").symlink_to(store.root)
    before = files(store.root)
    ended = rapbench("gc", other, "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "is a link" in ended.err
    assert files(store.root) == before
    assert rapbench("ls", other).code == 0


@pytest.mark.parametrize("path", ["../../outside/mine", "..", "set-aside/.."])
def test_a_store_discards_nothing_that_is_not_in_it(store, outside, path):
    with pytest.raises(StoreError, match="is not in the store"):
        store.discard(store.root / path)
    assert (outside / "mine" / "thesis").is_file()
    assert len(store.published()) == 7


def test_a_name_that_is_no_key_is_none_of_ours(store):
    notes = store.root / "notes" / "deep"
    notes.mkdir(parents=True)
    assert store.sweep() == 0
    assert notes.is_dir()


def test_the_bytes_behind_a_link_are_not_counted(tmp_path):
    (tmp_path / "far").write_bytes(b"x" * 1000)
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"x" * 7)
    assert occupied(folder) == 7
    (folder / "link").symlink_to(tmp_path / "far")
    assert occupied(folder) == 7 + len(str(tmp_path / "far"))  # a link is as long as where it points


# --- a store elsewhere, which several results folders share


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path, monkeypatch) -> str:
    """A shared store with two data sets and a victim of each, a score that nobody needs, and two folders that need a victim each."""
    monkeypatch.setenv("RAPBENCH_CACHE", str(tmp_path / "cache"))
    place = {"folder": str(tmp_path / "shared"), "memory": f"memory://{tmp_path.name}/{abs(hash(tmp_path))}"}[request.param]
    store = store_at(place).create(shared=True)
    for data, victim, user in ((DATA, VICTIM, "one"), (OLDER, OLD, "two")):
        release(store, data, "data", {"dataset": {"name": "imdb"}}, 10)
        release(store, victim, "victim", {**RECIPE, "attack": {"name": "ep"}}, 40, data=data)
        (tmp_path / user / "cells").mkdir(parents=True)
        (tmp_path / user / "cells" / "a.json").write_text(json.dumps({"artifacts": {"victim": victim}}))
    release(store, SCORE, "score", RECIPE, 50, victim=VICTIM)
    return place


def release(store: Store, key: str, stage: str, spec: Mapping[str, Any], size: int, **inputs: str) -> None:
    with store.attempt(key, {"stage": stage, "spec": dict(spec), "inputs": inputs}) as folder:
        (folder / "file").write_bytes(b"x" * size)


@pytest.fixture
def week_later(monkeypatch) -> None:
    for module in ("artifacts", "objects", "cli_cache"):
        monkeypatch.setattr(f"rapbench.{module}.IDLE_S", -60.0)


def test_a_store_elsewhere_is_listed_and_verified(place, rapbench, tmp_path):
    found = json.loads(rapbench("ls", tmp_path / "two", "--store", place, "--json").out)
    assert {one["key"]: (one["bytes"], one["used"]) for one in found["artifacts"]} == {
        DATA: (10, False),
        VICTIM: (40, False),
        SCORE: (50, False),
        OLDER: (10, True),
        OLD: (40, True),
    }
    ended = rapbench("verify", "--store", place)
    assert (ended.code, ended.out) == (0, "5 artifacts, 0 corrupted\n")


def test_a_corrupted_artifact_of_a_store_elsewhere_is_named(place, rapbench):
    fs, top = fsspec.core.url_to_fs(place)
    [path] = [path for path in fs.find(top) if OLD in path and path.endswith("/file")]
    fs.pipe_file(path, b"y" * 40)
    ended = rapbench("verify", "--store", place)
    assert ended.code == 1
    assert f"corrupted: {OLD[:10]} victim imdb ep: 'file' has the right size and another content" in ended.out


@pytest.mark.usefixtures("week_later")
def test_gc_of_a_shared_store_keeps_all_artifacts_unless_told_who_needs_it(place, rapbench):
    ended = rapbench("gc", "--store", place, "--yes")
    assert ended.code == 0
    assert "--needed-by names every results folder" in ended.err
    assert "0 deleted" in ended.out
    assert len(store_at(place).published()) == 5


@pytest.mark.usefixtures("week_later")
def test_gc_of_a_shared_store_keeps_what_any_of_the_named_folders_needs(place, rapbench, tmp_path):
    ended = rapbench("gc", "--store", place, "--needed-by", tmp_path / "one", "--needed-by", tmp_path / "two", "--yes")
    assert ended.code == 0
    assert store_at(place).published() == sorted([DATA, VICTIM, OLDER, OLD])
    rapbench("gc", "--store", place, "--needed-by", tmp_path / "one", "--yes")
    assert store_at(place).published() == sorted([DATA, VICTIM])


def test_gc_of_a_shared_store_keeps_what_is_younger_than_a_week(place, rapbench, tmp_path):
    ended = rapbench("gc", "--store", place, "--needed-by", tmp_path / "one", "--yes")
    assert (ended.code, ended.out) == (0, "0 deleted, 0.00 MiB freed\n")
    assert len(store_at(place).published()) == 5


@pytest.mark.usefixtures("week_later")
def test_gc_of_a_shared_store_keeps_all_where_a_named_folder_has_no_result(place, rapbench, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, code, told in ((tmp_path / "empty", 0, "no result in"), (tmp_path / "mistyped", 2, "no results folder")):
        ended = rapbench("gc", "--store", place, "--needed-by", tmp_path / "one", "--needed-by", folder, "--yes")
        assert (ended.code, told in ended.err) == (code, True)
    assert not (tmp_path / "mistyped").exists()
    assert len(store_at(place).published()) == 5


@pytest.mark.usefixtures("week_later")
def test_gc_of_a_shared_store_waits_for_the_runs_of_the_named_folders(place, rapbench, tmp_path):
    with FileLock(tmp_path / "one" / ".lock"):
        ended = rapbench("gc", "--store", place, "--needed-by", tmp_path / "one", "--yes")
    assert (ended.code, "another run is writing" in ended.err) == (2, True)
    assert len(store_at(place).published()) == 5


def test_gc_takes_no_single_folder_for_all_that_need_a_store(place, rapbench, tmp_path):
    ended = rapbench("gc", tmp_path / "one", "--store", place, "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "name all that use it by --needed-by" in ended.err


def test_gc_takes_a_folders_own_store_only_with_the_folder(store, rapbench):
    before = files(store.root)
    ended = rapbench("gc", "--store", store.root, "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "give that folder" in ended.err
    assert files(store.root) == before


def test_gc_of_a_folder_keeps_the_artifacts_once_others_share_them(store, rapbench):
    store.create(shared=True)
    kill(store)
    rapbench("gc", store.root.parent, "--yes")
    assert len(store.published()) == 7
    assert (store.root / DATA / "killed").is_dir()  # it may be under way


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_place_without_a_store_is_one_line(tmp_path, rapbench, command):
    for place in (tmp_path, f"memory://{tmp_path.name}/none", "nonsense://x/y"):
        ended = rapbench(command, "--store", place)
        assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


# --- no such folder


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_folder_that_is_no_results_folder_is_one_line(tmp_path, rapbench, command):
    for folder in (tmp_path, tmp_path / "none"):
        ended = rapbench(command, folder)
        assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
        assert "no artifacts in" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
@pytest.mark.parametrize("about", [{**ABOUT, "layout": 2}, {}, [1], {**ABOUT, "layout": "x" * 9999}, {"kind": "photos", "layout": 1}])
def test_a_store_of_another_layout_is_one_line_and_stays(store, rapbench, command, about):
    (store.root / "about.json").write_text(json.dumps(about))
    before = files(store.root.parent)
    ended = rapbench(command, store.root.parent, *(["--yes"] if command == "gc" else []))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert "about.json" in ended.err
    assert len(ended.err) < 500
    assert files(store.root.parent) == before


def test_the_commands_import_nothing_heavy(store):
    code = (
        f"import sys; sys.argv = ['rapbench', 'cache', 'ls', {str(store.root.parent)!r}]\nfrom rapbench.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('heavy:', *sorted({'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "heavy:"
