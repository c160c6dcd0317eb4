"""The examples of the documents: which there are, what a comment above each says of its run, and what runs them as a reader would.

Above each fenced example stands one of

    <!-- run: NAME -->              run here; those of one name on a page in order, in one folder
    <!-- run by: tests/FILE.py -->  another test runs it
    <!-- not run: REASON -->
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from rapbench.grid import cells_of, checked_block
from rapbench.registry import discover

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LANGUAGES = ("bash", "python", "yaml", "diff", "toml", "console", "sh")
MARK = re.compile(r"<!-- (run|run by|not run): (.+) -->")


@dataclass(frozen=True)
class Example:
    """A fenced block. `how` and `detail`: what its comment says, empty where it has none."""

    page: str
    line: int
    language: str
    text: str
    how: str = ""
    detail: str = ""


def pages() -> list[Path]:
    """Give the pages that people write: not those that are made from the code."""
    made = DOCS / "reference"
    return [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if made not in page.parents)]


def prose() -> str:
    """Give all that people have written."""
    return "\n".join(page.read_text(encoding="utf-8") for page in pages())


def examples(page: Path) -> list[Example]:
    """Give the fenced examples of a page in these languages, in order."""
    found, before = [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        language = token.info.split(" ")[0]
        if token.type == "fence" and language in LANGUAGES:
            said = MARK.fullmatch(before.content.strip()) if before is not None and before.type == "html_block" else None
            name = str(page.relative_to(ROOT))
            found.append(Example(name, token.map[0] + 1, language, token.content, *(said.groups() if said else ())))
        before = token
    return found


def command_lines(page: Path) -> Iterator[str]:
    """Give the commands of rapbench in the code blocks of a page, indented ones too, without comments and redirections."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "code_block" or (token.type == "fence" and token.info in ("bash", "sh", "console")):
            for line in joined(token.content):
                for part in re.split(r"&&|\|\||(?<!\|)\|(?!\|)|;", re.sub(r"(^|\s)#.*", "", line)):
                    words = re.sub(r"[<>].*|&$", "", part.strip().removeprefix("$ ")).strip()
                    if words.startswith("rapbench "):
                        yield words


def joined(text: str) -> list[str]:
    """Give the commands of a block: lines that go on joined, a here-document with the command that reads it."""
    commands: list[str] = []
    end = ""
    for line in text.replace("\\\n", " ").splitlines():
        if end:
            commands[-1] += f"\n{line}"
            end = "" if line == end else end
            continue
        commands.append(line)
        if here := re.search(r"<<'?(\w+)'?", line):
            end = here[1]
    return commands


@dataclass
class Lesson:
    """A folder in which examples are run one after the other, as their reader does."""

    folder: Path
    rapbench: Callable[..., Any]
    monkeypatch: pytest.MonkeyPatch
    printed: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)

    def do(self, example: Example) -> None:
        """Run, write, change or check, by the example's language."""
        {"bash": self.shell, "python": self.python, "yaml": self.grid, "diff": self.edit}[example.language](example.text)

    def shell(self, text: str) -> None:
        for command in joined(text):
            if command.startswith("rapbench "):
                self.command(command)
            elif command.startswith("pip install -e "):
                self.install(self.folder / shlex.split(command)[3])
            elif command.strip():
                subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, cwd=self.folder)

    def command(self, line: str) -> None:
        """Run a command of rapbench in this process: it takes two seconds less than in one of its own."""
        words = shlex.split(line, comments=True)[1:]
        redirected = {sign: words.pop(words.index(sign) + 1) for sign in ("<", ">") if sign in words}
        if "<" in redirected:
            stream = io.TextIOWrapper(io.BytesIO((self.folder / redirected["<"]).read_bytes()))
            self.monkeypatch.setattr(sys, "stdin", stream)
        ended = self.rapbench(*(word for word in words if word not in redirected))
        assert ended.code == 0, f"{line}: {ended.err}"
        if ">" in redirected:
            (self.folder / redirected[">"]).write_text(ended.out)
        self.printed += ended.out + ended.err

    def python(self, text: str) -> None:
        """Write the file that the first line names, or run it."""
        head = re.match(r"# (\S+\.py)\n", text)
        if head:
            (self.folder / head[1]).write_text(text)
        else:
            exec(compile(text, "example", "exec"), self.names)

    def edit(self, text: str) -> None:
        """Change the lines of a file: `-` and ` ` must be there, `+` comes after them."""
        head, *changes = text.splitlines()
        path = self.folder / head.removeprefix("--- ")
        lines, place = path.read_text().splitlines(), -1
        for change in changes:
            if change[0] == "+":
                lines.insert(place + 1, change[1:])
                place += 1
                continue
            place = lines.index(change[1:])
            if change[0] == "-":
                del lines[place]
                place -= 1
        path.write_text("\n".join(lines) + "\n")

    def grid(self, text: str) -> None:
        """Check a grid: every name and option in it, and that it comes to some cells."""
        assert cells_of([checked_block(yaml.safe_load(text), "the example")], discover())

    def install(self, package: Path) -> None:
        """Do to the path what `pip install -e` does to an environment."""
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        info = package / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
        lines = [f"{name} = {value}" for name, value in project["entry-points"]["rapbench"].items()]
        (info / "entry_points.txt").write_text("\n".join(["[rapbench]", *lines, ""]))
        self.modules.extend(project["entry-points"]["rapbench"].values())
        self.monkeypatch.syspath_prepend(package / "src")
