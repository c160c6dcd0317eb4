"""Data files of the Hugging Face hub, without a wait where there is no hub.

The files themselves are fetched (CSV or Parquet) and read as local ones are, so a revision means the same online and
offline, and no code or configuration of the repository takes part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rapbench.errors import DataError
from rapbench.hub import reachable


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


def _remedy(hub: Hub, name: str) -> str:
    return f"get it once where there is a network, or put {hub.by_hand} into a folder and say {name}:path=FOLDER"


def _complete(folder: Path, pattern: str, hub: Hub, name: str) -> list[Path]:
    """Give the files of one split, all of its shards (`train-00000-of-00004.parquet`)."""
    files = sorted(folder.rglob(pattern))
    shards = re.search(r"-of-(\d+)\.", files[0].name) if files else None
    if not files or (shards and len(files) != int(shards[1])):
        there = ", ".join(os.path.relpath(path, folder) for path in files) or "none"
        raise DataError(f"{name}: the copy of {hub.id!r} in {folder} lacks files {pattern!r} (there are: {there}); {_remedy(hub, name)}")
    return files
