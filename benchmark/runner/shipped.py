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


def install(wheels: Sequence[Path]) -> None:
    """Let this process import what is in pure-Python wheels, their entry points included; gone when it ends."""
    for wheel in wheels:
        site = Path(tempfile.mkdtemp(prefix="rapbench-shipped-"))
        atexit.register(shutil.rmtree, site, ignore_errors=True)
        _unpack(wheel, site)
        sys.path.insert(0, str(site))
    importlib.invalidate_caches()


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
