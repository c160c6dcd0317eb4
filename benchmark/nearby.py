"""A node's own copies of the artifacts of a store elsewhere: each is there whole, or it is not there.

    <root>/<key>/<attempt>/manifest.json   as it was published
    <root>/<key>/<attempt>/files/...       compared with the manifest before they were put there, in one step
    <root>/attempts/<name>/files/...       what is being written or downloaded

All of it can be deleted at any time: it is downloaded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapbench.artifacts import IDLE_S, KEY, read_json
from rapbench.errors import StoreError
from rapbench.manifest import checked, files_of


def nearby(uri: str) -> Nearby:
    """Give this node's copies of what is below a URI: in the folder that RAPBENCH_CACHE names, else in ~/.cache/rapbench."""
    named = os.environ.get("RAPBENCH_CACHE")
    try:
        folder = Path(named).absolute() if named else Path.home() / ".cache" / "rapbench"
    except RuntimeError:
        raise StoreError("no home folder to keep artifacts in: name a folder of this node by RAPBENCH_CACHE") from None
    return Nearby(folder / hashlib.blake2b(uri.encode(), digest_size=16).hexdigest())


@dataclass(frozen=True)
class Nearby:
    """A folder of copies. All methods are safe with several processes on one node."""

    root: Path

    def files(self, key: str, attempt: str) -> Path | None:
        """Give the folder of an artifact's files; None where they are not here, or some lack or have another size by now."""
        home = self.root / key / attempt
        try:
            sizes = files_of(checked(read_json(home / "manifest.json"), key, str(home)))
            whole = all((home / "files" / name).lstat().st_size == size for name, (size, _) in sizes.items())
        except (StoreError, OSError):
            return None
        return home / "files" if whole else None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a new folder with an empty folder `files`; what is not settled by the end of the block is deleted."""
        folder = self.root / "attempts" / uuid.uuid4().hex[:12]
        try:
            (folder / "files").mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def settle(self, scratch: Path, manifest: Mapping[str, Any]) -> Path:
        """Put a scratch folder, compared with its manifest, in its place; give where its files are. Another process may be first."""
        key, attempt = str(manifest["key"]), str(manifest["attempt"])
        home = self.root / key / attempt
        (scratch / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        home.parent.mkdir(parents=True, exist_ok=True)
        if self.files(key, attempt) is None:  # was never here, or was harmed since
            shutil.rmtree(home, ignore_errors=True)
        try:
            scratch.rename(home)
        except OSError:
            if self.files(key, attempt) is None:
                raise
        return home / "files"

    def forget(self, key: str) -> None:
        """Delete the copies of an artifact."""
        if KEY.fullmatch(key):
            shutil.rmtree(self.root / key, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what processes that were killed a week ago or more left unfinished."""
        for path in (self.root / "attempts").glob("*"):
            with suppress(OSError):
                if path.lstat().st_mtime < time.time() - IDLE_S:
                    shutil.rmtree(path)
