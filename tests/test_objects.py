"""One behaviour, wherever artifacts are kept: a folder, fsspec's memory, an S3 server. Then what only objects have."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import fsspec
import pytest
from fsspec.registry import known_implementations

from rapbench.artifacts import Store, store_at
from rapbench.errors import StoreError
from rapbench.manifest import ABOUT, MOST_BYTES
from rapbench.objects import ObjectStore, UnreachableError

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
S3 = all(map(importlib.util.find_spec, ("s3fs", "moto", "flask")))


@dataclass
class Raw:
    """A store's place, seen from outside: its objects by name."""

    place: str

    @property
    def _fs(self) -> tuple[Any, str]:
        fs, top = fsspec.core.url_to_fs(self.place)
        fs.invalidate_cache()
        return fs, top

    def names(self) -> set[str]:
        fs, top = self._fs
        return {name.removeprefix(f"{top}/") for name in fs.find(top)}

    def read(self, name: str) -> bytes:
        fs, top = self._fs
        return bytes(fs.cat_file(f"{top}/{name}"))

    def write(self, name: str, content: bytes | str) -> None:
        fs, top = self._fs
        fs.makedirs(f"{top}/{name}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{top}/{name}", content.encode() if isinstance(content, str) else content)

    def delete(self, name: str) -> None:
        fs, top = self._fs
        fs.rm_file(f"{top}/{name}")

    def rewrite(self, **changes: object) -> None:
        manifest = json.loads(self.read(f"{KEY}/manifest.json"))
        self.write(f"{KEY}/manifest.json", json.dumps({**manifest, **changes}))

    def file(self, name: str = "a.txt") -> str:
        """Give the name of the object that is this file of the artifact KEY."""
        return f"{KEY}/{json.loads(self.read(f'{KEY}/manifest.json'))['attempt']}/{name}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """An S3 server in this process, and the environment that leads boto there."""
    if not S3:
        pytest.skip("needs s3fs and moto[server]")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    server.stop()


def a_place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = hashlib.blake2b(str(tmp_path).encode(), digest_size=8).hexdigest()
    if kind == "s3":
        request.getfixturevalue("s3_server")
    return {"folder": f"file://{tmp_path}/store", "memory": f"memory://{name}/deep", "s3": f"s3://bucket/{name}/deep"}[kind]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this node."""
    monkeypatch.setenv("RAPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["folder", "memory", "s3"])
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    return Raw(a_place(request.param, request, tmp_path))


@pytest.fixture
def store(raw: Raw) -> Store:
    return store_at(raw.place).create(shared=True)


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    return Raw(a_place(request.param, request, tmp_path))


@pytest.fixture
def objects(bucket: Raw) -> ObjectStore:
    store = store_at(bucket.place).create()
    assert isinstance(store, ObjectStore)
    return store


def publish(store: Store, key: str = KEY, text: str = "one") -> Path:
    with store.attempt(key, {"stage": "made up"}) as folder:
        (folder / "deep").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "deep" / "b.txt").write_text(text * 2)
        (folder / "empty").write_text("")
    return store.folder(key)


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """Give the store as another node sees it: with an empty cache."""
    monkeypatch.setenv("RAPBENCH_CACHE", str(tmp_path / "another"))
    return store_at(store.uri if isinstance(store, ObjectStore) else store.root)


@pytest.fixture
def week_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give what makes all that was ever written older than a week."""

    def later() -> None:
        for module in ("artifacts", "objects"):
            monkeypatch.setattr(f"rapbench.{module}.IDLE_S", -60.0)

    return later


# --- publishing


def test_what_is_published_is_read_on_another_node(store, monkeypatch, tmp_path):
    assert read(publish(store)) == {"a.txt": "one", "deep/b.txt": "oneone", "empty": ""}
    far = elsewhere(store, monkeypatch, tmp_path).opened()
    assert (far.published(), far.has(KEY), far.sound(KEY), list(far.faults(KEY))) == ([KEY], True, True, [])
    assert read(far.folder(KEY)) == {"a.txt": "one", "deep/b.txt": "oneone", "empty": ""}
    assert far.provenance(KEY)["stage"] == "made up"
    assert far.extent(KEY).size == 3 + 6
    assert far.sound_among([KEY, OTHER]) == {KEY}


def test_an_attempt_is_seen_by_nobody_before_it_ends_well(store, raw):
    with store.attempt(KEY, {}) as folder:
        (folder / "a.txt").write_text("one")
        assert not store.has(KEY)
        assert not store.sound(KEY)
        with pytest.raises(StoreError, match=f"no artifact {KEY}"):
            store.folder(KEY)
    assert store.sound(KEY)


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_attempt_that_fails_leaves_no_file(store, raw, cache, failure):
    def fail() -> None:
        with store.attempt(KEY, {}) as folder:
            (folder / "a.txt").write_text("half")
            raise failure

    before = raw.names()
    with pytest.raises(StoreError if isinstance(failure, OSError) else type(failure)):
        fail()
    assert raw.names() == before
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_of_two_attempts_the_first_to_end_is_kept_and_the_other_leaves_nothing(store, raw):
    with store.attempt(KEY, {}) as slow:
        (slow / "a.txt").write_text("slow")
        publish(store, text="fast")
    assert (store.folder(KEY) / "a.txt").read_text() == "fast"
    assert store.sound(KEY)
    assert not slow.exists()
    assert len({name.split("/")[1] for name in raw.names() if name.startswith(KEY)}) == 2  # the manifest and the winner's files


def test_of_many_attempts_at_once_exactly_one_wins(store, raw):
    if raw.place.startswith("memory:"):
        pytest.skip("fsspec's memory looks first and writes then")
    together = threading.Barrier(8)

    def attempt(number: int) -> None:
        with store.attempt(KEY, {}) as folder:
            (folder / "a.txt").write_text(str(number))
            together.wait(timeout=60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert raw.names() - {"about.json", "shared.json"} == {f"{KEY}/manifest.json", raw.file()}
    assert store.sound(KEY)


PROCESS = """
import sys, time, pathlib
from rapbench.artifacts import store_at
place, number, start = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
store = store_at(place)
with store.attempt(sys.argv[4], {}) as folder:
    (folder / "a.txt").write_text(number)
    (start / number).touch()
    while len(list(start.iterdir())) < 3:
        time.sleep(0.001)
print((store.folder(sys.argv[4]) / "a.txt").read_text())
"""


def test_of_three_processes_at_once_one_wins_and_all_read_the_same(store, raw, tmp_path, start):
    if raw.place.startswith("memory:"):
        pytest.skip("a process's memory is its own")
    (tmp_path / "start").mkdir()
    command = [sys.executable, "-c", PROCESS, raw.place]
    running = [start([*command, str(number), str(tmp_path / "start"), KEY], stdout=subprocess.PIPE, text=True) for number in range(3)]
    told = {process.communicate(timeout=300)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert told == {raw.read(raw.file()).decode() + "\n"}
    assert raw.names() - {"about.json", "shared.json"} == {f"{KEY}/manifest.json", raw.file()}
    assert store.sound(KEY)


# --- trust


@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: raw.write(raw.file(), "on"),
        lambda raw: raw.write(raw.file("deep/b.txt"), ""),
        lambda raw: raw.delete(raw.file()),
        lambda raw: raw.write(f"{KEY}/manifest.json", '{"key"'),
        lambda raw: raw.write(f"{KEY}/manifest.json", ""),
        lambda raw: raw.write(f"{KEY}/manifest.json", "[]"),
        lambda raw: raw.write(f"{KEY}/manifest.json", b"\xff\xfe"),
        lambda raw: raw.write(f"{KEY}/manifest.json", "[" * 100_000),
        lambda raw: raw.write(f"{KEY}/manifest.json", b" " * (MOST_BYTES + 1)),
        lambda raw: raw.rewrite(key=OTHER),
        lambda raw: raw.rewrite(files=["a.txt"]),
        lambda raw: raw.rewrite(attempt="elsewhere"),
        lambda raw: raw.rewrite(attempt=".."),
        lambda raw: raw.rewrite(files={"../../about.json": {"bytes": 40, "blake2b": "0"}}),
        lambda raw: raw.rewrite(files={"/etc/hostname": {"bytes": 1, "blake2b": "0"}}),
        lambda raw: raw.delete(f"{KEY}/manifest.json"),
    ],
)
def test_a_harmed_artifact_is_not_sound_and_the_store_goes_on(store, raw, harm):
    publish(store)
    harm(raw)
    assert not store.sound(KEY)
    assert next(store.faults(KEY))
    if store.has(KEY):
        store.set_aside(KEY)
    assert not store.has(KEY)
    publish(store, text="again")
    assert store.sound(KEY)
    assert (store.folder(KEY) / "a.txt").read_text() == "again"


@pytest.mark.parametrize("name", ["../../../../out", "deep/../../../../../out", "/{tmp}/out"])
def test_a_file_that_leads_out_of_the_artifact_is_read_from_nowhere_and_written_nowhere(store, raw, monkeypatch, tmp_path, name):
    publish(store)
    name = name.format(tmp=tmp_path)
    raw.rewrite(files={name: {"bytes": 3, "blake2b": hashlib.blake2b(b"one", digest_size=16).hexdigest()}})
    far = elsewhere(store, monkeypatch, tmp_path)
    assert list(far.faults(KEY)) == [f"{name!r} leads out of the artifact"]
    if isinstance(far, ObjectStore):
        with pytest.raises(StoreError, match="leads out of the artifact"):
            far.folder(KEY)
    assert not list(tmp_path.rglob("out*"))


def test_a_flipped_bit_is_found_when_all_is_read(store, raw):
    publish(store)
    raw.write(raw.file(), "onf")
    assert list(store.faults(KEY)) == ["'a.txt' has the right size and another content"]
    assert not store.sound(KEY)  # so that the next run makes it anew


@pytest.mark.parametrize("name", ["odd [1]*?#%41 é.txt", ".hidden", "a+b&c=d~.txt"])
def test_a_file_may_have_any_name(store, name, monkeypatch, tmp_path):
    with store.attempt(KEY, {}) as folder:
        (folder / name).write_text("one")
    assert list(store.faults(KEY)) == []
    assert read(elsewhere(store, monkeypatch, tmp_path).folder(KEY)) == {name: "one"}


def test_what_is_set_aside_keeps_its_files_until_it_is_discarded(store, raw):
    publish(store)
    away = store.set_aside(KEY)
    assert not store.has(KEY)
    assert [path.name for path in store.aside()] == [away.name]
    kept = {name: raw.read(name) for name in raw.names() if name.startswith("set-aside/")}
    assert sorted(kept.values())[:3] == [b"", b"one", b"oneone"]  # and the manifest
    assert store.size(store.aside()[0]) == sum(map(len, kept.values()))
    publish(store)
    store.discard(store.aside()[0])
    assert store.aside() == []
    assert store.sound(KEY)


def test_to_set_aside_what_another_runner_has_moved_is_no_error(store):
    publish(store)
    store.set_aside(KEY)
    store.set_aside(KEY)
    assert len(store.aside()) == 1


@pytest.mark.parametrize("path", ["..", "../x", "set-aside/..", f"{KEY}/..", "../../x"])
def test_nothing_is_discarded_that_is_not_in_the_store(store, raw, path):
    publish(store)
    before = raw.names()
    with pytest.raises(StoreError, match="is not in the store"):
        store.discard(PurePath(path))
    assert raw.names() == before


def test_a_discarded_artifact_is_gone(store, raw):
    publish(store)
    publish(store, OTHER)
    store.discard(PurePath(KEY))
    assert store.published() == [OTHER]
    assert not [name for name in raw.names() if name.startswith(KEY)]


# --- two runners: what may be under way is not swept


def test_on_a_shared_store_only_what_nobody_touched_for_a_week_is_swept(store, raw, week_later):
    publish(store)
    raw.write(f"{KEY}/killed/a.txt", "half")
    raw.write(f"{OTHER}/killed/deep/a.txt", "half")
    assert store.orphans() == []
    assert store.sweep() == 0
    week_later()
    assert [path.parent.name for path in store.orphans()] == [KEY, OTHER]
    assert store.sweep() == 2
    assert {name.split("/")[0] for name in raw.names()} - {"about.json", "shared.json"} == {KEY}
    assert store.sound(KEY)


def test_what_an_unreadable_manifest_may_name_is_not_swept(store, raw, week_later):
    publish(store)
    raw.write(f"{KEY}/killed/a.txt", "half")
    raw.write(f"{KEY}/manifest.json", '{"key"')
    week_later()
    assert store.sweep() == 0


def test_a_store_that_is_not_shared_is_swept_at_once(tmp_path):
    store = Store(tmp_path / "artifacts").create()
    (store.root / KEY / "killed").mkdir(parents=True)
    assert not store.shared
    assert store.sweep() == 1


def test_a_store_that_was_shared_once_stays_so(tmp_path):
    Store(tmp_path).create(shared=True)
    assert Store(tmp_path).create().shared


# --- a place that is none of ours


@pytest.mark.parametrize("about", [{**ABOUT, "layout": 2}, {}, [1], {"kind": "photos", "layout": 1}])
def test_a_store_of_another_layout_is_refused_and_stays(raw, about):
    raw.write("about.json", json.dumps(about))
    with pytest.raises(StoreError, match=r"about\.json' says .*, this rapbench reads"):
        store_at(raw.place).create()
    with pytest.raises(StoreError, match="use the rapbench that wrote it"):
        store_at(raw.place).opened()
    assert json.loads(raw.read("about.json")) == about


def test_a_place_without_a_store_is_not_opened(raw):
    with pytest.raises(StoreError, match="no artifacts in"):
        store_at(raw.place).opened()


def test_paths_and_file_uris_are_folders(tmp_path):
    assert [store_at(place).root for place in (tmp_path, str(tmp_path), f"file://{tmp_path}")] == [tmp_path] * 3
    assert type(store_at(tmp_path)) is Store
    assert not store_at(tmp_path).remote


def test_another_uri_is_remote_and_has_a_folder_of_its_own_in_the_cache(cache):
    one, same, other = (store_at(f"memory://x/{name}") for name in ("one", "one/", "other"))
    assert one.remote
    assert one.root == same.root != other.root
    assert one.root.parent == other.root.parent == cache


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nonsense://bucket/x", "Protocol not known: nonsense; give a folder, or a URI like"),
        ("notinstalled://bucket/x", "needs a driver that is not installed here: Install notinstalledfs"),
        ("memory://", "names no bucket or folder"),
        ("file://relative/x", "no absolute path"),
        ("simplecache::memory://x", "chains drivers"),
    ],
)
def test_a_place_that_cannot_be_a_store_is_one_line(place, reason, monkeypatch):
    driver = {"class": "no_such_package_for_rapbench.FS", "err": "Install notinstalledfs"}
    monkeypatch.setitem(known_implementations, "notinstalled", driver)
    with pytest.raises(StoreError, match=reason) as error:
        store_at(place)
    assert "\n" not in str(error.value)


def test_a_password_is_not_told(monkeypatch, objects):
    refuse(monkeypatch, objects, "pipe_file")
    object.__setattr__(objects, "uri", "sftp://me:secret@host/x")
    with pytest.raises(StoreError, match=r"sftp://me:\*\*\*@host/x") as error:
        objects.create()
    assert "secret" not in str(error.value)


# --- what only objects have


def refuse(monkeypatch: pytest.MonkeyPatch, store: ObjectStore, method: str, error: Exception | None = None) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error or ConnectionResetError(104, "Connection reset\nby peer")

    monkeypatch.setattr(store.fs, method, fail)


def counted(monkeypatch: pytest.MonkeyPatch, store: ObjectStore, method: str) -> list[str]:
    calls: list[str] = []
    own = getattr(store.fs, method)

    def call(path: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(path)
        return own(path, *args, **kwargs)

    monkeypatch.setattr(store.fs, method, call)
    return calls


def test_every_method_of_a_store_is_an_object_stores_own():
    public = {name for name in vars(Store) if not name.startswith("_")}
    assert public - set(vars(ObjectStore)) == {"provenance"}  # which asks the manifest alone


def test_the_conditional_put_refuses_the_second_writer(objects, bucket):
    fs, path = objects.fs, f"{objects.top}/once"
    fs.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file(path, b"second", mode="create")
    assert bucket.read("once") == b"first"


def test_a_manifest_is_published_by_a_conditional_put(objects, bucket, monkeypatch):
    modes = []
    own = objects.fs.pipe_file

    def spy(path: str, value: bytes, **kwargs: Any) -> Any:
        modes.append((path.rpartition("/")[2], kwargs.get("mode")))
        return own(path, value, **kwargs)

    monkeypatch.setattr(objects.fs, "pipe_file", spy)
    publish(objects)
    assert modes == [("manifest.json", "create")]


def test_an_artifact_is_downloaded_once_and_by_its_maker_never(objects, monkeypatch, tmp_path):
    fetched = counted(monkeypatch, objects, "get_file")
    publish(objects)
    assert fetched == []
    far = elsewhere(objects, monkeypatch, tmp_path)
    again = elsewhere(objects, monkeypatch, tmp_path)  # another process on the same node
    assert far.folder(KEY) == far.folder(KEY) == again.folder(KEY)
    assert sorted(path.rpartition("/")[2] for path in fetched) == ["a.txt", "b.txt", "empty"]


def test_one_json_file_is_read_without_the_others(objects, bucket, monkeypatch, tmp_path):
    with objects.attempt(KEY, {}) as folder:
        (folder / "about.json").write_text('{"log": [1]}')
        (folder / "weights").write_text("many")
    far = elsewhere(objects, monkeypatch, tmp_path)
    refuse(monkeypatch, objects, "get_file")
    assert objects.content(KEY, "about.json") == far.content(KEY, "about.json") == {"log": [1]}
    with pytest.raises(StoreError, match=r"weights\.json' is not as the manifest says"):
        far.content(KEY, "weights.json")
    bucket.write(bucket.file("about.json"), '{"log": [2]}')
    with pytest.raises(StoreError, match=r"about\.json' is not as the manifest says"):
        far.content(KEY, "about.json")


def test_soundness_is_a_listing_and_not_a_download(objects, monkeypatch, tmp_path):
    publish(objects)
    far = elsewhere(objects, monkeypatch, tmp_path)
    for method in ("get_file", "open"):
        refuse(monkeypatch, objects, method)
    asked = counted(monkeypatch, objects, "cat_file")
    assert far.sound(KEY)
    assert len(asked) == 1  # the manifest


def test_a_flipped_bit_is_named_when_it_is_read_and_the_artifact_is_sound_no_more(objects, bucket, monkeypatch, tmp_path):
    publish(objects)
    bucket.write(bucket.file("deep/b.txt"), "onEone")
    far = elsewhere(objects, monkeypatch, tmp_path)
    assert far.sound(KEY)  # by its sizes
    with pytest.raises(StoreError, match=rf"artifact {KEY} in .* is corrupted: 'deep/b.txt' has the right size and another content"):
        far.folder(KEY)
    assert not far.sound(KEY)
    assert far.has(KEY)
    far.set_aside(KEY)
    publish(far, text="two")
    assert far.sound(KEY)
    assert (far.folder(KEY) / "a.txt").read_text() == "two"


def test_objects_that_vanish_or_shrink_after_the_manifest_was_read_are_named(objects, bucket, monkeypatch, tmp_path):
    publish(objects)
    far = elsewhere(objects, monkeypatch, tmp_path)
    assert far.sound(KEY)
    bucket.write(bucket.file(), "on")
    with pytest.raises(StoreError, match=r"'a.txt' has 2 bytes instead of 3"):
        far.folder(KEY)
    bucket.delete(bucket.file())
    with pytest.raises(StoreError, match=r"'a.txt' is not there"):
        far.folder(KEY)
    for name in bucket.names():
        bucket.delete(name)
    with pytest.raises(StoreError, match=f"no artifact {KEY}"):
        far.folder(KEY)


@pytest.mark.parametrize(
    "harm",
    [
        lambda near: (near / "files" / "a.txt").write_text("o"),
        lambda near: (near / "files" / "a.txt").unlink(),
        lambda near: (near / "manifest.json").unlink(),
        lambda near: (near / "manifest.json").write_text("{"),
    ],
)
def test_an_incomplete_cache_is_not_trusted(objects, harm):
    folder = publish(objects)
    harm(folder.parent)
    assert read(objects.folder(KEY)) == {"a.txt": "one", "deep/b.txt": "oneone", "empty": ""}


def test_a_download_that_is_cut_off_leaves_nothing_to_be_trusted(objects, bucket, monkeypatch, tmp_path):
    publish(objects)
    far = elsewhere(objects, monkeypatch, tmp_path)
    own = far.fs.get_file

    def cut(path: str, to: str, **kwargs: Any) -> None:
        if path.endswith("b.txt"):
            Path(to).write_text("onE")
            raise ConnectionResetError(104, "Connection reset by peer")
        own(path, to, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(far.fs, "get_file", cut)
        with pytest.raises(UnreachableError, match=r"cannot download .*b\.txt' from .*Connection reset"):
            far.folder(KEY)
    assert not [path for path in (tmp_path / "another").rglob("*") if path.is_file()]
    assert far.sound(KEY)  # a line that breaks is no fault of the artifact
    assert (far.folder(KEY) / "deep" / "b.txt").read_text() == "oneone"


def test_two_processes_may_download_at_once(objects, monkeypatch, tmp_path):
    publish(objects)
    both = [elsewhere(objects, monkeypatch, tmp_path) for _ in range(2)]
    together, alone = threading.Barrier(2), threading.Lock()
    own = objects.fs.get_file

    def wait(path: str, to: str, **kwargs: Any) -> None:
        with alone:  # two readers of one file of fsspec's memory share its position
            own(path, to, **kwargs)
        together.wait(timeout=60)

    monkeypatch.setattr(objects.fs, "get_file", wait)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda store: store.folder(KEY), both)
    assert one == other
    assert read(one) == {"a.txt": "one", "deep/b.txt": "oneone", "empty": ""}
    assert [path.name for path in one.parent.parent.iterdir()] == [one.parent.name]


def test_an_upload_that_fails_half_way_leaves_nothing(objects, bucket, monkeypatch):
    own = objects.fs.put_file

    def cut(local: str, path: str, **kwargs: Any) -> None:
        if path.endswith("b.txt"):
            raise ConnectionResetError(104, "Connection reset by peer")
        own(local, path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(objects.fs, "put_file", cut)
        with pytest.raises(UnreachableError, match=r"cannot upload 'deep/b\.txt' to .*Connection reset"):
            publish(objects)
    assert bucket.names() == {"about.json"}
    assert publish(objects).is_dir()


def test_an_upload_of_which_a_part_arrives_is_not_published(objects, bucket, monkeypatch):
    def half(local: str, path: str, **kwargs: Any) -> None:
        objects.fs.pipe_file(path, Path(local).read_bytes()[:2])

    monkeypatch.setattr(objects.fs, "put_file", half)
    with pytest.raises(StoreError, match=r"cannot upload 'a.txt' to .*: afterwards it has 2 bytes instead of 3"):
        publish(objects)
    assert bucket.names() == {"about.json"}


def test_a_manifest_whose_answer_was_lost_is_ours(objects, monkeypatch):
    own = objects.fs.pipe_file

    def lose(path: str, value: bytes, **kwargs: Any) -> None:
        own(path, value, **kwargs)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(objects.fs, "pipe_file", lose)
    publish(objects)
    assert objects.sound(KEY)
    assert list(objects.faults(KEY)) == []


def test_a_manifest_that_may_have_arrived_leaves_its_files(objects, bucket, monkeypatch):
    refuse(monkeypatch, objects, "pipe_file")
    with pytest.raises(StoreError, match=f"cannot publish {KEY} in .*Connection reset by peer"):
        publish(objects)
    assert len(bucket.names()) == 4  # about.json and three files: an orphan, if no manifest turns up


def test_who_cannot_delete_what_came_second_goes_on_with_what_came_first(objects, monkeypatch, week_later):
    with objects.attempt(KEY, {}) as slow:
        (slow / "a.txt").write_text("slow")
        publish(objects, text="fast")
        with monkeypatch.context() as patch:
            refuse(patch, objects, "rm_file")
            publish(objects, text="second")
    assert (objects.folder(KEY) / "a.txt").read_text() == "fast"
    assert objects.sound(KEY)
    week_later()
    assert objects.sweep() == 1


def test_a_copy_that_cannot_be_kept_does_not_undo_what_is_published(objects, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("rapbench.nearby.Nearby.settle", full)
        with objects.attempt(KEY, {}) as folder:
            (folder / "a.txt").write_text("one")
    assert objects.sound(KEY)
    assert (objects.folder(KEY) / "a.txt").read_text() == "one"


def test_a_place_that_does_not_answer_is_one_line_and_not_an_empty_store(objects, monkeypatch):
    publish(objects)
    for method in ("cat_file", "find", "pipe_file"):
        refuse(monkeypatch, objects, method)
    for ask in (objects.sound, objects.provenance, objects.set_aside, lambda key: list(objects.faults(key)), lambda key: objects.create()):
        with pytest.raises(UnreachableError, match=r"Connection reset by peer") as error:
            ask(KEY)
        assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_one_line(s3_server):
    with pytest.raises(StoreError, match=r"cannot write into 's3://no-such-bucket/x': The specified bucket does not exist"):
        store_at("s3://no-such-bucket/x").create()


def test_a_full_cache_names_the_variable_that_moves_it(objects, monkeypatch, tmp_path):
    publish(objects)
    far = elsewhere(objects, monkeypatch, tmp_path)
    refuse(monkeypatch, far, "get_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(StoreError, match=r"No space left on device; free space there or name another folder by RAPBENCH_CACHE"):
        far.folder(KEY)


def test_what_a_killed_process_left_on_this_node_is_swept_after_a_week(objects, cache):
    folder = publish(objects)
    for name, age in (("killed", 8), ("alive", 6)):
        scratch = objects.root / "attempts" / name
        (scratch / "files").mkdir(parents=True)
        os.utime(scratch, (time.time() - age * 24 * 3600,) * 2)
    assert objects.sweep() == 0
    assert [path.name for path in (objects.root / "attempts").iterdir()] == ["alive"]
    assert folder.is_dir()


def test_a_home_that_nobody_has_is_one_line(monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RAPBENCH_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(StoreError, match="name a folder of this node by RAPBENCH_CACHE"):
        store_at("memory://x/y")


def test_a_store_travels_to_another_process(objects):
    publish(objects)
    assert pickle.loads(pickle.dumps(objects)).folder(KEY) == objects.folder(KEY)
