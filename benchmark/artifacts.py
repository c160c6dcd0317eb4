"""The content-addressed store: a step's files under its key, trusted only through a manifest that is published last.

    <root>/<key>/manifest.json             names, sizes and blake2b digests of the files, where they came from
    <root>/<key>/<attempt>/...             the files: safetensors, JSON, Arrow, npz; never a pickle

A step killed in the middle leaves an attempt without a manifest: no reader sees it, the next run sweeps it.
A store may come from anywhere: what its manifests say is bounded and checked, and nothing is deleted behind a link.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import reprlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from rapbench.errors import StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
ABOUT = {"kind": "rapbench artifacts", "layout": 1}
ASIDE = "set-aside"
KEY = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 16 * 2**20
"""Of a JSON file that is read: a manifest has a few kB."""


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


def read_json(path: Path) -> Any:
    """Give what a JSON file holds; a StoreError where it is no plain file, larger than 16 MiB or no JSON."""
    try:
        if not path.is_file():
            raise StoreError(f"no file {str(path)!r}")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise StoreError(f"{str(path)!r} is larger than {MOST_BYTES // 2**20} MiB")
        return json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:  # nested too deeply
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
    lock = FileLock(out / ".lock", timeout=0)
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


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. All methods are safe with several processes on one store."""

    root: Path

    def create(self) -> Store:
        """Make the folder and try to write in it; a StoreError says what is in the way."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {str(self.root)!r}: {error.strerror}; choose another --out") from None
        write_atomically(self.root / "about.json", json.dumps(ABOUT))
        return self

    def opened(self) -> Store:
        """Give this store where it is one that this rapbench reads; a StoreError says what is there instead."""
        path = self.root / "about.json"
        if not os.path.isfile(path):
            raise StoreError(f"no artifacts in {str(self.root.parent)!r}: give the folder of `rapbench run --out`")
        about = read_json(path)
        if about != ABOUT:
            raise StoreError(f"{str(path)!r} says {reprlib.repr(about)}, this rapbench reads {ABOUT}: use the rapbench that wrote it")
        return self

    def published(self) -> list[str]:
        """Give the keys of all published artifacts, sound or not."""
        return [folder.name for folder in self._folders() if self.has(folder.name)]

    def has(self, key: str) -> bool:
        """Tell whether the artifact is published, without reading its files."""
        return (self.root / key / "manifest.json").is_file()

    def folder(self, key: str) -> Path:
        """Give the folder of a published artifact's files."""
        return self.root / key / str(self._manifest(key)["attempt"])

    def sound(self, key: str) -> bool:
        """Tell whether the artifact is published and every file has the size and digest of its manifest."""
        return next(self.faults(key), None) is None

    def faults(self, key: str) -> Iterator[str]:
        """Say what is wrong with an artifact, file by file; nothing where all is as its manifest says."""
        try:
            manifest = self._manifest(key)
            files = _files(manifest)
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

    def set_aside(self, key: str) -> Path:
        """Move a corrupted artifact out of the way, for its owner to look at; nothing is deleted."""
        away = self.root / ASIDE / f"{key}-{uuid.uuid4().hex[:8]}"
        away.parent.mkdir(exist_ok=True)
        (self.root / key).rename(away)
        return away

    def aside(self) -> list[Path]:
        """Give what was set aside; nothing is looked for behind a link."""
        away = self.root / ASIDE
        return [] if away.is_symlink() else sorted(away.glob("*"))

    def discard(self, path: Path) -> None:
        """Delete an artifact's folder, an attempt, or what was set aside; of a link, the link alone.

        A manifest goes first: of a deletion that is cut off, no reader trusts the rest.
        """
        if not (_plain(path.name) and path.parent.resolve().is_relative_to(self.root.resolve())):
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
            folder.mkdir(parents=True)
            yield folder
            self._publish(key, folder, {**provenance, "seconds": round(time.time() - started, 3)})
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and self._unwritable(error):
                raise StoreError(
                    f"cannot write into {str(self.root)!r}: {error.strerror}; free space there or choose another --out"
                ) from error
            raise

    def orphans(self) -> list[Path]:
        """Give what no manifest names: attempts that were killed, or are under way. Nothing is looked for behind a link."""
        inside = (path for folder in self._folders() if not folder.is_symlink() for path in sorted(folder.glob("*")))
        begun = (path for path in inside if not path.is_symlink() and (path.is_dir() or path.name.startswith(".manifest.")))
        return [path for path in begun if not self._claimed(path)]

    def sweep(self) -> int:
        """Delete the attempts that no manifest names; give how many. Call it only while no run is under way."""
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
            raise StoreError(f"no artifact {key} in {str(self.root)!r}")
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("key") != key:
            raise StoreError(f"{str(path)!r} is no manifest of {key}")
        if not _plain(manifest.get("attempt")):
            raise StoreError(f"{str(path)!r} names no folder beside it: attempt is {reprlib.repr(manifest.get('attempt'))}")
        return manifest

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

    def _publish(self, key: str, folder: Path, provenance: Mapping[str, Any]) -> None:
        files = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": file_digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = {"key": key, "attempt": folder.name, "files": files, "provenance": dict(provenance)}
        target = folder.parent / "manifest.json"
        temporary = folder.parent / f".manifest.{folder.name}"
        try:
            temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            os.link(temporary, target)  # atomic, and fails where another runner was first: its files are as good
        except FileExistsError:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            temporary.unlink(missing_ok=True)


def _plain(name: object) -> bool:
    """Tell whether this is the name of something in a folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def _files(manifest: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Give size and digest of the files by name; a StoreError where the manifest does not list them."""
    try:
        return {name: (about["bytes"], about["blake2b"]) for name, about in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        raise StoreError(f"the manifest of {manifest['key']} does not say size and digest of each file") from None


def _fault(folder: Path, name: str, size: object, digest: object) -> str:
    """Say what is wrong with a file; empty where nothing is."""
    path, parts = folder / name, PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        return "leads out of the artifact"
    if not os.path.isfile(path):
        return "is not there"
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes instead of {reprlib.repr(size)}"
        return "" if file_digest(path) == digest else "has the right size and another content"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
