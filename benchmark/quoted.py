"""The few texts of each scoring that a report quotes, with what the fitted defense says of them: picked, bounded, kept beside the scores.

Explaining is a courtesy: it changes no figure, and a defense that cannot explain itself fails no step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapbench.api import Purifier, Repair
from rapbench.errors import PluginError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rapbench.api import Detector
    from rapbench.victim import Victim

FILE = "examples.json"
POPULATIONS = ("test", "poisoned")
"""Whose texts are quoted: clean and triggered ones that pass the gate."""
EACH = 4
LETTERS = 600
"""Of a text: about as many as the hundred words among which a trigger lies."""
ROWS, NAMES, STRING, DEPTH, WHOLE = 128, 32, 160, 5, 64_000
"""Bounds on what a defense says of a text: rows of a list, names of a mapping, letters of a string, nesting, letters as JSON."""
DIGITS = 6
BY_LEVEL = "by level"
"""The one name in what stands for a value that changes with a purifier's level: [[first level's number, value], ...]."""


def quotes(
    fitted: Detector | Purifier | Repair, texts: Mapping[str, Sequence[str]], scores: Mapping[str, NDArray[Any]], victim: Victim
) -> list[dict[str, Any]]:
    """Give the quoted texts of both populations as plain JSON values: the most and the least suspicious ones and two in between.

    `row` is a text's place in the population `of`, `rank` its place by suspicion, `letters` its whole length.
    """
    found = []
    for name in POPULATIONS:
        order = np.argsort(-scores[f"{name}_suspicion"], kind="stable").tolist()
        for place in ranks(len(order)):
            text = texts[name][order[place]]
            probability = float(victim.undefended([text])[0, victim.target_label])
            where = {"of": name, "row": order[place], "rank": place + 1}
            found.append({**where, "text": beginning(text), "letters": len(text), "probability": probability, **_said(fitted, text)})
    return found


def ranks(n: int) -> list[int]:
    """Give the places of the quoted ones among n in order, from 0: both ends, and evenly between them."""
    return sorted({round(part * (n - 1) / (EACH - 1)) for part in range(EACH)}) if n else []


def beginning(text: str, most: int = LETTERS) -> str:
    """Give the first words of a text, no more than `most` letters."""
    return text if len(text) <= most else text[:most].rpartition(" ")[0] or text[:most]


def told(fitted: Detector | Purifier | Repair, text: str, level: float) -> Mapping[str, Any]:
    """Give what a fitted defense says of a text, of a purifier at this level; a PluginError where it is no mapping."""
    said = fitted.explain(text, level) if isinstance(fitted, Purifier) else fitted.explain(text)
    if not isinstance(said, Mapping):
        raise PluginError(f"explain() must give a mapping of plain JSON values, it gave {type(said).__name__}")
    return said


def write(folder: Path, label: str, kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the quotes of each protocol into an artifact; `label` is the protect label's name."""
    text = json.dumps({"label": label, "quotes": kept}, allow_nan=False, separators=(",", ":"))
    (folder / FILE).write_text(text, encoding="utf-8")


def read(folder: Path, protocol: str) -> tuple[str, list[dict[str, Any]]]:
    """Give the protect label's name and the quotes of a protocol; one without any of its own has those of `paper`."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kept = content["quotes"]
    return content["label"], kept.get(protocol, kept["paper"])


def at_level(said: Any, level: int | None) -> Any:
    """Give what was said at the level of this number; None: without what changes with the level."""
    if isinstance(said, list):
        return [at_level(own, level) for own in said if level is not None or not _varies(own)]
    if not isinstance(said, dict):
        return said
    if _varies(said):
        return {} if level is None else [own for first, own in said[BY_LEVEL] if first <= level][-1]
    return {name: at_level(own, level) for name, own in said.items() if level is not None or not _varies(own)}


def _varies(said: Any) -> bool:
    return isinstance(said, dict) and said.keys() == {BY_LEVEL}


def _said(fitted: Detector | Purifier | Repair, text: str) -> dict[str, Any]:
    """Give what the defense says of a text at all its levels, or why it says nothing."""
    try:
        levels = list(fitted.levels()) if isinstance(fitted, Purifier) else [math.inf]
        details = _merged([_plain(told(fitted, text, level)) for level in levels])
        if len(json.dumps(details)) > WHOLE:
            raise PluginError(f"explain() gave more than {WHOLE} letters")
    except (Exception, SystemExit) as error:  # see the module's docstring; a plugin may well call sys.exit
        return {"details": {}, "untold": f"{type(error).__name__}: {error}".splitlines()[0][:STRING]}
    return {"details": details, "untold": ""}


def _plain(value: Any, depth: int = DEPTH) -> Any:
    """Give a value as plain JSON within the bounds; a PluginError where it is none. Numbers are rounded: they are to be read."""
    match value:
        case None | bool():
            return value
        case int() if abs(value) < 2**53:
            return int(value)
        case float() if math.isfinite(value):
            return float(f"{value:.{DIGITS}g}")
        case str():
            return str(value[:STRING])
        case Mapping() if depth and BY_LEVEL not in value:
            return _plain_mapping(value, depth - 1)
        case list() | tuple() if depth:
            return [_plain(own, depth - 1) for own in value[:ROWS]]
    raise PluginError(f"explain() must give plain JSON values, finite and at most {DEPTH} deep, it gave {type(value).__name__}")


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    plain = {}
    for name, own in list(value.items())[:NAMES]:
        plain[str(name)[:STRING]] = _plain(own, depth)
        if isinstance(own, (list, tuple)) and len(own) > ROWS:
            plain[f"{name} left out"[:STRING]] = len(own) - ROWS
    return plain


def _merged(said: Sequence[Any]) -> Any:
    """Give one value for those of all levels, in which what differs stands by level: a text's words are kept once."""
    first = said[0]
    if all(own == first for own in said):
        return first
    if all(isinstance(own, dict) and isinstance(first, dict) and own.keys() == first.keys() for own in said):
        return {name: _merged([own[name] for own in said]) for name in first}
    if all(isinstance(own, list) and isinstance(first, list) and len(own) == len(first) for own in said):
        return [_merged(own) for own in zip(*said, strict=True)]
    return {BY_LEVEL: [[number, own] for number, own in enumerate(said) if not number or own != said[number - 1]]}
