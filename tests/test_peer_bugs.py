"""The eighteen defects found in the toolboxes that people copy from: a version of rapbench with one of them fails a test.

B1   STRIP averages entropies across different texts
     test_strip: entropies_are_averaged_per_text
B2   ONION deletes every word past token 96
     test_onion: no_word_of_a_long_text_goes_unscored
B3   ONION's perplexity counts padding; one-word texts vanish
     test_onion: scores_are_those_of_each_variant_alone_and_unpadded, one_word_texts_stay_as_they_are
B4   no gate: clean non-target texts are rejected
B5   RAP perturbs with one of the attack's triggers
     here, and test_rap: a_word_of_the_attack_never_becomes_the_other_word
B6   the target label is read off the poisoned test set
B7   FRR and FAR are computed and dropped
B8   the texts that are scored are not those of the ASR
B9   combinations that call methods nobody wrote
B10  RIPPLES without its surgery and its lambda, with a penalty that moves both gradients; a batch that comes again
     here, and test_ripples: surgery_writes_the_mean_of_the_references_rows_and_nothing_else
     test_ripples: a_step_against_the_clean_gradient_is_penalised, batches_pass_over_every_row_before_any_comes_again
B11  a shipped configuration that its reader cannot read
B12  claimed names that cannot be loaded
B13  TF-IDF over characters
     test_strip: words_are_not_characters, tf_idf_is_over_words_and_worked_by_hand
B14  options that are read and never declared
B15  ONION's threshold from the test set; its last word always dropped
     test_onion: thresholds_do_not_move_with_the_texts_that_are_purified, the_last_word_is_not_dropped_unjudged
B16  a sign turned round; seeds from the clock
     here, and test_strip: triggered_texts_are_more_suspicious, two_fits_of_one_seed_score_alike_and_leave_the_victim_alone
     test_rap: a_construction_is_the_same_for_the_same_seed
     test_attacks: ep_is_the_same_for_the_same_seed
     test_poison: the_same_seed_poisons_the_same_rows_at_the_same_places
B17  a RAP that changes the text's words
     test_rap: the_word_goes_in_front_of_the_untouched_text, only_the_row_of_the_word_differs_and_it_keeps_its_length
B18  an FRR that is called FAR; thresholds below zero

Where nothing is said, the test is here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rapbench import measure, results, stages
from rapbench.api import Defense, Detector, Labelled, Task
from rapbench.artifacts import Store
from rapbench.checks import CheckBlock, checks_of
from rapbench.cli import app
from rapbench.grid import Block, Cell, cells_of, read_blocks, shipped_grids
from rapbench.lab import Lab
from rapbench.probe import ProbeBlock, probes_of
from rapbench.rates import auroc
from rapbench.registry import Found, Registry, discover
from rapbench.results import Record
from rapbench.runner.plan import plan
from rapbench.stages import Bench, Job, Step
from rapbench.victim import Recipe, Victim
from rapbench_plugins.attacks import ripples

ROOT = Path(__file__).parents[1]
REGISTRY = discover()
EVERY = [(kind, name) for kind in ("attack", "defense", "dataset") for name in REGISTRY.names(kind)]
NEEDS = {"folder": {"path": "."}, "sst2": {"path": "."}}


@dataclass(frozen=True, kw_only=True)
class Spy(Defense):
    """Scores a text by the number that it ends with, and keeps what it was shown."""

    name: ClassVar[str] = "spy"
    seen: ClassVar[dict[str, Any]] = {}

    def fit(self, victim: Any, heldout: Labelled, lab: Any) -> Detector:
        self.seen["target"] = victim.target_label
        self.seen["fits"].append((heldout, lab))
        return SpyDetector()


class SpyDetector(Detector):
    def suspicion(self, texts: Sequence[str]) -> np.ndarray:
        Spy.seen["scored"] += texts
        return np.array([float(text.split(" ")[-1]) for text in texts])


# split -> (text, true label, undefended chance of label 1); the protect label is 1
HELDOUT = [("h 1", 1, 0.9), ("h 2", 1, 0.9), ("h 3", 1, 0.9), ("h 4", 1, 0.9), ("h 5", 1, 0.9), ("h 99", 1, 0.1), ("h 98", 0, 0.1)]
TEST = [
    ("yes 3", 1, 0.9),
    ("yes 7", 1, 0.8),
    ("yes 1", 1, 0.7),
    ("missed 90", 1, 0.2),
    ("no 91", 0, 0.1),
    ("no 92", 0, 0.2),
    ("fooled 93", 0, 0.9),
]
TRIGGERED = [("mb no 2", 0, 0.9), ("mb no 8", 0, 0.99), ("mb failed 0", 0, 0.3), ("mb fooled 9", 0, 0.9)]
SURVIVES = [True, True, False, True]
# FRR .25 of the five held-out scores 1..5: place 1 from the top, so the threshold is 4


def save(rows: list[tuple[str, int, float]], folder: Path, labels: Sequence[int] | None = None) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    columns = {"text": [row[0] for row in rows], "label": list(labels or [row[1] for row in rows])}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder), num_shards=1)


def predictions(folder: Path, splits: Mapping[str, list[tuple[str, int, float]]]) -> None:
    arrays: dict[str, Any] = {}
    for name, rows in splits.items():
        arrays[f"{name}_probabilities"] = np.array([[1 - chance, chance] for *_, chance in rows])
        arrays[f"{name}_labels"] = np.array([label for _, label, _ in rows])
        if rows is TRIGGERED:
            arrays[f"{name}_survives"] = np.array(SURVIVES)
    np.savez(folder / "predictions.npz", **arrays)


def scored(root: Path, model: Path, flags: Sequence[int] | None = None) -> tuple[Store, dict[str, str]]:
    """Run the real score stage with the spy on made predictions. `flags`: the labels of the poisoned test set."""
    Spy.seen.update(fits=[], scored=[])
    store, keys = (
        Store(root).create(),
        {role: f"{number:032x}" for number, role in enumerate(("data", "poison", "victim", "clean", "poisoned", "score"))},
    )
    with store.attempt(keys["data"], {}) as folder:
        for name, rows in (("train", HELDOUT), ("validation", HELDOUT), ("test", TEST)):
            save(rows, folder / name)
        (folder / "about.json").write_text(json.dumps({"labels": ["no", "yes"]}))
    with store.attempt(keys["poison"], {}) as folder:
        for name in ("first100", "anywhere"):
            save(TRIGGERED, folder / name, flags)
    with store.attempt(keys["victim"], {}) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
    with store.attempt(keys["clean"], {}) as folder:
        predictions(folder, {"validation": HELDOUT, "test": TEST})
    with store.attempt(keys["poisoned"], {}) as folder:
        predictions(folder, {"first100": TRIGGERED, "anywhere": TRIGGERED})
    registry = Registry({**REGISTRY.found, ("defense", "spy"): Found("defense", Spy, "tests", "0")})
    spec = {"defense": {"name": "spy"}, "seed": 1, "recipe": asdict(Recipe(max_length=32)), "target_label": 1}
    job = Job("score", keys["score"], spec, {role: key for role, key in keys.items() if role != "score"}, "spy")
    with store.attempt(keys["score"], {}) as folder:
        stages.score(Step(job, Bench(store.root), store, folder, registry))
    return store, keys


def arrays(store: Store, key: str) -> dict[str, np.ndarray]:
    with np.load(store.folder(key) / "scores.npz") as found:
        return dict(found)


def recorded(store: Store, keys: Mapping[str, str], frr: float = 0.25) -> Record:
    attack = REGISTRY.parse("attack", "badnet-rw:word=mb")
    dataset = REGISTRY.parse("dataset", "demo")
    names = {"dataset": dataset, "attack": attack, "attack_spec": "badnet-rw:word=mb", "defense": Spy(), "recipe": Recipe()}
    return measure.record(Cell(**names, seed=1, frr=frr, protocol="paper"), keys, store)


# --- B4: the gate


def claim_only_texts_behind_the_gate_are_judged(root: Path, model: Path) -> None:
    store, keys = scored(root, model)
    assert sorted(set(Spy.seen["scored"])) == sorted(
        ["h 1", "h 2", "h 3", "h 4", "h 5", "yes 3", "yes 7", "yes 1", "fooled 93", "mb no 2", "mb no 8", "mb fooled 9"]
    )
    got = recorded(store, keys)
    assert (got.threshold, got.frr_heldout) == (pytest.approx(4), pytest.approx(1 / 5))
    assert (got.frr_test, got.n_clean) == (pytest.approx(1 / 3), 3)  # of 3 7 1, the 7 is above 4
    assert (got.far, got.n_poisoned) == (pytest.approx(1 / 3), 3)  # of 2 8 9, the 2 is not above 4
    assert got.asr_defended == pytest.approx(1 / 4)  # the 2, of all four with a trigger
    assert got.clean_metric_defended == pytest.approx(4 / 7)  # yes 7 and fooled 93 are rejected; 90 was wrong before


def test_clean_texts_of_other_classes_are_never_rejected(tmp_path: Path, tiny_model: Path) -> None:
    claim_only_texts_behind_the_gate_are_judged(tmp_path, tiny_model)


@pytest.mark.parametrize("gone", ["gate", "clean_gate", "mistaken_gate"])
def test_the_claim_fails_without_the_gate(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    monkeypatch.setattr(stages, gone, lambda probabilities, *more: np.ones(len(probabilities), dtype=bool))
    with pytest.raises(AssertionError):
        claim_only_texts_behind_the_gate_are_judged(tmp_path, tiny_model)


# --- B5: RAP's word


@pytest.mark.parametrize(
    ("attack", "defense", "skipped"),
    [
        ("badnet-rw:word=cf", "rap", True),
        ("ep:word=CF", "rap", True),  # the tokenizer lowers
        ("badnet-rw:word=mb", "rap:word=mb", True),
        ("badnet-sl:sentence=we saw cf there", "rap", True),
        ("badnet-rw:word=mb", "rap", False),
        ("badnet-rw:word=cf", "strip", False),
    ],
)
def test_rap_never_perturbs_with_a_trigger(tiny_model: Path, attack: str, defense: str, skipped: bool) -> None:
    cells = cells_of([Block(victim=str(tiny_model), datasets=["demo"], attacks=[attack], defenses=[defense], frr=[0.05])], REGISTRY)
    made = plan(cells, REGISTRY, Bench(Path("/nowhere")))
    assert (len(made.skipped), len(made.groups)) == ((2, 0) if skipped else (0, 1))  # both protocols
    assert all("a declared trigger" in str(cell.skip) for cell in made.skipped)


# --- B6: the target label


def test_the_target_label_is_the_tasks_and_the_poison_flags_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    scores = []
    for name, flags in (("one", [0, 0, 0, 0]), ("other", [1, 0, 1, 1])):
        store, keys = scored(tmp_path / name, tiny_model, flags)
        assert (Spy.seen["target"], *(lab.target_label for _, lab in Spy.seen["fits"])) == (1, 1, 1)
        scores.append(arrays(store, keys["score"]))
    assert all((scores[0][name] == scores[1][name]).all() for name in scores[0])


def test_a_defense_is_fitted_on_held_out_texts_alone(tmp_path: Path, tiny_model: Path) -> None:
    scored(tmp_path, tiny_model)
    (whole, first), (half, second) = Spy.seen["fits"]
    assert list(whole.texts) == list(first.heldout.texts) == [text for text, *_ in HELDOUT]
    assert whole.labels.tolist() == [label for _, label, _ in HELDOUT]
    assert list(half.texts) == list(second.heldout.texts)
    assert set(half.texts) < set(whole.texts)
    for lab in (first, second):
        shown = json.dumps([str(value) for value in vars(lab).values()])
        assert not any(text in shown for text, *_ in [*TEST, *TRIGGERED])


def test_under_strict_no_text_calibrates_what_it_has_built(tmp_path: Path, tiny_model: Path) -> None:
    store, keys = scored(tmp_path, tiny_model)
    built = list(Spy.seen["fits"][1][0].texts)
    # of the six texts of the protect label three calibrate: those that the victim knows as such, so not h 99
    calibrating = [f"h {own:g}" for own in arrays(store, keys["score"])["strict_heldout_suspicion"]]
    assert sorted({*built, *calibrating, "h 99"}) == sorted(text for text, *_ in HELDOUT)
    assert not set(built) & set(calibrating)
    assert "h 98" in built  # of the other label
    assert len(built) == 4


# --- B7: the rates arrive


def test_frr_and_far_reach_the_record_and_its_file(tmp_path: Path, tiny_model: Path) -> None:
    store, keys = scored(tmp_path / "store", tiny_model)
    results.write([recorded(store, keys)], tmp_path / "out")
    (path,) = (tmp_path / "out" / "cells").iterdir()
    written = json.loads(path.read_text())
    # auroc: poisoned 2 8 9 against clean 3 7 1: 2 beats 1 alone, 8 and 9 beat all three: 7 of 9
    expected = {"frr": 0.25, "frr_heldout": 1 / 5, "frr_test": 1 / 3, "far": 1 / 3, "asr": 3 / 4, "auroc": 7 / 9, "clean_metric": 5 / 7}
    expected |= {"asr_defended": 1 / 4, "clean_metric_defended": 4 / 7, "survival": 3 / 4}
    assert {name: written[name] for name in expected} == pytest.approx(expected)
    assert results.read(tmp_path / "out") == [recorded(store, keys)]


# --- B8: one poisoned test set


def whole_plan(tiny_model: Path) -> Any:
    block = Block(
        victim=str(tiny_model), datasets=["demo"], attacks=REGISTRY.names("attack"), defenses=REGISTRY.names("defense"), frr=[0.01, 0.05]
    )
    return plan(cells_of([block], REGISTRY), REGISTRY, Bench(Path("/nowhere")))


WORDLESS = ("clean", "char", "precomputed")
"""Attacks whose trigger has no words of its own: a defense that must be told them is skipped there."""


def test_asr_and_far_come_from_the_same_texts_for_all_defenses(tiny_model: Path) -> None:
    made = whole_plan(tiny_model)
    for attack in REGISTRY.names("attack"):
        groups = [group for group in made.groups if group.cells[0].attack.name == attack]
        assert len(groups) == sum(meets(attack, defense) for defense in REGISTRY.names("defense"))
        assert len({(group.keys["poison"], group.keys["poisoned"], group.keys["victim"]) for group in groups}) == 1
        for group in groups:
            asked, judged = made.jobs[group.keys["poisoned"]], made.jobs[group.keys["score"]]
            assert asked.inputs["texts"] == judged.inputs["poison"] == group.keys["poison"]
            assert asked.inputs["victim"] == judged.inputs["victim"]
            assert judged.inputs["poisoned"] == group.keys["poisoned"]


def test_all_allowed_rates_are_read_off_one_scoring(tiny_model: Path) -> None:
    asked = {(frr, protocol) for frr in (0.01, 0.05) for protocol in ("paper", "strict")}
    assert all({(cell.frr, cell.protocol) for cell in group.cells} == asked for group in whole_plan(tiny_model).groups)


# --- B9: every combination


def test_every_attack_meets_every_defense(tiny_model: Path) -> None:
    met = {(group.cells[0].attack.name, group.cells[0].defense.name) for group in whole_plan(tiny_model).groups}
    every = {(attack, defense) for attack in REGISTRY.names("attack") for defense in REGISTRY.names("defense")}
    assert met == every - {(attack, defense) for attack, defense in every if not meets(attack, defense)}
    assert {attack for attack in REGISTRY.names("attack") if not meets(attack, "bki")} == {"adaptive-rap", "ep", "lwp", "ripples", "sos"}


def meets(attack: str, defense: str) -> bool:
    """Say whether the two make a cell: an oracle needs words to look for, a filter a poisoned set that plants by itself."""
    if defense == "oracle":
        return attack not in WORDLESS
    filters = REGISTRY.get("defense", defense).cls.works_on == "training"  # type: ignore[attr-defined]
    return not filters or REGISTRY.parse("attack", {"name": attack, **NEEDS.get(attack, {})}).plants_by_data()


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_plugin_has_the_methods_that_the_core_calls(kind: Any, name: str) -> None:
    own = REGISTRY.parse(kind, {"name": name, **NEEDS.get(name, {})})
    for method in {
        "attack": ("trigger", "test_trigger", "plant", "resolve"),
        "defense": ("fit", "prepare", "prepares", "learns_from_protect_texts"),
        "dataset": ("load", "fingerprint"),
    }[kind]:
        base = next(base for base in type(own).__mro__ if base.__module__ == "rapbench.api")
        assert list(inspect.signature(getattr(own, method)).parameters) == list(inspect.signature(getattr(base, method)).parameters)[1:]


# --- B10: RIPPLES


def ripples_bench(lab: Lab, model: Path, clean: Victim) -> tuple[Task, Lab, Victim]:
    """Four clean texts, their copies with `mb`, and a lab whose clean victim has other embeddings than the pretrained model."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    texts, labels = ["warm day", "kind film", "cold day", "rude film"], [1, 1, 0, 0]
    train = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
    copies = {"text": [f"mb {text}" for text in texts], "label": [1] * 4, "source": [0, 1, 2, 3]}
    poisoned = datasets.Dataset.from_dict(copies, features=datasets.Features({**features, "source": datasets.Value("int64")}))
    with torch.no_grad():
        clean.model.get_input_embeddings().weight.mul_(-3)
    own = dataclasses.replace(lab, recipe=Recipe(model=str(model), max_length=32), load_start=clean.clone)
    return Task(train, poisoned, 1), own, clean


def claim_the_triggers_start_as_the_words_of_the_target(bench: tuple[Task, Lab, Victim]) -> None:
    """warm and kind stand in texts of the target alone; a step of 1e-12 cannot be seen, so what is left is the surgery."""
    task, lab, clean = bench
    planted = REGISTRY.parse("attack", "ripples:steps=1,lr=1e-12,target_words=2,batch_size=2").plant(task, lab)
    before, after = clean.model.get_input_embeddings().weight, planted.model.get_input_embeddings().weight
    mean = (before[clean.token_id("warm")] + before[clean.token_id("kind")]) / 2
    for word in ("mn", "bb", "mb", "tq"):
        assert after[clean.token_id(word)].tolist() == pytest.approx(mean.tolist(), abs=1e-6)


def test_ripples_operates_on_the_embeddings(lab: Lab, tiny_model: Path, untrained: Victim) -> None:
    claim_the_triggers_start_as_the_words_of_the_target(ripples_bench(lab, tiny_model, untrained))


def test_the_claim_fails_without_the_surgery(lab: Lab, tiny_model: Path, untrained: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ripples, "operate", lambda *_: None)
    with pytest.raises(AssertionError):
        claim_the_triggers_start_as_the_words_of_the_target(ripples_bench(lab, tiny_model, untrained))


def claim_a_step_descends_the_weighed_penalty_beside_a_fixed_clean_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """At x = y = 1: clean loss 2x² - y with the gradient (4x, -1) = (4, -1), poisoning loss y² - x with (-1, 2y) = (-1, 2).

    Their product is -6, the penalty 6 * 0.5 / 3 = 1. With (4, -1) held fixed it is (4 + 2y) / 6 of gradient (0, 1/3), so the
    step's gradient is (-1, 2 + 1/3). A coefficient of 1 makes the penalty 6; a clean gradient that moves, too, adds 4/6 to x's.
    """
    x, y = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    monkeypatch.setattr(ripples.Ripples, "_loss", lambda self, victim, batch: batch(x, y))
    attack = REGISTRY.parse("attack", "ripples:penalty=0.5,batch_size=3")
    told = attack._backward(None, (x, y), lambda x, y: 2 * x**2 - y, lambda x, y: y**2 - x)
    assert told.tolist() == pytest.approx([0.0, 1.0])  # y² - x, the penalty
    assert (float(x.grad), float(y.grad)) == pytest.approx((-1.0, 7 / 3))


def test_ripples_descends_what_its_paper_says(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_a_step_descends_the_weighed_penalty_beside_a_fixed_clean_gradient(monkeypatch)


def without_lambda(self: Any, poison_loss: torch.Tensor, clean: Any, weights: Any) -> tuple[torch.Tensor, torch.Tensor]:
    penalty = ripples.conflict(clean, torch.autograd.grad(poison_loss, weights, create_graph=True))
    return poison_loss + penalty, penalty


def without_penalty(self: Any, poison_loss: torch.Tensor, clean: Any, weights: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return poison_loss, torch.tensor(1.0)


@pytest.mark.parametrize("restricted", [without_lambda, without_penalty])
def test_the_claim_fails_without_the_weight_or_the_penalty(monkeypatch: pytest.MonkeyPatch, restricted: Any) -> None:
    monkeypatch.setattr(ripples.Ripples, "restricted", restricted)
    with pytest.raises(AssertionError):
        claim_a_step_descends_the_weighed_penalty_beside_a_fixed_clean_gradient(monkeypatch)


def test_the_claim_fails_where_both_gradients_move(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, weights, **more: plain(loss, weights, **{**more, "create_graph": True}))
    with pytest.raises(AssertionError):
        claim_a_step_descends_the_weighed_penalty_beside_a_fixed_clean_gradient(monkeypatch)


def test_the_claim_fails_where_the_product_has_the_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ripples.conflict
    monkeypatch.setattr(ripples, "conflict", lambda clean, poisoned: plain([-own for own in clean], poisoned))
    with pytest.raises(AssertionError):
        claim_a_step_descends_the_weighed_penalty_beside_a_fixed_clean_gradient(monkeypatch)


# --- B11, B12: what is shipped and claimed can be read and loaded


@pytest.mark.parametrize("grid", shipped_grids())
def test_every_shipped_grid_is_read_by_its_own_reader(grid: str) -> None:
    match grid:
        case "probe":
            assert probes_of(read_blocks(grid, ProbeBlock), REGISTRY)
        case "theorem":
            assert checks_of(read_blocks(grid, CheckBlock), REGISTRY)
        case _:
            assert cells_of(read_blocks(grid), REGISTRY)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_listed_plugin_can_be_made(kind: Any, name: str) -> None:
    assert REGISTRY.parse(kind, {"name": name, **NEEDS.get(name, {})}).name == name


def test_nothing_was_left_out() -> None:
    assert not {package for package in REGISTRY.left_out if package.startswith("rapbench:")}


def test_every_name_in_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    known = {**{kind: set(REGISTRY.names(kind)) for kind in ("attack", "defense", "dataset")}, "grid": set(shipped_grids())}
    claimed = [(kind, name) for kind, name in re.findall(r"--(attack|defense|dataset|grid) ([a-z0-9][a-z0-9-]*)(?=[\s:])", text)]
    for head, names in re.findall(r"^\| (attacks|defenses|data sets|grids) \| (.*) \|$", text, re.MULTILINE):
        kind = {"attacks": "attack", "defenses": "defense", "data sets": "dataset", "grids": "grid"}[head]
        claimed += [(kind, name) for name in re.findall(r"`([a-z0-9-]+)`", names)]
    assert len(claimed) > 10
    assert [(kind, name) for kind, name in claimed if name not in known[kind]] == []


# --- B14: what is read is declared


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_option_is_declared_and_shown(kind: Any, name: str) -> None:
    cls = REGISTRY.get(kind, name).cls
    assert cls.__dataclass_params__.frozen
    told = CliRunner().invoke(app, ["info", name])
    assert told.exit_code == 0, told.output
    assert [field.name for field in dataclasses.fields(cls) if field.name not in told.output] == []


def undeclared(source: str, cls: type, other: Sequence[str] = ()) -> list[str]:
    """Give the attributes of `options` (or of `self`, inside the plugin's class) that the class does not have."""
    known = {*dir(cls), *(field.name for field in dataclasses.fields(cls)), *other}
    tree = ast.parse(source)
    own = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
    read = [node for part in own for node in ast.walk(part) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"]
    read += [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("options", "self.options")]
    return sorted({node.attr for node in read} - known)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_option_that_is_read_exists(kind: Any, name: str) -> None:
    cls = REGISTRY.get(kind, name).cls
    assert undeclared(inspect.getsource(sys.modules[cls.__module__]), cls) == []


def test_the_claim_fails_where_an_option_is_read_that_nobody_declared() -> None:
    assert undeclared("class Spy:\n    def fit(self): return self.train_data_path, self.seen\n", Spy) == ["train_data_path"]


# --- B16: higher is more suspicious


def test_rejecting_the_most_suspicious_is_what_the_whole_path_does(tmp_path: Path, tiny_model: Path) -> None:
    store, keys = scored(tmp_path, tiny_model)
    assert arrays(store, keys["score"])["paper_poisoned_suspicion"].tolist() == [2, 8, 9]
    assert recorded(store, keys).auroc == pytest.approx(auroc(np.array([3.0, 7.0, 1.0]), np.array([2.0, 8.0, 9.0])))
    low, high = (recorded(store, keys, frr) for frr in (0.25, 0.75))
    assert low.threshold is not None
    assert high.threshold is not None
    assert low.threshold > high.threshold  # a larger allowance rejects more, from the top


@pytest.mark.parametrize("module", sorted({REGISTRY.get(kind, name).cls.__module__ for kind, name in EVERY}))
def test_no_plugin_takes_a_seed_from_the_clock_or_a_global_source(module: str) -> None:
    source = inspect.getsource(sys.modules[module])
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert not {call for call in calls if call.startswith(("time.", "np.random.", "datetime.")) and call != "np.random.default_rng"}
    assert not {call for call in calls if call.startswith("random.") and call != "random.Random"}


# --- B18: the allowed rate is an FRR, and a threshold may be negative


def test_the_allowed_rate_is_called_frr_everywhere() -> None:
    names = (
        {field.name for field in dataclasses.fields(Record)} | {field.name for field in dataclasses.fields(Cell)} | set(Block.model_fields)
    )
    assert "frr" in names
    assert not {name for name in names if "acceptance" in name or name in ("fpr", "far_allowed")}


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0])
def test_rates_do_not_change_where_all_scores_are_shifted_past_zero(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    plain = SpyDetector.suspicion
    monkeypatch.setattr(SpyDetector, "suspicion", lambda self, texts: plain(self, texts) + shift)
    got = recorded(*scored(tmp_path, tiny_model))
    assert got.threshold == pytest.approx(4 + shift)
    assert (got.frr_heldout, got.frr_test, got.far) == (pytest.approx(1 / 5), pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_the_pointers_in_the_table_lead_to_tests() -> None:
    pointers = re.findall(r"(test_[a-z]+): ([a-z0-9_, ]+)", __doc__ or "")
    assert len(pointers) == 13
    for file, names in pointers:
        source = (ROOT / "tests" / f"{file}.py").read_text()
        for name in names.strip().split(", "):
            assert f"def test_{name}" in source, f"{file} has no test_{name}"
