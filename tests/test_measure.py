"""Scores -> figures, from hand-made artifacts: every figure is worked by hand beside it, every property holds for any scores."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench import measure, results
from rapbench.artifacts import Store
from rapbench.cost import Cost
from rapbench.errors import CellError
from rapbench.grid import Cell
from rapbench.measure import CURVE, POPULATIONS, decide
from rapbench.protocol import clean_gate, gate, mistaken_gate
from rapbench.rates import Rate
from rapbench.registry import discover
from rapbench.results import Curve, Record, pack, unpack
from rapbench.victim import Recipe

REGISTRY = discover()
COST = Cost(inputs=3, fit_s=1.0, victim_rows_per_input=2.0, victim_tokens_per_input=9.0)
VICTIM = "d" * 32
NOTES = {"paper": {"tries": 1}, "strict": {"tries": 2}}

# the protect label is 1; texts 0-3 count for FRR, 4 is missed, 5-7 are right, 8 and 9 are taken for the protect label
LABELS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
CHANCES = [0.9, 0.8, 0.7, 0.6, 0.2, 0.1, 0.2, 0.3, 0.9, 0.7]
TRIGGERED = [0.9, 0.2, 0.8, 0.7, 0.1]  # three of five pass the gate
PAPER = {"heldout": [3, 1, 5, 2, 4], "test": [1, 5, 2, 6], "mistaken": [9, 0], "poisoned": [8, 3, 7]}
# allowed .25: place 1 from the top of 1..5, so the threshold is 4: texts 1 and 3, text 8, and the triggered 8 and 7 are rejected
STRICT = {**PAPER, "heldout": [2, 3, 1]}
# allowed .25 of three texts: the ceil(4 * .75) = 3rd smallest is 3: the same texts are rejected, but also what scores between 3 and 4


def of_yes(chances: list[float]) -> np.ndarray:
    """Give two-label probabilities from the chances of label 1."""
    return np.array([[1 - chance, chance] for chance in chances]).reshape(-1, 2)


def detector(paper: Mapping[str, list[float]], strict: Mapping[str, list[float]]) -> dict[str, np.ndarray]:
    both = (("paper", paper), ("strict", strict))
    return {f"{by}_{name}_suspicion": np.array(own, dtype=np.float64) for by, part in both for name, own in part.items()}


def purifier(levels: list[float], **lost: list[str]) -> dict[str, np.ndarray]:
    """Give the arrays of a purifier, alike under both protocols. `lost`: population -> a line of 0 and 1 (rejected) per level."""
    arrays: dict[str, np.ndarray] = {}
    for by in ("paper", "strict"):
        arrays[f"{by}_levels"] = np.array(levels)
        for name, lines in lost.items():
            arrays[f"{by}_{name}_kept"] = np.array([[sign == "0" for sign in line] for line in lines], dtype=np.bool_)
            arrays[f"{by}_{name}_suspicion"] = np.arange(len(lines[0]), dtype=np.float64)
    return arrays


LOST = {
    "heldout": ["1110", "1000", "0000"],
    "test": ["1101", "0101", "0001"],
    "mistaken": ["11", "10", "00"],
    "poisoned": ["111", "101", "001"],
}


def stored(root: Path, scores: Mapping[str, np.ndarray], **other: Any) -> tuple[Store, dict[str, str]]:
    """Put artifacts into a store. `other`: labels, chances, triggered, heldout_labels, in place of those above; control, before."""
    given = {"labels": LABELS, "chances": CHANCES, "triggered": TRIGGERED, "heldout_labels": [1] * 5 + [0] * 2, **other}
    files = {
        "clean": {
            "validation_labels": np.array(given["heldout_labels"], dtype=np.int64),
            "validation_probabilities": of_yes([0.9] * len(given["heldout_labels"])),
            "test_labels": np.array(given["labels"], dtype=np.int64),
            "test_probabilities": of_yes(given["chances"]),
        },
        "poisoned": {
            "first100_probabilities": of_yes(given["triggered"]),
            "first100_labels": np.zeros(len(given["triggered"]), dtype=np.int64),
            "first100_survives": np.array([True, True, False, True, False])[: len(given["triggered"])],
            "anywhere_probabilities": of_yes([0.9, 0.9, 0.1, 0.1, 0.1]),
            "anywhere_labels": np.zeros(5, dtype=np.int64),
            "anywhere_survives": np.array([True, True, False, False, False]),
        },
        **{role: {"first100_probabilities": of_yes(given[role])} for role in ("control", "before") if role in given},
    }
    store = Store(root).create()
    keys = {role: f"{number:032x}" for number, role in enumerate((*files, "score"))}
    for role, arrays in files.items():
        with store.attempt(keys[role], {}) as folder:
            np.savez(folder / "predictions.npz", **arrays)
    with store.attempt(keys["score"], {}) as folder:
        np.savez(folder / "scores.npz", **scores)
        had = {"texts": len(given["heldout_labels"]), "protect": given["heldout_labels"].count(1)}
        (folder / "about.json").write_text(json.dumps({"cost": dataclasses.asdict(COST), "notes": NOTES, "heldout": had}))
    return store, keys


def a_cell(frr: float = 0.25, protocol: str = "paper", attack: str = "badnet-rw:word=mb", dataset: str = "demo") -> Cell:
    return Cell(
        dataset=REGISTRY.parse("dataset", dataset),
        attack=REGISTRY.parse("attack", attack),
        attack_spec=attack,
        defense=REGISTRY.parse("defense", "strip"),
        recipe=Recipe(),
        seed=1,
        frr=frr,
        protocol=protocol,
    )


@pytest.fixture
def recorded(tmp_path: Path):
    """Give what turns scores into a record."""

    def record(cell: Cell, scores: Mapping[str, np.ndarray], **other: Any) -> Record:
        store, keys = stored(tmp_path / "store", scores, **other)
        return measure.record(cell, keys, store)

    return record


# --- verdicts


def arrays(**suspicion: list[float]) -> dict[str, np.ndarray]:
    given = {name: suspicion.get(name, []) for name in POPULATIONS}
    return {f"{name}_suspicion": np.array(own, dtype=np.float64) for name, own in given.items()}


@pytest.mark.parametrize(
    ("by", "frr", "at"),
    [
        ("paper", 0.25, 4.0),  # place .25 * 4 = 1 from the top
        ("paper", 0.1, 4.6),  # place .4: .4 of the way from 5 to 4
        ("strict", 0.25, 5.0),  # the ceil(6 * .75) = 5th smallest
        ("strict", 0.5, 3.0),  # the ceil(6 * .5) = 3rd
    ],
)
def test_a_detector_rejects_what_lies_above_the_threshold(by: str, frr: float, at: float) -> None:
    verdicts = decide(arrays(heldout=[3, 1, 5, 2, 4], test=[at, at + 0.01], poisoned=[at - 0.01]), by, frr)
    assert (verdicts.at, verdicts.possible) == (pytest.approx(at), True)
    assert [verdicts.rejected[name].tolist() for name in ("test", "mistaken", "poisoned")] == [[False, True], [], [False]]


def test_the_least_calibration_texts_suffice_and_one_fewer_rejects_nothing() -> None:
    # ceil((n + 1) * .75) <= n holds from n = 3
    enough, few = (decide(arrays(heldout=list(range(n)), test=[99.0]), "strict", 0.25) for n in (3, 2))
    assert (enough.possible, enough.at, enough.rejected["test"].tolist()) == (True, 2.0, [True])
    assert (few.possible, few.rejected["test"].tolist()) == (False, [False])


def test_without_held_out_texts_the_paper_s_protocol_has_no_threshold() -> None:
    with pytest.raises(CellError, match="no held-out text"):
        decide(arrays(test=[1.0]), "paper", 0.25)


@pytest.mark.parametrize(
    ("by", "frr", "at"),
    [
        ("paper", 0.25, 20.0),  # of 3/4, 1/4, 0 the one that is .25
        ("paper", 0.5, 10.0),  # 3/4 is .25 from it and so is 1/4: of the two, that which rejects more; 1.5 * .5 allows it
        ("paper", 0.1, 30.0),  # 1/4 is above 1.5 * .1
        ("strict", 0.5, 20.0),  # (1 + 1) / 5 = .4 is at most .5, (3 + 1) / 5 is not
        ("strict", 0.4, 20.0),  # .4 is at most .4
        ("strict", 0.39, 30.0),  # (0 + 1) / 5 = .2
        ("strict", 0.8, 10.0),  # (3 + 1) / 5
    ],
)
def test_a_purifier_s_level_is_chosen_by_the_rule_of_the_protocol(by: str, frr: float, at: float) -> None:
    own = purifier([10.0, 20.0, 30.0], **LOST)
    scores = {name.removeprefix("paper_"): value for name, value in own.items() if name.startswith("paper_")}
    verdicts = decide(scores, by, frr)
    row = [10.0, 20.0, 30.0].index(at)
    assert (verdicts.at, verdicts.possible) == (at, True)
    assert {name: pack(own) for name, own in verdicts.rejected.items()} == {
        name: pack(np.array([sign == "1" for sign in lines[row]])) for name, lines in LOST.items()
    }


def test_a_purifier_of_which_no_level_fits_rejects_nothing_or_fails() -> None:
    own = purifier([10.0, 20.0], **{name: lines[:2] for name, lines in LOST.items()})
    scores = {name.removeprefix("strict_"): value for name, value in own.items() if name.startswith("strict_")}
    verdicts = decide(scores, "strict", 0.39)  # (1 + 1) / 5 = .4 is above it
    assert not verdicts.possible
    assert not any(mask.any() for mask in verdicts.rejected.values())
    assert {name: len(mask) for name, mask in verdicts.rejected.items()} == {"heldout": 4, "test": 4, "mistaken": 2, "poisoned": 3}
    with pytest.raises(CellError, match=r"no level of the purifier has a held-out FRR of at most 1\.5 x 0\.1"):
        decide(scores, "paper", 0.1)


@given(st.lists(st.booleans(), max_size=70))
def test_packed_verdicts_read_back(bits: list[bool]) -> None:
    assert unpack(pack(np.array(bits, dtype=np.bool_)), len(bits)).tolist() == bits


def test_the_first_text_is_the_highest_bit() -> None:
    assert pack(np.array([True, False, False, False, False, False, True, False])) == "gg=="  # 0b10000010 = 130


# --- a record


def test_every_figure_of_a_detector_under_the_paper_s_protocol(recorded) -> None:
    got = recorded(a_cell(), detector(PAPER, STRICT), control=[0.9, 0.1, 0.1, 0.1, 0.1], before=[0.9, 0.9, 0.9, 0.9, 0.1])
    assert got.status == "ok", got.reason
    expected = {
        "threshold": 4.0,
        "frr_heldout": 1 / 5,  # the 5
        "frr_test": 2 / 4,  # 5 and 6
        "far": 1 / 3,  # the 3
        "auroc": 10 / 12,  # of 4 clean ones 8 and 7 beat all, 3 beats 1 and 2
        "asr": 3 / 5,
        "asr_anywhere": 2 / 5,
        "asr_control": 1 / 5,
        "asrd": 2 / 5,
        "asr_before": 4 / 5,
        "asr_defended": 1 / 5,  # the 3, of all five
        "clean_metric": 7 / 10,  # wrong: 4, 8, 9
        "clean_metric_defended": 5 / 10,  # 1 and 3 get no answer
        "survival": 3 / 5,
        "survival_anywhere": 2 / 5,
        "n_heldout": 5,
        "n_clean": 4,
        "n_poisoned": 3,
        "n_test": 10,
        "n_triggered": 5,
    }
    assert {name: getattr(got, name) for name in expected} == pytest.approx(expected)
    assert got.metric == "accuracy"
    assert unpack(got.verdicts["test"], 4).tolist() == [False, True, False, True]
    assert unpack(got.verdicts["poisoned"], 3).tolist() == [True, False, True]
    assert (got.cost, got.notes, got.trigger) == (COST, {"tries": 1}, "badnet-rw:word=mb")


LOG = [{"epochs": [0.5], "kept": 1}, {"word": "mb", "fall": 0.1}, {"word": "bb", "fall": 0.2}, {"false_trigger_rate": {"mean": 0.5}}]


def noted(root: Path, about: object, **keys: str) -> Record:
    """Give the record of a cell beside whose artifacts is that of a victim with such an about.json."""
    store, own = stored(root, detector(PAPER, STRICT))
    with store.attempt(VICTIM, {}) as folder:
        (folder / "about.json").write_text(json.dumps(about))
    return measure.record(a_cell(), {**own, **keys}, store)


def test_what_the_attack_noted_of_its_victim_is_in_the_record_without_the_core_s_trainings(tmp_path: Path) -> None:
    got = noted(tmp_path, {"log": LOG}, victim=VICTIM)
    assert got.attack_notes == {"word": "bb", "fall": 0.2, "false_trigger_rate": {"mean": 0.5}}  # of two rounds the last
    assert (got.ftr, got.ftr_plain) == (0.5, None)


def test_a_fine_tuned_victim_has_the_notes_of_the_one_that_was_received(tmp_path: Path) -> None:
    got = noted(tmp_path, {"log": LOG}, victim="e" * 32, received=VICTIM)
    assert got.ftr == 0.5


def test_a_victim_that_is_gone_leaves_its_cells_without_notes(tmp_path: Path) -> None:
    got = noted(tmp_path, {"log": LOG}, victim="e" * 32)
    assert (got.status, got.attack_notes) == ("ok", {})


@pytest.mark.parametrize("about", [[], {}, {"log": {}}, {"log": [["false_trigger_rate"], "word", 1]}])
def test_a_log_that_says_nothing_by_name_gives_no_notes(tmp_path: Path, about: object) -> None:
    got = noted(tmp_path, about, victim=VICTIM)
    assert (got.status, got.attack_notes) == ("ok", {})


def test_a_victim_whose_log_is_damaged_leaves_its_cells_without_notes(tmp_path: Path) -> None:
    store, keys = stored(tmp_path, detector(PAPER, STRICT))
    with store.attempt(VICTIM, {}) as folder:
        (folder / "about.json").write_text('{"log": [')
    got = measure.record(a_cell(), {**keys, "victim": VICTIM}, store)
    assert (got.status, got.attack_notes) == ("ok", {})


def test_every_figure_of_a_detector_under_the_strict_protocol(recorded) -> None:
    strict = {**STRICT, "test": [1, 3.5, 2, 3], "poisoned": [3, 3.5, 1]}
    got = recorded(a_cell(protocol="strict"), detector(PAPER, strict))
    # above 3 lie one of four clean texts, one of two mistaken ones (9), one of three triggered ones
    expected = {
        "threshold": 3.0,
        "frr_heldout": 0.0,
        "frr_test": 1 / 4,
        "far": 2 / 3,
        "asr_defended": 2 / 5,
        "clean_metric_defended": 6 / 10,
        "n_heldout": 3,
    }
    assert {name: getattr(got, name) for name in expected} == pytest.approx(expected)
    assert got.notes == {"tries": 2}
    assert got.protocol == "strict"


def test_the_interval_of_a_rate_is_wilson_s(recorded) -> None:
    got = recorded(a_cell(), detector(PAPER, STRICT))
    # 2 of 4 with z = 1.96: centre .5, half width z / (1 + z²/4) * sqrt(.25 / 4 + z² / 64) = .35
    assert got.intervals["frr_test"] == pytest.approx((0.15, 0.85), abs=0.005)
    # 5 of 10: half width z / (1 + z²/10) * sqrt(.25 / 10 + z² / 400) = .263
    assert got.intervals["clean_metric_defended"] == pytest.approx((0.237, 0.763), abs=0.001)
    rated = {"frr_heldout", "frr_test", "far", "asr", "asr_anywhere", "asr_defended", "survival", "survival_anywhere"}
    assert set(got.intervals) == rated | {"clean_metric", "clean_metric_defended"}


def test_macro_f1_counts_a_rejected_text_as_missed_and_a_rejected_mistake_as_undone(recorded) -> None:
    got = recorded(a_cell(dataset="demo:metric=macro-f1"), detector(PAPER, STRICT))
    # label 1: 4 hits, wrong 4 8 9: 8 / 11; label 0: 3 hits, wrong 4 8 9: 6 / 9
    assert got.clean_metric == pytest.approx((8 / 11 + 6 / 9) / 2)
    # 1 3 8 have no answer. label 1: 2 hits, wrong 1 3 4 and 9: 4 / 8; label 0: 3 hits, wrong 4 8 9: 6 / 9
    assert got.clean_metric_defended == pytest.approx((4 / 8 + 6 / 9) / 2)
    assert got.metric == "macro-f1"
    assert not {"clean_metric", "clean_metric_defended"} & set(got.intervals)  # it is no share of texts


def test_a_defense_that_rejects_its_mistakes_alone_betters_macro_f1(recorded) -> None:
    scores = detector({**PAPER, "test": [0, 0, 0, 0], "mistaken": [9, 9]}, STRICT)
    got = recorded(a_cell(dataset="demo:metric=macro-f1"), scores)
    # 8 and 9 have no answer: label 1 has 4 hits and 4 wrong, 8 / 9; label 0 as before
    assert got.clean_metric_defended == pytest.approx((8 / 9 + 6 / 9) / 2)


@pytest.mark.parametrize(("protocol", "at"), [("paper", 20.0), ("strict", 30.0)])
def test_every_figure_of_a_purifier(protocol: str, at: float, recorded) -> None:
    got = recorded(a_cell(protocol=protocol), purifier([10.0, 20.0, 30.0], **LOST))
    # paper: .25 is what the second level rejects; strict: (1 + 1) / 5 is above .25, (0 + 1) / 5 is not, so the third
    paper = {"frr_heldout": 1 / 4, "frr_test": 2 / 4, "far": 1 / 3, "asr_defended": 1 / 5, "clean_metric_defended": 5 / 10}
    strict = {"frr_heldout": 0.0, "frr_test": 1 / 4, "far": 2 / 3, "asr_defended": 2 / 5, "clean_metric_defended": 6 / 10}
    expected = paper if protocol == "paper" else strict
    assert {name: getattr(got, name) for name in expected} == pytest.approx(expected)
    assert got.threshold == at
    assert got.far_at_frr == {"0.01": None, "0.05": None}  # its levels reject at least a quarter of the test texts


def test_far_at_a_fixed_frr_is_a_point_of_the_test_texts_own_curve(recorded) -> None:
    test, poisoned = [float(n) for n in range(1, 101)], [99.5, 97.0, 96.0, 50.0]
    scores = detector({**PAPER, "test": test, "mistaken": [], "poisoned": poisoned}, STRICT)
    got = recorded(a_cell(), scores, labels=[1] * 100, chances=[0.9] * 100, triggered=[0.9] * 4)
    # 1 of 100 clean texts lies above 99 and 99.5 with it: 3 of 4 pass; 5 lie above 95: 1 of 4 passes
    assert got.far_at_frr == {"0.01": 0.75, "0.05": 0.25}


def test_a_purifier_s_far_at_a_fixed_frr_is_that_of_the_level_nearest_below(recorded) -> None:
    none, mistaken = "0" * 100, {"mistaken": [""] * 3}
    test = ["1" * 6 + "0" * 94, "1" * 4 + "0" * 96, none]
    lost = {"heldout": ["1111", "1000", "0000"], "test": test, "poisoned": ["1110", "1100", "1000"], **mistaken}
    got = recorded(a_cell(), purifier([1.0, 2.0, 3.0], **lost), labels=[1] * 100, chances=[0.9] * 100, triggered=[0.9] * 4)
    assert got.far_at_frr == {"0.01": 0.75, "0.05": 0.5}  # at most 1 %: the third level; at most 5 %: the second, 4 %


def test_the_control_has_no_far_and_its_asr_is_of_plain_texts(recorded) -> None:
    got = recorded(a_cell(attack="clean"), detector(PAPER, STRICT))
    assert got.status == "ok"
    assert got.asr == got.asr_anywhere == 2 / 5  # of the five texts of label 0, 8 and 9 are taken for label 1
    assert (got.far, got.auroc, got.asr_defended, got.survival, got.asrd, got.far_at_frr) == (None, None, None, None, None, {})
    assert got.frr_test == 2 / 4


def test_without_the_control_there_is_no_difference(recorded) -> None:
    got = recorded(a_cell(), detector(PAPER, STRICT))
    assert (got.asr_control, got.asrd, got.asr_before) == (None, None, None)


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_where_no_text_passes_the_gate_nothing_is_counted_and_the_record_can_be_kept(protocol: str, recorded, tmp_path: Path) -> None:
    none = {"test": [], "mistaken": [], "poisoned": []}
    got = recorded(a_cell(protocol=protocol), detector({**PAPER, **none}, {**STRICT, **none}), chances=[0.1] * 10, triggered=[0.1] * 5)
    assert (got.frr_test, got.far, got.auroc, got.intervals["far"], got.n_clean, got.n_poisoned) == (None, None, None, None, 0, 0)
    assert (got.asr, got.asr_defended, got.clean_metric, got.clean_metric_defended) == (0.0, 0.0, 0.5, 0.5)
    results.write([got], tmp_path)
    assert results.read(tmp_path) == [got]


# --- what is said about it


@pytest.mark.parametrize(("frr", "n"), [(0.25, 20), (0.1, 50), (0.05, 100), (0.01, 500)])
def test_a_threshold_that_rests_on_fewer_than_five_texts_is_warned_of(frr: float, n: int, recorded, tmp_path: Path) -> None:
    told = []
    for size in (n, n - 1):
        scores = detector({**PAPER, "heldout": list(range(size))}, {**STRICT, "heldout": list(range(size))})
        for protocol in ("paper", "strict"):
            store, keys = stored(tmp_path / f"{size} {protocol}", scores, heldout_labels=[1] * 1000)
            told.append(measure.record(a_cell(frr, protocol), keys, store).warnings)
    assert told[:2] == [(), ()]
    for warnings in told[2:]:
        assert len(warnings) == 1
        assert warnings[0].startswith(f"an allowed FRR of {frr:g} on {n - 1} held-out texts is ")


def test_too_few_calibration_texts_reject_nothing_and_say_how_many_it_takes(recorded) -> None:
    got = recorded(a_cell(0.01, "strict"), detector(PAPER, STRICT))
    assert got.status == "ok"
    assert (got.threshold, got.frr_heldout, got.frr_test, got.far) == (None, 0.0, 0.0, 1.0)
    assert (got.asr_defended, got.clean_metric_defended) == (got.asr, got.clean_metric)
    assert got.warnings == ("3 calibration texts are too few for an allowed FRR of 0.01, at least 99 are needed: nothing is rejected",)


def test_a_purifier_with_enough_texts_and_no_fitting_level_is_not_told_to_have_too_few(recorded) -> None:
    got = recorded(a_cell(0.39, "strict"), purifier([10.0, 20.0], **{name: lines[:2] for name, lines in LOST.items()}))
    assert (got.threshold, got.frr_test) == (None, 0.0)
    assert got.warnings == (
        "every level of the purifier rejects too many of the 4 calibration texts for an allowed FRR of 0.39: nothing is rejected",
    )


def test_under_the_paper_s_protocol_too_few_held_out_texts_fail_the_cell(recorded) -> None:
    got = recorded(a_cell(0.01), detector(PAPER, STRICT))
    assert (got.status, got.far, got.threshold, got.intervals) == ("failed", None, None, {})
    assert got.reason == (
        "the defender has 5 held-out texts of the protect label 1, an allowed FRR of 0.01 needs at least 100: "
        "give more held-out texts or allow at least 0.2000"
    )


def test_an_unfinished_cell_keeps_its_names_and_reason() -> None:
    got = measure.unfinished(a_cell(protocol="strict"), "skipped", "no use", {"data": "k"})
    assert (got.status, got.reason, got.protocol, got.dataset, got.frr) == ("skipped", "no use", "strict", "demo", 0.25)
    assert (got.far, got.artifacts) == (None, {"data": "k"})


# --- curves


def test_the_points_of_a_curve_are_worked_by_hand(tmp_path: Path) -> None:
    nine = {**STRICT, "heldout": list(range(1, 10)), "test": [8.5, 1, 1, 1], "poisoned": [10, 8.5, 2, 2]}
    store, keys = stored(tmp_path, detector(PAPER, nine))
    got = measure.curve(a_cell(protocol="strict"), keys, store)
    # of nine texts the ceil(10 * (1 - FRR))-th smallest: none below an FRR of .1, the 9th from there on, the 8th at .2
    assert [allowed for allowed, *_ in got.points] == [frr for frr in CURVE if frr >= 0.1]
    assert {point[1:] for point in got.points[:-1]} == {(0.0, 0.75)}
    assert got.points[-1] == (0.2, 0.25, 0.5)
    assert (got.protocol, got.dataset, got.defense) == ("strict", "demo", "strip")


def test_a_curve_reaches_from_a_thousandth_to_a_fifth_and_holds_what_the_cells_hold(tmp_path: Path) -> None:
    many = {**PAPER, "heldout": [float(n) for n in range(2000)], "test": [500.0, 1700, 1950, 1999], "poisoned": [1000.0, 1850, 1990]}
    store, keys = stored(tmp_path, detector(many, STRICT), heldout_labels=[1] * 2000)
    points = measure.curve(a_cell(), keys, store).points
    assert (len(points), points[0][0], points[-1][0]) == (40, 0.001, 0.2)
    for allowed, frr, far in (points[0], points[20], points[-1]):
        record = measure.record(a_cell(allowed), keys, store)
        assert (record.frr_test, record.far) == (frr, far)


def test_a_purifier_s_curve_leaves_out_what_no_level_reaches(tmp_path: Path) -> None:
    store, keys = stored(tmp_path, purifier([10.0, 20.0], **{name: [[*line, *line] for line in lines[:2]] for name, lines in LOST.items()}))
    # 2/8 is within 1.5 x FRR from 1/6 on, where one of the 8 texts is such a share
    assert [allowed for allowed, *_ in measure.curve(a_cell(), keys, store).points] == [frr for frr in CURVE if frr >= 1 / 6]
    assert measure.curve(a_cell(protocol="strict"), keys, store).points == ()


def curve_of(scores: Mapping[str, np.ndarray], protocol: str) -> Curve:
    with mock.patch.object(measure, "_scores", return_value=scores):
        return measure.curve(a_cell(protocol=protocol), {"score": ""}, Store(Path()))


SUSPICIONS = st.lists(st.integers(-9, 9).map(lambda n: n / 4), min_size=1, max_size=40)


@given(SUSPICIONS, SUSPICIONS, SUSPICIONS, st.sampled_from(["paper", "strict"]))
def test_along_a_detector_s_curve_frr_never_falls_and_far_never_rises(heldout, test, poisoned, protocol) -> None:
    points = curve_of(arrays(heldout=heldout, test=test, poisoned=poisoned), protocol).points
    if protocol == "paper":  # a point wherever one held-out text is such a share
        assert [allowed for allowed, *_ in points] == [allowed for allowed in CURVE if len(heldout) * allowed >= 1]
    for (allowed, frr, far), (later, later_frr, later_far) in pairwise(points):
        assert allowed < later
        assert frr <= later_frr
        assert far >= later_far


@given(SUSPICIONS, st.sampled_from([0.05, 0.1, 0.25, 0.5]))
def test_of_the_calibration_texts_no_larger_share_is_rejected_than_allowed(heldout, frr) -> None:
    assert decide(arrays(heldout=heldout), "strict", frr).rejected["heldout"].mean() <= frr


# --- properties of whole records


@st.composite
def splits(draw: st.DrawFn) -> dict[str, Any]:
    """Give labels, chances and triggered chances, and a suspicion for every text."""
    size, triggered = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    chances = st.sampled_from([0.1, 0.3, 0.6, 0.9])
    suspicion = st.integers(-5, 5).map(float)
    return {
        "labels": draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)),
        "chances": draw(st.lists(chances, min_size=size, max_size=size)),
        "triggered": draw(st.lists(chances, min_size=triggered, max_size=triggered)),
        "test": draw(st.lists(suspicion, min_size=size, max_size=size)),
        "poisoned": draw(st.lists(suspicion, min_size=triggered, max_size=triggered)),
        "heldout": draw(st.lists(suspicion, min_size=4, max_size=20)),
    }


def measured(own: Mapping[str, Any], protocol: str) -> Record:
    """Give the record of these splits at an allowed FRR of .25."""
    labels, probabilities = np.array(own["labels"]), of_yes(own["chances"])
    test, poisoned = np.array(own["test"]), np.array(own["poisoned"])
    part = {
        "heldout": own["heldout"],
        "test": test[clean_gate(probabilities, labels, 1)],
        "mistaken": test[mistaken_gate(probabilities, labels, 1)],
        "poisoned": poisoned[gate(of_yes(own["triggered"]), 1)],
    }
    given = {name: own[name] for name in ("labels", "chances", "triggered")}
    with TemporaryDirectory() as root:
        store, keys = stored(Path(root), detector(part, part), **given)
        return measure.record(a_cell(protocol=protocol), keys, store)


@settings(max_examples=40)
@given(splits(), st.sampled_from(["paper", "strict"]), st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_matter(own: dict[str, Any], protocol: str, chance: random.Random) -> None:
    def shuffled(*names: str) -> dict[str, list[Any]]:
        rows = list(zip(*(own[name] for name in names), strict=True))
        chance.shuffle(rows)
        return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))

    other = {**shuffled("labels", "chances", "test"), **shuffled("triggered", "poisoned"), **shuffled("heldout")}
    first, second = (asdict(measured(one, protocol)) for one in (own, other))
    assert first["status"] == "ok"
    for name in set(first) - {"verdicts"}:  # which say which texts
        assert second[name] == (pytest.approx(first[name]) if isinstance(first[name], float) else first[name])


@settings(max_examples=40)
@given(splits(), st.sampled_from(["paper", "strict"]))
def test_intervals_contain_their_rates_and_figures_are_shares(own: dict[str, Any], protocol: str) -> None:
    got = measured(own, protocol)
    for name, ends in got.intervals.items():
        value = getattr(got, name)
        if value is None:
            assert ends is None
        else:
            assert 0 <= ends[0] <= value + 1e-12
            assert value - 1e-12 <= ends[1] <= 1
    assert got.asr_defended <= got.asr
    if got.far is not None:
        assert got.asr_defended == pytest.approx(got.far * got.asr)
    assert got.clean_metric_defended <= got.clean_metric  # a rejected text is never right by accuracy


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_s_interval_contains_the_rate_and_lies_between_0_and_1(counts: tuple[int, int]) -> None:
    rate = Rate(*counts)
    ends = rate.interval()
    if not rate.n:
        assert (rate.value, ends) == (None, None)
        return
    assert 0 <= ends[0] <= rate.value + 1e-12
    assert rate.value - 1e-12 <= ends[1] <= 1
    assert ends[0] < ends[1]
