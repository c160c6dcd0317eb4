"""The store: published whole or not at all, trusted only as far as its digests reach."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench.artifacts import Store, content_key, file_digest, write_atomically
from rapbench.errors import StoreError

KEY = "0123456789abcdef0123456789abcdef"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts").create()


def publish(store: Store, key: str = KEY, text: str = "one") -> Path:
    with store.attempt(key, {"stage": "made up"}) as folder:
        (folder / "deep").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "deep" / "b.txt").write_text(text * 2)
    return store.folder(key)


def broken_off(store: Store, failure: Callable[[Path], BaseException]) -> None:
    """Begin an attempt that fails after its first file."""
    with store.attempt(KEY, {}) as folder:
        (folder / "a.txt").write_text("half")
        raise failure(folder)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# --- keys


def test_a_key_is_the_digest_of_the_canonical_text() -> None:
    expected = hashlib.blake2b(b'{"a":[1,2.5,true],"b":null,"\\u00e9":"x"}', digest_size=16).hexdigest()
    assert content_key({"é": "x", "b": None, "a": (1, 2.5, True)}) == expected


def test_the_folder_of_what_is_published_anew_is_the_new_one(store: Store) -> None:
    publish(store)
    first = store.folder(KEY)
    assert store.folder(KEY) == first
    shutil.rmtree(store.root / KEY)
    publish(store, text="two")
    assert store.folder(KEY) != first
    assert store.folder(KEY).is_dir()


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_a_key_does_not_depend_on_the_order_of_a_mapping(value: dict[str, object]) -> None:
    assert content_key(dict(reversed(value.items()))) == content_key(value)


@settings(deadline=None)
@given(JSON, JSON)
def test_different_values_have_different_keys(one: object, other: object) -> None:
    assert (content_key(one) == content_key(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_a_key_is_the_same_in_another_process() -> None:
    value = {"words": sorted({"mb", "bb", "cf"}), "rate": 0.1, "text": "déjà"}
    code = f"from rapbench.artifacts import content_key; print(content_key({value!r}))"
    for seed in ("0", "12345"):
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert told.stdout.strip() == content_key(value)


def test_what_is_not_plain_json_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key({"rate": float("nan")})
    with pytest.raises(TypeError, match="set"):
        content_key({"words": {"mb"}})


# --- publishing


def test_an_attempt_is_seen_by_nobody_before_it_ends_well(store: Store) -> None:
    with store.attempt(KEY, {}) as folder:
        (folder / "a.txt").write_text("one")
        assert not store.has(KEY)
        assert not store.sound(KEY)
        with pytest.raises(StoreError, match=f"no artifact {KEY}"):
            store.folder(KEY)
    assert store.has(KEY)
    assert store.sound(KEY)
    assert (store.folder(KEY) / "a.txt").read_text() == "one"


def test_a_manifest_names_sizes_digests_and_where_the_files_came_from(store: Store) -> None:
    folder = publish(store)
    manifest = json.loads((store.root / KEY / "manifest.json").read_text())
    assert {name: about["bytes"] for name, about in manifest["files"].items()} == {"a.txt": 3, "deep/b.txt": 6}
    assert manifest["files"]["a.txt"]["blake2b"] == hashlib.blake2b(b"one", digest_size=16).hexdigest() == file_digest(folder / "a.txt")
    assert manifest["provenance"]["stage"] == "made up"
    assert manifest["provenance"]["seconds"] >= 0


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_attempt_that_fails_leaves_no_file(store: Store, failure: BaseException) -> None:
    before = everything(store.root)
    with pytest.raises(type(failure)):
        broken_off(store, lambda folder: failure)
    assert everything(store.root) - before <= {KEY}
    assert not store.has(KEY)


def test_of_two_attempts_on_one_key_the_first_to_end_is_kept(store: Store) -> None:
    with store.attempt(KEY, {}) as slow:
        (slow / "a.txt").write_text("slow")
        with store.attempt(KEY, {}) as fast:
            (fast / "a.txt").write_text("fast")
    assert (store.folder(KEY) / "a.txt").read_text() == "fast"
    assert store.sound(KEY)
    assert not slow.exists()
    assert sorted(path.name for path in (store.root / KEY).iterdir()) == sorted(["manifest.json", fast.name])


def test_of_many_attempts_at_once_exactly_one_wins(store: Store) -> None:
    together = threading.Barrier(8)

    def attempt(number: int) -> None:
        with store.attempt(KEY, {}) as folder:
            (folder / "a.txt").write_text(str(number))
            together.wait(timeout=60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert len(list((store.root / KEY).iterdir())) == 2  # the manifest and the winner's files
    assert store.sound(KEY)


def test_a_link_that_was_made_and_is_said_to_be_there_is_our_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.link

    def twice(source: Path, target: Path) -> None:
        own(source, target)
        own(source, target)  # as NFS does where the first answer was lost

    monkeypatch.setattr(os, "link", twice)
    publish(store)
    assert store.sound(KEY)


# --- trust


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip(folder / "a.txt"),
        lambda folder: flip(folder / "deep" / "b.txt"),
        lambda folder: (folder / "a.txt").write_text("on"),
        lambda folder: (folder / "a.txt").write_text(""),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
        lambda folder: (folder.parent / "manifest.json").write_text('{"key"'),
        lambda folder: (folder.parent / "manifest.json").write_text("[]"),
        lambda folder: (folder.parent / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder.parent / "manifest.json").write_text(json.dumps({"key": "another", "attempt": folder.name, "files": {}})),
        lambda folder: (folder.parent / "manifest.json").write_text(json.dumps({"key": KEY, "attempt": folder.name, "files": ["a.txt"]})),
        lambda folder: (folder.parent / "manifest.json").unlink(),
    ],
)
def test_a_harmed_artifact_is_not_sound_and_the_store_goes_on(store: Store, harm: Callable[[Path], object]) -> None:
    harm(publish(store))
    assert not store.sound(KEY)
    store.sweep()
    if store.has(KEY):
        store.set_aside(KEY)
    publish(store, text="again")
    assert store.sound(KEY)


def test_what_is_set_aside_keeps_its_files(store: Store) -> None:
    (publish(store) / "a.txt").write_text("harmed")
    away = store.set_aside(KEY)
    assert not store.has(KEY)
    assert {path.name: path.read_text() for path in away.rglob("*.txt")} == {"a.txt": "harmed", "b.txt": "oneone"}
    publish(store)
    other = store.set_aside(KEY)  # the same key may be set aside twice
    store.sweep()
    assert away.is_dir()
    assert other.is_dir()


# --- nothing is written through a link


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is somebody's own."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis").write_text("years")
    return folder


def test_an_attempt_does_not_write_behind_a_link(store: Store, outside: Path) -> None:
    (store.root / KEY).symlink_to(outside)
    publish(store)
    assert everything(outside) == {"thesis"}
    assert not (store.root / KEY).is_symlink()
    assert store.sound(KEY)


def test_an_attempt_is_published_where_a_link_stood_in_the_place_of_its_manifest(store: Store, outside: Path) -> None:
    (store.root / KEY).mkdir()
    (store.root / KEY / "manifest.json").symlink_to(outside / "new")
    publish(store)
    assert everything(outside) == {"thesis"}
    assert store.sound(KEY)


def test_an_artifact_is_not_set_aside_behind_a_link(store: Store, outside: Path) -> None:
    publish(store)
    (store.root / "set-aside").symlink_to(outside)
    store.set_aside(KEY)
    assert everything(outside) == {"thesis"}
    assert len(store.aside()) == 1
    assert not store.has(KEY)


def test_of_a_link_in_the_place_of_an_artifact_the_link_is_set_aside(store: Store, outside: Path) -> None:
    publish(store)
    (store.root / KEY).rename(outside / KEY)
    (store.root / KEY).symlink_to(outside / KEY)
    before = everything(outside)
    away = store.set_aside(KEY)
    assert (store.root / away).is_symlink()
    assert everything(outside) == before
    assert not store.has(KEY)


def test_a_store_is_not_made_behind_a_link_in_the_place_of_its_layout(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "about.json").symlink_to(outside / "new")
    Store(tmp_path).create()
    assert everything(outside) == {"thesis"}
    assert Store(tmp_path).opened()


# --- sweeping


def test_an_attempt_on_a_shared_store_is_as_old_as_the_last_that_was_written_in_it(store: Store) -> None:
    store.create(shared=True)
    week_ago = time.time() - 8 * 24 * 3600
    for name in ("killed", "alive"):
        (store.root / KEY / name).mkdir(parents=True)
        (store.root / KEY / name / "a.txt").write_text("half")
    os.utime(store.root / KEY / "killed" / "a.txt", (week_ago, week_ago))
    for name in ("killed", "alive"):
        os.utime(store.root / KEY / name, (week_ago, week_ago))
    assert [path.name for path in store.orphans()] == ["killed"]
    assert store.sweep() == 1
    assert (store.root / KEY / "alive" / "a.txt").is_file()


def test_a_sweep_deletes_killed_attempts_and_nothing_published(store: Store) -> None:
    published = publish(store)
    (store.root / KEY / "killed").mkdir()
    (store.root / KEY / "killed" / "a.txt").write_text("half")
    (store.root / ("f" * 32) / "killed").mkdir(parents=True)
    assert store.sweep() == 2
    assert store.sound(KEY)
    assert published.is_dir()
    assert not (store.root / KEY / "killed").exists()
    assert store.sweep() == 0


@pytest.mark.parametrize("content", ['{"key": "' + KEY, "[]", "{}"])
def test_a_sweep_deletes_no_files_of_an_unreadable_manifest(store: Store, content: str) -> None:
    published = publish(store)
    (store.root / KEY / "manifest.json").write_text(content)
    assert store.sweep() == 0
    assert (published / "a.txt").read_text() == "one"


# --- a place that cannot be written


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def one_line(error: pytest.ExceptionInfo[StoreError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert "choose another --out" in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("named", [True, False])
def test_a_full_or_read_only_disk_is_one_line_and_leaves_nothing(store: Store, number: int, named: bool) -> None:
    with pytest.raises(StoreError) as error:
        broken_off(store, lambda folder: OSError(number, os.strerror(number), *([str(folder / "b.txt")] if named else [])))
    one_line(error, os.strerror(number))
    assert not list((store.root / KEY).iterdir())


def test_a_disk_that_fills_up_at_the_manifest_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, text: str, **kwargs: object) -> None:
        path.write_bytes(text[:10].encode())
        no_space()

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(StoreError) as error, store.attempt(KEY, {}) as folder:
        (folder / "a.txt").write_bytes(b"one")
    one_line(error, "No space left")
    assert not list((store.root / KEY).iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_attempt_that_cannot_begin_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError) as error, store.attempt(KEY, {}):
        pytest.fail("the block must not begin")
    one_line(error, os.strerror(number))


@pytest.mark.parametrize(
    "failure", [ConnectionRefusedError(111, "Connection refused"), FileNotFoundError(2, "No such file", "/data/train.csv")]
)
def test_an_error_that_is_not_the_stores_is_not_blamed_on_it(store: Store, failure: OSError) -> None:
    with pytest.raises(type(failure)):
        broken_off(store, lambda folder: failure)


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cell.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError) as error:
        write_atomically(path, "new")
    one_line(error, "cell.json", "No space left")
    assert everything(tmp_path) == {"cell.json"}
    assert path.read_text() == "old"


def test_a_store_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as error:
        Store(tmp_path / "file" / "artifacts").create()
    one_line(error, "cannot make the folder")


def test_a_store_is_tried_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError) as error:
        Store(tmp_path).create()
    one_line(error, "about.json")
