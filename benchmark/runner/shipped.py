"""Plugin packages that travel with a run: wheels that no machine of the cluster has installed."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rapbench.errors import ClusterError

MOST_BYTES = 256 * 2**20
"""Unpacked, of one wheel."""
SENT = "rapbench-shipped"
"""The folder in which a node finds them, one for each wheel."""


def install(wheels: Sequence[Path]) -> None:
    """Let this process import what is in pure-Python wheels, their entry points included; gone when it ends."""
    _import_from([_unpack(wheel, _scratch()) for wheel in wheels])


def sent(wheels: Sequence[Path]) -> str:
    """Give the folder that holds what is in wheels, as Ray's `py_modules` takes it: it sends it to every node, by a digest of the files.

    A wheel itself Ray would know by its file's name, so that a node goes on with an older one of that name; and it would have each node's
    `pip` install it, with what it depends on, into one folder for all nodes of a machine. It is not the folder that this process imports
    from, where Python leaves compiled files that differ each time.
    """
    folder = _scratch() / SENT
    for number, wheel in enumerate(wheels):
        _unpack(wheel, folder / str(number))
    for name in (".gitignore", ".rayignore"):  # by which Ray would leave files out
        for path in folder.rglob(name):
            path.unlink()
    return str(folder)


def join() -> None:
    """Let a worker import what `sent` brought to its node, where that is not done yet."""
    parts = [Path(entry) / SENT for entry in sys.path if entry]
    _import_from([own for part in parts if part.is_dir() for own in sorted(part.iterdir())])


def _import_from(folders: Sequence[Path]) -> None:
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
    importlib.invalidate_caches()


def _scratch() -> Path:
    """Give a folder that is gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="rapbench-shipped-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _unpack(wheel: Path, site: Path) -> Path:
    """Unpack a wheel into a folder, and give that; a ClusterError where it is none, is too large, or has compiled code.

    Not every machine could run that.
    """
    if wheel.suffix != ".whl" or not wheel.is_file():
        raise ClusterError(f"--ship-plugin {str(wheel)!r} is no wheel: build one with `pip wheel --no-deps FOLDER`")
    try:
        with zipfile.ZipFile(wheel) as archive:
            if sum(own.file_size for own in archive.infolist()) > MOST_BYTES:
                raise ClusterError(f"the wheel {str(wheel)!r} unpacks to more than {MOST_BYTES // 2**20} MiB")
            about = next((name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")), None)
            if about is None or b"Root-Is-Purelib: true" not in archive.read(about):
                raise ClusterError(f"the wheel {str(wheel)!r} is not pure Python: install it on every machine instead")
            archive.extractall(site)  # which drops absolute paths and ..
    except (zipfile.BadZipFile, OSError) as error:
        raise ClusterError(f"the wheel {str(wheel)!r} cannot be read: {error}") from None
    return site
