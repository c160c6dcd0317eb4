"""The cells of claims, to be computed here: with whose data, on which victim, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from rapbench.checks import CheckBlock, checks_of
from rapbench.claims.card import BLOCKS, Card, Command
from rapbench.errors import SpecError
from rapbench.grid import Block, Victims, cells_of, checked_block
from rapbench.hub import reachable
from rapbench.probe import ProbeBlock, probes_of
from rapbench.registry import Registry, split_spec, unknown
from rapbench.runner.plan import Asked

B = TypeVar("B", bound=Victims)
KINDS = ("datasets", "poisoned_on", "attacks", "defenses")


@dataclass(frozen=True)
class Wish:
    """What the user has: specs by the name of their plugin, whose options go over a card's own, and a victim; None: the cards'."""

    specs: Mapping[str, Mapping[str, Any]]
    victim: str | None = None

    @classmethod
    def of(cls, specs: Iterable[str], victim: str | None) -> Wish:
        """Read them from the command line; a SpecError where a name stands twice."""
        own: dict[str, Mapping[str, Any]] = {}
        for name, options in map(split_spec, specs):
            if name in own:
                raise SpecError(f"--with names {name!r} twice: write all its options in one, like {name}:path=FOLDER,max_test=100")
            own[name] = options
        return cls(own, victim)


@dataclass(frozen=True)
class Again:
    """What is computed again: blocks by command, and of the claims left out the reason, by id."""

    blocks: Mapping[Command, Sequence[Mapping[str, Any]]]
    left_out: Mapping[str, str]

    def asked(self, registry: Registry) -> list[Asked]:
        """Give every cell, probe and check of the blocks once."""
        made: list[Asked] = [*cells_of(self._of(Block, "run"), registry)]
        return [*made, *probes_of(self._of(ProbeBlock, "probe"), registry), *checks_of(self._of(CheckBlock, "theorem"), registry)]

    def grid(self, command: Command = "run") -> str:
        """Give the blocks of a command as the YAML of a grid file."""
        content = {"about": "Written by `rapbench claims --write-grid`.", "blocks": [dict(one) for one in self.blocks.get(command, ())]}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)

    def _of(self, cls: type[B], command: Command) -> list[B]:
        return [checked_block(one, "the claims", cls) for one in self.blocks.get(command, ())]


def again(cards: Sequence[Card], wish: Wish, *, offline: bool | None = None) -> Again:
    """Give what to compute for these cards. `offline`: whether what the user has not given cannot be fetched; None: look.

    A SpecError where a spec of the wish is of no plugin in the cards.
    """
    _check(cards, wish)
    alone = not reachable() if offline is None else offline
    blocks: dict[Command, list[Mapping[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for card in cards:
        reason = _impossible(card, wish) if alone or not card.command else None
        if reason:
            left_out[card.id] = reason
        elif card.command and (block := _block(card, wish)) not in blocks.get(card.command, ()):
            blocks.setdefault(card.command, []).append(block)
    return Again(blocks, left_out)


def _check(cards: Sequence[Card], wish: Wish) -> None:
    names = {name for card in cards for name in _names(card, *KINDS)}
    for own in wish.specs:
        if own not in names:
            raise SpecError(unknown("data set, attack or defense of these claims", own, names))


def _names(card: Card, *kinds: str) -> list[str]:
    return [split_spec(spec)[0] for kind in kinds for spec in card.grid.get(kind, ())]


def _impossible(card: Card, wish: Wish) -> str | None:
    """Say why a claim cannot be computed where nothing can be fetched, with the command that would, or None."""
    if card.cannot:
        return card.cannot
    if not card.command:
        return f"no grid of its own: it needs {card.needs}; then `rapbench claims RESULTS --id {card.id}`"
    given = {name for name, options in wish.specs.items() if "path" in options}
    missing = [name for name in dict.fromkeys(_names(card, "datasets", "poisoned_on")) if name not in given]
    lacking = [f"the data set {name}" for name in missing] + ([] if wish.victim else [f"the victim {card.block.victim}"])
    if not lacking:
        return None
    options = [f"--with {name}:path=FOLDER" for name in dict.fromkeys(_names(card, "datasets", "poisoned_on"))]
    command = " ".join(["rapbench claims --id", card.id, "--recompute", *options, "--victim", wish.victim or "MODEL"])
    return f"{' and '.join(lacking)}: not given, and the hub cannot be reached; with your own: `{command}`"


def _block(card: Card, wish: Wish) -> dict[str, Any]:
    """Give the card's grid with what the user has."""
    made = {key: [_merged(spec, wish) for spec in value] if key in KINDS else value for key, value in card.grid.items()}
    block = {**made, "victim": wish.victim or card.grid.get("victim", Victims.model_fields["victim"].default)}
    checked_block(block, f"the claim {card.id}", BLOCKS[card.command or "run"])
    return block


def _merged(spec: str, wish: Wish) -> str | dict[str, Any]:
    name, options = split_spec(spec)
    own = wish.specs.get(name)
    return spec if own is None else {"name": name, **options, **own}
