"""The steps data -> poison -> victim (-> finetune) -> predict -> score, prepare and read: functions of plain values into a folder.

A step is named by a `Job`: its options, the keys of the artifacts it reads, and its own key. It reads nothing else, so
the same job gives the same files wherever it runs. FRR levels are no step: they are read off the scores (`results`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rapbench import data as data_rules
from rapbench import quoted, standin
from rapbench.api import Attack, Dataset, Defense, Detector, Labelled, Purifier, Repair, Task
from rapbench.artifacts import Store, store_at
from rapbench.errors import CellError, PluginError
from rapbench.gauge import Gauge
from rapbench.kept import Kept
from rapbench.lab import Lab, rng
from rapbench.meter import Meter
from rapbench.poison import FIRST, poisoned_rows, trigger_ends, triggered_rows
from rapbench.probe import Material, probe_texts
from rapbench.protocol import calibration_half, clean_gate, gate, mistaken_gate, predicted
from rapbench.registry import Registry, discover
from rapbench.victim import Recipe, Victim

if TYPE_CHECKING:
    import datasets

READ = ("read_clean", "read_triggered")
"""The roles of what a defense has read out of single texts."""


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

    store: str | Path
    """A folder, or a URI that fsspec knows."""
    device: str = "cpu"
    threads: int = 1
    exclusive: bool = False
    """Scores, and so costs, are taken on a machine where nothing else of this run runs."""
    logs: Path | None = None
    """The folder for what steps print."""


@dataclass(frozen=True)
class Step:
    """A job under way: what a stage function gets."""

    job: Job
    bench: Bench
    store: Store
    folder: Path
    registry: Registry
    kept: Kept = field(default_factory=Kept)

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
        def read() -> Labelled:
            rows = self.rows(role, split)
            return Labelled(list(rows["text"]), np.asarray(rows["label"], dtype=np.int64))

        return self.kept.split((self.job.inputs[role], split), read)

    def about(self, role: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.input(role) / "about.json").read_text()))

    def write_about(self, value: Mapping[str, Any]) -> None:
        (self.folder / "about.json").write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


def run(job: Job, bench: Bench, registry: Registry | None = None, kept: Kept | None = None) -> str:
    """Do one step in this process and give its key; the artifact is published, or nothing is.

    `registry`, `kept`: what the process keeps for its next steps; without them, all is found and read anew.
    """
    _settle(bench)
    store = store_at(bench.store)
    provenance = {"stage": job.stage, "spec": dict(job.spec), "inputs": dict(job.inputs), "made_by": _made_by(bench)}
    if job.stage in ("victim", "finetune") and kept is not None:
        kept.clear()  # training needs the memory
    with store.attempt(job.key, provenance) as folder:
        STAGES[job.stage](Step(job, bench, store, folder, registry or discover(), kept or Kept()))
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
    clean = parts["first100"]["source"]  # the same rows of the test split as in `anywhere`
    ends = {name: trigger_ends(test.select(clean)["text"], parts[name]["text"]) for name in ("first100", "anywhere")}
    np.savez(step.folder / "ends.npz", **ends)  # type: ignore[arg-type]
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


def finetune(step: Step) -> None:
    """Fine-tune a received victim, all its weights, on clean data: what its user does before deploying it."""
    lab = _lab(step)
    received = _load_victim(step, "start")
    if received.n_labels != lab.n_labels:
        raise CellError(
            f"the poisoned data have {received.n_labels} labels and those to fine-tune on {lab.n_labels}: "
            "choose two data sets with the same labels"
        )
    lab.train(step.rows("data", "train"), received).save(step.folder)
    step.write_about({"log": lab.log})


def predict(step: Step) -> None:
    """Ask the undefended victim about whole splits: the gate of every defense, the attack's success, the trigger's survival."""
    asked = _load_victim(step, "victim")
    arrays: dict[str, NDArray[Any]] = {}
    ends = step.input("texts") / "ends.npz"
    for split in step.job.spec["splits"]:
        texts = step.labelled("texts", split)
        if ends.is_file():
            arrays[f"{split}_survives"] = asked.seen_characters(texts.texts) >= np.load(ends)[split]
        arrays[f"{split}_probabilities"] = _finite(asked.probabilities(texts.texts))
        arrays[f"{split}_labels"] = texts.labels
    np.savez(step.folder / "predictions.npz", **arrays)  # type: ignore[arg-type]


def prepare(step: Step) -> None:
    """Let a defense make what depends on clean text alone (a language model, say)."""
    defense: Defense = step.plugin("defense")
    defense.prepare(step.rows("data", "train")["text"], step.folder, _lab(step))
    if not any(step.folder.iterdir()):
        raise PluginError(f"the defense {defense.name!r} announces `prepares()` but its `prepare` wrote no file")


def read(step: Step) -> None:
    """Let a defense keep what comes of each text alone: of the triggered texts where there is poison, else of the clean protect ones."""
    defense: Defense = step.plugin("defense")
    lab = _lab(step)
    if "poison" in step.job.inputs:
        texts = list(step.labelled("poison", "first100").texts)
    else:
        texts = [*lab.heldout.of(lab.target_label), *step.labelled("data", "test").of(lab.target_label)]
    defense.read(list(dict.fromkeys(texts)), step.folder, lab)
    if not any(step.folder.iterdir()):
        raise PluginError(f"the defense {defense.name!r} announces `reads()` but its `read` wrote no file")


def score(step: Step) -> None:
    """Fit a defense on held-out texts, and let it score those that pass the gate: one pass for all FRR levels.

    Under `strict` it is fitted again on the half that does not calibrate. The cost is that of the protocol `paper`.
    A defense that deploys another victim has no threshold: both protocols have the one fit.
    """
    defense: Defense = step.plugin("defense")
    lab, had = _defenders(step, defense)
    guarded = _load_victim(step, "victim")
    lab.meter.watch(guarded.model, "victim")
    texts, calibrates = _gated(step, guarded, lab, had)
    suspects = _suspects(step, lab) if defense.works_on == "training" else None
    gauge = Gauge(lab.meter, lab.device, guarded.probabilities, guarded.token_counts, step.kept.facts)
    with gauge.fitting():
        found = defense.fit(guarded, lab.heldout, lab)
        deployed = standin.stand_in(found, defense, suspects, lab)
    gauge.stands_in = deployed is not None
    fitted = deployed or standin.watching(found, defense)
    paper = _scored(fitted, texts, guarded, defense.name, gauge)
    cost = gauge.cost(_dtype(step), max_tokens=guarded.max_length, batch_tokens=guarded.batch_tokens)
    if deployed:
        paper |= standin.scored(deployed, texts, step.labelled("data", "test").texts, step.labelled("poison", "first100").texts)
    strictly, strict = fitted, {name: _calibrating(name, own, calibrates[1]) for name, own in paper.items()}
    if defense.learns_from_protect_texts() and not deployed:
        built = replace(lab, heldout=lab.heldout.where(~calibrates[0]), meter=Meter())
        strictly = standin.watching(defense.fit(guarded, built.heldout, built), defense)
        halved = {**texts, "heldout": [text for text, own in zip(texts["heldout"], calibrates[1], strict=True) if own]}
        strict = _scored(strictly, halved, guarded, defense.name)
    arrays = {f"{protocol}_{name}": own for protocol, part in (("paper", paper), ("strict", strict)) for name, own in part.items()}
    np.savez(step.folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    notes = {"paper": dict(fitted.notes()), "strict": dict(strictly.notes())}
    protects = int((lab.heldout.labels == lab.target_label).sum())
    step.write_about({"notes": notes, "cost": asdict(cost), "heldout": {"texts": len(lab.heldout.texts), "protect": protects}})
    quotes = {"paper": quoted.quotes(fitted, texts, paper, guarded)}  # last, so that it can touch neither scores nor cost
    if strictly is not fitted:
        quotes["strict"] = quoted.quotes(strictly, texts, strict, guarded)
    quoted.write(step.folder, step.about("data")["labels"][lab.target_label], quotes)


def probe(step: Step) -> None:
    """Ask a victim about texts of one source that carry the trigger."""
    spec = step.job.spec
    asked = _load_victim(step, "victim")
    material = Material(
        source=spec["source"], attack=step.plugin("attack"), general=spec["general"], count=spec["count"], length=spec["length"]
    )
    texts = probe_texts(material, asked, step.labelled("poison", "first100").texts, rng(step.seed, f"probe/{spec['source']}"))
    np.savez(step.folder / "predictions.npz", probabilities=_finite(asked.probabilities(texts)))


def theorem(step: Step) -> None:
    """Estimate the bounds of Theorem 1 on a victim, from clean and triggered test texts."""
    from rapbench.theorem import check

    spec, target = step.job.spec, int(step.job.spec["target_label"])
    test = step.labelled("data", "test")
    populations = (test.of(target), test.other_than(target), step.labelled("poison", "first100").texts)
    drawn = [_drawn(texts, int(spec["texts"]), rng(step.seed, f"theorem/{name}")) for name, texts in zip("pot", populations, strict=True)]
    found = check(_load_victim(step, "victim"), *drawn, word=str(spec["word"]), rng=rng(step.seed, "theorem"))
    step.write_about(asdict(found))


STAGES: Mapping[str, Callable[[Step], None]] = {
    "data": data,
    "poison": poison,
    "victim": victim,
    "finetune": finetune,
    "predict": predict,
    "prepare": prepare,
    "read": read,
    "score": score,
    "probe": probe,
    "theorem": theorem,
}


def _settle(bench: Bench) -> None:
    """Make this process compute as the job says, whatever ran in it before: threads stick to a worker otherwise."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(bench.threads)
    if transformers.logging.get_verbosity() != logging.ERROR:  # setting a level makes every logger of the process forget what it knows
        transformers.logging.set_verbosity_error()
    if (accelerate := logging.getLogger("accelerate")).level != logging.ERROR:
        accelerate.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _made_by(bench: Bench) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": bench.device,
        "threads": bench.threads,
        "exclusive": bench.exclusive,
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
        read=tuple(step.store.folder(step.job.inputs[role]) for role in READ if role in step.job.inputs),
    )


def _load_victim(step: Step, role: str) -> Victim:
    spec, recipe = step.job.spec, Recipe(**step.job.spec["recipe"])

    def load() -> Victim:
        return Victim.load(
            step.input(role),
            target_label=int(spec["target_label"]),
            max_length=recipe.max_length,
            scoring=recipe.scoring,
            compiled=recipe.compiled,
        )

    read_as = json.dumps([spec["recipe"], spec["target_label"]], sort_keys=True)
    return step.kept.victim((step.job.inputs[role], read_as), load, step.bench.device)


def _defenders(step: Step, defense: Defense) -> tuple[Lab, NDArray[np.int64]]:
    """Give the lab with the held-out texts that the defender has, and their rows; of fewer, some of those that he has of more."""
    lab = _lab(step)
    n = len(lab.heldout.labels)
    had = np.sort(lab.rng("heldout").permutation(n)[: n if defense.heldout is None else defense.heldout])
    mask = np.zeros(n, dtype=np.bool_)
    mask[had] = True
    return replace(lab, heldout=lab.heldout.where(mask)), had


def _suspects(step: Step, lab: Lab) -> standin.Suspects:
    attack: Attack = step.plugin("attack")
    return standin.Suspects.of(attack, Task(step.rows("data", "train"), step.rows("poison", "train"), lab.target_label), lab)


def _gated(
    step: Step, guarded: Victim, lab: Lab, had: NDArray[np.int64]
) -> tuple[dict[str, list[str]], tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Give the texts of each population that a defense scores, and tell the victim what it has said of them already.

    `had`: the rows of the held-out texts that the defender has. With the texts: which of these calibrate under `strict`,
    of all and of those that pass the gate.
    """
    protect = lab.target_label
    clean, poisoned = np.load(step.input("clean") / "predictions.npz"), np.load(step.input("poisoned") / "predictions.npz")
    heldout, test, triggered = lab.heldout, step.labelled("data", "test"), step.labelled("poison", "first100")
    told, answers = clean["validation_probabilities"][had], clean["test_probabilities"]
    half = calibration_half(heldout.labels, protect, lab.rng("strict/calibration"))
    counted = clean_gate(told, heldout.labels, protect)
    guarded.remember(heldout.texts, told)
    sources = {
        "heldout": (heldout, counted),
        "test": (test, clean_gate(answers, test.labels, protect)),
        "mistaken": (test, mistaken_gate(answers, test.labels, protect)),
        "poisoned": (triggered, gate(poisoned["first100_probabilities"], protect)),
    }
    guarded.remember(test.texts, answers)
    guarded.remember(triggered.texts, poisoned["first100_probabilities"])
    return {name: list(own.where(passing).texts) for name, (own, passing) in sources.items()}, (half, half[counted])


def _scored(
    fitted: Detector | Purifier | Repair, texts: Mapping[str, Sequence[str]], guarded: Victim, name: str, gauge: Gauge | None = None
) -> dict[str, NDArray[Any]]:
    """Give the suspicion of each population and, of a purifier, its levels and which texts keep the protect label at each."""

    def suspicion(some: Sequence[str]) -> NDArray[np.float64]:
        return _checked_scores(fitted.suspicion(some), len(some), name)

    arrays: dict[str, NDArray[Any]] = {}
    for split, own in texts.items():
        phase = "calibration" if split == "heldout" else "inference"
        arrays[f"{split}_suspicion"] = gauge.scored(phase, own, suspicion) if gauge else suspicion(own)
        if isinstance(fitted, Purifier):
            levels = arrays["levels"] = np.asarray(fitted.levels(), dtype=np.float64)
            purify = fitted.purify
            repaired = gauge.purified(phase, own, levels.tolist(), purify) if gauge else [purify(own, level) for level in levels.tolist()]
            with gauge.judging(phase) if gauge else nullcontext():
                arrays[f"{split}_kept"] = _kept(repaired, own, guarded)
    return arrays


def _calibrating(name: str, array: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Give the held-out part of an array of scores for the texts that calibrate alone; other arrays as they are."""
    return array[..., mask] if name.startswith("heldout") else array


def _kept(repaired: Sequence[Sequence[str]], texts: Sequence[str], guarded: Victim) -> NDArray[np.bool_]:
    """Tell per level and text, shape (levels, n), whether the repaired text is still predicted as the protect label."""
    for own in repaired:
        if len(own) != len(texts) or not all(text.strip() for text in own):
            raise PluginError("a purifier must give one text, not empty, for each text")
    together = [text for own in repaired for text in own]  # in one stream of batches; a text that is there twice is predicted once
    kept: NDArray[np.bool_] = predicted(guarded.undefended(together)) == guarded.target_label
    return kept.reshape(len(repaired), len(texts))


def _drawn(texts: Sequence[str], most: int, generator: np.random.Generator) -> list[str]:
    return [texts[row] for row in sorted(generator.permutation(len(texts))[:most])]


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


def _dtype(step: Step) -> str:
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[step.job.spec["recipe"].get("scoring", "fp32")]
