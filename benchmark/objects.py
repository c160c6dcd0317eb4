"""The store below a URI: objects in a bucket, or whatever else fsspec has a driver for.

    <uri>/<key>/manifest.json              published last, by a conditional put: the first wins
    <uri>/<key>/<attempt>/...              the files, uploaded when the step has ended well
    <uri>/<key>/faulty.<attempt>           why a reader found them corrupted: the artifact is sound no more

The conditional put is atomic on S3 (If-None-Match, of servers that know it: AWS, MinIO, R2), Google (gcsfs:
ifGenerationMatch=0) and Azure (adlfs: overwrite=False). Other drivers (sftp, smb, hdfs, webdav) look first and write then:
of two runners that publish one key in the same moment both may win, the later manifest stays, and the other's files are an
orphan that is swept in a week. That is harmless: a key names what was computed, so both are as good.

Read from the sources of fsspec 2026.9, s3fs 2026.9, gcsfs 2026.10, adlfs 2026.8; they know it since 2024.12, older ones refuse.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import fsspec

from rapbench.artifacts import ASIDE, FULL, IDLE_S, KEY, Extent, Store, file_digest, manifest_of, no_store, read_json
from rapbench.errors import StoreError
from rapbench.manifest import ABOUT, MOST_BYTES, OTHER_CONTENT, check_about, checked, files_of, parsed, plain, strays, wrong_size
from rapbench.nearby import Nearby, nearby

AT_ONCE = 32
"""Questions to the driver at the same time."""

Found = Mapping[str, Mapping[str, Any]]
"""Objects by their name below what was listed, with what the driver says of each."""


class UnreachableError(StoreError):
    """The place could not be asked: nothing is known of what it holds."""


def object_store(uri: str) -> ObjectStore:
    """Give the store below a URI; a StoreError where fsspec has no driver for it, or the driver is not installed."""
    protocol, place = uri.partition("://")[0], _without_password(uri)
    if "::" in uri:
        raise StoreError(f"{place!r} chains drivers, and one that caches hides what others write: give the URI behind '::' alone")
    try:
        fs, top = fsspec.core.url_to_fs(uri)
        fs.dircache.use_listings_cache = False  # others write there, too
    except ImportError as error:
        raise StoreError(f"{place!r} needs a driver that is not installed here: {_line(error)}") from None
    except Exception as error:
        known = "" if protocol in fsspec.available_protocols() else "; give a folder, or a URI like s3://bucket/folder, gs://..., az://..."
        raise StoreError(f"{place!r} cannot be used as a store: {_line(error)}{known}") from None
    top = top.rstrip("/")
    if not top:
        raise StoreError(f"{place!r} names no bucket or folder: write {protocol}://bucket/folder")
    return ObjectStore(nearby(uri.rstrip("/")).root, uri, fs, top)


@dataclass(frozen=True)
class ObjectStore(Store):
    """A store below a URI; always a shared one. `root`: this node's copies and attempts, see `rapbench.nearby`."""

    uri: str
    fs: Any = field(compare=False, repr=False)
    top: str
    """The path below which all is, as the driver writes it: without the protocol."""
    _attempts: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The attempt of each artifact that was found to be published: no manifest is asked for twice."""

    def __reduce__(self) -> tuple[Any, ...]:
        return object_store, (self.uri,)

    @property
    def place(self) -> str:
        return _without_password(self.uri.rstrip("/"))

    @property
    def remote(self) -> bool:
        return True

    @property
    def shared(self) -> bool:
        return True

    def create(self, *, shared: bool = True) -> ObjectStore:
        """Try to write below the URI; a StoreError says what is in the way."""
        self._has_about()
        try:
            with self._asking("write into"):
                self.fs.pipe_file(self._path("about.json"), json.dumps(ABOUT).encode())
        except FileNotFoundError as error:
            raise StoreError(f"cannot write into {self.place!r}: {_line(error)}") from None
        return self

    def opened(self) -> ObjectStore:
        if not self._has_about():
            raise no_store(self.place)
        return self

    def published(self) -> list[str]:
        names = (PurePosixPath(name).parts for name in self._objects())
        return sorted(parts[0] for parts in names if len(parts) == 2 and KEY.fullmatch(parts[0]) and parts[1] == "manifest.json")

    def has(self, key: str) -> bool:
        return key in self._attempts or self._read(f"{key}/manifest.json") is not None

    def folder(self, key: str) -> Path:
        """Give the folder on this node with a published artifact's files, downloaded where they are not there yet.

        A StoreError where what was downloaded is not what the manifest says; then the artifact is sound no more.
        """
        if key not in self._attempts:
            self._attempts[key] = self._manifest(key)["attempt"]
        return self._near.files(key, self._attempts[key]) or self._download(key)

    def content(self, key: str, name: str) -> Any:
        manifest = self._manifest(key)
        if (here := self._near.files(key, manifest["attempt"])) is not None:
            return read_json(here / name)
        inside, where = f"{key}/{manifest['attempt']}/{name}", f"{self.place}/{key}/{name}"
        content, (_, digest) = self._read(inside), files_of(manifest).get(name, (0, ""))
        if content is None or hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
            raise StoreError(f"{where!r} is not as the manifest says")
        return parsed(content, where)

    def sound(self, key: str) -> bool:
        """Tell whether the artifact is published, all objects are there in the size of its manifest, and no reader found a fault.

        Two small requests. The contents are compared where they are read, when `folder` downloads them, and by `faults`: to
        download a store before each run would cost more than the run.
        """
        self._attempts.pop(key, None)
        try:
            manifest = self._manifest(key)
            found, files = self._objects(key), files_of(manifest)
        except UnreachableError:
            raise
        except StoreError:
            return False
        attempt = manifest["attempt"]
        inside = _below(found, attempt)
        if f"faulty.{attempt}" in found or any(_size_fault(inside, name, size) for name, (size, _) in files.items()):
            return False
        self._attempts[key] = attempt
        return True

    def sound_among(self, keys: Sequence[str]) -> set[str]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {key for key, sound in zip(keys, pool.map(self.sound, keys), strict=True) if sound}

    def faults(self, key: str) -> Iterator[str]:
        """Say what is wrong with an artifact, object by object; reads all of it, and leaves word for `sound` where it found a fault."""
        try:
            manifest = self._manifest(key)
            found, files, attempt = self._objects(key), files_of(manifest), str(manifest["attempt"])
        except UnreachableError:
            raise
        except StoreError as error:
            yield str(error)
            return
        inside = _below(found, attempt)
        if f"faulty.{attempt}" in found:
            yield "a reader found it corrupted"
        for name, (size, digest) in files.items():
            fault = _size_fault(inside, name, size)
            if not fault and self._digest(f"{key}/{attempt}/{name}") != digest:
                fault = OTHER_CONTENT
                self._condemn(key, attempt, f"{name!r} {fault}")
            if fault:
                yield f"{name!r} {fault}"

    def extent(self, key: str) -> Extent:
        found = self._objects(key)
        written = _written(found.get("manifest.json", {}))
        inside = _below(found, str(self._manifest(key)["attempt"]))
        return Extent(sum(_size(info) for info in inside.values()), datetime.fromtimestamp(written or 0, UTC).astimezone())

    def size(self, path: PurePath) -> int:
        return sum(_size(info) for info in self._objects(str(path)).values())

    def set_aside(self, key: str) -> PurePath:
        """Move a corrupted artifact out of the way: its manifest first, so that no reader trusts what a killed move leaves."""
        away = PurePosixPath(ASIDE, f"{key}-{uuid.uuid4().hex[:8]}")
        self._forget(key)
        for name in sorted(self._objects(key), key=lambda name: name != "manifest.json"):
            with self._asking("move objects in"), suppress(FileNotFoundError):  # another runner was first
                self.fs.cp_file(self._path(f"{key}/{name}"), self._path(f"{away}/{name}"))
                self.fs.rm_file(self._path(f"{key}/{name}"))
        return away

    def aside(self) -> Sequence[PurePath]:
        return sorted({PurePosixPath(ASIDE, name.split("/")[0]) for name in self._objects(ASIDE)})

    def discard(self, path: PurePath) -> None:
        """Delete an artifact, an attempt, or what was set aside; the manifest first."""
        parts = PurePosixPath(path).parts
        if not (0 < len(parts) <= 2 and all(map(plain, parts)) and (KEY.fullmatch(parts[0]) or parts[0] == ASIDE)):
            raise StoreError(f"{str(path)!r} is not in the store {self.place!r}: nothing is deleted there")
        self._forget(parts[0])
        self._remove("/".join(parts))

    @contextmanager
    def attempt(self, key: str, provenance: Mapping[str, Any]) -> Iterator[Path]:
        """Give an empty folder on this node to write into; upload and publish it when the block ends well, else delete it.

        A folder in which there is no file is not kept: objects have none.
        """
        started = time.time()
        try:
            with self._near.scratch() as scratch:
                yield scratch / "files"
                made = {**provenance, "seconds": round(time.time() - started, 3)}
                self._publish_from(scratch, manifest_of(key, scratch.name, scratch / "files", made))
        except OSError as error:
            if self._unwritable(error):
                raise StoreError(f"cannot write into {str(self.root)!r}: {error.strerror}; {self._advice}") from error
            raise

    def orphans(self) -> Sequence[PurePath]:
        """Give the attempts that no manifest names and that were last written a week ago or more."""
        attempts: dict[str, dict[str, float]] = {}
        found = self._objects()
        for name, info in found.items():
            key, _, rest = name.partition("/")
            attempt, inside, _ = rest.partition("/")
            if KEY.fullmatch(key) and inside and plain(attempt):
                own = attempts.setdefault(key, {})
                own[attempt] = max(own.get(attempt, 0.0), _written(info) or time.time())
        many = {key: own for key, own in attempts.items() if len(own) > 1 or f"{key}/manifest.json" not in found}
        old = [(key, name) for key, own in many.items() for name, written in sorted(own.items()) if written < time.time() - IDLE_S]
        return [PurePosixPath(key, name) for key, name in old if not self._names(key, name)]

    def sweep(self) -> int:
        """Delete the orphans and give how many there were; also what killed processes left in this node's cache."""
        self._near.sweep()
        return super().sweep()

    @property
    def _near(self) -> Nearby:
        return Nearby(self.root)

    @property
    def _advice(self) -> str:
        return "free space there or name another folder by RAPBENCH_CACHE"

    def _has_about(self) -> bool:
        """Tell whether a store is there; a StoreError where it is of another layout."""
        content, where = self._read("about.json"), f"{self.place}/about.json"
        if content is not None:
            check_about(parsed(content, where), where)
        return content is not None

    def _path(self, name: str) -> str:
        return f"{self.top}/{name}" if name else self.top

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Make an UnreachableError of whatever a driver raises; but that something is there, or is not, is an answer."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except Exception as error:  # drivers raise what their clients raise
            raise UnreachableError(f"cannot {what} {self.place!r}: {_line(error)}") from error

    def _read(self, name: str) -> bytes | None:
        """Give the first 16 MiB and one byte of an object, or None where there is none."""
        try:
            with self._asking("read from"):
                return self._first_bytes(self._path(name))
        except FileNotFoundError:
            return None

    def _first_bytes(self, path: str) -> bytes:
        try:
            return bytes(self.fs.cat_file(path, start=0, end=MOST_BYTES + 1))
        except OSError as error:
            if error.errno == errno.EINVAL and _size(self.fs.info(path)) == 0:  # S3 has no first bytes of nothing
                return b""
            raise

    def _objects(self, below: str = "") -> Found:
        """Give all objects below a path; those whose names would lead elsewhere on a disk are nobody's."""
        prefix = self._path(below) + "/"
        with self._asking("list"):
            try:
                found = self.fs.find(prefix, detail=True)
            except FileNotFoundError:
                return {}
        names = {name.removeprefix(prefix): info for name, info in found.items() if name.startswith(prefix)}
        return {name: info for name, info in names.items() if str(PurePosixPath(name)) == name and not strays(name)}

    def _manifest(self, key: str) -> dict[str, Any]:
        content = self._read(f"{key}/manifest.json")
        if content is None:
            self._attempts.pop(key, None)
            raise StoreError(f"no artifact {key} in {self.place!r}")
        where = f"{self.place}/{key}/manifest.json"
        return checked(parsed(content, where), key, where)

    def _names(self, key: str, attempt: str) -> bool:
        """Tell whether a manifest names this attempt, or cannot be read and so may name it."""
        try:
            return bool(self._manifest(key)["attempt"] == attempt)
        except UnreachableError:
            raise
        except StoreError:
            return self.has(key)

    def _download(self, key: str) -> Path:
        """Put an artifact, compared with its manifest, on this node; give where its files are."""
        manifest = self._manifest(key)
        attempt = self._attempts[key] = str(manifest["attempt"])
        inside = _below(self._objects(key), attempt)
        try:
            with self._near.scratch() as scratch:
                for name, (size, digest) in files_of(manifest).items():
                    fault = _size_fault(inside, name, size) or self._fetch(f"{key}/{attempt}/{name}", scratch / "files" / name, digest)
                    if fault:
                        self._condemn(key, attempt, f"{name!r} {fault}")
                        raise StoreError(f"artifact {key} in {self.place!r} is corrupted: {name!r} {fault}; the same command makes it anew")
                return self._near.settle(scratch, manifest)
        except OSError as error:
            raise StoreError(f"cannot write {key} into {str(self.root)!r}: {error.strerror or error}; {self._advice}") from error

    def _fetch(self, name: str, path: Path, digest: object) -> str:
        """Download an object; say what is wrong with it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._asking(f"download {name!r} from"):
                self.fs.get_file(self._path(name), str(path))
        except FileNotFoundError:
            return "is not there"
        except UnreachableError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
                raise error.__cause__ from None
            raise
        return "" if file_digest(path) == digest else OTHER_CONTENT

    def _condemn(self, key: str, attempt: str, fault: str) -> None:
        """Leave word that an artifact is corrupted, where that may be written."""
        self._attempts.pop(key, None)
        with suppress(StoreError, OSError), self._asking("write into"):
            self.fs.pipe_file(self._path(f"{key}/faulty.{attempt}"), fault.encode(errors="replace"))

    def _publish_from(self, scratch: Path, manifest: Mapping[str, Any]) -> None:
        """Upload what was written, publish it, and keep a copy; where another runner was first, delete it all."""
        key, attempt = manifest["key"], manifest["attempt"]
        try:
            self._upload(f"{key}/{attempt}", scratch / "files", manifest)
        except BaseException:
            with suppress(StoreError):
                self._remove(f"{key}/{attempt}")
            raise
        winner = self._attempts[key] = self._claim(key, manifest)
        with suppress(StoreError, OSError):  # it is published: without a copy here it is downloaded, what stays there is an orphan
            if winner == attempt:
                self._near.settle(scratch, manifest)
            else:
                self._remove(f"{key}/{attempt}")

    def _upload(self, below: str, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Upload the files of a manifest, and look whether all have arrived."""
        files = files_of(manifest)
        for name in files:
            with self._asking(f"upload {name!r} to"):
                self.fs.put_file(str(folder / name), self._path(f"{below}/{name}"))
        arrived = self._objects(below)
        for name, (size, _) in files.items():
            if fault := _size_fault(arrived, name, size):
                raise StoreError(f"cannot upload {name!r} to {self.place!r}: afterwards it {fault}")

    def _claim(self, key: str, manifest: Mapping[str, Any]) -> str:
        """Publish a manifest where none is, and give the attempt that the published one names.

        Files whose manifest may have arrived or not are left: they are published or an orphan.
        """
        try:
            self.fs.pipe_file(self._path(f"{key}/manifest.json"), json.dumps(manifest, indent=1, sort_keys=True).encode(), mode="create")
            return str(manifest["attempt"])
        except Exception as error:
            # A refusal has another name with each driver; and it may be our own manifest that is in the way, where the answer
            # to the first put was lost and the driver asked again. What is published decides.
            try:
                return str(self._manifest(key)["attempt"])
            except StoreError:
                raise StoreError(f"cannot publish {key} in {self.place!r}: {_line(error)}") from error

    def _remove(self, below: str) -> None:
        for name in sorted(self._objects(below), key=lambda name: name != "manifest.json"):
            with self._asking("delete objects in"), suppress(FileNotFoundError):
                self.fs.rm_file(self._path(f"{below}/{name}"))

    def _forget(self, key: str) -> None:
        self._attempts.pop(key, None)
        self._near.forget(key)

    def _digest(self, name: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        with self._asking(f"read {name!r} from"), suppress(FileNotFoundError), self.fs.open(self._path(name), "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
        return digest.hexdigest()


def _below(found: Found, folder: str) -> Found:
    return {name.removeprefix(f"{folder}/"): info for name, info in found.items() if name.startswith(f"{folder}/")}


def _size_fault(inside: Found, name: str, size: object) -> str:
    """Say what a listing shows to be wrong with an object; empty where nothing is."""
    if strays(name):
        return "leads out of the artifact"
    return wrong_size(_size(inside[name]), size) if name in inside else "is not there"


def _size(info: Mapping[str, Any]) -> int:
    return int(info.get("size") or 0)


def _written(info: Mapping[str, Any]) -> float | None:
    """Give when an object was written, in seconds since 1970, under whatever name its driver says it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _without_password(uri: str) -> str:
    return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:***@", uri)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
