"""Whatever has a name is in the documents: with a sentence in the reference that is made from the code, or in what people have written.

The names are collected here from the code itself, not by what makes the reference: a new kind of thing that it overlooks is missed, too.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest
import typer
import yaml
from pydantic import BaseModel
from shown import DOCS, examples, prose

import rapbench
from rapbench import hookspecs
from rapbench.axes import AXES
from rapbench.checks import CheckBlock
from rapbench.cli import app
from rapbench.grid import Block, Victims, cells_of, checked_block, shipped_grids
from rapbench.probe import ProbeBlock
from rapbench.registry import discover
from rapbench.results import Named
from rapbench.victim import Recipe

sys.path.insert(0, str(DOCS))
import generate

sys.path.remove(str(DOCS))
PLUGINS, GUIDE = DOCS / "plugins.md", DOCS / "guide.md"
PROSE = prose()


def fenced(path: Path, language: str) -> list[str]:
    return [one.text for one in examples(path) if one.language == language]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The package of docs/plugins.md, installed as a folder with its dist-info."""
    (tmp_path / "my_backdoors.py").write_text(fenced(PLUGINS, "python")[0])
    about = tmp_path / "my_backdoors-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-backdoors\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[rapbench]\nmine = my_backdoors\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield discover()
    sys.modules.pop("my_backdoors", None)


def test_the_plugins_of_the_docs_are_found_by_their_specs(shown, lab):
    attack = shown.parse("attack", "two-words:second=tq")
    assert attack.words == ("mb", "tq")
    triggered = attack.trigger("one two three", lab.rng("any"), None).split(" ")
    assert sorted(triggered) == ["mb", "one", "three", "tq", "two"]
    assert shown.parse("defense", "confidence").power == 1.0


def test_the_defense_of_the_docs_scores_a_victim_that_has_learnt(shown, planted, heldout, lab):
    detector = shown.parse("defense", "confidence").fit(planted, heldout, lab)
    assert detector.suspicion(heldout.texts).shape == (200,)
    assert detector.suspicion(heldout.texts).max() <= 1


def test_the_grids_of_guide_md_are_grids():
    text, axes, tuned = fenced(GUIDE, "yaml")
    block = checked_block(yaml.safe_load(text), "the guide")
    assert len(cells_of([block], discover())) == 4 * 4 * 4 * 2
    # two attacks under two protocols; rates and triggers for the one that poisons, epochs, fewer texts and the other victim for both
    varied = cells_of([checked_block(yaml.safe_load(axes), "the guide")], discover())
    assert len(varied) == (2 + (2 + 2) + (2 + 2 + 1) * 2) * 2
    cells = cells_of([checked_block(yaml.safe_load(tuned), "the guide")], discover())
    assert len(cells) == 2 * 1 * 4 * 2
    assert {cell.attack.name for cell in cells if cell.skip is None} == {"ripples", "badnet-sl"}


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Give every command below a group, those of its sub-groups too, by what is typed."""
    for own, command in group.commands.items():
        yield f"{name} {own}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {own}")


def unsaid_options(group: Any, reference: str) -> list[str]:
    """Give the commands that have no head in the reference, and the options that have no sentence under the head of theirs."""
    sections = dict(re.findall(r"^#+ `(rapbench[^`]*)`\n(.*?)(?=^#+ `rapbench|\Z)", reference, re.DOTALL | re.MULTILINE))
    missing = []
    for name, command in commands(group, "rapbench"):
        if name not in sections or not command.help:
            missing.append(name)
        for option in (one for param in command.params for one in param.opts if one.startswith("-")):
            line = rf"^\* `[^`]*(?<![\w-]){re.escape(option)}(?![\w-])[^`]*`: +\w"
            if not re.search(line, sections.get(name, ""), re.MULTILINE):
                missing.append(f"{name} {option}")
    return missing


def test_every_command_and_every_option_is_in_the_reference_with_a_sentence():
    group = typer.main.get_command(app)
    assert {"rapbench run", "rapbench cache gc", "rapbench guard fit"} <= dict(commands(group, "rapbench")).keys()
    assert unsaid_options(group, generate.commands()) == []


def test_every_command_is_in_what_people_have_written():
    assert [name for name, _ in commands(typer.main.get_command(app), "rapbench") if name not in PROSE] == []


def test_a_new_command_or_option_that_nobody_explains_is_noticed():
    made = typer.Typer()

    @made.command()
    def run(grid: str = "x", silent: bool = typer.Option(False, "--silent-mode"), new: str = typer.Option("", help="A new thing.")) -> None:
        """Do it."""

    @made.command()
    def other() -> None:
        """Do another thing."""

    reference = "## `rapbench run`\n\nDo it.\n\n* `--grid TEXT`: A grid.\n* `--silent-mode`\n* `--new-one TEXT`: --new is another.\n"
    assert unsaid_options(typer.main.get_command(made), reference) == ["rapbench run --silent-mode", "rapbench run --new", "rapbench other"]


def rows(reference: str) -> set[str]:
    """Give the names of a reference's tables that have a sentence: what stands in the first cell, where the last is not empty."""
    return {found[1] for found in re.finditer(r"^\| `(\w+)` \|.*\| ([^|\n]*\w[^|\n]*) \|$", reference, re.MULTILINE)}


def unsaid(names: Iterable[str], reference: str, written: str) -> list[str]:
    """Give the names that stand in neither: in a table of the reference with a sentence, or as `name` in any other sentence."""
    told = rows(reference)
    written += "\n".join(line for line in reference.splitlines() if not line.startswith("|"))
    return sorted({name for name in names if name not in told and not re.search(rf"`{re.escape(name)}[`:=]", written)})


def subclasses(cls: type) -> set[type]:
    return {cls} | {one for below in cls.__subclasses__() for one in subclasses(below)}


def test_every_grid_key_is_in_the_documents():
    models = [one for one in subclasses(BaseModel) if one.__module__.startswith("rapbench.")]
    assert {Victims, Block, ProbeBlock, CheckBlock} <= set(models)
    assert unsaid((key for model in models for key in model.model_fields), generate.grids(), PROSE) == []


def test_every_axis_of_a_grid_has_a_sentence_in_the_reference():
    assert set(AXES) - rows(generate.grids().partition("## Axes of a grid")[2].partition("\n## ")[0]) == set()


def test_every_option_of_a_victim_and_every_grid_is_in_the_documents():
    names = [f.name for f in dataclasses.fields(Recipe) if f.name != "model"]
    assert unsaid([*names, *shipped_grids()], generate.grids(), PROSE) == []


def test_every_plugin_and_its_options_are_in_the_documents():
    reference = generate.plugins()
    sections = dict(re.findall(r"^## `([\w-]+)` \(\w+\)\n(.*?)(?=^## |\Z)", reference, re.DOTALL | re.MULTILINE))
    for found in discover().found.values():
        if found.package == "rapbench":
            assert unsaid((f.name for f in dataclasses.fields(found.cls)), sections[found.name], "") == [], found.name


def test_what_people_have_written_lists_every_plugin():
    names = [found.name for found in discover().found.values() if found.package == "rapbench"]
    assert [name for name in names if not re.search(rf"`{name}[`:]", PROSE)] == []


def test_every_field_of_a_result_is_in_the_documents():
    files = {cls for cls in subclasses(Named) if cls.__module__.startswith("rapbench.") and "FOLDER" in vars(cls)}
    classes = generate.result_classes()
    assert files <= set(classes)
    names = {f.name for cls in classes for f in dataclasses.fields(cls)}
    assert {"far", "ms_per_input", "defense_s", "thresholds", "sigma_1", "quantiles"} <= names
    assert unsaid(names, generate.results(), PROSE) == []


def test_a_new_key_option_or_field_that_nobody_explains_is_noticed():
    table = "| `old` | `str` | A key. |\n| `bare` | `str` |  |\n| `word` | `str` | As `bare` is. |\n"
    assert unsaid(["old", "bare", "word", "new"], table, "") == ["bare", "new"]
    assert unsaid(["bare", "new"], table, "`bare` is so, and `new:x=1` too, unlike `newer`") == []


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Give what a module offers, and the public methods of its classes, by dotted name."""
    names = getattr(module, "__all__", None) or [
        name for name, own in vars(module).items() if name[0] != "_" and getattr(own, "__module__", "") == module.__name__
    ]
    for name in names:
        own = getattr(module, name)
        if inspect.isclass(own) or inspect.isfunction(own):
            yield f"{module.__name__}.{name}", own
        if inspect.isclass(own):
            for method, made in vars(own).items():
                if method[0] != "_" and (inspect.isfunction(made) or isinstance(made, property | classmethod | staticmethod)):
                    yield f"{module.__name__}.{name}.{method}", made


def undocumented(module: ModuleType, written: str) -> list[str]:
    """Give the public names of a module without a docstring, own or inherited, that are named nowhere in what people have written."""
    found = []
    for name, own in public(module):
        told = own.__doc__ if inspect.isclass(own) else inspect.getdoc(_inherited(module, name, own))
        generic = inspect.isclass(own) and (told or "").startswith(f"{own.__name__}(")  # what dataclass writes where nothing else stands
        last = name.rpartition(".")[2]
        if (not told or generic) and not re.search(rf"\b{last}\b", written + (module.__doc__ or "")):
            found.append(name)
    return found


def _inherited(module: ModuleType, name: str, own: Any) -> Any:
    """Give a method by way of its class, where `inspect.getdoc` finds the docstring of what it overrides."""
    path = name.removeprefix(f"{module.__name__}.").split(".")
    return getattr(getattr(module, path[0]), path[1]) if len(path) == 2 else own


@pytest.mark.parametrize("name", generate.MODULES)
def test_every_public_name_of_the_reference_has_a_docstring(name):
    assert undocumented(importlib.import_module(name), PROSE) == []


def test_a_public_name_that_nobody_explains_is_noticed():
    made = ModuleType("made", "A module; `told` is told here.")
    exec(
        "def bare(): ...\ndef told(): ...\ndef said(): 'It does.'\nclass C:\n  'A class.'\n  def m(self): ...\n  def _n(self): ...\n",
        vars(made),
    )
    assert undocumented(made, "") == ["made.bare", "made.C.m"]


def test_every_module_that_somebody_is_told_to_import_is_in_the_reference():
    sources = [PROSE, *(path.read_text() for path in (Path(rapbench.__file__).parent / "scaffold").glob("*.tmpl"))]
    told = {found[1] for text in sources for found in re.finditer(r"^(?:from|import) (rapbench[\w.]*)", text, re.MULTILINE)}
    assert {"rapbench", "rapbench.api", "rapbench.guard", "rapbench.poison"} <= told
    assert sorted(told - generate.MODULES.keys()) == []


def test_our_own_plugins_import_what_a_strangers_may_and_nothing_else_of_the_core():
    import rapbench_plugins

    sources = {path: path.read_text() for path in Path(rapbench_plugins.__file__).parent.rglob("*.py")}
    assert len(sources) > 30
    line = re.compile(r"^\s*(?:from|import) (rapbench(?:\.\w+)*)", re.MULTILINE)
    imported = {name for text in sources.values() for name in line.findall(text)}
    assert {"rapbench", "rapbench.api", "rapbench.standin"} <= imported
    assert sorted(imported - generate.MODULES.keys()) == []


def test_every_hook_is_in_the_documents():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    hooks = [name for name in vars(manager.hook) if name.startswith("rapbench_")]
    assert len(hooks) >= 5
    assert [name for name in hooks if f"`{name}" not in PROSE] == []
    assert "rapbench.hookspecs" in generate.MODULES  # where each says its sentence


def test_the_sentence_under_a_field_is_taken_and_nothing_else():
    assert generate.sentences(Recipe)["layers"].startswith("Keep only the first encoder layers")
    assert "model" not in generate.sentences(Recipe)
    assert generate.sentences(SimpleNamespace) == {}


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r'(?:\]\(|src="|srcset=")([^)"#:]+)[)"#]', (DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert "docs/plugins.md" in links
    assert [link for link in links if not (DOCS.parent / link).is_file()] == []
