"""The documentation as it is built: whole, and loading nothing from anywhere. `tox -e docs`; it skips where Sphinx is not installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from shown import DOCS, pages
from test_docs import generate, public

pytest.importorskip("furo", reason="Sphinx, MyST and Furo are installed by `tox -e docs` alone")
pytest.importorskip("myst_parser", reason="Sphinx, MyST and Furo are installed by `tox -e docs` alone")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that tox has built, or one that is built now, every warning an error."""
    if built := os.environ.get("RAPBENCH_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", folder / "trees", DOCS, folder / "html"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "html"


class Fetched(HTMLParser):
    """Gathers what a browser gets without being asked, and pictures that nobody has put into words."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found += [own[name] for name in ("src", "srcset") if name in own]
        if tag == "link" and own.get("rel") not in ("canonical", "author", "index", "search", "next", "prev"):
            self.found.append(own.get("href", ""))
        if tag == "img" and len(own.get("alt", "").split()) < 3:
            self.silent.append(own.get("src", ""))


def outside(addresses: Iterator[str]) -> list[str]:
    return [one for one in addresses if re.match(r"([a-z]+:)?//", one.strip("'\" "))]


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site):
    built = [site / page.relative_to(DOCS).with_suffix(".html") for page in pages() if DOCS in page.parents]
    built += [site / "reference" / f"{name}.html" for name in ("commands", "plugins", "grids", "results", "python")]
    for page in [*built, site / "genindex.html", site / "search.html"]:
        seen = Fetched()
        seen.feed(page.read_text(encoding="utf-8"))
        assert seen.found, page
        assert outside(iter(seen.found)) == [], page
        assert seen.silent == [], page


def test_no_style_loads_anything_from_elsewhere(site):
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        text = style.read_text(encoding="utf-8")
        assert outside(found[1] for found in re.finditer(r"(?:url\(|@import )([^);]+)", text)) == [], style


def test_a_page_that_loads_from_elsewhere_is_noticed():
    seen = Fetched()
    seen.feed('<script src="//cdn.org/x.js"></script><link rel="stylesheet" href="https://f.org/x.css">')
    seen.feed('<a href="https://x.org">a link is no load</a><img src="a.svg">')
    assert outside(iter(seen.found)) == ["//cdn.org/x.js", "https://f.org/x.css"]
    assert seen.silent == ["a.svg"]


def test_every_public_name_has_a_place_in_the_index(site):
    from sphinx.util.inventory import InventoryFile

    known = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    listed = {name for kind, names in known.items() if kind.startswith("py:") for name in names}
    missing = []
    for module in generate.MODULES:
        for name, own in public(importlib.import_module(module)):
            made = own.fget if isinstance(own, property) else own
            home = f"{made.__module__}.{made.__qualname__}"  # where a package offers what one of its modules makes
            if name not in listed and home not in listed:
                missing.append(name)
    assert missing == []


def test_the_pictures_are_the_same_each_time(tmp_path):
    for folder in ("one", "two"):
        code = f"import sys; sys.path.insert(0, {str(DOCS)!r}); import pictures; pictures.main(pictures.Path({str(tmp_path / folder)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    drawn = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert drawn == ["gate.svg", "quantile.svg", "rates.svg", "spread.svg"]
    assert [name for name in drawn if (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()] == []
    shown = "".join(page.read_text(encoding="utf-8") for page in pages())
    assert [name for name in drawn if f"](pictures/{name})" not in shown] == []
