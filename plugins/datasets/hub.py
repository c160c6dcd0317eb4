"""Data files of the Hugging Face hub, without a wait where there is no hub.

The files themselves are fetched (CSV or Parquet) and read as local ones are, so a revision means the same online and
offline, and no code or configuration of the repository takes part.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from rapbench.errors import DataError


@dataclass(frozen=True)
class Hub:
    """A data set repository: the file name patterns of its splits, and its columns."""

    id: str
    files: Mapping[str, str]
    text: str = "text"
    label: str = "label"
    by_hand: str = "train.csv and test.csv (columns text,label; plain, .gz, JSONL or Parquet)"
    """What a user without the hub puts into a folder."""


def fetch(hub: Hub, revision: str, name: str) -> dict[str, list[Path]]:
    """Give the files of each split, from the hub or, where it cannot be reached, from the cache of an earlier fetch."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, of the version that the hub uses

    online = reachable()
    try:
        folder = snapshot_download(
            hub.id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"*{pattern}" for pattern in hub.files.values()],
            local_files_only=not online,
        )
    except (OSError, ValueError, HTTPError) as error:
        if not online:
            raise DataError(f"{name}: the hub cannot be reached for {hub.id!r}; {_remedy(hub, name)}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{name}: the hub gives no {hub.id!r} at revision {revision!r}: {reason}; {_remedy(hub, name)}") from error
    return {split: _complete(Path(folder), pattern, hub, name) for split, pattern in hub.files.items()}


def reachable(timeout_s: float = 2.0) -> bool:
    """Tell within the time whether the hub's host takes connections; without asking where a proxy stands between."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    if url.scheme in getproxies() or "all" in getproxies():
        return True
    answers: SimpleQueue[bool] = SimpleQueue()
    address = (url.hostname or "huggingface.co", url.port or (80 if url.scheme == "http" else 443))
    # in a thread, since neither the name's resolution nor the sum over its addresses has a time limit of its own
    Thread(target=lambda: answers.put(_connects(address, timeout_s)), daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except Empty:
        return False


def _remedy(hub: Hub, name: str) -> str:
    return f"get it once where there is a network, or put {hub.by_hand} into a folder and say {name}:path=FOLDER"


def _connects(address: tuple[str, int], timeout_s: float) -> bool:
    try:
        with socket.create_connection(address, timeout_s):
            return True
    except OSError:
        return False


def _complete(folder: Path, pattern: str, hub: Hub, name: str) -> list[Path]:
    """Give the files of one split, all of its shards (`train-00000-of-00004.parquet`)."""
    files = sorted(folder.rglob(pattern))
    shards = re.search(r"-of-(\d+)\.", files[0].name) if files else None
    if not files or (shards and len(files) != int(shards[1])):
        there = ", ".join(os.path.relpath(path, folder) for path in files) or "none"
        raise DataError(f"{name}: the copy of {hub.id!r} in {folder} lacks files {pattern!r} (there are: {there}); {_remedy(hub, name)}")
    return files
