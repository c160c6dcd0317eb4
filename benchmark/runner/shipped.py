"""Plugin packages that travel with a run: wheels that no machine of the cluster has installed."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rapbench.errors import ClusterError

MOST_BYTES = 256 * 2**20
"""Unpacked, of one wheel."""


def install(wheels: Sequence[Path]) -> None:
    """Let this process import what is in pure-Python wheels, their entry points included; gone when it ends."""
    sys.path[:0] = [str(_site(wheel.resolve())) for wheel in wheels]
    importlib.invalidate_caches()


def modules(wheels: Sequence[Path]) -> list[str]:
    """Give the paths of what is in wheels, as Ray's `py_modules` takes it: it sends each to every node under a digest of its bytes.

    The wheels themselves it would know by their file names, so that a node goes on with an older one of the same name; and it
    would have each node's `pip` install them, with what they depend on, into one folder for all nodes of a machine.
    """
    return [str(path) for wheel in wheels for path in sorted(_site(wheel.resolve()).iterdir()) if path.is_dir() or path.suffix == ".py"]


@cache
def _site(wheel: Path) -> Path:
    """Give the folder into which this process unpacks a wheel."""
    site = Path(tempfile.mkdtemp(prefix="rapbench-shipped-"))
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    _unpack(wheel, site)
    return site


def _unpack(wheel: Path, site: Path) -> None:
    """Unpack a wheel; a ClusterError where it is none, is too large, or has compiled code, which not every machine could run."""
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
