"""Write docs/reference/ from the code: commands, plugins, grid keys, results, Python. Run by conf.py at each build."""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

MODULES = {
    "rapbench": "What a plugin imports.",
    "rapbench.api": "The contract with plugins.",
    "rapbench.hookspecs": "The hooks of the entry-point group `rapbench`.",
    "rapbench.errors": "What a user can mend.",
    "rapbench.lab": "What a plugin is given to work with.",
    "rapbench.victim": "A model with its tokenizer, and how it was trained.",
    "rapbench.poison": "Where a trigger goes in a text.",
    "rapbench.rows": "One trainable row of an embedding matrix.",
    "rapbench.vocabulary": "Which tokens are a word.",
    "rapbench.heads": "What a classification head reads.",
    "rapbench.linear": "Linear layers of a CPU.",
    "rapbench.standin": "A victim in the received one's place.",
    "rapbench.data": "What texts and labels must be.",
    "rapbench.checkpoint": "What a folder with a model must be.",
    "rapbench.hub": "Whether there is a hub.",
    "rapbench.protocol": "The gate and the thresholds.",
    "rapbench.rates": "Counts and their intervals.",
    "rapbench.cost": "What a defense costs.",
    "rapbench.meter": "What models compute, counted.",
    "rapbench.results": "What a results folder holds.",
    "rapbench.interop": "Results as tables of pandas and of Hugging Face `datasets`.",
    "rapbench.guard": "A defense in use.",
    "rapbench.guards": "Guards of all labels.",
    "rapbench.guarded": "A guard around a pipeline of `transformers`.",
    "rapbench.judge": "One text, one verdict.",
    "rapbench.heldout": "Held-out texts from a file.",
    "rapbench.explain": "Why a cell's defense said so.",
    "rapbench.export": "A victim in a folder of its own.",
    "rapbench.testing": "The contract kit.",
    "rapbench.testing.kit": "What the kit's claims are asked with.",
}
"""The public modules, in the order of the page, with what each is for."""


def main(folder: Path) -> None:
    """Write every page of the reference into this folder; a page that has not changed is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"index": index, "commands": commands, "plugins": plugins, "grids": grids, "results": results, "python": python}
    for name, page in pages.items():
        path, text = folder / f"{name}.md", page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def index() -> str:
    """Give the page that lists the others."""
    pages = ["commands", "plugins", "grids", "results", "python"]
    return _page("Reference", "Made from the code of this version at each build.", ["```{toctree}\n" + "\n".join(pages) + "\n```"])


def commands() -> str:
    """Give every command with its arguments and options, as typer's own `utils docs` writes them."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "rapbench.cli", "utils", "docs", "--name", "rapbench"], capture_output=True, text=True, check=True
    ).stdout
    body = made.partition("**Usage**")[2].replace("$ rapbench", "rapbench")
    body = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", body)  # sentences that are cut off; the headings say them whole
    intro = "`rapbench --help` and `rapbench COMMAND --help` print the same. A bare `--grid` means `demo`, `probe` or `theorem`."
    return _page("Commands", intro, ["**Usage**" + _plain(html.unescape(body), keep="*[]")])


def plugins() -> str:
    """Give every plugin that comes with rapbench, with its options."""
    found = [one for one in _told("list")["plugins"] if one["package"].startswith("rapbench ")]
    sections = []
    for one in found:
        options = [(f"`{own['name']}`", f"`{own['type']}`", f"`{_short(own['default'])}`", _plain(own["text"])) for own in one["options"]]
        source = [_plain(one["source"])] if one["kind"] != "dataset" else []
        about = "\n\n".join([_plain(one["doc"]), *source])
        sections.append(f"## `{one['name']}` ({one['kind']})\n\n{about}\n\n{_table(('option', 'type', 'default', 'what'), options)}")
    intro = "`rapbench info NAME` prints the same, of other people's plugins too. A spec is `name:option=value,option=value`."
    return _page("Plugins", intro, sections)


def grids() -> str:
    """Give the keys of the grid files of each command, the axes, the victim's options and the grids that are shipped."""
    from rapbench.axes import Axes
    from rapbench.victim import Recipe

    sections = [
        f"## Keys of `rapbench {command}`\n\n{_table(('key', 'type', 'default', 'what'), _keys(model))}"
        for command, model in models().items()
    ]
    sections.append(f"## Axes of a grid\n\nWhat `axes` may hold.\n\n{_table(('axis', 'type', 'default', 'what'), _keys(Axes))}")
    sections.append(f"## Options of a victim\n\n`MODEL:option=value`, `model` being what stands before the colon.\n\n{_fields(Recipe)}")
    for file in sorted(resources.files("rapbench.grids").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            text = file.read_text(encoding="utf-8").rstrip()
            sections.append(f"## The grid `{file.name.removesuffix('.yaml')}`\n\n```yaml\n{text}\n```")
    intro = "Beside the keys below: `about` (a comment) and `blocks` (a list of mappings with these keys, added to the shared ones)."
    return _page("Grids", intro, sections)


def results() -> str:
    """Give the fields of all that a results folder holds."""
    sections = []
    for cls in result_classes():
        where = f"Files in `DIR/{cls.FOLDER}`. " if getattr(cls, "FOLDER", None) else ""
        about = "\n\n".join(inspect.getdoc(base) or "" for base in cls.__mro__ if base.__module__.startswith("rapbench"))
        sections.append(f"## `{cls.__name__}`\n\n{where}{_plain(about)}\n\n{_fields(cls)}")
    intro = "One JSON file per cell, curve, histogram, set of example texts, probe and check. "
    intro += "What they mean: [the guide](../guide.md#what-the-figures-are)."
    return _page("Fields of the results", intro, sections)


def python() -> str:
    """Give the page on which Sphinx puts the docstrings of the public modules."""
    sections = [
        f"## `{name}`\n\n{text}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{_members(name)}\n```" for name, text in MODULES.items()
    ]
    intro = "Versions follow [SemVer](https://semver.org) on `rapbench.api` and `rapbench.hookspecs`; the rest may change between them."
    return _page("Python", intro, sections)


def models() -> dict[str, Any]:
    """Give the pydantic model of a grid's block by the command that reads it."""
    from rapbench.checks import CheckBlock
    from rapbench.grid import Block
    from rapbench.probe import ProbeBlock

    return {"run": Block, "probe": ProbeBlock, "theorem": CheckBlock}


def result_classes() -> list[Any]:
    """Give the dataclasses of a results folder's files, each followed by those within it that were not there yet."""
    from rapbench import checks, probe
    from rapbench import results as kept

    found: list[Any] = []
    waiting: list[Any] = [kept.Record, kept.Curve, kept.Histogram, kept.Examples, probe.ProbeRecord, checks.CheckRecord]
    while waiting:
        cls = waiting.pop(0)
        if cls not in found:
            found.append(cls)
            waiting = [*_within(cls), *waiting]
    return found


def _within(annotated: Any) -> list[Any]:
    """Give the dataclasses that the fields of one are made of."""
    parts: list[Any] = list(get_type_hints(annotated).values())
    found: list[Any] = []
    while parts:
        part = parts.pop(0)
        parts += get_args(part)
        if dataclasses.is_dataclass(part):
            found.append(part)
    return found


def sentences(cls: type) -> dict[str, str]:
    """Give the sentence under each field of a class and its bases: the string that follows it in the source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("rapbench"):
            found |= dict(_strings(base))
    return found


def _strings(cls: type) -> Iterator[tuple[str, str]]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for one, after in pairwise(body.body):
        match one, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def _told(*arguments: str) -> Any:
    """Give what a command prints as JSON."""
    from typer.testing import CliRunner

    from rapbench.cli import app

    return json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)


def _keys(model: Any) -> Iterator[tuple[str, ...]]:
    said = sentences(model)
    for name, key in model.model_fields.items():
        default = "required" if key.is_required() else f"`{key.get_default(call_default_factory=True)}`"
        yield f"`{name}`", f"`{_type(key.annotation)}`", default, _plain(said.get(name, ""))


def _fields(cls: Any) -> str:
    said = sentences(cls)
    rows = [(f"`{f.name}`", f"`{_type(f.type)}`", _plain(said.get(f.name, ""))) for f in dataclasses.fields(cls)]
    return _table(("field", "type", "what"), rows)


def _members(name: str) -> str:
    """Give the option that says whose docstrings are wanted: a package's are those of what it gathers."""
    return "   :no-members:" if name == "rapbench" else "   :members:\n   :undoc-members:\n   :member-order: bysource"


def _page(title: str, intro: str, sections: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", intro, *sections]) + "\n"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *(tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str, keep: str = "") -> str:
    """Give a docstring as Markdown: outside of code, signs that mean something there are signs, but for those to keep."""
    parts = re.split(r"(`[^`\n]*`)", text)
    meant = "".join(sign for sign in "<*[]" if sign not in keep)
    return "".join(part if part.startswith("`") else re.sub(rf"([{re.escape(meant)}])", r"\\\1", part) for part in parts)


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text)  # what pydantic checks besides
    return re.sub(r"\b(typing|rapbench\.cost|rapbench\.lengths)\.", "", text)


if __name__ == "__main__":
    main(Path(__file__).parent / "reference")
