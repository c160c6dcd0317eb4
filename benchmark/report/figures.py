"""Figures: panels that are drawn one by one into a page, or together on a sheet into a file.

Colours are few and named: in a file they are those for paper, in a page each is a CSS variable with a value for the dark, too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

from rapbench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
INK, FAINT, LINE = "#1c2330", "#566070", "#d3d9e2"
SERIES = ("#1b62c4", "#b4540a", "#177a48", "#8438bd", "#bf2c44", "#0a7784", "#7a5a2e", "#56606f")
SHADE = 0.3
"""How opaque an area is."""
NAMED = {INK: "--ink", FAINT: "--faint", LINE: "--line", **{colour: f"--s{number}" for number, colour in enumerate(SERIES)}}
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
WIDTH, HEIGHT = 3.2, 2.35
"""Inches of a panel."""
COLUMNS = 4
"""Panels side by side on a sheet, at most."""
STYLE: dict[str, Any] = {
    "svg.hashsalt": "rapbench",
    "font.size": 9,
    "text.parse_math": False,  # a name is no formula
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `words`: what it shows, for who cannot see it."""

    title: str
    words: str
    paint: Callable[[Axes], None]


@dataclass(frozen=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Key:
    """An entry of a legend: what the colour and marker of this number stand for."""

    label: str
    number: int
    area: bool = False
    """Whether it is an area, not a line with marks."""


@dataclass(frozen=True)
class Picture:
    """A figure: rows of panels with one legend. `inches`: of a panel; None: as much as fits its labels."""

    name: str
    rows: Sequence[Row]
    keys: Sequence[Key] = ()
    inches: tuple[float, float] = (WIDTH, HEIGHT)
    snug: bool = False
    """Whether the room around the axes is fitted to the labels, not the same in all panels."""

    @property
    def panels(self) -> list[Panel]:
        """All panels in order."""
        return [panel for row in self.rows for panel in row.panels]


def line(number: int) -> dict[str, Any]:
    """Give how the line of this number is drawn: no two of the first 56 alike."""
    dash = DASHES[number // len(SERIES) % len(DASHES)]
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)], "ls": dash, "ms": 4.0, "lw": 1.4, "mew": 0}


def plain_ticks(side: Axis, steps: Sequence[int]) -> None:
    """Mark a logarithmic axis at these steps of each decade, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    side.set_major_locator(LogLocator(subs=steps))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(NullLocator())


def sheet(picture: Picture, file: Path) -> None:
    """Draw all panels of a figure on one sheet, with the legend above, into a .svg, .png or .pdf file."""
    lines = [
        [(_joined(row.title, panel.title), panel) for panel in row.panels[start : start + COLUMNS]]
        for row in picture.rows
        for start in range(0, len(row.panels), COLUMNS)
    ]
    columns = max(len(own) for own in lines)
    width, height = picture.inches
    with drawing(file, (width * columns, (height + 0.35) * len(lines) + 0.35)) as figure:
        axes = figure.subplots(len(lines), columns, squeeze=False)
        for row, own in zip(axes, lines, strict=True):
            for axis in row[len(own) :]:
                axis.set_axis_off()
            for axis, (title, panel) in zip(row, own, strict=False):
                panel.paint(axis)
                axis.set_title(title, fontsize=9)
        if picture.keys:
            handles, labels = [_handle(key) for key in picture.keys], [key.label for key in picture.keys]
            figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)


def _joined(row: str, panel: str) -> str:
    return f"{row}, {panel}" if row else panel


def _handle(key: Key) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if key.area:
        return Patch(fc=(SERIES[key.number], SHADE), ec=SERIES[key.number])
    return Line2D([], [], **line(key.number))


@contextmanager
def drawing(file: Path | IO[bytes], inches: tuple[float, float], *, snug: bool = True) -> Iterator[Figure]:
    """Give a figure of this size to draw on, and write it into the file; the same bytes from the same lines in a .svg.

    A stream gets SVG for a page: text stays text, the background is the page's.
    """
    if isinstance(file, Path) and file.suffix not in SUFFIXES:
        raise SpecError(f"cannot draw into {str(file)!r}: give a file that ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib
    except ImportError:
        raise SpecError("figures need matplotlib: pip install 'rapbench[report]'") from None
    from matplotlib.figure import Figure

    form = file.suffix[1:] if isinstance(file, Path) else "page"
    settings: Any = {**STYLE, "svg.fonttype": "none" if form == "page" else "path"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name may be in any script
        figure = Figure(figsize=inches, layout="constrained" if snug else None)
        yield figure
        kind = "svg" if form == "page" else form
        try:
            figure.savefig(file, format=kind, dpi=150, transparent=form == "page", metadata={"Date": None} if kind == "svg" else None)
        except OSError as error:
            raise StoreError(f"cannot write {str(file)!r}: {error.strerror or error}; choose another --figure") from None


@dataclass
class Inline:
    """Draws panels into one page: ids are unique there, and each style is written once, as a class."""

    classes: dict[str, str] = field(default_factory=dict)
    drawn: int = 0

    def svg(self, picture: Picture, row: Row, panel: Panel) -> str:
        """Give a panel as SVG elements for the middle of a page, with its words as its description."""
        stream = io.BytesIO()
        with drawing(stream, picture.inches, snug=picture.snug) as figure:
            if not picture.snug:
                width, height = picture.inches
                figure.subplots_adjust(left=0.52 / width, right=1 - 0.12 / width, bottom=0.46 / height, top=1 - 0.1 / height)
            panel.paint(figure.subplots())
        root = ElementTree.fromstring(stream.getvalue())
        self.drawn += 1
        name = f"f{self.drawn}"
        _slim(root)
        for element in root.iter():
            self._restyle(element, name)
        root.attrib = {
            "viewBox": root.attrib["viewBox"],
            "role": "img",
            "aria-label": _joined(row.title, panel.title),
            "aria-describedby": f"{name}d",
        }
        words = ElementTree.Element("desc", {"id": f"{name}d"})
        words.text = panel.words
        root.insert(0, words)
        return ElementTree.tostring(root, "unicode")

    def css(self) -> str:
        """Give the rules of the classes that the panels use."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self.classes.items())

    def _restyle(self, element: ElementTree.Element, name: str) -> None:
        element.tag = element.tag.removeprefix(SVG)  # in HTML an svg element needs no namespace
        if "id" in element.attrib:
            element.set("id", f"{name}{element.attrib['id']}")
        if link := element.attrib.pop(LINK, None):
            element.set("href", f"#{name}{link[1:]}")
        if clip := element.attrib.get("clip-path"):
            element.set("clip-path", clip.replace("#", f"#{name}"))
        if style := element.attrib.pop("style", None):
            element.set("class", self.classes.setdefault(_themed(style), f"g{len(self.classes)}"))


def _slim(element: ElementTree.Element) -> None:
    """Leave out what is not to be seen: metadata, invisible paths, empty groups, names of groups; round to a tenth of a point."""
    for child in list(element):
        _slim(child)
        invisible = child.tag == f"{SVG}path" and child.attrib.get("style") == "fill: none"
        if child.tag in (f"{SVG}metadata", f"{SVG}style") or invisible or (child.tag in (f"{SVG}g", f"{SVG}defs") and not len(child)):
            element.remove(child)
    element.tail = None
    if element.tag == f"{SVG}g":
        element.attrib.pop("id", None)
    if element.tag != f"{SVG}text":
        element.text = None
    for name in {"d", "x", "y", "transform", "width", "height"} & element.attrib.keys():
        element.set(name, " ".join(re.sub(r"-?\d+\.\d+", _rounded, element.attrib[name]).split()))
    if element.attrib.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
        del element.attrib["transform"]


def _rounded(found: re.Match[str]) -> str:
    text = f"{float(found[0]):.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _themed(style: str) -> str:
    """Give a style whose named colours are the page's, and whose font is."""
    parts = [part.strip() for part in style.split(";") if part.strip() and not part.strip().startswith("font-family")]
    text = ";".join(part.replace(": ", ":") for part in parts)
    return re.sub("|".join(NAMED), lambda found: f"var({NAMED[found[0]]})", text)


def swatches(keys: Sequence[Key]) -> list[Mapping[str, str]]:
    """Give each entry of a legend as what a page's little picture of it needs: label, colour, dash and marker; of an area no marker."""
    return [
        {
            "label": key.label,
            "colour": f"var(--s{key.number % len(SERIES)})",
            "dash": ("none", "5 2", "1.5 2", "5 2 1.5 2")[key.number // len(SERIES) % len(DASHES)],
            "marker": "" if key.area else MARKER_PATHS[MARKERS[key.number % len(MARKERS)]],
        }
        for key in keys
    ]


MARKER_PATHS = {
    "o": "M14 2a4 4 0 1 0 .01 0z",
    "s": "M10.5 2.5h7v7h-7z",
    "D": "M14 1l5 5-5 5-5-5z",
    "^": "M14 1.5l4.5 8h-9z",
    "v": "M14 10.5l4.5-8h-9z",
    "P": "M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M10.5 3.5l1-1 2.5 2.5 2.5-2.5 1 1-2.5 2.5 2.5 2.5-1 1-2.5-2.5-2.5 2.5-1-1 2.5-2.5z",
}
