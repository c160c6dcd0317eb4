"""Scores -> cells: what the artifacts of a cell say under each protocol, read off with numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import rapbench
from rapbench import protocol, quoted, rates
from rapbench.artifacts import Store
from rapbench.cost import Cost
from rapbench.errors import CellError, StoreError
from rapbench.grid import Cell
from rapbench.protocol import Floats, Mask
from rapbench.rates import Rate
from rapbench.registry import spec_of
from rapbench.results import Curve, Examples, Histogram, Quote, Record, pack, usual_frr

POPULATIONS = ("heldout", "test", "mistaken", "poisoned")
"""Texts that pass the gate: held-out and test texts of the protect label, test texts of another one, triggered texts."""
CURVE = tuple(round(float(frr), 6) for frr in np.geomspace(0.001, 0.2, 40))
"""Allowed FRRs of a curve (Figure 3 of the RAP paper)."""
FIXED = (0.01, 0.05)
BINS = 40
LEAST_BIN = 1e-12
"""Of the largest suspicion: differences below it are rounding, and no bins of their own."""
TAILS = (2.5, 97.5)
"""Percentiles of all texts between which a histogram's bins lie."""
LEAST_EXPECTED = 5
TRAINED = {"epochs", "kept"}
"""What the log of a victim says of each training by the core."""

Arrays = Mapping[str, Any]


def record(cell: Cell, keys: Mapping[str, str], store: Store) -> Record:
    """Give the result of a cell whose artifacts are all there. `keys`: role -> artifact."""
    try:
        return _measured(cell, keys, store)
    except CellError as error:
        return unfinished(cell, "failed", str(error), keys)


def unfinished(cell: Cell, status: str, reason: str, keys: Mapping[str, str] | None = None) -> Record:
    """Give the record of a cell without figures, with the reason."""
    return Record(**cell.names, status=status, reason=reason, artifacts=dict(keys or {}))


def curve(cell: Cell, keys: Mapping[str, str], store: Store) -> Curve:
    """Give FRR and FAR of a cell's defense under its protocol, over the allowed FRRs of `CURVE`."""
    scores = _scores(store, keys["score"], cell.protocol)
    points = []
    for allowed in CURVE:
        try:
            verdicts = decide(scores, cell.protocol, allowed)
        except CellError:
            continue
        test, poisoned, n = verdicts.rejected["test"], verdicts.rejected["poisoned"], len(verdicts.rejected["heldout"])
        if cell.protocol == "paper" and n < protocol.heldout_needed(allowed):
            continue  # as in `_enough_heldout`: not one text would be such a share
        if len(test) and len(poisoned) and math.isfinite(verdicts.at):
            points.append((allowed, float(test.mean()), float((~poisoned).mean())))
    names = {name: value for name, value in cell.names.items() if name != "frr"}
    return Curve(**names, points=tuple(points))


def histogram(cells: Sequence[Cell], keys: Mapping[str, str], store: Store) -> Histogram:
    """Give the suspicions of clean and poisoned texts, binned, and the thresholds of cells that differ by the allowed FRR alone."""
    first = cells[0]
    scores = _scores(store, keys["score"], first.protocol)
    thresholds = []
    for frr in sorted({cell.frr for cell in cells}):
        with suppress(CellError):
            verdicts = decide(scores, first.protocol, frr)
            if math.isfinite(verdicts.at):
                thresholds.append((frr, verdicts.at))
    clean, poisoned = scores["test_suspicion"], scores["poisoned_suspicion"]
    edges = _edges(np.concatenate([clean, poisoned]), [at for _, at in thresholds])
    return Histogram(
        **{name: value for name, value in first.names.items() if name != "frr"},
        edges=tuple(edges.tolist()),
        clean=_binned(clean, edges),
        poisoned=_binned(poisoned, edges),
        thresholds=tuple(thresholds),
    )


def examples(cells: Sequence[Cell], keys: Mapping[str, str], store: Store) -> Examples:
    """Give the quoted texts of cells that differ by the allowed FRR alone, with the verdicts at the one nearest to 1 %."""
    return quoted_at({**cells[0].names, "frr": usual_frr({cell.frr for cell in cells})}, keys["score"], store)


def quoted_at(names: Mapping[str, Any], key: str, store: Store) -> Examples:
    """Give the quoted texts of a score artifact with the verdicts of the cell of these names; none where its FRR gives no threshold."""
    by = names["protocol"]
    scores, (label, kept) = _scores(store, key, by), quoted.read(store.folder(key), by)
    try:
        verdicts = decide(scores, by, names["frr"])
    except CellError:
        verdicts, kept = Verdicts(math.inf, {}, possible=False), []
    return Examples(
        **names,
        threshold=verdicts.at if math.isfinite(verdicts.at) else None,
        purifies="test_kept" in scores,
        label=label,
        n_clean=len(scores["test_suspicion"]),
        n_poisoned=len(scores["poisoned_suspicion"]),
        quotes=tuple(_quote(one, scores, verdicts) for one in kept),
    )


@dataclass(frozen=True)
class Verdicts:
    """What a defense says under one protocol at one allowed FRR. `rejected`: population -> bool, shape (n,)."""

    at: float
    """The threshold; infinite where there is none."""
    rejected: Mapping[str, Mask]
    possible: bool = True
    """Whether the held-out texts suffice for this allowed FRR; if not, nothing is rejected."""


def decide(scores: Arrays, by: str, frr: float) -> Verdicts:
    """Apply the protocol's rule to a defense's scores; a CellError where it gives no threshold."""
    if "levels" in scores:
        return _by_level(scores, by, frr)
    if "test_answers" in scores:  # another victim's answers: it has no threshold
        return Verdicts(math.inf, {name: ~scores[f"{name}_kept"] for name in POPULATIONS})
    heldout = scores["heldout_suspicion"]
    at = protocol.conformal_threshold(heldout, frr) if by == "strict" else protocol.threshold(heldout, frr)
    return Verdicts(at, {name: scores[f"{name}_suspicion"] > at for name in POPULATIONS}, math.isfinite(at))


def _by_level(scores: Arrays, by: str, frr: float) -> Verdicts:
    """A purifier rejects a text whose repaired form loses the protect label."""
    lost = {name: ~scores[f"{name}_kept"] for name in POPULATIONS}  # (levels, n)
    n = lost["heldout"].shape[1]
    if by == "strict":
        level = protocol.conformal_level(lost["heldout"].sum(axis=1), n, frr)
        if level is None:
            return Verdicts(math.inf, {name: np.zeros(own.shape[1], dtype=np.bool_) for name, own in lost.items()}, possible=False)
    else:
        if not n:
            raise CellError("no held-out text is truly and by prediction of the protect label: give more held-out texts or a better victim")
        level = protocol.choose_level(lost["heldout"].mean(axis=1), frr)
        if level is None:
            raise CellError(f"no level of the purifier has a held-out FRR of at most 1.5 x {frr}: give it higher levels")
    return Verdicts(float(scores["levels"][level]), {name: own[level] for name, own in lost.items()})


def _quote(kept: Mapping[str, Any], scores: Arrays, verdicts: Verdicts) -> Quote:
    """Give a quoted text with its verdict; what a purifier says of it, at the level of the verdict."""
    name, row, details = kept["of"], kept["row"], kept["details"]
    if "levels" in scores:
        details = quoted.at_level(details, int(np.argmax(scores["levels"] == verdicts.at)) if verdicts.possible else None)
    return Quote(
        population="clean" if name == "test" else "poisoned",
        **{name: kept[name] for name in ("rank", "text", "letters", "probability", "untold")},
        suspicion=float(scores[f"{name}_suspicion"][row]),
        rejected=bool(verdicts.rejected[name][row]),
        details=details,
    )


def _edges(suspicion: Floats, thresholds: Sequence[float]) -> Floats:
    """Give the ends of the bins, which hold the bulk of the texts and every threshold, shape (BINS + 1,).

    Bins are equal, or where half of the texts lie in a tenth of them, equal after asinh: narrow in the middle, wide in the tails.
    """
    low, first, middle, third, high = np.percentile(suspicion, [TAILS[0], 25, 50, 75, TAILS[1]]) if len(suspicion) else [0.0] * 5
    low, high = min([low, *thresholds]), max([high, *thresholds])
    half = third - first
    least = max(LEAST_BIN * max(abs(low), abs(high)), 1e-300)
    scale = half if least < half < (high - low) / 10 else math.inf
    ends = np.array([low, high])
    if math.isfinite(scale):
        ends = np.arcsinh((ends - middle) / scale)
    room = (ends[1] - ends[0]) / BINS  # a bin on either side: no threshold lies on the border
    room = room if room > least or math.isfinite(scale) else max(0.5, least)
    edges = np.linspace(ends[0] - room, ends[1] + room, BINS + 1)
    return np.asarray(np.sinh(edges) * scale + middle if math.isfinite(scale) else edges, dtype=np.float64)


def _binned(suspicion: Floats, edges: Floats) -> tuple[int, ...]:
    inside = np.clip(suspicion, edges[0], edges[-1])
    return tuple(np.histogram(inside, edges)[0].tolist())


def _measured(cell: Cell, keys: Mapping[str, str], store: Store) -> Record:
    poisons = cell.attack.poisons
    clean, poisoned = (_arrays(store, keys[role], "predictions.npz") for role in ("clean", "poisoned"))
    scores = _scores(store, keys["score"], cell.protocol)
    about = json.loads((store.folder(keys["score"]) / "about.json").read_text())
    deployed = "test_answers" in scores
    if cell.protocol == "paper" and not deployed:
        _enough_heldout(cell, about["heldout"]["protect"])
    verdicts = decide(scores, cell.protocol, cell.frr)
    counted = _counted(cell, clean, poisoned, verdicts) | (_on_other_victims(cell, keys, store) if poisons else {})
    notes = dict(about["notes"][cell.protocol])
    if deployed:
        counted |= _on_stand_in(cell, scores, notes.get("training_set"))
    figures: dict[str, Any] = {name: rate.value for name, rate in counted.items()}
    intervals = {name: rate.interval() for name, rate in counted.items()}
    for name, own in _clean_metrics(cell, clean, scores, verdicts).items():
        figures[name] = own
        if cell.dataset.metric == "accuracy":
            n = len(clean["test_labels"])
            intervals[name] = Rate(round(figures[name] * n), n).interval()
    if figures.get("asr_control") is not None:
        figures["asrd"] = figures["asr"] - figures["asr_control"]
    return Record(
        **cell.names,
        status="ok",
        **figures,
        auroc=rates.auroc(scores["test_suspicion"], scores["poisoned_suspicion"]) if poisons else None,
        far_at_frr={f"{frr:g}": _far_at(scores, frr) for frr in FIXED} if poisons else {},
        metric=cell.dataset.metric,
        threshold=verdicts.at if math.isfinite(verdicts.at) else None,
        n_heldout=counted["frr_heldout"].n,
        n_clean=counted["frr_test"].n,
        n_poisoned=len(verdicts.rejected["poisoned"]),
        n_test=len(clean["test_labels"]),
        n_triggered=counted["asr"].n,
        intervals=intervals,
        warnings=() if deployed else _warnings(cell, verdicts, counted["frr_heldout"].n),
        verdicts={name: pack(verdicts.rejected[name]) for name in ("test", "poisoned")},
        cost=_cost(about["cost"], scores, verdicts),
        notes=notes,
        attack_notes=_attack_notes(keys, store),
        trigger=spec_of(cell.attack),
        artifacts=dict(keys),
        made_by=_made_by(store, keys["score"]),
    )


def _attack_notes(keys: Mapping[str, str], store: Store) -> dict[str, Any]:
    """Give what the attack noted of its victim, by name; nothing where the victim is there no more."""
    key = keys.get("received", keys.get("victim"))
    if key is None or not store.has(key):
        return {}
    try:
        log = _log(store, key)
    except StoreError:
        return {}
    return {name: value for entry in log for name, value in entry.items() if entry.keys() != TRAINED}


@lru_cache(maxsize=8)
def _log(store: Store, key: str) -> tuple[dict[str, Any], ...]:
    about = store.content(key, "about.json")
    log = about.get("log") if isinstance(about, dict) else None
    return tuple(entry for entry in log if isinstance(entry, dict)) if isinstance(log, list) else ()


def _made_by(store: Store, key: str) -> dict[str, Any]:
    """Give the versions and the machine behind an artifact, without what differs from run to run."""
    made = store.provenance(key).get("made_by", {})
    return {"rapbench": rapbench.__version__, **{name: value for name, value in made.items() if name != "load"}}


def _counted(cell: Cell, clean: Arrays, poisoned: Arrays, verdicts: Verdicts) -> dict[str, Rate]:
    """Give the rates that are counted on this victim, by name."""
    counted = {
        "frr_heldout": _share(verdicts.rejected["heldout"]),
        "frr_test": _share(verdicts.rejected["test"]),
        "asr": _success(cell, clean, poisoned, "first100"),
        "asr_anywhere": _success(cell, clean, poisoned, "anywhere"),
    }
    if cell.attack.poisons:
        let_through = ~verdicts.rejected["poisoned"]
        counted |= {
            "far": _share(let_through),
            "asr_defended": Rate(int(let_through.sum()), counted["asr"].n),
            "survival": _share(poisoned["first100_survives"]),
            "survival_anywhere": _share(poisoned["anywhere_survives"]),
        }
    return counted


def _on_stand_in(cell: Cell, scores: Arrays, found: Mapping[str, int] | None) -> dict[str, Rate]:
    """Give the ASR of the victim that is deployed instead and, of a filter, how well it tells poison in the training set."""
    told = {"asr_defended": rates.attack_success(scores["poisoned_answers"], cell.dataset.target_label)} if cell.attack.poisons else {}
    if found:
        told["precision"] = Rate(found["right"], found["removed"])
        told["recall"] = Rate(found["right"], found["poisoned"])
        told["removed"] = Rate(found["removed"], found["rows"])
    return told


def _clean_metrics(cell: Cell, clean: Arrays, scores: Arrays, verdicts: Verdicts) -> dict[str, float]:
    """Give the clean metric on the whole test split, of the undefended victim and with the defense."""
    probabilities, labels, metric = clean["test_probabilities"], clean["test_labels"], cell.dataset.metric
    if "test_answers" in scores:
        defended = rates.clean_metric(scores["test_answers"], labels, metric)
    else:
        defended = rates.clean_metric(probabilities, labels, metric, _rejected_rows(verdicts, clean, cell.dataset.target_label))
    return {"clean_metric": rates.clean_metric(probabilities, labels, metric), "clean_metric_defended": defended}


def _on_other_victims(cell: Cell, keys: Mapping[str, str], store: Store) -> dict[str, Rate]:
    """Give the ASR of the same triggered texts on the clean control and on the victim before fine-tuning, where there are such."""
    told = {}
    for name, role in (("asr_control", "control"), ("asr_before", "before")):
        if role in keys and store.has(keys[role]):
            probabilities = _arrays(store, keys[role], "predictions.npz")["first100_probabilities"]
            told[name] = rates.attack_success(probabilities, cell.dataset.target_label)
    return told


def _cost(measured: Mapping[str, Any], scores: Arrays, verdicts: Verdicts) -> Cost:
    """Give the cost of the defense; of a purifier, at the level that the verdicts come from, if any."""
    cost = Cost.of(measured)
    if "levels" not in scores or not (scores["levels"] == verdicts.at).any():
        return cost
    return cost.at_level(int(np.argmax(scores["levels"] == verdicts.at)))


def _rejected_rows(verdicts: Verdicts, clean: Arrays, protect: int) -> Mask:
    """Tell which texts of the whole clean test split are rejected: those that do not pass the gate never are."""
    probabilities, labels = clean["test_probabilities"], clean["test_labels"]
    rows = np.zeros(len(labels), dtype=np.bool_)
    rows[protocol.clean_gate(probabilities, labels, protect)] = verdicts.rejected["test"]
    rows[protocol.mistaken_gate(probabilities, labels, protect)] = verdicts.rejected["mistaken"]
    return rows


def _far_at(scores: Arrays, frr: float) -> float | None:
    """Give the FAR at a fixed test FRR; for a purifier at its level with the highest test FRR that is not above it."""
    if "levels" not in scores:
        return rates.far_at(scores["test_suspicion"], scores["poisoned_suspicion"], frr)
    if not scores["test_kept"].shape[1] or not scores["poisoned_kept"].shape[1]:
        return None
    lost, kept = 1 - scores["test_kept"].mean(axis=1), scores["poisoned_kept"].mean(axis=1)
    fitting = [(own, -far) for own, far in zip(lost, kept, strict=True) if own <= frr + 1e-9]
    return float(-max(fitting)[1]) if fitting else None


def _warnings(cell: Cell, verdicts: Verdicts, n: int) -> tuple[str, ...]:
    needed = protocol.heldout_needed(cell.frr) - 1
    if not verdicts.possible and n >= needed:
        return (f"every level of the purifier rejects too many of the {n} calibration texts for an allowed FRR of {cell.frr:g}: "
                "nothing is rejected",)  # fmt: skip
    if not verdicts.possible:
        return (f"{n} calibration texts are too few for an allowed FRR of {cell.frr:g}, at least {needed} are needed: "
                "nothing is rejected",)  # fmt: skip
    if cell.frr * n < LEAST_EXPECTED - 1e-9:
        return (f"an allowed FRR of {cell.frr:g} on {n} held-out texts is {cell.frr * n:.1f} texts, below {LEAST_EXPECTED}: "
                "the threshold rests on a few texts",)  # fmt: skip
    return ()


def _share(mask: Mask) -> Rate:
    return Rate(int(mask.sum()), len(mask))


def _success(cell: Cell, clean: Arrays, poisoned: Arrays, split: str) -> Rate:
    """The ASR; for the control, which has no trigger, the share of plain non-target texts that it gets wrong that way."""
    if cell.attack.poisons:
        return rates.attack_success(poisoned[f"{split}_probabilities"], cell.dataset.target_label)
    others = clean["test_labels"] != cell.dataset.target_label
    return rates.attack_success(clean["test_probabilities"][others], cell.dataset.target_label)


def _enough_heldout(cell: Cell, have: int) -> None:
    """Refuse an allowed FRR that is less than the share of one of the defender's held-out texts of the protect label, so many."""
    protect, needed = cell.dataset.target_label, protocol.heldout_needed(cell.frr)
    if have < needed:
        raise CellError(
            f"the defender has {have} held-out texts of the protect label {protect}, "
            f"an allowed FRR of {cell.frr:g} needs at least {needed}: "
            f"give more held-out texts" + (f" or allow at least {1 / have:.4f}" if have else "")
        )


def _scores(store: Store, key: str, by: str) -> Arrays:
    """Give a score artifact's arrays under one protocol, by their names without it."""
    arrays = _arrays(store, key, "scores.npz")
    return {name.removeprefix(f"{by}_"): value for name, value in arrays.items() if name.startswith(f"{by}_")}


def _arrays(store: Store, key: str, name: str) -> Arrays:
    return _loaded(store.folder(key) / name)


@lru_cache(maxsize=8)
def _loaded(path: Path) -> Arrays:
    """Give the arrays of a published file, which never changes: cells next to each other read the same ones."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
