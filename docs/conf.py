"""How Sphinx builds the documentation: `tox -e docs`, or `sphinx-build -W docs build/docs`. Every warning is an error there."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402
import pictures  # noqa: E402

generate.main(HERE / "reference")
pictures.main(HERE / "pictures")

project = "rapbench"
release = version = installed("rapbench")
copyright = "the rapbench authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["build", "*.py"]
default_role = "code"
highlight_language = "text"
smartquotes = False  # an option begins with two hyphens
myst_heading_anchors = 3
nitpicky = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"  # its styles and scripts are its own files: nothing is fetched from anywhere
html_title = f"rapbench {version}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Let docstrings be the plain sentences that they are: they are written for `help()`, not for Sphinx."""
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: lines.__setitem__(slice(None), as_rst(lines)))


def as_rst(lines: list[str]) -> list[str]:
    """Give a plain docstring as reStructuredText: an indented block is code, a sign outside of backticks is that sign."""
    made: list[str] = []
    code = False
    for line in lines:
        inset = line.startswith("    ")
        if inset and not code and made and not made[-1].strip():
            made += ["::", ""]
        code = inset or (code and not line.strip())
        made.append(line if code else _escaped(line))
    return made


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(rf"\ `{part}`\ " if part.startswith("`") else re.sub(r"([*|\\`]|_\b)", r"\\\1", part) for part in parts)
