"""Do all machines of a cluster run the same thing? Names, versions and digests of what results depend on, compared before a run."""

from __future__ import annotations

import hashlib
import platform
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rapbench
from rapbench.artifacts import Store
from rapbench.errors import RapbenchError
from rapbench.instruments import device_name
from rapbench.registry import discover, source_digest

PACKAGES = ("rapbench", "torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy", "scikit-learn", "safetensors", "ray")
NONCE = ".here-"


@dataclass(frozen=True)
class Environment:
    """What a machine would run. `plugins`: `defense strip` -> package, version and digest of its source."""

    host: str
    python: str
    processor: str
    packages: Mapping[str, str]
    code: str
    """Digest of rapbench's own files."""
    plugins: Mapping[str, str]
    left_out: Mapping[str, str]
    store: str = ""
    """What is wrong with the store as seen from there; empty where nothing is."""

    def differences(self, other: Environment) -> list[str]:
        """Give in words what differs from `other`, the machine that runs the command; results may differ for each."""
        found = [f"python {self.python} instead of {other.python}"] if self.python != other.python else []
        found += [
            f"{name} {self.packages.get(name, 'missing')} instead of {own}"
            for name, own in other.packages.items()
            if self.packages.get(name) != own
        ]
        if self.code != other.code and self.packages.get("rapbench") == other.packages.get("rapbench"):
            found.append("another source of rapbench under the same version")
        for name, own in other.plugins.items():
            there = self.plugins.get(name)
            if there != own:
                found.append(f"no plugin {name!r}{_because(self.left_out)}" if there is None else f"{name!r} is {there} instead of {own}")
        return found + ([self.store] if self.store else [])


def environment(store: Store | None = None, nonce: str = "") -> Environment:
    """Give what this machine would run; with a store, whether the file `nonce` of whoever asks is there and another can be made."""
    registry = discover()
    plugins = {f"{kind} {name}": f"{own.package} {own.version} {source_digest(own.cls)}" for (kind, name), own in registry.found.items()}
    return Environment(
        host=socket.gethostname(),
        python=platform.python_version(),
        processor=device_name("cpu"),
        packages={name: _version(name) for name in PACKAGES},
        code=_code(),
        plugins=plugins,
        left_out=dict(registry.left_out),
        store=_seen(store, nonce) if store else "",
    )


@contextmanager
def nonce(store: Store) -> Iterator[str]:
    """Put a file into a folder of artifacts for the other machines to find, and give its name; "" for a store that is no folder."""
    if store.remote:
        yield ""
        return
    name = f"{NONCE}{uuid.uuid4().hex[:12]}"
    (store.root / name).touch()
    try:
        yield name
    finally:
        with suppress(OSError):
            (store.root / name).unlink()


def _seen(store: Store, name: str) -> str:
    try:
        store.opened()
        if store.remote:
            store.create()  # which tries to write
        if name and not (store.root / name).is_file():
            return f"{str(store.root)!r} is another folder there: put --out on a folder that all machines share, or give --store a URI"
        with nonce(store):
            pass
    except (RapbenchError, OSError) as error:
        return f"the artifacts cannot be used there: {error}"
    return ""


def _because(left_out: Mapping[str, str]) -> str:
    return "".join(f" ({package} was left out there: {reason})" for package, reason in left_out.items())


def _code() -> str:
    folder = Path(rapbench.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
