"""A claim card: one published claim as data. Who says it, where, of which cells, the figures, and when ours bear them out."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rapbench.checks import CheckBlock
from rapbench.errors import RapbenchError, SpecError
from rapbench.grid import Block, Victims, checked_block
from rapbench.manifest import parsed
from rapbench.probe import ProbeBlock
from rapbench.protocol import PROTOCOLS
from rapbench.report.claims import CLAIMS

Command = Literal["run", "probe", "theorem"]
Held = Literal["within", "at most", "at least"]
Quantity = Literal[
    "far",
    "frr_test",
    "asr_anywhere",
    "clean_metric",
    "auroc",
    "victim rows",
    "lm rows",
    "best k",
    "clean fall",
    "poisoned fall",
    "probe asr",
    "inequality",
    "shape",
]
BLOCKS: Mapping[Command, type[Victims]] = {"run": Block, "probe": ProbeBlock, "theorem": CheckBlock}
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Who says it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: str
    """What `--paper` calls it."""
    title: str
    venue: str
    arxiv: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where it is printed."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    where: str
    """Table, figure or section."""
    row: str = ""
    column: str = ""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One figure of the claim, and when ours bears it out. Which cells: the card's grid, narrowed by what is given here."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    quantity: Quantity
    """A field of a cell's result by its name, or what is taken from several fields or results."""
    value: float
    """As printed, in `unit`; 1 for something that is true."""
    unit: Literal["%", "fraction", "rows", "truth"]
    shape: int | None = None
    """The number of a claim of `rapbench compare`."""
    frr: float | None = None
    """Allowed FRR, a fraction."""
    attack: str | None = None
    """Where the grid has several: its name."""
    source: Literal["dataset", "general", "random"] | None = None
    """Of a probe: where its words come from."""
    held: Held = "within"
    """Ours is within `tolerance` of the value, or at most, or at least it, give or take the tolerance."""
    tolerance: float = 0.0
    """In `unit`. Ours: papers print none."""
    doubt: str | None = None
    """Why the printed figure cannot be right: it is shown, and decides nothing."""

    @property
    def name(self) -> str:
        """The quantity and what narrows it: `far at 1 %`."""
        level = None if self.frr is None else f"at {100 * self.frr:g} %"
        return " ".join(part for part in (self.quantity, self.attack, self.source, level) if part)

    def bears_out(self, ours: float) -> bool:
        """Say whether a figure of ours, in `unit`, holds the claim."""
        low, high = self.band
        return low <= ours <= high

    @property
    def band(self) -> tuple[float, float]:
        """Give the lowest and the highest figure of ours that holds the claim, either maybe infinite."""
        low = -math.inf if self.held == "at most" else self.value - self.tolerance - 1e-9
        high = math.inf if self.held == "at least" else self.value + self.tolerance + 1e-9
        return low, high


@dataclass(frozen=True, kw_only=True)
class Card:
    """One published claim."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    id: str
    paper: Paper
    source: Source
    statement: str
    """The claim in one sentence of ours."""
    command: Command | None = None
    """The command that computes its grid; None: no single grid does."""
    grid: Mapping[str, Any] = field(default_factory=dict)
    """A block of that command's grid files: the cells."""
    protocol: str = "paper"
    figures: tuple[Reported, ...]
    needs: str = ""
    """What recomputing takes: data, model, time."""
    cannot: str | None = None
    """Why it cannot be recomputed."""
    note: str | None = None
    """What to know about what is printed."""

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ValueError(fault)

    @cached_property
    def block(self) -> Victims:
        """The grid, checked."""
        return checked_block(self.grid, f"the grid of {self.id}", BLOCKS[self.command or "run"])

    def _fault(self) -> str | None:
        """Say what fields contradict each other, or None."""
        if not self.figures:
            return "figures: there is none, and a claim is about at least one"
        if self.protocol not in PROTOCOLS:
            return f"protocol: {self.protocol!r} is none (there are: {', '.join(PROTOCOLS)})"
        if bool(self.command) != bool(self.grid):
            return "command and grid go together: give both, or neither"
        if not self.cannot and not self.needs:
            return "needs: say what recomputing takes, or in cannot why it is impossible"
        if any((one.quantity == "shape") != (one.shape in CLAIMS) for one in self.figures):
            return f"figures: the shape of a shape, and of nothing else, is one of {min(CLAIMS)} to {max(CLAIMS)}"
        for one in self.figures:
            if self.command and (fault := self._outside(one)):
                return f"figures: {one.name}: {fault}"
        return None

    def _outside(self, one: Reported) -> str | None:
        """Say why a figure is about no cell of the grid, or None."""
        block = self.block
        attacks = [spec.partition(":")[0] for spec in block.attacks if isinstance(spec, str)]
        if len(attacks) != len(block.attacks) or len(block.datasets) != 1:
            return "the grid of a card has one data set and writes attacks as text"
        if one.attack not in attacks and (one.attack or len(attacks) > 1):
            return f"attack is one of {', '.join(attacks)}"
        if one.frr is not None and not (isinstance(block, Block) and one.frr in block.frr):
            return f"the grid has no allowed FRR {one.frr:g}"
        return None


@cache
def shipped() -> tuple[Card, ...]:
    """Give the cards that come with the package, by id."""
    return read(resources.files("rapbench.claims.cards"))


def read(folder: Traversable) -> tuple[Card, ...]:
    """Give the cards of a folder of JSON files, by id; a SpecError names the file that is none and says why."""
    return tuple(_card(file) for file in sorted(folder.iterdir(), key=lambda file: file.name) if file.name.endswith(".json"))


def chosen(cards: Sequence[Card], papers: Sequence[str] = (), ids: Sequence[str] = ()) -> list[Card]:
    """Give the cards whose paper (name or arXiv id) and whose id match one of the patterns (`rap-imdb-*`); no pattern: all."""
    named = [one for one in cards if _matches((one.paper.name, one.paper.arxiv), papers)]
    found = [one for one in named if _matches((one.id,), ids)]
    if not found:
        names = sorted({one.paper.name for one in cards})
        raise SpecError(
            f"no claim matches {', '.join(map(repr, [*papers, *ids]))}: `rapbench claims` lists all, of the papers {', '.join(names)}"
        )
    return found


def plain(card: Card) -> dict[str, Any]:
    """Give the card as its JSON file has it: without what is at its default."""
    return {name: value for name, value in _told(card).items() if value not in ({}, "", None)}


def text(card: Card, **more: Any) -> str:
    """Give the card as the text of a JSON file, with `more` behind its own keys."""
    return json.dumps({**plain(card), **more}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _told(one: Any) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(one)}
    return {name: _plain(getattr(one, name)) for name, f in fields.items() if getattr(one, name) != f.default}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _told(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name.lower(), own.lower()) for own in patterns for name in names)


def _card(file: Traversable) -> Card:
    try:
        card = _adapter().validate_python(parsed(file.read_bytes(), file.name, finite=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _no_card(file, f"{place}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from None
    except RapbenchError as error:
        raise _no_card(file, str(error)) from None
    except OSError as error:
        raise _no_card(file, error.strerror or str(error)) from None
    if file.name != f"{card.id}.json":
        raise _no_card(file, f"id: {card.id!r} is not the file's name")
    return card


def _no_card(file: Traversable, reason: str) -> SpecError:
    return SpecError(f"{file.name!r} is no claim card: {reason}")


@cache
def _adapter() -> TypeAdapter[Card]:
    return TypeAdapter(Card)
