"""A guard's folder: JSON and safetensors, read with bounds, written so that a save that was cut off leaves no guard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rapbench.artifacts import file_digest, read_json, write_atomically
from rapbench.errors import StoreError

SCHEMA = 1
ABOUT, VALUES, ARRAYS = "guard.json", "state.json", "state.safetensors"
INDEX = "guards.json"
"""Where there is a guard for each label, in folders below."""
MOST_STATE = 1 << 30
"""Bytes of what a defense has learnt, of each file."""
T = TypeVar("T")


def read_kept(path: Path, kind: type[T]) -> T:
    """Give what a JSON file of a guard tells; a StoreError where it makes no sense."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise StoreError(f"{str(path)!r} is of no guard that this rapbench reads (schema version {SCHEMA}): fit it again")
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"])[:-1]
        raise StoreError(": ".join(filter(None, [repr(str(path)), where, f"{first['msg']}; fit it again"]))) from None


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Make a folder, or clear a guard's of the file `name`, which is written last; in the block what it names is written.

    A StoreError where the folder holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / name).is_file():
            raise StoreError(f"{str(folder)!r} holds something else than a guard: give another folder")
        (folder / name).unlink(missing_ok=True)
        yield
    except OSError as error:
        raise StoreError(f"cannot write the guard into {str(folder)!r}: {error.strerror or error}") from None


def write_state(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Write what was learnt, and give the digests of the files."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in state.items() if name not in arrays}
    save_file(arrays, folder / ARRAYS)
    write_atomically(folder / VALUES, json.dumps(values, allow_nan=False))
    return {name: file_digest(folder / name) for name in (VALUES, ARRAYS)}


def read_state(folder: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """Give what was learnt; a StoreError where a file is not what was written. `files`: the digests."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for name in (VALUES, ARRAYS):
        path = folder / name
        if not path.is_file() or path.stat().st_size > MOST_STATE or file_digest(path) != files.get(name):
            raise StoreError(f"{str(path)!r} is not what was written when the guard was fitted: fit it again")
    try:
        return {**json.loads((folder / VALUES).read_bytes()), **load_file(folder / ARRAYS)}
    except (ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise StoreError(f"the guard {str(folder)!r} cannot be read: {error}; fit it again") from None
