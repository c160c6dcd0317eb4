"""A grid that runs in a minute, for plugins under work: made text, an untrained tiny model, the plugins beside built-in ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rapbench.api import Attack, Dataset, Defense
from rapbench.errors import StoreError
from rapbench.grid import resolved
from rapbench.lab import rng
from rapbench.registry import Plugin, spec_of

ATTACK = "badnet-rw:word=mb,poison_rate=0.5"
DEFENSES = ("strip:copies=8", "rap:retries=0,recipe=steady")
ABOUT = "A plugin at work, in a minute: made text and a model of 32 units. The figures say nothing about any method."
SEED = 1234


def write_grid(folder: Path, plugins: Sequence[Plugin]) -> Path:
    """Write a model, texts and `grid.yaml` into a new folder; give the grid. The model knows the words of the data and of the triggers."""
    from rapbench.testing import tiny

    datasets = [own for own in plugins if isinstance(own, Dataset)]
    attacks = [own for own in plugins if isinstance(own, Attack)]
    defenses = [own for own in plugins if isinstance(own, Defense)]
    splits = [own.load() for own in datasets or [tiny.Tiny()]]
    texts = [text for own in splits for text in own["train"]["text"]]
    triggered = _triggered(attacks, datasets or [tiny.Tiny()], texts)
    folder = _new(folder.resolve())  # now that the data and triggers are there: a second try would find the folder of the first
    tiny.save_model(folder / "model", [*texts, *triggered])
    if not datasets:
        _save_texts(folder / "data", splits[0])
    grid = {
        "about": ABOUT,
        "victim": {"name": str(folder / "model"), **tiny.RECIPE},
        "datasets": [spec_of(own) for own in datasets] if datasets else [{"name": "folder", "path": str(folder / "data")}],
        "attacks": list(dict.fromkeys([*map(spec_of, attacks), ATTACK])),
        "defenses": list(dict.fromkeys([*map(spec_of, defenses), *DEFENSES])),
        "frr": [0.05, 0.1],
        "seeds": [SEED],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False, width=100, allow_unicode=True), encoding="utf-8")
    return folder / "grid.yaml"


def _new(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {str(folder)!r}: {error.strerror}; name one that is not there yet") from None
    return folder


def _triggered(attacks: Sequence[Attack], datasets: Sequence[Dataset], texts: Sequence[str]) -> list[str]:
    """Give some texts with the triggers in them: their words must be words of the model."""
    drawn = rng(SEED, "new-grid")
    decided = [resolved(attack, dataset, SEED) for attack in attacks for dataset in datasets]
    return [way(text, drawn, None) for own in decided for way in (own.trigger, own.test_trigger) for text in texts[:100]]


def _save_texts(folder: Path, splits: Any) -> None:
    folder.mkdir()
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(zip(rows["text"], rows["label"], strict=True))
