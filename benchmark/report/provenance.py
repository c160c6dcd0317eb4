"""Where results come from: the machines and versions behind them, the grid they make up, and the command for each row."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from rapbench.report.marks import Marks, marks
from rapbench.report.published.ours import options
from rapbench.results import Record

KEYS = {"dataset": "datasets", "attack": "attacks", "defense": "defenses", "frr": "frr", "seed": "seeds"}
"""Names that a block of a grid has several of, by their names in a record."""
KEPT = ("revision", "layers")
"""Options of a recipe that fine-tuning cannot change."""


def machines(records: Iterable[Record]) -> list[tuple[str, int]]:
    """Give what computed the cells, in words, and how many each; the most first."""
    return Counter(_machine(one) for one in records if one.status == "ok").most_common()


def commands(records: Sequence[Record], known: Marks | None = None) -> list[tuple[str, str]]:
    """Give for each data set, attack, defense, victim and seed the command that computes its cells anew."""
    known = known or marks()
    found: dict[str, tuple[str, list[float], Record]] = {}
    for one in records:
        home = f"{one.poisoned_on} -> " if one.poisoned_on else ""
        what = f"{home}{one.dataset}, {one.attack}, {known.shown(one.defense, one.defense)}, seed {one.seed}"
        found.setdefault(json.dumps([what, one.victim, one.tuning]), (what, [], one))[1].append(one.frr)
    return [(what, _shown(_command(one, sorted(set(frrs))))) for what, frrs, one in found.values()]


def grid(records: Sequence[Record]) -> str:
    """Give the YAML of a grid that comes to these cells."""
    blocks = [_block(names) for names in _merged(records)]
    shared = {key: value for key, value in blocks[0].items() if all(block.get(key) == value for block in blocks)}
    own = [{key: value for key, value in block.items() if key not in shared} for block in blocks]
    content = shared if len(blocks) == 1 else {**shared, "blocks": own}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)


def _machine(one: Record) -> str:
    made = {name: str(value) for name, value in one.made_by.items()}
    device = " ".join(
        [made.pop("device", one.cost.device if one.cost else "unknown device"), *([one.cost.device_name] if one.cost else [])]
    )
    threads = made.pop("threads", str(one.cost.threads) if one.cost else "")
    versions = ", ".join(f"{name} {value}" for name, value in sorted(made.items()))
    return "; ".join(
        text
        for text in (versions or "versions not recorded", device.strip(), f"{threads} thread{'s' * (threads != '1')}" if threads else "")
        if text
    )


def _command(one: Record, frrs: Sequence[float]) -> str:
    words = ["rapbench", "run", "--dataset", one.dataset, "--attack", one.attack, "--defense", one.defense]
    words += [word for frr in frrs for word in ("--frr", f"{frr:g}")]
    if one.poisoned_on:
        words += ["--poisoned-on", one.poisoned_on]
        words += ["--finetune", tuning] if (tuning := _tuning(one.victim, one.tuning or one.victim)) else []
    words += ["--victim", one.victim, "--seed", str(one.seed)]
    threads = one.made_by.get("threads") or (one.cost.threads if one.cost else 1)
    words += ["--threads", str(threads)] if threads != 1 else []
    return shlex.join([*words, "--out", "again"])


def _shown(command: str) -> str:
    return command if command.isprintable() else "its names hold signs that cannot be shown: take the grid"


def _tuning(victim: str, tuning: str) -> str:
    """Give what a fine-tuning's recipe says otherwise than the victim's, as `--finetune` takes it."""
    before, after = options(victim), options(tuning)
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    changed |= {name: _default(name) for name in before if name not in after}
    return ",".join(f"{name}={value}" for name, value in changed.items() if name not in KEPT)


def _default(name: str) -> str:
    from rapbench.victim import Recipe

    value = getattr(Recipe, name)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _merged(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Give few products of names that together are these cells: each name of KEYS with all its values."""
    alone = ("victim", "poisoned_on", "tuning")
    blocks = [{**{name: getattr(one, name) for name in alone}, **{name: (getattr(one, name),) for name in KEYS}} for one in records]
    for name in ("frr", "defense", "seed", "attack", "dataset"):
        merged: dict[tuple[Any, ...], dict[str, Any]] = {}
        for block in blocks:
            own = merged.setdefault(tuple(value for key, value in block.items() if key != name), {**block, name: ()})
            own[name] = tuple(sorted({*own[name], *block[name]}))
        blocks = list(merged.values())
    return blocks


def _block(names: dict[str, Any]) -> dict[str, Any]:
    """Give a block with the keys that a grid file has."""
    found: dict[str, Any] = {"victim": names["victim"], **{key: list(names[name]) for name, key in KEYS.items()}}
    if names["poisoned_on"]:
        found["poisoned_on"] = [names["poisoned_on"]]
        if tuning := _tuning(names["victim"], names["tuning"] or names["victim"]):
            found["finetune"] = tuning
    return found
