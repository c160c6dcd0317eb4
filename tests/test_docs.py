"""What the documents show works as shown."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import typer
import yaml

from rapbench.checks import CheckBlock
from rapbench.cli import app
from rapbench.grid import Block, cells_of, checked_block, shipped_grids
from rapbench.probe import ProbeBlock
from rapbench.registry import discover
from rapbench.victim import Recipe

ROOT = Path(__file__).resolve().parents[1]
PLUGINS, GUIDE, COST, README = (ROOT / name for name in ("docs/plugins.md", "docs/guide.md", "docs/cost.md", "README.md"))
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]


KEYS = {**Block.model_fields, **ProbeBlock.model_fields, **CheckBlock.model_fields}


def fenced(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(group, name):
    """Give every command below a group, those of its sub-groups too, by what is typed."""
    for own, command in group.commands.items():
        yield f"{name} {own}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {own}")


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


def test_the_grid_of_the_guide_is_a_grid():
    text, tuned = fenced(GUIDE, "yaml")
    block = checked_block(yaml.safe_load(text), "the guide")
    assert len(cells_of([block], discover())) == 4 * 4 * 4 * 2
    cells = cells_of([checked_block(yaml.safe_load(tuned), "the guide")], discover())
    assert len(cells) == 2 * 1 * 4 * 2
    assert {cell.attack.name for cell in cells if cell.skip is None} == {"ripples", "badnet-sl"}


def test_every_option_of_the_recipe_is_in_the_guide():
    text = GUIDE.read_text(encoding="utf-8")
    assert [f.name for f in dataclasses.fields(Recipe) if f.name != "model" and f"`{f.name}`" not in text] == []


def test_every_command_and_option_of_the_command_line_is_in_the_documents():
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    found = dict(commands(typer.main.get_command(app), "rapbench"))
    assert {"rapbench run", "rapbench cache", "rapbench cache gc"} <= found.keys()
    options = {option for command in found.values() for one in command.params for option in one.opts if option.startswith("--")}
    assert sorted(option for option in options if option not in text) == []
    assert sorted(name for name in found if name not in text) == []


def test_every_grid_key_grid_and_plugin_is_in_the_documents():
    text = GUIDE.read_text(encoding="utf-8") + README.read_text(encoding="utf-8")
    registry = discover()
    names = [name for kind in ("dataset", "attack", "defense") for name in registry.names(kind)]
    missing = [name for name in [*KEYS, *shipped_grids(), *names] if f"`{name}`" not in text and f"`{name}:" not in text]
    assert missing == []
