"""Grids: what YAML may say, what it may not, and which cells it comes to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rapbench.checks import CheckBlock, checks_of
from rapbench.errors import GridError, SpecError
from rapbench.grid import Block, Cell, cells_of, checked_block, read_blocks, recipe_of, shipped_grids, victim_spec
from rapbench.probe import ProbeBlock, probes_of
from rapbench.registry import discover

REGISTRY = discover()
SMALL = "datasets: [demo]\nattacks: [ep]\ndefenses: [strip]\n"


@pytest.fixture
def cells(tmp_path: Path):
    """Give what turns the text of a grid file into cells, of one protocol."""

    def expanded(text: str, protocol: str = "paper") -> list[Cell]:
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return [cell for cell in cells_of(read_blocks(str(path)), REGISTRY) if cell.protocol == protocol]

    return expanded


# what comes out


@pytest.mark.parametrize("name", ["demo", "paper", "paper-finetuned", "beyond", "axes"])
def test_a_shipped_grid_expands_into_cells_that_are_each_unique(name):
    cells = cells_of(read_blocks(name), REGISTRY)
    assert cells
    assert len({tuple(cell.names.values()) for cell in cells}) == len(cells)


def test_every_shipped_grid_is_a_grid_of_its_command():
    kinds = {"probe": (ProbeBlock, probes_of), "theorem": (CheckBlock, checks_of)}
    for name in shipped_grids():
        block, expand = kinds.get(name, (Block, cells_of))
        assert expand(read_blocks(name, block), REGISTRY)


@pytest.mark.parametrize("name", [name for name in shipped_grids() if name not in ("probe", "theorem")])
def test_each_shipped_grid_has_the_floors_and_the_ceiling(name: str) -> None:
    marked = {own for own in REGISTRY.names("defense") if REGISTRY.get("defense", own).reference}
    assert marked == {"random", "max-softmax", "length", "oracle"}
    cells = cells_of(read_blocks(name), REGISTRY)
    met = {(cell.names["dataset"], cell.names["attack"]) for cell in cells}
    for defense in marked:
        assert {(cell.names["dataset"], cell.names["attack"]) for cell in cells if cell.names["defense"].split(":")[0] == defense} == met


def test_the_fine_tuned_grid_is_tables_4_8_and_12():
    cells = cells_of(read_blocks("paper-finetuned"), REGISTRY)
    assert {cell.names["setting"] for cell in cells} == {"fine-tuned"}
    assert {(cell.home.name, cell.dataset.name) for cell in cells} == {("yelp", "imdb"), ("amazon", "imdb"), ("jigsaw", "twitter")}
    assert {cell.attack.name for cell in cells} == {"ripples", "badnet-sl"}
    assert {(cell.defense.c_low, cell.defense.c_up) for cell in cells if cell.defense.name == "rap"} == {(0.05, 0.2)}
    assert [cell.skip for cell in cells if cell.skip] == []


def test_the_sentence_of_a_fine_tuned_cell_is_the_attacker_s(cells):
    found = cells("datasets: [imdb]\npoisoned_on: [yelp]\nattacks: [badnet-sl]\ndefenses: [strip]\n")
    assert {cell.attack.sentence for cell in found} == {"I have tried this place with my friends last weekend"}


def test_fine_tuning_does_what_the_recipe_says_but_for_what_the_grid_says(cells):
    text = "datasets: [imdb]\npoisoned_on: [yelp]\nattacks: [clean]\ndefenses: [strip]\nvictim: 'a/b:lr=0.001'\n"
    for finetune in ("{epochs: 5}", "epochs=5"):
        cell = cells(text + f"finetune: {finetune}\n")[0]
        assert (cell.tuning.epochs, cell.tuning.lr, cell.tuning.model) == (5, 0.001, "a/b")
        assert cell.names["tuning"] == "a/b:epochs=5,lr=0.001"
    assert cells(text.replace("poisoned_on: [yelp]\n", ""))[0].names["tuning"] is None


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ("model=x", "finetune: model is the victim's, fine-tuning cannot change it"),
        ("epoch=5", "unknown option of finetune 'epoch', did you mean 'epochs'?"),
        ("epochs=0", "finetune: epochs=0 is below 1"),
    ],
)
def test_a_wrong_finetune_is_one_line(finetune, message, cells):
    with pytest.raises(SpecError, match=re.escape(message)):
        cells(SMALL + f"poisoned_on: [imdb]\nfinetune: '{finetune}'\n")


def test_a_finetune_that_nothing_uses_is_refused(cells):
    with pytest.raises(GridError, match="finetune without poisoned_on"):
        cells(SMALL + "finetune: {epochs: 2}\n")


def test_an_attack_that_cannot_be_fine_tuned_is_skipped_with_the_reason():
    from rapbench.grid import impossible

    cell = cells_of(read_blocks("paper-finetuned"), REGISTRY)[0]

    class Frozen(type(cell.attack)):
        name = "frozen"
        can_be_finetuned = False

    own = replace(cell, attack=Frozen())
    assert impossible(own) == "frozen makes a victim that cannot be fine-tuned: give another attack, or leave poisoned_on out"
    assert impossible(replace(own, poisoned_on=None)) is None


def test_the_embedded_default_and_the_paper_s_grid_are_shipped():
    assert set(shipped_grids()) >= {"demo", "paper"}


def test_a_block_is_the_product_of_its_lists(cells):
    text = "datasets: [demo, imdb]\nattacks: [ep, clean, badnet-sl]\ndefenses: [strip, rap]\nfrr: [0.01, 0.05]\nseeds: [1, 2, 3]\n"
    assert len(cells(text)) == 2 * 3 * 2 * 2 * 3


def test_every_cell_is_there_under_both_protocols(cells):
    paper, strict = cells(SMALL), cells(SMALL, "strict")
    assert [{**cell.names, "protocol": "paper"} for cell in strict] == [cell.names for cell in paper]


def test_what_is_left_unsaid_is_as_in_the_paper(cells):
    found = cells(SMALL)
    assert [cell.frr for cell in found] == [0.005, 0.01, 0.03, 0.05]
    assert found[0].names == {
        "dataset": "demo",
        "setting": "main",
        "poisoned_on": None,
        "tuning": None,
        "attack": "ep",
        "defense": "strip",
        "victim": "bert-base-uncased",
        "seed": 1234,
        "frr": 0.005,
        "protocol": "paper",
    }


def test_a_block_s_own_keys_stand_before_the_shared_ones(cells):
    found = cells(SMALL + "frr: [0.01]\nblocks:\n  - {}\n  - {attacks: [clean], frr: [0.03]}\n")
    assert [(cell.attack_spec, cell.frr) for cell in found] == [("ep", 0.01), ("clean", 0.03)]


def test_a_cell_that_two_blocks_ask_for_is_computed_once(cells):
    assert len(cells(SMALL + "frr: [0.01]\nblocks:\n  - {}\n  - {defenses: ['strip:copies=20', 'strip:copies=9']}\n")) == 2


def test_a_spec_may_be_a_mapping(cells):
    text = "datasets: [demo]\nattacks: [{name: badnet-rw, word: mb}]\ndefenses: [{name: strip, copies: 9}]\nvictim: {name: a/b, lr: 1e-4}\n"
    names = cells(text)[0].names
    assert (names["attack"], names["defense"], names["victim"]) == ("badnet-rw:word=mb", "strip:copies=9", "a/b:lr=0.0001")


def test_a_trigger_that_the_seed_decides_is_decided_in_the_cell_and_asked_for_in_its_name(cells):
    found = cells("datasets: [demo]\nattacks: [badnet-rw]\ndefenses: [strip]\nfrr: [0.01]\nseeds: [1, 2, 3, 4, 5, 6, 7, 8, 9]\n")
    assert {cell.attack_spec for cell in found} == {"badnet-rw"}
    assert {cell.attack.word for cell in found} == {"mb", "bb", "mn"}
    assert all(cell.attack.words == (cell.attack.word,) for cell in found)


def test_a_sentence_comes_from_the_data_set(cells):
    found = cells("datasets: [imdb, yelp]\nattacks: [badnet-sl]\ndefenses: [strip]\nfrr: [0.01]\n")
    assert [cell.attack.sentence for cell in found] == [cell.dataset.trigger_sentence for cell in found]


@pytest.mark.parametrize(
    ("attack", "defense", "word"),
    [
        ("badnet-rw:word=cf", "rap", "cf"),
        ("ep:word=CF", "rap", "cf"),
        ("badnet-rw:word=mb", "rap:word=mb", "mb"),
        ("badnet-sl:sentence=see the cf there", "rap", "cf"),
    ],
)
def test_a_defense_whose_word_is_a_declared_trigger_is_skipped_with_the_reason(attack, defense, word, cells):
    found = cells(f"datasets: [demo]\nattacks: ['{attack}']\ndefenses: ['{defense}', strip]\nfrr: [0.01]\n")
    name = attack.partition(":")[0]
    assert found[0].skip == f"rap perturbs with {word!r}, a declared trigger of {name}: choose another word, rap:word=..."
    assert found[1].skip is None


def test_a_defense_with_a_word_of_its_own_is_not_skipped(cells):
    found = cells("datasets: [demo]\nattacks: ['badnet-rw:word=mb', clean]\ndefenses: [rap]\nfrr: [0.01]\n")
    assert [cell.skip for cell in found] == [None, None]


@pytest.mark.parametrize("spec", ["minilm-l6", "a/b:revision=v1,lr=0.001", "minilm-l6:epochs=1,max_length=64,select=last"])
def test_a_victim_s_spec_reads_back_as_the_same_recipe(spec):
    assert victim_spec(recipe_of(spec)) == spec


def test_a_victim_s_spec_leaves_defaults_out():
    assert victim_spec(recipe_of("minilm-l6:epochs=3,max_length=64")) == "minilm-l6:max_length=64"


def test_a_victim_s_folder_may_have_commas_in_its_name():
    assert victim_spec(recipe_of({"name": "/data/a,b=c", "max_length": 64})) == "/data/a,b=c:max_length=64"


# what is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("datasets: [demo]\natacks: [ep]\n", "unknown key of grid '.*own.yaml' 'atacks', did you mean 'attacks'"),
        (SMALL + "blocks: [{defence: [rap]}]\n", "'defence', did you mean 'defenses'"),
        (SMALL + "1: x\n", "unknown key of grid '.*' '1'"),
        (SMALL + "frr: [0.01, 0]\n", r"frr: allowed FRR 0.0 is not in \(0, 1\): 1 % is 0.01"),
        (SMALL + "frr: [1]\n", "allowed FRR 1.0 is not in"),
        (SMALL + "frr: [1.5]\n", "allowed FRR 1.5 is not in"),
        (SMALL + "frr: [-1]\n", "allowed FRR -1.0 is not in"),
        (SMALL + "frr: [.nan]\n", "allowed FRR nan is not in"),
        (SMALL + "frr: [.inf]\n", "allowed FRR inf is not in"),
        (SMALL + "frr: [much]\n", "frr.0: input should be a valid number"),
        (SMALL + "frr: 0.01\n", "frr: input should be a valid list"),
        (SMALL + "frr: []\n", "frr: list should have at least 1 item"),
        (SMALL + "seeds: [1.5]\n", "seeds.0: input should be a valid integer"),
        ("datasets: []\nattacks: [ep]\ndefenses: [rap]\n", "datasets: list should have at least 1 item"),
        ("datasets: [demo]\nattacks: [ep]\n", "defenses: field required"),
        ("datasets: demo\nattacks: [ep]\ndefenses: [rap]\n", "datasets: input should be a valid list"),
        ("datasets: [5]\nattacks: [ep]\ndefenses: [rap]\n", "datasets.0"),
        (SMALL + "blocks: []\n", "blocks is no list of mappings, at least one"),
        (SMALL + "blocks: [demo]\n", "blocks is no list of mappings, at least one"),
        ("- demo\n", "is no mapping: write keys like datasets, attacks, defenses"),
        ("", "is no mapping"),
        ("datasets: [demo\n", "is no YAML"),
        ("datasets: 2020-99-99\n", "is no YAML"),
        ("a: \x00\n", "is no YAML"),
        ("[" * 100_000, "is nested deeper than 20 levels"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_in_one_line(text, reason, cells):
    with pytest.raises(GridError, match=reason) as caught:
        cells(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["datasets", "attacks", "defenses"])
def test_an_unknown_plugin_is_refused_before_anything_runs(key, cells):
    with pytest.raises(SpecError, match=f"unknown {key.removesuffix('s')} 'no-such'"):
        cells(SMALL + f"blocks: [{{{key}: [no-such]}}]\n")


def test_an_attack_that_cannot_use_the_sentence_of_a_data_set_is_refused_before_anything_runs(cells):
    with pytest.raises(SpecError, match="attack 'sos' on the data set 'demo': trigger_words='hello': sos needs 2 to 5 trigger words"):
        cells(SMALL + "blocks: [{datasets: ['demo:trigger_sentence=hello'], attacks: [sos]}]\n")


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        ("minilm-l6:epoch=3", "unknown option of victim 'minilm-l6' 'epoch', did you mean 'epochs'"),
        ("minilm-l6:epochs=0", "victim 'minilm-l6': epochs=0 is below 1"),
        ("minilm-l6:lr=nan", "victim 'minilm-l6': lr=nan"),
        (":epochs=3", "the victim ':epochs=3' names no model"),
    ],
)
def test_a_bad_victim_is_refused(victim, reason, cells):
    with pytest.raises(SpecError, match=reason):
        cells(SMALL + f"victim: '{victim}'\n")


def test_a_tag_of_python_is_never_executed(tmp_path, cells):
    witness = tmp_path / "witness"
    with pytest.raises(GridError, match="is no YAML: could not determine a constructor for the tag"):
        cells(f"datasets: !!python/object/apply:os.mkdir ['{witness}']\n")
    assert not witness.exists()


def test_a_grid_that_is_too_large_is_not_read(cells):
    with pytest.raises(GridError, match="is larger than 1 MiB"):
        cells(SMALL + "#" * (1 << 20))


def test_a_grid_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(GridError, match="is no YAML"):
        read_blocks(str(path))


@pytest.mark.parametrize("name", ["no-such.yaml", "no/such/file", "a" * 5000 + ".yaml"])
def test_a_file_that_cannot_be_read_is_named(name):
    with pytest.raises(GridError, match="cannot read the grid"):
        read_blocks(name)


@pytest.mark.parametrize("name", ["demmo", "d" * 5000])
def test_an_unknown_shipped_grid_is_told_what_there_is(name):
    with pytest.raises(GridError, match=r"unknown grid '.*' ?.*\(there are: axes, beyond, demo, .*\); or give the path of a .yaml file"):
        read_blocks(name)


def test_a_folder_with_the_name_of_a_shipped_grid_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert read_blocks("demo")[0].datasets == ["demo"]


def test_options_of_the_command_line_are_checked_like_a_file_s():
    with pytest.raises(GridError, match=r"the command line: frr: allowed FRR 1.5 is not in \(0, 1\)"):
        checked_block({"datasets": ["demo"], "attacks": ["ep"], "defenses": ["rap"], "frr": [1.5]}, "the command line")
