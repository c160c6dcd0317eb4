"""Floors and ceilings: defenses that others are measured by, marked as such wherever a defense is named, and put behind the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rapbench.errors import RapbenchError
from rapbench.registry import discover
from rapbench.report.published.ours import bare

LAST = ("", "floor", "ceiling")
CONTENDER, UNKNOWN = "contender", "unknown"


@dataclass(frozen=True)
class Marks:
    """What the installed plugins say of themselves. `known`: a defense's name -> `floor`, `ceiling` or empty.

    A results folder knows names alone: of a defense that is not installed here it is unknown, and its rows have no mark.
    """

    known: Mapping[str, str]

    def of(self, spec: str) -> str:
        """Give `floor`, `ceiling`, or empty for a contender and for what is not known."""
        return self.known.get(bare(spec), "")

    def word(self, spec: str) -> str:
        """Give `contender`, `floor`, `ceiling` or `unknown`: a column of data says it of every row."""
        return (self.of(spec) or CONTENDER) if bare(spec) in self.known else UNKNOWN

    def shown(self, name: str, spec: str) -> str:
        """Give a name with the mark of its spec behind it."""
        return f"{name} ({mark})" if (mark := self.of(spec)) else name

    def place(self, spec: str) -> int:
        """Give what defenses are ordered by, before their names: contenders, floors, ceilings."""
        return LAST.index(self.of(spec))

    def foot(self, specs: Iterable[str]) -> str:
        """Give what a table's foot says of the marks in it, with a blank in front; empty where there is nothing to say."""
        listed = {bare(spec) for spec in specs}
        marked = " (floor): knows nothing of triggers; (ceiling): is told the trigger's words; neither is a contender."
        strange = sorted(listed - set(self.known))
        unknown = f" Not installed here, so it is not known whether they are floors or ceilings: {', '.join(strange)}." if strange else ""
        return (marked if any(self.of(spec) for spec in listed) else "") + unknown


def marks() -> Marks:
    """Give the marks of the defenses that are installed; none where the plugins contradict each other."""
    try:
        return Marks({name: found.reference for (kind, name), found in discover().found.items() if kind == "defense"})
    except RapbenchError:
        return Marks({})
