"""What holds for every module and every plugin."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

import rapbench
import rapbench_plugins
from rapbench.hookspecs import PROJECT
from rapbench.registry import discover

PACKAGES = [rapbench, rapbench_plugins]
MODULES = [package.__name__ for package in PACKAGES] + [
    module.name for package in PACKAGES for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
BUILT_IN = sorted((key, found.cls) for key, found in discover().found.items() if found.package == PROJECT)


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def options_declared_in_the_plugins(cls: type) -> list[dataclasses.Field]:
    """Give the options that are not of the contract: first declared by a class of rapbench_plugins."""
    first = {name: base for base in cls.__mro__ for name in inspect.get_annotations(base)}  # the last writer is the basest
    return [f for f in dataclasses.fields(cls) if first[f.name].__module__.startswith("rapbench_plugins")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert (imported(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    assert doctest.testmod(imported(name)).failed == 0


@pytest.mark.parametrize(("key", "cls"), BUILT_IN, ids=lambda value: value[1] if isinstance(value, tuple) else "")
def test_every_plugin_says_in_one_line_what_it_is(key, cls):
    assert cls.__dict__.get("__doc__", "")
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # what dataclass writes where nothing else stands
    assert cls.__doc__.splitlines()[0].rstrip().endswith(".")


@pytest.mark.parametrize(("key", "cls"), BUILT_IN, ids=lambda value: value[1] if isinstance(value, tuple) else "")
def test_every_option_of_a_plugin_says_what_it_does(key, cls):
    assert [f.name for f in options_declared_in_the_plugins(cls) if not f.metadata.get("text")] == []


def test_that_an_option_says_nothing_would_be_noticed():
    found = {f.name for f in options_declared_in_the_plugins(discover().get("attack", "ep").cls)}
    assert found == {"word", "count", "epochs", "lr", "batch_size"}  # poison_rate and poison_mode are the contract's


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_typed(package):
    assert resources.files(package).joinpath("py.typed").is_file()


def test_a_folder_imported_under_its_name_on_disk_is_refused(tmp_path, monkeypatch):
    for package, folder in ((rapbench, "benchmark_copy"), (rapbench_plugins, "plugins_copy")):
        (tmp_path / f"{folder}.py").write_text(Path(package.__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    for package, folder in (("rapbench", "benchmark_copy"), ("rapbench_plugins", "plugins_copy")):
        with pytest.raises(ImportError, match=f"this folder is the package '{package}'; pip install"):
            importlib.import_module(folder)
