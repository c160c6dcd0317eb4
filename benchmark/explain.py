"""Why a cell's defense accepts or rejects a text: the defense is fitted again from the cell's artifacts, and asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rapbench import measure, results, stages
from rapbench.api import Defense
from rapbench.artifacts import store_of
from rapbench.errors import StoreError
from rapbench.judge import Judge
from rapbench.meter import Meter
from rapbench.registry import Registry, discover, unknown
from rapbench.results import Examples, Record
from rapbench.standin import watching

SHOWN = 5
CHECKED = 4
"""Texts that a defense that was fitted again scores anew, to compare with what the run said."""
DRIFT = 0.01
"""Of the spread of suspicions: what rounding on another machine comes to, and little more."""
SPECS = ("dataset", "attack", "defense")
NAMES = ("dataset", "setting", "poisoned_on", "tuning", "attack", "victim", "seed", "defense", "frr", "protocol")


def choose(folder: Path, name: str | None, asked: Mapping[str, Any], *, any_defense: bool = False) -> Record:
    """Give the one finished cell that is meant: by the beginning of its file's name, and by what it consists of (None: any).

    A plugin may be named without its options. Of cells that differ by protocol and FRR alone it is the strict one with the lowest FRR
    at which anything is rejected. `any_defense`: its victim is what is asked for.
    """
    records = results.read(folder)
    found = _named(records, name) if name else records
    for key, value in asked.items():
        if value is not None:
            found = _narrowed(found, key, value)
    done = [record for record in found if record.status == "ok"]
    if not done:
        raise StoreError(f"the cell {found[0].file_name!r} is {found[0].status}: {found[0].reason}")
    alike = {record.file_stem("" if any_defense else record.defense): record for record in done}
    if len(alike) > 1:
        raise StoreError(
            f"{len(alike)} different cells are meant: {_listed(alike.values())}; name one, or say --dataset, --attack, --defense, --seed"
        )
    return min(done, key=lambda one: (one.protocol != "strict", one.threshold is None, one.frr))


def judge_of(record: Record, folder: Path, *, device: str = "cpu", registry: Registry | None = None) -> Judge:
    """Give the cell's victim and defense with the cell's threshold: fitted again on the same texts with the same seed.

    A StoreError where what comes out is not what the run had: other code, other libraries.
    """
    step = _step(record, folder, device, registry)
    with _threads(_made_by(step).get("threads", 1)):
        defense: Defense = step.plugin("defense")
        lab, had = stages._defenders(step, defense)
        victim = stages._load_victim(step, "victim")
        texts, (calibrates, _) = stages._gated(step, victim, lab, had)
        if record.protocol == "strict" and defense.learns_from_protect_texts():
            lab = replace(lab, heldout=lab.heldout.where(~calibrates), meter=Meter())
        fitted = watching(defense.fit(victim, lab.heldout, lab), defense)
        judge = Judge(victim, fitted, np.inf if record.threshold is None else record.threshold)
        _check_same(judge, texts["test"], _scores(step, record)["test_suspicion"], record)
    return judge


def examples(record: Record, folder: Path) -> Examples:
    """Give a few clean and poisoned test texts of a cell with the run's own verdicts and explanations; nothing is computed."""
    step = _step(record, folder, "cpu", None)
    names = {name: getattr(record, name) for name in NAMES}
    return measure.quoted_at(names, step.job.key, step.store)


def _named(records: Sequence[Record], name: str) -> list[Record]:
    """Give the cells whose file is called so, or begins so, or at least has it in its name."""
    wanted = Path(name).name.removesuffix(".json").lower()
    stems = {record.file_name.removesuffix(".json"): record for record in records}
    for fits in (str.__eq__, str.startswith, str.__contains__):
        if found := [record for stem, record in stems.items() if fits(stem, wanted)]:
            return found
    near = difflib.get_close_matches(wanted, stems, n=3, cutoff=0.3) or sorted(stems)[:3]
    raise StoreError(f"no cell is called {name!r}; near are {', '.join(near)}")


def _narrowed(records: Sequence[Record], key: str, value: Any) -> list[Record]:
    """Give the cells that have this value: a spec, a plugin's name, or the beginning of a spec."""
    found = [one for one in records if getattr(one, key) == value]
    if not found and key in SPECS:
        wanted = str(value).lower()
        found = [one for one in records if getattr(one, key).lower().partition(":")[0] == wanted]
        found = found or [one for one in records if getattr(one, key).lower().startswith(wanted)]
    if not found:
        raise StoreError(unknown(f"{key} of a cell in this folder", str(value), {str(getattr(one, key)) for one in records}))
    return found


def _listed(records: Any) -> str:
    names = sorted(record.file_name.removesuffix(".json") for record in records)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _step(record: Record, folder: Path, device: str, registry: Registry | None) -> stages.Step:
    """Give the step that scored the texts of a cell, as its manifest tells it."""
    store = store_of(folder).opened()
    try:
        key = record.artifacts["score"]
        made = store.provenance(key)
        job = stages.Job("score", key, dict(made["spec"]), dict(made["inputs"]), record.file_name)
        int(job.spec["seed"]), int(job.spec["target_label"])
    except (LookupError, TypeError, ValueError):
        raise StoreError(f"{str(folder)!r} does not say what the cell {record.file_name!r} was made from: run it again") from None
    for role, needed in job.inputs.items():
        if not store.has(needed):
            raise StoreError(f"the {role} of the cell {record.file_name!r} is not in {str(folder)!r} any more: run the same command again")
    return stages.Step(job, stages.Bench(store.root, device), store, store.folder(key), registry or discover())


def _made_by(step: stages.Step) -> Mapping[str, Any]:
    made = step.store.provenance(step.job.key).get("made_by")
    return made if isinstance(made, dict) else {}


@contextmanager
def _threads(count: object) -> Iterator[None]:
    """Compute with the threads of the run while the block runs: sums depend on them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count if isinstance(count, int) and 0 < count <= 1024 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scores(step: stages.Step, record: Record) -> dict[str, Any]:
    """Give the arrays that the run kept under this protocol, by their names without it."""
    with np.load(step.folder / "scores.npz", allow_pickle=False) as arrays:
        own = (name for name in arrays.files if name.startswith(f"{record.protocol}_"))
        return {name.removeprefix(f"{record.protocol}_"): arrays[name] for name in own}


def _check_same(judge: Judge, texts: Sequence[str], before: Any, record: Record) -> None:
    now = judge.scored(texts[:CHECKED])[0]
    off = float(np.abs(now - before[:CHECKED]).max(initial=0.0))
    if len(before) and off > DRIFT * float(np.ptp(before)):
        raise StoreError(
            f"{record.defense}, fitted again, scores texts otherwise than the run did (by up to {off:.3g}): "
            "its code or libraries are others; run the same command again"
        )
