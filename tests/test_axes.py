"""The axes of a grid: what is varied alone around a block's own settings, and how many held-out texts a defender has."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from types import SimpleNamespace

import pytest

from rapbench.api import Defense
from rapbench.axes import AXES, Axes
from rapbench.errors import GridError, SpecError
from rapbench.grid import MAX_CELLS, Block, Cell, cells_of, checked_block, read_blocks
from rapbench.lab import rng
from rapbench.registry import discover
from rapbench.runner.session import Session, planned
from rapbench.testing.tiny import BAD, FILLER, GOOD

REGISTRY = discover()
BASE = {
    "victim": "a/b:lr=0.001",
    "datasets": ["demo"],
    "attacks": ["badnet-rw:word=mb", "badnet-sl", "clean"],
    "defenses": ["strip:copies=9", "rap"],
    "frr": [0.01],
    "seeds": [1],
}


def cells(axes: dict, **changes: object) -> list[Cell]:
    """Give the cells of the block with these axes, under one protocol."""
    block = checked_block({**BASE, **changes, "axes": axes}, "the test")
    return [cell for cell in cells_of([block], REGISTRY) if cell.protocol == "paper"]


def added(axes: dict, **changes: object) -> list[Cell]:
    """Give the cells that the axes add to the block's own, which stand first and are as they were."""
    own, found = cells({}, **changes), cells(axes, **changes)
    assert [cell.names for cell in found[: len(own)]] == [cell.names for cell in own]
    return found[len(own) :]


# what each axis changes

RW, SL = "badnet-rw:word=mb", "badnet-sl"


@pytest.mark.parametrize(
    ("axes", "name", "becomes"),
    [
        # the attacks that poison; `clean` has no rate to change
        ({"poison_rate": [0.05]}, "attack", {RW: "badnet-rw:poison_rate=0.05,word=mb", SL: "badnet-sl:poison_rate=0.05"}),
        # one of the attacks alone has an option for the number of its trigger words
        ({"triggers": [2]}, "attack", {RW: "badnet-rw:word=mb,count=2"}),
        ({"epochs": [9]}, "victim", {"a/b:lr=0.001": "a/b:epochs=9,lr=0.001"}),
        ({"heldout": [16]}, "defense", {"strip:copies=9": "strip:heldout=16,copies=9", "rap": "rap:heldout=16"}),
        ({"victim": ["c/d"]}, "victim", {"a/b:lr=0.001": "c/d:lr=0.001"}),
    ],
)
def test_an_axis_changes_what_it_says_and_nothing_else(axes, name, becomes):
    own = [cell.names for cell in cells({}) if cell.names[name] in becomes]
    assert [cell.names for cell in added(axes)] == [{**names, name: becomes[names[name]]} for names in own]


def test_each_axis_is_varied_alone():
    found = added({"epochs": [1, 2], "heldout": [16]}, attacks=["clean"], defenses=["strip"])
    assert [(cell.recipe.epochs, cell.defense.heldout) for cell in found] == [(1, None), (2, None), (3, 16)]


def test_the_axes_are_the_keys_of_axes():
    assert set(AXES) == set(Axes.model_fields) == {"poison_rate", "triggers", "epochs", "heldout", "victim"}


@pytest.mark.parametrize("mapping", [False, True])
def test_what_a_spec_says_beside_the_axis_stays(mapping):
    spec = {"name": "strip", "copies": 9} if mapping else "strip:copies=9"
    found = added({"heldout": [16]}, defenses=[spec], attacks=["clean"])
    assert [(cell.defense.copies, cell.defense.heldout) for cell in found] == [(9, 16)]


def test_all_is_all_held_out_texts_where_the_block_has_fewer():
    found = added({"heldout": [16, "all"]}, defenses=["rap:heldout=64"], attacks=["clean"])
    assert [cell.defense.heldout for cell in found] == [16, None]
    assert [cell.names["defense"] for cell in found] == ["rap:heldout=16", "rap"]


def test_the_trigger_words_of_an_attack_are_as_many_as_the_axis_says():
    found = added({"triggers": [2, 3]}, attacks=[RW], defenses=["strip"])
    texts = [cell.attack.trigger("one two three", rng(1, "any"), None).split() for cell in found]
    assert [sorted({*text} - {"one", "two", "three"}) for text in texts] == [["bb", "mb"], ["bb", "mb", "mn"]]


def test_every_option_that_is_named_for_trigger_words_is_there():
    named = {
        found.name: option
        for found in REGISTRY.found.values()
        if found.kind == "attack" and (option := getattr(found.cls, "triggers_option", None))
    }
    assert named["badnet-rw"] == "count"
    options = {name: {f.name for f in dataclasses.fields(REGISTRY.get("attack", name).cls)} for name in named}
    assert [name for name, option in named.items() if option not in options[name]] == []


def test_another_victim_is_trained_by_the_same_recipe_but_for_what_it_says():
    values = ["c/d:epochs=9", {"name": "/data/x,y", "max_length": 64}]
    found = added({"victim": values}, victim="a/b:lr=0.001,revision=v1", attacks=["clean"], defenses=["strip"])
    recipes = [cell.recipe for cell in found]
    assert [(one.model, one.epochs, one.lr, one.max_length) for one in recipes] == [("c/d", 9, 0.001, 512), ("/data/x,y", 3, 0.001, 64)]
    assert [one.revision for one in recipes] == [None, None]  # a commit is one model's


def test_the_same_model_keeps_its_revision():
    found = added({"victim": ["a/b:layers=2"]}, victim="a/b:revision=v1", attacks=["clean"], defenses=["strip"])
    assert [(cell.recipe.revision, cell.recipe.layers) for cell in found] == [("v1", 2)]


def test_an_axis_of_a_block_is_that_blocks(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "datasets: [demo]\nattacks: [clean]\nfrr: [0.01]\nblocks:\n  - {defenses: [strip], axes: {heldout: [16]}}\n  - {defenses: [rap]}\n"
    )
    names = [cell.names["defense"] for cell in cells_of(read_blocks(str(path)), REGISTRY) if cell.protocol == "paper"]
    assert names == ["strip", "strip:heldout=16", "rap"]


def test_fine_tuning_by_the_victims_recipe_goes_along_with_it():
    changes = {"poisoned_on": ["imdb"], "datasets": ["yelp"], "attacks": ["clean"], "defenses": ["strip"]}
    assert [(cell.recipe.epochs, cell.tuning.epochs) for cell in added({"epochs": [5]}, **changes)] == [(5, 5)]
    own = {**changes, "finetune": "epochs=2"}
    assert [(cell.recipe.epochs, cell.tuning.epochs) for cell in added({"epochs": [5]}, **own)] == [(5, 2)]


# what makes no second cell


@pytest.mark.parametrize(
    "axes",
    [
        {"poison_rate": [0.1]},
        {"triggers": [1]},
        {"epochs": [3]},
        {"heldout": ["all"]},
        {"victim": ["a/b", "a/b:lr=0.001", {"name": "a/b"}]},
        {},
    ],
)
def test_a_value_that_the_block_has_makes_no_second_cell(axes):
    assert added(axes) == []


def test_a_value_that_stands_twice_is_one_cell():
    assert len(added({"heldout": [16, 16], "epochs": [1, 1]}, attacks=["clean"], defenses=["strip"])) == 2


# what is refused


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"heldot": [16]}, "unknown axis 'heldot', did you mean 'heldout'?"),
        ({"poison_rates": [0.1]}, "unknown axis 'poison_rates', did you mean 'poison_rate'?"),
        ({"seeds": [1]}, "unknown axis 'seeds'"),
        ({"heldout": []}, "axes.heldout: list should have at least 1 item"),
        ({"heldout": [0]}, "axes.heldout: 0 is below 1"),
        ({"heldout": [-1]}, "axes.heldout: -1 is below 1"),
        ({"heldout": ["most"]}, "axes.heldout: 'most' is no number of texts: give numbers from 1 up, or all"),
        ({"heldout": ["16"]}, "axes.heldout: '16' is no number of texts"),
        ({"heldout": [True]}, "axes.heldout.0"),
        ({"heldout": [1.5]}, "axes.heldout.0"),
        ({"heldout": 16}, "axes.heldout: input should be a valid list"),
        ({"triggers": [0]}, "axes.triggers: 0 is below 1"),
        ({"triggers": ["all"]}, "axes.triggers.0: input should be a valid integer"),
        ({"epochs": [0]}, "axes.epochs: 0 is below 1"),
        ({"poison_rate": [0]}, "axes.poison_rate: 0.0 is no share: give numbers above 0 and at most 1"),
        ({"poison_rate": [1.01]}, "axes.poison_rate: 1.01 is no share"),
        ({"poison_rate": [float("nan")]}, "axes.poison_rate: nan is no share"),
        ([16], "axes: write a mapping like {heldout: [16, 64, all]}, not [16]"),
        (None, "axes: write a mapping like {heldout: [16, 64, all]}, not None"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused_in_one_line(axes, message):
    with pytest.raises(GridError, match=re.escape(message)) as caught:
        cells(axes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the test: ")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"triggers": [5]}, "count=5: give 1 to 4 rare words"),
        ({"victim": [":epochs=1"]}, "names no model"),
        ({"victim": ["c/d:epoch=1"]}, "unknown option of victim 'c/d' 'epoch', did you mean 'epochs'"),
        ({"victim": [{"epochs": 1}]}, "has no name"),
    ],
)
def test_a_value_that_no_plugin_takes_is_refused_before_anything_runs(axes, message):
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        cells(axes)
    assert "\n" not in str(caught.value)


def test_the_size_of_a_block_counts_each_value_of_each_axis():
    # 3 attacks x 2 defenses, computed for the block itself, two epochs and one victim
    assert Block(**BASE, axes={"epochs": [1, 2], "victim": ["c/d"]}).size == 6 * 4
    assert Block(**BASE).size == 6


def test_a_grid_that_its_axes_make_too_large_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    rates = [round(0.001 + number / 10_000, 4) for number in range(200)]
    grid = "datasets: [demo]\nattacks: [ep]\ndefenses: [strip]\nfrr: [0.01]\nseeds: {seeds}\naxes: {{poison_rate: {rates}}}\n"
    path.write_text(grid.format(seeds=list(range(1000)), rates=rates))  # 1,000 seeds x 201 x 2 protocols
    with pytest.raises(GridError, match=f"comes to more than {MAX_CELLS:,} cells"):
        read_blocks(str(path))


@pytest.mark.parametrize("name", ["strip", "rap", "onion", "random", "max-softmax", "length", "oracle"])
def test_every_defense_refuses_to_have_no_held_out_texts(name):
    with pytest.raises(SpecError, match="heldout=0 is below 1"):
        REGISTRY.parse("defense", f"{name}:heldout=0")


# what the defender has

STRANGER = '''
from dataclasses import dataclass
from typing import ClassVar
from rapbench import Defense, Detector, hookimpl
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Witness(Defense):
    """Tells which held-out texts it has seen."""

    name: ClassVar[str] = "witness"

    def fit(self, victim, heldout, lab):
        return Testimony(list(heldout.texts), heldout.labels.tolist(), list(lab.heldout.texts))


class Testimony(Detector):
    def __init__(self, *seen):
        self.seen = seen

    def suspicion(self, texts):
        return np.array([float(len(text)) for text in texts])

    def notes(self):
        texts, labels, of_lab = self.seen
        return {"texts": texts, "labels": labels, "of_lab": of_lab}


@hookimpl
def rapbench_defenses():
    return [Witness]
'''
HELDOUT = 120


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_model):
    """What a defense was shown, by held-out size and protocol, in a grid with the axis; no two texts of the split are equal."""
    data, draw = tmp_path_factory.mktemp("axes-data"), random.Random(3)
    for split, size in (("train", 160), ("validation", HELDOUT), ("test", 40)):
        sides = [GOOD if row % 2 else BAD for row in range(size)]
        texts = [f"{draw.choice(side)} {draw.choice(FILLER)} {draw.choice(side)} x{row}" for row, side in enumerate(sides)]
        (data / f"{split}.csv").write_text("text,label\n" + "".join(f"{text},{row % 2}\n" for row, text in enumerate(texts)))
    place = tmp_path_factory.mktemp("site")
    about = place / "axes_stranger-1.0.dist-info"
    about.mkdir()
    (place / "axes_stranger.py").write_text(STRANGER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: axes-stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[rapbench]\nstranger = axes_stranger\n")
    own = Block(
        victim=f"{tiny_model}:epochs=3,lr=0.003,batch_size=16,max_length=32",
        datasets=[f"folder:path={data}"],
        attacks=["clean"],
        defenses=["witness"],
        frr=[0.25],
        seeds=[1],
        axes={"heldout": [16, 64, 10_000]},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        registry, out = discover(), tmp_path_factory.mktemp("out")
        plan, bench = planned(cells_of([own], registry), registry, out, device="cpu", threads=1)
        records = Session(plan, bench, out, "serial").run(lambda done: None, lambda total: None)
        sys.modules.pop("axes_stranger", None)
    found = {(one.defense.removeprefix("witness").removeprefix(":heldout=") or "all", one.protocol): one for one in records}
    return SimpleNamespace(plan=plan, found=found)


def shown(ran, size: str, protocol: str) -> set[str]:
    return set(ran.found[size, protocol].notes["texts"])


def test_every_cell_of_the_axis_is_ok(ran):
    assert {key: one.reason for key, one in ran.found.items() if one.status != "ok"} == {}


def test_a_defender_is_shown_as_many_texts_as_he_has(ran):
    assert [len(shown(ran, size, "paper")) for size in ("16", "64", "10000", "all")] == [16, 64, HELDOUT, HELDOUT]


def test_a_defender_with_fewer_texts_has_some_of_those_of_one_with_more(ran):
    assert shown(ran, "16", "paper") < shown(ran, "64", "paper") < shown(ran, "all", "paper")


def test_fewer_texts_are_of_all_labels_and_in_the_order_of_the_split(ran):
    one, full = ran.found["16", "paper"].notes, ran.found["all", "paper"].notes
    assert set(one["labels"]) == {0, 1}
    assert [text for text in full["texts"] if text in shown(ran, "16", "paper")] == one["texts"]


def test_strict_fits_and_calibrates_on_what_he_has_and_nothing_more(ran):
    for size in ("16", "64", "all"):
        paper, strict = ran.found[size, "paper"], ran.found[size, "strict"]
        assert shown(ran, size, "strict") < shown(ran, size, "paper")
        protect = sum(paper.notes["labels"])
        # half of his texts of the protect label, the odd one with it, calibrate; all others are shown to the fit
        assert len(shown(ran, size, "strict")) == len(shown(ran, size, "paper")) - (protect + 1) // 2
        assert paper.n_heldout <= protect
        assert strict.n_heldout <= (protect + 1) // 2


def test_the_lab_has_no_other_held_out_texts(ran):
    for one in ran.found.values():
        assert one.notes["of_lab"] == one.notes["texts"]


def test_the_axis_of_the_defender_trains_no_victim_again(ran):
    assert [job.stage for job in ran.plan.jobs.values()].count("victim") == 1
    assert [job.stage for job in ran.plan.jobs.values()].count("score") == 4


def test_the_held_out_option_is_every_defenses():
    assert {f.name for f in dataclasses.fields(Defense)} == {"heldout"}
