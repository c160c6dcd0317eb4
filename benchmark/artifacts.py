"""The content-addressed store: a step's files under its key, trusted only through a manifest that is published last.

    <root>/<key>/manifest.json             names, sizes and blake2b digests of the files, where they came from
    <root>/<key>/<attempt>/...             the files: safetensors, JSON, Arrow, npz; never a pickle
    <root>/about.json, shared.json         kind and layout; there where several results folders use the store

A step killed in the middle leaves an attempt without a manifest: no reader sees it, the next run sweeps it; on a shared
store, where it may be another's and under way, only after a week in which nobody touched it.
A store may come from anywhere: what its manifests say is bounded and checked, and nothing is written or deleted behind a link.
The same below a URI is `rapbench.objects`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock, Timeout

from rapbench.errors import StoreError
from rapbench.manifest import (
    ABOUT,
    MOST_BYTES,
    OTHER_CONTENT,
    check_about,
    checked,
    files_of,
    parsed,
    plain,
    strays,
    wrong_size,
)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
ASIDE = "set-aside"
KEY = re.compile(r"[0-9a-f]{32}")
IDLE_S = 7 * 24 * 3600.0
"""An attempt on a shared store that nobody touched for so long is no more under way."""


def content_key(value: Any) -> str:
    """Give the key of a plain JSON value: blake2b over its canonical text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Give the blake2b digest of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Put a text file in place in one step: a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}; free space there or choose another --out") from None


def make_folder(path: Path, option: str = "--out") -> None:
    """Make the folder that an option names, and those above it, where it is not there; a StoreError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {str(path)!r}: {error.strerror}; choose another {option}") from None


def read_json(path: Path, *, finite: bool = False) -> Any:
    """Give what a JSON file holds; a StoreError where it is no plain file, larger than 16 MiB or no JSON.

    `finite`: nor any number that is none, or beyond all bounds.
    """
    try:
        if not path.is_file():
            raise StoreError(f"no file {str(path)!r}")
        with path.open("rb") as stream:
            return parsed(stream.read(MOST_BYTES + 1), str(path), finite=finite)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be read as JSON: {error}") from None


def occupied(path: Path) -> int:
    """Give the bytes of a file, or of all files below a folder; no link is followed."""
    files = [path]
    if path.is_dir() and not path.is_symlink():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    sizes = 0
    for file in files:
        with suppress(OSError):  # a run under way may delete it meanwhile
            sizes += file.lstat().st_size
    return sizes


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep every other run, and every other clean-up, out of a results folder; a StoreError where one is under way."""
    lock = FileLock(out / ".lock", timeout=0.2)  # `status` holds it for a moment
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(f"another run is writing to {str(out)!r}: wait for it or choose another folder") from None
    except OSError as error:
        raise StoreError(f"cannot lock {str(out)!r}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def store_at(place: str | Path) -> Store:
    """Give the store of a folder (a path, or file:///...), or of any other URI that fsspec knows: s3://bucket/prefix, gs://, az://...

    Nothing is asked for or written yet: `create` and `opened` do. A StoreError where no driver for the URI is installed.
    """
    protocol, mark, rest = str(place).partition("://")
    if isinstance(place, Path) or not mark:
        return Store(Path(place))
    if protocol == "file":
        if not rest.startswith("/"):
            raise StoreError(f"{place!r} is no absolute path: write file:///folder, or the folder alone")
        return Store(Path(rest))
    from rapbench.objects import object_store  # fsspec takes its time

    return object_store(place)


def store_of(out: Path) -> Store:
    """Give the store of a results folder: where its last run kept the artifacts, `--store` or the folder itself."""
    path = out / "store.json"
    if not path.is_file():
        return Store(out / "artifacts")
    content = read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get("store"), str)):
        raise StoreError(f"{str(path)!r} does not say where the artifacts are: give the same run command again")
    return store_at(content["store"])


def remember_store(out: Path, place: str | Path) -> None:
    """Let `store_of` know where a run keeps the artifacts of a results folder."""
    path = out / "store.json"
    if str(place) == str(out / "artifacts"):
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, json.dumps({"store": str(place)}))


@dataclass(frozen=True)
class Extent:
    """How large a published artifact is, in bytes, and when it was published."""

    size: int
    published: datetime


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. All methods are safe with several processes on one store.

    What `set_aside`, `aside` and `orphans` give, `discard` and `size` take; that, or a path below the root: `PurePath(key)`.
    """

    root: Path

    @property
    def place(self) -> str:
        """Where the store is, as a user would write it."""
        return str(self.root)

    @property
    def remote(self) -> bool:
        """Tell whether the artifacts are elsewhere, and `root` has this node's copies of them alone."""
        return False

    @property
    def shared(self) -> bool:
        """Tell whether several results folders use this store: then the lock of one does not keep the others' runs out."""
        return (self.root / "shared.json").is_file()

    def create(self, *, shared: bool = False) -> Store:
        """Make the folder and try to write in it; a StoreError says what is in the way.

        `shared`: runs of other results folders may use it, too; it stays so for all that ever open it.
        """
        make_folder(self.root)
        if os.path.isfile(self.root / "about.json"):
            self.opened()
        write_atomically(self.root / "about.json", json.dumps(ABOUT))
        if shared and not self.shared:
            write_atomically(self.root / "shared.json", json.dumps({"shared": True}))
        return self

    def opened(self) -> Store:
        """Give this store where it is one that this rapbench reads; a StoreError says what is there instead."""
        path = self.root / "about.json"
        if not os.path.isfile(path):
            raise no_store(self.place)
        check_about(read_json(path), str(path))
        return self

    def published(self) -> list[str]:
        """Give the keys of all published artifacts, sound or not."""
        return [folder.name for folder in self._folders() if self.has(folder.name)]

    def has(self, key: str) -> bool:
        """Tell whether the artifact is published, without reading its files."""
        return (self.root / key / "manifest.json").is_file()

    def folder(self, key: str) -> Path:
        """Give the folder of a published artifact's files."""
        path = self.root / key / "manifest.json"
        with suppress(OSError):
            state = os.stat(path)
            known = self.root / key / _attempt(path, key, state.st_mtime_ns, state.st_ino, state.st_size)
            if os.path.isdir(known):  # clocks of file systems are coarse
                return known
        return self.root / key / str(self._manifest(key)["attempt"])

    def content(self, key: str, name: str) -> Any:
        """Give what one small JSON file of a published artifact holds, without the other files."""
        return read_json(self.folder(key) / name)

    def sound(self, key: str) -> bool:
        """Tell whether the artifact is published and every file has the size and digest of its manifest."""
        return next(self.faults(key), None) is None

    def sound_among(self, keys: Sequence[str]) -> set[str]:
        """Give those of the keys whose artifacts are sound."""
        return {key for key in keys if self.sound(key)}

    def faults(self, key: str) -> Iterator[str]:
        """Say what is wrong with an artifact, file by file; nothing where all is as its manifest says."""
        try:
            manifest = self._manifest(key)
            files = files_of(manifest)
        except StoreError as error:
            yield str(error)
            return
        folder = self.root / key / manifest["attempt"]
        if not os.path.isdir(folder):
            yield f"{folder.name!r}, the folder of its files, is not there"
            return
        for name, (size, digest) in files.items():
            if fault := _fault(folder, name, size, digest):
                yield f"{name!r} {fault}"

    def provenance(self, key: str) -> dict[str, Any]:
        """Give what a published artifact was made from, by what, and in how many seconds."""
        return dict(self._manifest(key)["provenance"])

    def extent(self, key: str) -> Extent:
        """Give size and date of a published artifact."""
        published = (self.root / key / "manifest.json").stat().st_mtime
        return Extent(occupied(self.folder(key)), datetime.fromtimestamp(published).astimezone())

    def size(self, path: PurePath) -> int:
        """Give the bytes below a path of the store."""
        return occupied(self.root / path)

    def set_aside(self, key: str) -> PurePath:
        """Move a corrupted artifact out of the way, for its owner to look at; nothing is deleted. Of a link, the link is moved.

        Where another runner was first, there is nothing to move, and nothing at the path that is given.
        """
        away = self.root / ASIDE / f"{key}-{uuid.uuid4().hex[:8]}"
        try:
            _unlink(away.parent)  # what is behind it is none of ours
            away.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                (self.root / key).rename(away)
        except OSError as error:
            raise StoreError(f"cannot move artifact {key} to {str(away.parent)!r}: {error.strerror or error}") from None
        return away

    def aside(self) -> Sequence[PurePath]:
        """Give what was set aside; nothing is looked for behind a link."""
        away = self.root / ASIDE
        return [] if away.is_symlink() else sorted(away.glob("*"))

    def discard(self, path: PurePath) -> None:
        """Delete an artifact's folder, an attempt, or what was set aside; of a link, the link alone.

        A manifest goes first: of a deletion that is cut off, no reader trusts the rest.
        """
        path = self.root / path
        if not (plain(path.name) and path.parent.resolve().is_relative_to(self.root.resolve())):
            raise StoreError(f"{str(path)!r} is not in the store {str(self.root)!r}: nothing is deleted there")
        manifest = path / "manifest.json"
        try:
            if path.is_symlink() or path.is_file():
                path.unlink()
                return
            if manifest.is_file():
                manifest.unlink()
            shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"cannot delete {str(path)!r}: {error.strerror or error}") from None

    @contextmanager
    def attempt(self, key: str, provenance: Mapping[str, Any]) -> Iterator[Path]:
        """Give an empty folder to write into; publish it when the block ends well, else delete it."""
        folder = self.root / key / uuid.uuid4().hex[:12]
        started = time.time()
        try:
            _unlink(folder.parent)  # nothing is written through a link
            folder.mkdir(parents=True)
            _unlink(folder.parent / "manifest.json")
            yield folder
            self._publish(manifest_of(key, folder.name, folder, {**provenance, "seconds": round(time.time() - started, 3)}))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and self._unwritable(error):
                raise StoreError(f"cannot write into {str(self.root)!r}: {error.strerror}; {self._advice}") from error
            raise

    def orphans(self) -> Sequence[PurePath]:
        """Give what no manifest names: attempts that were killed, or are under way. Nothing is looked for behind a link.

        Of a shared store only what nobody touched for a week: the rest may be another runner's.
        """
        shared = self.shared
        inside = (path for folder in self._folders() if not folder.is_symlink() for path in sorted(folder.glob("*")))
        begun = (path for path in inside if not path.is_symlink() and (path.is_dir() or path.name.startswith(".manifest.")))
        return [path for path in begun if not (shared and _touched(path) > time.time() - IDLE_S) and not self._claimed(path)]

    def sweep(self) -> int:
        """Delete the orphans and give how many there were; on a store that is not shared, only under the lock of its results folder."""
        orphans = self.orphans()
        for path in orphans:
            with suppress(StoreError):
                self.discard(path)
        return len(orphans)

    def _folders(self) -> list[Path]:
        """Give the folders of all keys: what has another name is none of ours."""
        return sorted(path for path in self.root.glob("*") if KEY.fullmatch(path.name))

    def _manifest(self, key: str) -> dict[str, Any]:
        path = self.root / key / "manifest.json"
        if not self.has(key):
            raise StoreError(f"no artifact {key} in {self.place!r}")
        return checked(read_json(path), key, str(path))

    def _claimed(self, path: Path) -> bool:
        """Tell whether a manifest names this attempt, or cannot be read and so may name it."""
        if not self.has(path.parent.name):
            return False
        try:
            return bool(self._manifest(path.parent.name)["attempt"] == path.name)
        except StoreError:
            return True

    def _unwritable(self, error: OSError) -> bool:
        """Tell whether the store is what could not be written, and not something that a plugin reads."""
        own = error.filename is not None and Path(str(error.filename)).is_relative_to(self.root)
        return error.errno in FULL or (own and error.errno in FORBIDDEN)

    @property
    def _advice(self) -> str:
        return "free space there or choose another --out"

    def _publish(self, manifest: Mapping[str, Any]) -> None:
        home = self.root / str(manifest["key"])
        temporary = home / f".manifest.{manifest['attempt']}"
        try:
            temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            os.link(temporary, home / "manifest.json")  # atomic, and fails where another runner was first: its files are as good
        except FileExistsError:
            if not _same(temporary, home / "manifest.json"):  # NFS may ask twice, and say of our own link that it is there
                shutil.rmtree(home / str(manifest["attempt"]), ignore_errors=True)
        finally:
            temporary.unlink(missing_ok=True)


def no_store(place: str) -> StoreError:
    return StoreError(f"no artifacts in {place!r}: give the folder of `rapbench run --out`, or what its --store was given")


def manifest_of(key: str, attempt: str, folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Give the manifest of the files in a folder."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"key": key, "attempt": attempt, "files": files, "provenance": dict(provenance)}


@lru_cache(maxsize=1024)
def _attempt(path: Path, key: str, *state: int) -> str:
    """Give the attempt that a manifest names. `state`: of the file, which is read again when that has changed."""
    return str(checked(read_json(path), key, str(path))["attempt"])


def _fault(folder: Path, name: str, size: object, digest: object) -> str:
    """Say what is wrong with a file; empty where nothing is."""
    if strays(name):
        return "leads out of the artifact"
    path = folder / name
    if not os.path.isfile(path):
        return "is not there"
    try:
        return wrong_size(path.stat().st_size, size) or ("" if file_digest(path) == digest else OTHER_CONTENT)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _unlink(path: Path) -> None:
    """Delete a link, and nothing behind it; anything else stays."""
    if path.is_symlink():
        path.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # another runner has set it aside meanwhile
        return False


def _touched(path: Path) -> float:
    """Give when something at or below a path was last written, in seconds since 1970; no link is followed."""
    times = [0.0]
    for file in (path, *path.rglob("*")):
        with suppress(OSError):  # its runner may publish or delete it meanwhile
            times.append(file.lstat().st_mtime)
    return max(times)
