"""Every example of the documents is run, here or by another test, or says why not."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import sys
from itertools import groupby
from pathlib import Path

import made_results
import pytest
import typer
from shown import ROOT, Example, Lesson, command_lines, examples, pages

from rapbench import results
from rapbench.cli import _with_defaults, app

ALL = [example for page in pages() for example in examples(page)]
RUN = sorted((example for example in ALL if example.how == "run"), key=lambda example: (example.page, example.detail, example.line))
LESSONS = {key: list(own) for key, own in groupby(RUN, key=lambda example: (example.page, example.detail))}


@pytest.fixture
def lesson(tmp_path, monkeypatch, rapbench):
    """An empty folder to run examples in."""
    monkeypatch.chdir(tmp_path)
    made = Lesson(tmp_path, rapbench, monkeypatch)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def stand_ins(tmp_path, tiny_model, tiny_data, planted):
    """What the reader of a how-to has already, by the folder or file that the page calls it."""
    return {
        "my-model": lambda: shutil.copytree(tiny_model, tmp_path / "my-model"),
        "texts": lambda: shutil.copytree(tiny_data, tmp_path / "texts"),
        "results": lambda: made_results.write(tmp_path / "results"),
        "received": lambda: planted.save(tmp_path / "received"),
        "mine.csv": lambda: shutil.copyfile(tiny_data / "train.csv", tmp_path / "mine.csv"),
        "texts.txt": lambda: (tmp_path / "texts.txt").write_text("warm film\nrude meal\n"),
    }


NEEDS = {
    "model": ("my-model", "texts"),
    "axes": ("my-model", "texts"),
    "cost": ("results",),
    "paper-results": ("results",),
    "production": ("received", "mine.csv", "texts.txt"),
}


@pytest.mark.parametrize("key", LESSONS, ids=lambda key: f"{Path(key[0]).stem}-{key[1]}")
def test_the_examples_of_a_page_run_one_after_the_other(key, lesson, stand_ins):
    for name in NEEDS.get(key[1], ()):
        stand_ins[name]()
    for example in LESSONS[key]:
        lesson.do(example)
    assert lesson.printed
    if key == ("docs/tutorial.md", "lesson"):
        the_tutorial_is_true(lesson)


def the_tutorial_is_true(lesson: Lesson) -> None:
    """Hold what the tutorial tells against what its commands did. Its very figures may differ from machine to machine."""
    shown = "\n".join(" ".join(line.split()) for line in lesson.printed.splitlines())
    assert "[1/1] score folder badnet-rw strip" in shown  # after the option was changed
    assert "\nmb 1" in shown.split("words:")[1]  # what ONION dropped, with a score above 100
    assert shown.split("words:")[1].split("cell:")[0].count(" yes") == 1
    assert [json.loads(line)["verdict"] for line in shown.splitlines() if line.startswith('{"verdict"')] == ["accept", "reject"]
    assert re.search(r"\b0 broken", shown)  # of the claims that check-plugin asked
    records = {(one.defense, one.protocol, one.frr): one for one in results.read(lesson.folder / "try" / "results")}
    far = {defense: one.far for (defense, protocol, frr), one in records.items() if (protocol, frr) == ("paper", 0.05)}
    assert far["onion:lm=trigram"] < 0.3 < 0.7 < far["rap:recipe=steady,retries=0"]
    assert far["new-word"] == 0
    assert {round(one.cost.victim_rows_per_input) for (defense, *_), one in records.items() if defense == "strip:copies=32"} == {33}
    assert (lesson.folder / "try" / "report.html").stat().st_size < 1 << 20


def test_every_example_is_run_or_says_why_not():
    assert faults(ALL) == []


def faults(found: list[Example]) -> list[str]:
    """Say what is wrong with examples that are not run here."""
    wrong = []
    for example in found:
        where = f"{example.page}:{example.line}"
        if not example.how:
            wrong.append(f"{where} says neither `run` nor `run by` nor `not run`")
        elif example.how == "not run" and len(example.detail.split()) < 4:
            wrong.append(f"{where} gives no reason")
        elif example.how == "run by" and not (ROOT / example.detail).is_file():
            wrong.append(f"{where} names the test {example.detail}, which is not there")
        elif example.how == "run by" and Path(example.page).name not in (ROOT / example.detail).read_text():
            wrong.append(f"{where} is run by {example.detail}, which does not know the page")
    return wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```bash\nrapbench list\n```\n", "says neither"),
        ("<!-- not run: later -->\n```bash\nrapbench list\n```\n", "gives no reason"),
        ("<!-- run by: tests/test_nowhere.py -->\n```python\n1\n```\n", "which is not there"),
        ("<!-- run by: tests/test_rap.py -->\n```python\n1\n```\n", "does not know the page"),
        ("<!-- run: x -->\n\nSomething between.\n\n```python\n1\n```\n", "says neither"),
    ],
)
def test_an_example_that_is_not_run_and_says_nothing_is_noticed(text, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("shown.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    assert [wrong in one for one in faults(examples(tmp_path / "page.md"))] == [True]


def test_what_a_page_says_to_run_is_run():
    assert {(example.page, example.detail) for example in RUN} == LESSONS.keys()
    assert ("docs/tutorial.md", "lesson") in LESSONS


@pytest.mark.parametrize("example", [one for one in ALL if one.language == "python"], ids=lambda one: f"{Path(one.page).stem}-{one.line}")
def test_the_python_of_the_documents_is_python(example):
    ast.parse(example.text)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_command_line_of_the_documents_can_be_parsed(page):
    wrong = {line: fault for line in command_lines(page) if "..." not in line and (fault := misread(line))}
    assert wrong == {}


def misread(line: str) -> str:
    """Say what rapbench would say of the command, or give nothing; nothing is run."""
    words = _with_defaults(shlex.split(line.replace(" N ", " 1 ").replace(" G", " 1"))[1:])
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if words[0] not in command.commands:
            return f"there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    try:
        command.make_context("rapbench", list(words))
    except Exception as error:  # typer's own kinds of error, which move from version to version
        return str(error)
    return ""


def test_a_command_line_that_is_wrong_is_noticed():
    assert misread("rapbench run --grid demo") == ""
    assert "--gird" in misread("rapbench run --gird demo")
    assert "no command" in misread("rapbench rnu")
    assert misread("rapbench guard fit --victim x") != ""
