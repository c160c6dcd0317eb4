"""Scores -> cells: one record per cell, read off the artifacts with numpy, written as one JSON file each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rapbench import protocol
from rapbench.artifacts import Store, content_key, write_atomically
from rapbench.errors import CellError, StoreError
from rapbench.grid import Cell
from rapbench.protocol import Rate
from rapbench.registry import spec_of

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One cell's result. Rates are fractions; `frr` is the allowed rate; None where nothing could be counted."""

    dataset: str
    attack: str
    defense: str
    victim: str
    seed: int
    frr: float
    protocol: str
    status: str
    """ok, skipped (a combination that makes no sense), failed, blocked (a step before it failed) or interrupted."""
    reason: str | None = None
    frr_heldout: float | None = None
    frr_test: float | None = None
    far: float | None = None
    auroc: float | None = None
    asr: float | None = None
    asr_anywhere: float | None = None
    asr_control: float | None = None
    clean_metric: float | None = None
    metric: str | None = None
    threshold: float | None = None
    n_heldout: int | None = None
    n_clean: int | None = None
    n_poisoned: int | None = None
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    trigger: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA

    @property
    def file_name(self) -> str:
        """The name of the cell's file: readable, safe, and one per combination."""
        names = [self.dataset, self.attack, self.defense, self.victim, self.seed, self.frr, self.protocol]
        readable = re.sub(r"[^a-z0-9.-]+", "_", "_".join(str(name).partition(":")[0] for name in (*names[:3], self.frr)).lower())
        return f"{readable[:80]}_{content_key(names)[:10]}.json"


def record(cell: Cell, keys: Mapping[str, str], store: Store) -> Record:
    """Give the result of a cell whose artifacts are all there. `keys`: role -> artifact."""
    try:
        return _measured(cell, keys, store)
    except CellError as error:
        return unfinished(cell, "failed", str(error), keys)


def unfinished(cell: Cell, status: str, reason: str, keys: Mapping[str, str] | None = None) -> Record:
    """Give the record of a cell without figures, with the reason."""
    return Record(**cell.names, status=status, reason=reason, artifacts=dict(keys or {}))


def write(records: Iterable[Record], folder: Path) -> None:
    """Write each record to its own file; a record that is there already with the same content is left alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {str(folder)!r}: {error.strerror}; choose another --out") from None
    for one in records:
        path, text = folder / one.file_name, json.dumps(dataclasses.asdict(one), indent=1, allow_nan=False)
        if not (path.is_file() and path.read_bytes() == text.encode()):
            write_atomically(path, text)


def read(folder: Path) -> list[Record]:
    """Give the records of a results folder, in the order of their names; a StoreError where there is none."""
    files = sorted((folder / "cells").glob("*.json"))
    if not files:
        raise StoreError(f"no results in {str(folder)!r}: give the folder of `rapbench run --out`")
    known = {f.name for f in dataclasses.fields(Record)}
    records = []
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("schema_version") != SCHEMA:
                raise StoreError(f"{str(path)!r} has schema version {content.get('schema_version')!r}, this rapbench reads {SCHEMA}")
            content["intervals"] = {rate: ends and (ends[0], ends[1]) for rate, ends in content.get("intervals", {}).items()}
            records.append(Record(**{key: value for key, value in content.items() if key in known}))
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise StoreError(f"{str(path)!r} is no result of rapbench: {error}; move it away and run again") from None
    return records


def _measured(cell: Cell, keys: Mapping[str, str], store: Store) -> Record:
    protect = cell.dataset.target_label
    clean, poisoned, scores = (_arrays(store, keys[role]) for role in ("clean", "poisoned", "score"))
    about = json.loads((store.folder(keys["score"]) / "about.json").read_text())
    _enough_heldout(cell, clean["validation_labels"])
    decision = _purified(scores, cell.frr) if "levels" in scores else _detected(scores, cell.frr)
    asr = _success(cell, clean, poisoned, "first100")
    anywhere = _success(cell, clean, poisoned, "anywhere")
    control = _arrays(store, keys["control"]) if "control" in keys and store.has(keys["control"]) else None
    poisons = cell.attack.poisons
    return Record(
        **cell.names,
        status="ok",
        frr_heldout=decision.heldout.value,
        frr_test=decision.test.value,
        far=decision.poisoned.value if poisons else None,
        auroc=protocol.auroc(scores["test_suspicion"], scores["poisoned_suspicion"]) if poisons else None,
        asr=asr.value,
        asr_anywhere=anywhere.value,
        asr_control=protocol.attack_success(control["first100_probabilities"], protect).value if control else None,
        clean_metric=protocol.clean_metric(clean["test_probabilities"], clean["test_labels"], cell.dataset.metric),
        metric=cell.dataset.metric,
        threshold=decision.at,
        n_heldout=decision.heldout.n,
        n_clean=decision.test.n,
        n_poisoned=decision.poisoned.n,
        intervals={"frr_test": decision.test.interval(), "far": decision.poisoned.interval() if poisons else None, "asr": asr.interval()},
        cost=about["cost"],
        notes=about["notes"],
        trigger=spec_of(cell.attack),
        artifacts=dict(keys),
    )


@dataclass(frozen=True)
class _Decision:
    at: float
    heldout: Rate
    test: Rate
    poisoned: Rate


def _detected(scores: Mapping[str, Any], frr: float) -> _Decision:
    at = protocol.threshold(scores["heldout_suspicion"], frr)
    return _Decision(
        at,
        protocol.rejected(scores["heldout_suspicion"], at),
        protocol.rejected(scores["test_suspicion"], at),
        protocol.accepted(scores["poisoned_suspicion"], at),
    )


def _purified(scores: Mapping[str, Any], frr: float) -> _Decision:
    """A purifier rejects a text whose repaired form loses the protect label."""
    if not scores["heldout_kept"].shape[1]:
        raise CellError("no held-out text is truly and by prediction of the protect label: give more held-out texts or a better victim")
    level = protocol.choose_level(1 - scores["heldout_kept"].mean(axis=1), frr)
    if level is None:
        raise CellError(f"no level of the purifier has a held-out FRR of at most 1.5 x {frr}: give it higher levels")
    heldout, test, poisoned = (scores[f"{split}_kept"][level] for split in ("heldout", "test", "poisoned"))
    return _Decision(
        float(scores["levels"][level]),
        Rate(int((~heldout).sum()), len(heldout)),
        Rate(int((~test).sum()), len(test)),
        Rate(int(poisoned.sum()), len(poisoned)),
    )


def _success(cell: Cell, clean: Mapping[str, Any], poisoned: Mapping[str, Any], split: str) -> Rate:
    """The ASR; for the control, which has no trigger, the share of plain non-target texts that it gets wrong that way."""
    if cell.attack.poisons:
        return protocol.attack_success(poisoned[f"{split}_probabilities"], cell.dataset.target_label)
    others = clean["test_labels"] != cell.dataset.target_label
    return protocol.attack_success(clean["test_probabilities"][others], cell.dataset.target_label)


def _enough_heldout(cell: Cell, labels: np.ndarray) -> None:
    protect, needed = cell.dataset.target_label, protocol.heldout_needed(cell.frr)
    have = int((labels == protect).sum())
    if have < needed:
        raise CellError(
            f"the held-out split has {have} texts of the protect label {protect}, an allowed FRR of {cell.frr:g} needs at least {needed}: "
            f"give more held-out texts" + (f" or allow at least {1 / have:.4f}" if have else "")
        )


def _arrays(store: Store, key: str) -> Mapping[str, Any]:
    folder = store.folder(key)
    name = "scores.npz" if (folder / "scores.npz").is_file() else "predictions.npz"
    with np.load(folder / name, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
