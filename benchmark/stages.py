"""The steps data -> poison -> victim -> predict -> score (and prepare), each a function of plain values into a folder.

A step is named by a `Job`: its options, the keys of the artifacts it reads, and its own key. It reads nothing else, so
the same job gives the same files wherever it runs. FRR levels are no step: they are read off the scores (`results`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rapbench import data as data_rules
from rapbench.api import Attack, Dataset, Defense, Labelled, Purifier, Task
from rapbench.artifacts import Store
from rapbench.cost import Meter
from rapbench.errors import CellError, PluginError
from rapbench.lab import Lab, rng
from rapbench.poison import FIRST, poisoned_rows, triggered_rows
from rapbench.protocol import clean_gate, gate, predicted
from rapbench.registry import Registry, discover
from rapbench.victim import Recipe, Victim

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Job:
    """One step to do. `spec`: plain JSON options; `inputs`: role -> key of an artifact that is there before."""

    stage: str
    key: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    label: str


@dataclass(frozen=True)
class Bench:
    """Where and how steps run: the same for every step of a run."""

    store: Path
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Step:
    """A job under way: what a stage function gets."""

    job: Job
    bench: Bench
    store: Store
    folder: Path
    registry: Registry

    @property
    def seed(self) -> int:
        return int(self.job.spec["seed"])

    def plugin(self, kind: str) -> Any:
        return self.registry.parse(cast(Any, kind), self.job.spec[kind])

    def input(self, role: str) -> Path:
        return self.store.folder(self.job.inputs[role])

    def rows(self, role: str, split: str) -> datasets.Dataset:
        """Give a split of an input, memory-mapped."""
        from datasets import load_from_disk

        return load_from_disk(str(self.input(role) / split))

    def labelled(self, role: str, split: str) -> Labelled:
        rows = self.rows(role, split)
        return Labelled(list(rows["text"]), np.asarray(rows["label"], dtype=np.int64))

    def about(self, role: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.input(role) / "about.json").read_text()))

    def write_about(self, value: Mapping[str, Any]) -> None:
        (self.folder / "about.json").write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


def run(job: Job, bench: Bench) -> str:
    """Do one step in this process and give its key; the artifact is published, or nothing is."""
    _settle(bench)
    store = Store(bench.store)
    provenance = {"stage": job.stage, "spec": dict(job.spec), "inputs": dict(job.inputs), "made_by": _made_by(bench)}
    with store.attempt(job.key, provenance) as folder:
        STAGES[job.stage](Step(job, bench, store, folder, discover()))
    return job.key


def data(step: Step) -> None:
    """Load a data set, check every row, apply the caps, and keep it as Arrow."""
    dataset: Dataset = step.plugin("dataset")
    loaded = dataset.load()
    data_rules.check(loaded, dataset.name)
    splits = data_rules.capped(loaded, dataset)
    labels = splits["train"].features["label"].names
    counts = {}
    for name, rows in splits.items():
        _keep(rows, step.folder / name)
        counts[name] = np.bincount(np.asarray(rows["label"], dtype=np.int64), minlength=len(labels)).tolist()
    step.write_about({"labels": labels, "counts": counts})


def poison(step: Step) -> None:
    """Make the triggered copies of the training split and the two triggered test sets that everybody shares."""
    attack: Attack = step.plugin("attack")
    target, labels = int(step.job.spec["target_label"]), step.about("data")["labels"]
    if not 0 <= target < len(labels):
        raise CellError(f"target_label={target} is none of the labels 0..{len(labels) - 1} of the data set")
    train, test = step.rows("data", "train"), step.rows("data", "test")
    parts = {
        "train": poisoned_rows(train, attack, target, rng(step.seed, "poison/train")),
        "first100": triggered_rows(test, attack, target, rng(step.seed, "poison/first100"), FIRST),
        "anywhere": triggered_rows(test, attack, target, rng(step.seed, "poison/anywhere"), None),
    }
    for name, rows in parts.items():
        _keep(rows, step.folder / name)
    step.write_about({name: len(rows) for name, rows in parts.items()})


def victim(step: Step) -> None:
    """Train the attacker's victim."""
    attack: Attack = step.plugin("attack")
    lab = _lab(step)
    if "start" in step.job.inputs:
        lab.load_start = lambda: _load_victim(step, "start")
    task = Task(step.rows("data", "train"), step.rows("poison", "train"), lab.target_label)
    planted = attack.plant(task, lab)
    planted.save(step.folder)
    step.write_about({"log": lab.log})


def predict(step: Step) -> None:
    """Ask the undefended victim about whole splits: the gate of every defense, and the attack's success."""
    asked = _load_victim(step, "victim")
    arrays: dict[str, NDArray[Any]] = {}
    for split in step.job.spec["splits"]:
        texts = step.labelled("texts", split)
        arrays[f"{split}_probabilities"] = _finite(asked.probabilities(texts.texts))
        arrays[f"{split}_labels"] = texts.labels
    np.savez(step.folder / "predictions.npz", **arrays)  # type: ignore[arg-type]


def prepare(step: Step) -> None:
    """Let a defense make what depends on clean text alone (a language model, say)."""
    defense: Defense = step.plugin("defense")
    defense.prepare(step.rows("data", "train")["text"], step.folder, _lab(step))
    if not any(step.folder.iterdir()):
        raise PluginError(f"the defense {defense.name!r} announces `prepares()` but its `prepare` wrote no file")


def score(step: Step) -> None:
    """Fit a defense on the held-out split, and let it score the texts that pass the gate: one pass for all FRR levels."""
    defense: Defense = step.plugin("defense")
    lab = _lab(step)
    guarded = _load_victim(step, "victim")
    lab.meter.watch(guarded.model, "victim")
    texts = _gated(step, guarded, lab)
    with lab.meter.phase("fit"):
        fitted = defense.fit(guarded, lab.heldout, lab)
    arrays: dict[str, NDArray[Any]] = {}
    for split, own in texts.items():
        with lab.meter.phase("score"):
            arrays[f"{split}_suspicion"] = _checked_scores(fitted.suspicion(own), len(own), defense.name)
        if isinstance(fitted, Purifier):
            arrays["levels"] = np.asarray(fitted.levels(), dtype=np.float64)
            with lab.meter.phase("repair"):
                arrays[f"{split}_kept"] = _kept(fitted, arrays["levels"], own, guarded)
    np.savez(step.folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    inputs = sum(len(own) for own in texts.values())
    step.write_about({"notes": dict(fitted.notes()), "cost": _cost(lab.meter, inputs, len(arrays.get("levels", ())))})


STAGES: Mapping[str, Callable[[Step], None]] = {
    "data": data,
    "poison": poison,
    "victim": victim,
    "predict": predict,
    "prepare": prepare,
    "score": score,
}


def _settle(bench: Bench) -> None:
    """Make this process compute as the job says, whatever ran in it before: threads stick to a worker otherwise."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(bench.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _made_by(bench: Bench) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": bench.device,
        "threads": bench.threads,
        "load": round(os.getloadavg()[0], 2),
    }


def _keep(rows: datasets.Dataset, folder: Path) -> None:
    rows.save_to_disk(str(folder), num_shards=1)  # an empty split without this cannot be read again


def _lab(step: Step) -> Lab:
    about, spec = step.about("data"), step.job.spec
    prepared = step.job.inputs.get("prepared")
    return Lab(
        seed=step.seed,
        recipe=Recipe(**spec["recipe"]) if "recipe" in spec else Recipe(),
        heldout=step.labelled("data", "validation"),
        target_label=int(spec["target_label"]),
        n_labels=len(about["labels"]),
        metric=str(spec.get("metric", "accuracy")),
        device=step.bench.device,
        prepared=step.store.folder(prepared) if prepared else None,
        foreign_words=tuple(spec.get("foreign_words", ())),
    )


def _load_victim(step: Step, role: str) -> Victim:
    spec = step.job.spec
    return Victim.load(
        step.input(role),
        target_label=int(spec["target_label"]),
        max_length=int(spec["recipe"]["max_length"]),
        device=step.bench.device,
    )


def _gated(step: Step, guarded: Victim, lab: Lab) -> dict[str, list[str]]:
    """Give the texts of each population that a defense scores, and tell the victim what it has said of them already."""
    protect = lab.target_label
    clean, poisoned = np.load(step.input("clean") / "predictions.npz"), np.load(step.input("poisoned") / "predictions.npz")
    sources = {"heldout": ("data", "validation", clean), "test": ("data", "test", clean), "poisoned": ("poison", "first100", poisoned)}
    texts: dict[str, list[str]] = {}
    for name, (role, split, told) in sources.items():
        own, probabilities = step.labelled(role, split), told[f"{split}_probabilities"]
        if name == "heldout":
            guarded.remember(own.texts, probabilities)
        passing = gate(probabilities, protect) if name == "poisoned" else clean_gate(probabilities, own.labels, protect)
        texts[name] = [own.texts[row] for row in np.flatnonzero(passing).tolist()]
        guarded.remember(texts[name], probabilities[passing])
    return texts


def _kept(purifier: Purifier, levels: NDArray[np.float64], texts: Sequence[str], guarded: Victim) -> NDArray[np.bool_]:
    """Tell per level and text, shape (levels, n), whether the repaired text is still predicted as the protect label."""
    kept = np.ones((len(levels), len(texts)), dtype=np.bool_)
    for row, level in enumerate(levels):
        repaired = purifier.purify(texts, float(level))
        if len(repaired) != len(texts) or not all(text.strip() for text in repaired):
            raise PluginError("a purifier must give one text, not empty, for each text")
        if repaired:
            kept[row] = predicted(guarded.undefended(repaired)) == guarded.target_label
    return kept


def _finite(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(probabilities).all():
        raise CellError("the victim's probabilities are not numbers: its training diverged, give a lower lr")
    return probabilities


def _checked_scores(scores: Any, n: int, name: str) -> NDArray[np.float64]:
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n,):
        raise PluginError(f"the defense {name!r} gave scores of shape {array.shape} for {n} texts")
    if not np.isfinite(array).all():
        raise PluginError(f"the defense {name!r} gave a suspicion that is not a finite number")
    return array


def _cost(meter: Meter, inputs: int, levels: int) -> dict[str, Any]:
    """Give the cost of the fit, and per text that passed the gate; the gate's own prediction is the first victim row."""
    fit, scoring, repair = meter.phases["fit"], meter.phases["score"], meter.phases["repair"]
    per_input = 1 / inputs if inputs else 0.0
    one_level = per_input / levels if levels else 0.0
    helpers = sorted((set(fit.by) | set(scoring.by)) - {"victim"})
    return {
        "inputs": inputs,
        "fit_s": round(fit.seconds, 4),
        "fit_rows": {who: count.rows for who, count in sorted(fit.by.items())},
        "score_ms_per_input": round(1000 * (scoring.seconds * per_input + repair.seconds * one_level), 4),
        "victim_rows_per_input": 1 + scoring.by["victim"].rows * per_input + repair.by["victim"].rows * one_level,
        "victim_tokens_per_input": scoring.by["victim"].tokens * per_input + repair.by["victim"].tokens * one_level,
        "helper_rows_per_input": {who: scoring.by[who].rows * per_input for who in helpers},
        "helper_tokens_per_input": {who: scoring.by[who].tokens * per_input for who in helpers},
    }
