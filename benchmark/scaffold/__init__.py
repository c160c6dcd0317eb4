"""A new plugin's package, made of the templates beside this module."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from rapbench.errors import SpecError, StoreError
from rapbench.registry import Kind, Registry

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
"""What Windows takes for devices, as folders too."""
TAKEN = frozenset({"Attack", "Dataset", "Defense", "Detector", "None", "True", "False"})
"""Names that mean something in the templates, or in Python."""
PREFIX = "rapbench-"


@dataclass(frozen=True)
class Scaffold:
    """A package that was made. `folder`: what pip installs; `files`: all that was written."""

    folder: Path
    files: tuple[Path, ...]


def scaffold(name: str, kind: Kind, parent: Path, registry: Registry) -> Scaffold:
    """Write the package `rapbench-NAME` with one working plugin into the new folder `parent/name`."""
    check_name(name, registry)
    module = (PREFIX + name).replace("-", "_")
    names = {"name": name, "kind": kind, "package": PREFIX + name, "module": module, "cls": _camel(name)}
    folder = parent / name
    _make(folder)
    sources = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        f"src/{module}/__init__.py": f"{kind}.py.tmpl",
        "tests/test_contract.py": "test_contract.py.tmpl",
    }
    return Scaffold(folder, tuple(_written(folder / path, template, names) for path, template in sources.items()))


def check_name(name: str, registry: Registry) -> None:
    """Raise a SpecError unless a plugin, a package, a module and a folder can have this name and none has it yet."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise SpecError(f"{name[:60]!r} is no name for a plugin: give kebab-case like 'two-words', at most {LONGEST} characters")
    if name.startswith(PREFIX):
        raise SpecError(f"{name!r} names the package: it is called {PREFIX}NAME by itself, give {name.removeprefix(PREFIX)!r}")
    if keyword.iskeyword(name) or name in sys.stdlib_module_names or name in RESERVED or _camel(name) in TAKEN:
        raise SpecError(f"{name!r} means something to Python, rapbench or an operating system: choose another name")
    for (kind, own), found in registry.found.items():
        if own == name:
            raise SpecError(f"there is a {kind} {name!r} already, of {found.package}: choose another name")
    module = (PREFIX + name).replace("-", "_")
    if importlib.util.find_spec(module) is not None:
        raise SpecError(f"there is a module {module!r} already: choose another name than {name!r}")


def _camel(name: str) -> str:
    return name.title().replace("-", "")


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        raise StoreError(f"{str(folder)!r} is there already, and nothing is overwritten: choose another name, or another --out") from None
    except OSError as error:
        raise StoreError(f"cannot make the folder {str(folder)!r}: {error.strerror}; give an --out that is there") from None


def _written(path: Path, template: str, names: dict[str, str]) -> Path:
    text = resources.files(__name__).joinpath(template).read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(Template(text).substitute(names))
    return path
