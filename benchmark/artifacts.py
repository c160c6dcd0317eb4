"""The content-addressed store: a step's files under its key, trusted only through a manifest that is published last.

    <root>/<key>/manifest.json             names, sizes and blake2b digests of the files, where they came from
    <root>/<key>/<attempt>/...             the files: safetensors, JSON, Arrow, npz; never a pickle

A step killed in the middle leaves an attempt without a manifest: no reader sees it, the next run sweeps it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapbench.errors import StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


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
        write_atomically(self.root / "about.json", json.dumps({"kind": "rapbench artifacts", "layout": 1}))
        return self

    def has(self, key: str) -> bool:
        """Tell whether the artifact is published, without reading its files."""
        return (self.root / key / "manifest.json").is_file()

    def folder(self, key: str) -> Path:
        """Give the folder of a published artifact's files."""
        return self.root / key / str(self._manifest(key)["attempt"])

    def sound(self, key: str) -> bool:
        """Tell whether the artifact is published and every file has the size and digest of its manifest."""
        try:
            manifest = self._manifest(key)
            folder = self.root / key / str(manifest["attempt"])
            return all(
                (folder / name).stat().st_size == about["bytes"] and file_digest(folder / name) == about["blake2b"]
                for name, about in manifest["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
            return False

    def provenance(self, key: str) -> dict[str, Any]:
        """Give what a published artifact was made from, by what, and in how many seconds."""
        return dict(self._manifest(key)["provenance"])

    def set_aside(self, key: str) -> Path:
        """Move a corrupted artifact out of the way, for its owner to look at; nothing is deleted."""
        away = self.root / "set-aside" / f"{key}-{uuid.uuid4().hex[:8]}"
        away.parent.mkdir(exist_ok=True)
        (self.root / key).rename(away)
        return away

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

    def sweep(self) -> int:
        """Delete the attempts that no manifest names; give how many. Call it only while no run is under way."""
        swept = 0
        for folder in self.root.glob("*/*/"):
            if folder.parent.name == "set-aside":
                continue
            if not self._claimed(folder):
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
        return swept

    def _manifest(self, key: str) -> dict[str, Any]:
        path = self.root / key / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"no artifact {key} in {str(self.root)!r}") from None
        if not isinstance(manifest, dict) or manifest.get("key") != key:
            raise StoreError(f"{str(path)!r} is no manifest of {key}")
        return manifest

    def _claimed(self, folder: Path) -> bool:
        """Tell whether a manifest names this attempt, or cannot be read and so may name it."""
        if not self.has(folder.parent.name):
            return False
        try:
            return bool(self._manifest(folder.parent.name)["attempt"] == folder.name)
        except (OSError, ValueError, KeyError, StoreError):
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
