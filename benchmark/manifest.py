"""What a store's small files may say: its layout, and the manifest of an artifact. A store may come from anywhere."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rapbench.errors import StoreError

ABOUT = {"kind": "rapbench artifacts", "layout": 1}
MOST_BYTES = 16 * 2**20
"""Of a JSON file that is read: a manifest has a few kB."""
OTHER_CONTENT = "has the right size and another content"


def parsed(content: bytes, where: str, *, finite: bool = False) -> Any:
    """Give the JSON value of these bytes; a StoreError names where they are from if they are too many or none.

    `finite`: numbers have to be: no NaN, no Infinity, no 1e999.
    """
    if len(content) > MOST_BYTES:
        raise StoreError(f"{where!r} is larger than {MOST_BYTES // 2**20} MiB")
    try:
        text = content.decode()
        return json.loads(text, parse_constant=_finite, parse_float=_finite) if finite else json.loads(text)
    except (ValueError, RecursionError) as error:  # nested too deeply
        raise StoreError(f"{where!r} cannot be read as JSON: {error}") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number")
    return number


def check_about(about: object, where: str) -> None:
    """Raise a StoreError where a store is not of the layout that this rapbench reads and writes."""
    if about != ABOUT:
        raise StoreError(f"{where!r} says {reprlib.repr(about)}, this rapbench reads {ABOUT}: use the rapbench that wrote it")


def checked(manifest: object, key: str, where: str) -> dict[str, Any]:
    """Give a manifest that is one of this key and names an attempt beside it; else a StoreError."""
    if not isinstance(manifest, dict) or manifest.get("key") != key:
        raise StoreError(f"{where!r} is no manifest of {key}")
    if not plain(manifest.get("attempt")):
        raise StoreError(f"{where!r} names no folder beside it: attempt is {reprlib.repr(manifest.get('attempt'))}")
    if not isinstance(manifest.get("provenance"), dict):
        raise StoreError(f"{where!r} does not say what it was made from")
    return manifest


def files_of(manifest: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Give size and digest of the files by name; a StoreError where the manifest does not list them."""
    try:
        return {name: (about["bytes"], about["blake2b"]) for name, about in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        raise StoreError(f"the manifest of {manifest['key']} does not say size and digest of each file") from None


def plain(name: object) -> bool:
    """Tell whether this is the name of something in a folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def strays(name: str) -> bool:
    """Tell whether a file's name, which a manifest gives, leads out of its folder."""
    parts = PurePosixPath(name)
    return parts.is_absolute() or ".." in parts.parts or "\0" in name


def wrong_size(found: int, size: object) -> str:
    """Say that a size is not that of the manifest; empty where it is."""
    return f"has {found} bytes instead of {reprlib.repr(size)}" if found != size else ""
