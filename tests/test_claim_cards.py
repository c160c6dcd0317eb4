"""Published claims as cards: what they hold, our figures beside them, their cells computed again. Examples of docs/claims.md."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import made_results
import pytest
import yaml

from rapbench import results
from rapbench.claims.again import Wish, again
from rapbench.claims.beside import Filed, Held, beside
from rapbench.claims.card import Card, Paper, Reported, Source, chosen, plain, read, shipped, text
from rapbench.claims.render import compared, write
from rapbench.cost import Cost
from rapbench.errors import SpecError, StoreError
from rapbench.grid import Block, cells_of, recipe_of, victim_spec
from rapbench.registry import discover, spec_of
from rapbench.report.claims import CLAIMS
from rapbench.report.published import DATASETS, printed
from rapbench.results import Histogram

BERT = "bert-base-uncased"
GRID = {"victim": BERT, "datasets": ["imdb"], "attacks": ["badnet-rw"], "defenses": ["rap"], "frr": [0.01, 0.05], "seeds": [1]}
FAR = Reported(quantity="far", value=2.0, unit="%", frr=0.01, held="at most", tolerance=1.0)
CARD = Card(
    id="made",
    paper=Paper(name="P", title="A paper", venue="V", arxiv="1234.56789"),
    source=Source(where="Table 1"),
    statement="It is so.",
    command="run",
    grid=GRID,
    figures=(FAR,),
    needs="imdb",
)
RECORD = replace(made_results.RECORD, victim=BERT, seed=1, far=0.03, n_poisoned=400, intervals={"far": (0.017, 0.052)})


def held(*records: results.Named) -> Held:
    return Held([Filed(f"r/{number}.json", one) for number, one in enumerate(records)])


def ours_of(reported: Reported, *records: results.Named, card: Card = CARD):
    (ours,) = beside(replace(card, figures=(reported,)), held(*records)).ours
    return ours


# The cards that are shipped


def test_every_shipped_card_can_be_read_and_its_name_is_its_id():
    cards = shipped()
    ids = [one.id for one in cards]
    assert len(set(ids)) == len(ids) == 92
    assert ids == sorted(ids)


def test_every_cell_of_a_shipped_card_is_one_of_the_registry_and_written_as_results_write_it():
    registry = discover()
    for card in shipped():
        if not card.command:
            continue
        block = card.block
        assert victim_spec(recipe_of(block.victim)) == block.victim
        named = {"dataset": [*block.datasets, *block.poisoned_on], "attack": block.attacks}
        named["defense"] = getattr(block, "defenses", [])
        for kind, specs in named.items():
            assert [spec_of(registry.parse(kind, spec)) for spec in specs] == specs, card.id
        if isinstance(block, Block):
            assert [cell.skip for cell in cells_of([block], registry) if cell.skip] == []


def test_every_number_of_the_papers_tables_is_on_one_card_and_as_printed():
    """Tables 1 and 7-12: 572 numbers, 34 of which the paper prints as a dash."""
    names = {"FAR": "far", "FRR": "frr_test", "ASR": "asr_anywhere", "clean metric": "clean_metric"}
    names |= {"best k": "best k", "probe ASR": "probe asr"}
    attacks = {"badnet": "badnet-rw"}
    expected = Counter()
    for one in printed():
        if one.value is not None:
            spot, attack = one.spot, one.spot.attack.lower()
            place = spot.target, spot.poisoned, attacks.get(attack, attack), (spot.defense or "").lower(), spot.frr, spot.source
            expected[*place, names[spot.quantity], one.value, one.doubt] += 1
    found = Counter()
    for card in shipped():
        if card.paper.name != "RAP" or not card.source.where.startswith("Table ") or not card.command:
            continue
        block = card.block
        target = DATASETS[block.datasets[0]]
        poisoned = DATASETS[block.poisoned_on[0]] if block.poisoned_on else target
        for one in card.figures:
            alone = one.quantity in ("far", "frr_test", "best k")
            defense = block.defenses[0].partition(":")[0] if alone else ""
            attack = (one.attack or block.attacks[0]).partition(":")[0]
            found[target, poisoned, attack, defense, one.frr, one.source, one.quantity, one.value, one.doubt] += 1
    assert sum(expected.values()) == 572 - 34
    assert found == expected


def test_what_is_in_doubt_in_print_is_marked_on_the_card():
    doubted = {card.id for card in shipped() for one in card.figures if one.doubt}
    assert doubted == {"rap-yelp-ep-onion", "rap-yelp-badnet-rw-strip"}


def test_each_shape_claim_has_a_card_that_says_the_same():
    cards = {one.shape: card for card in shipped() for one in card.figures if one.quantity == "shape"}
    assert {number: card.statement for number, card in cards.items()} == {number: f"{claim}." for number, claim in CLAIMS.items()}


def test_cards_are_chosen_by_patterns_of_id_paper_and_arxiv_number():
    assert [one.id for one in chosen(shipped(), ids=["*-cost-*"])] == ["rap-cost-onion", "rap-cost-rap", "rap-cost-strip"]
    assert [one.id for one in chosen(shipped(), papers=["1911.*"])] == ["strip-vita-text"]
    with pytest.raises(SpecError, match="no claim matches 'nothing'"):
        chosen(shipped(), ids=["nothing"])


# Broken cards


def test_a_card_is_read_back_as_it_was_written(tmp_path):
    (tmp_path / "made.json").write_text(text(CARD))
    assert read(tmp_path) == (CARD,)
    assert "protocol" not in plain(CARD)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"id": "other"}, "id: 'other' is not the file's name"),
        ({"statment": "x"}, "statment: Unexpected keyword argument"),
        ({"figures": []}, "there is none, and a claim is about at least one"),
        ({"figures": [{"quantity": "fra", "value": 1, "unit": "%"}]}, "figures.0.quantity: Input should be 'far'"),
        ({"figures": [{"quantity": "far", "value": 1, "unit": "%", "frr": 0.02}]}, "far at 2 %: the grid has no allowed FRR 0.02"),
        ({"figures": [{"quantity": "far", "value": 1, "unit": "%", "attack": "ep"}]}, "attack is one of badnet-rw"),
        ({"figures": [{"quantity": "shape", "value": 1, "unit": "truth", "shape": 10}]}, "is one of 1 to 9"),
        ({"grid": {**GRID, "frr": [5]}}, "allowed FRR 5.0 is not in"),
        ({"grid": {}}, "command and grid go together"),
        ({"needs": ""}, "needs: say what recomputing takes"),
        ({"protocol": "loose"}, "protocol: 'loose' is none"),
    ],
)
def test_a_broken_card_is_refused_in_one_line_that_names_it(change, wrong, tmp_path):
    (tmp_path / "made.json").write_text(json.dumps({**plain(CARD), **change}))
    with pytest.raises(SpecError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith("'made.json' is no claim card: ")
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_no_card(tmp_path):
    (tmp_path / "made.json").write_text("{")
    with pytest.raises(SpecError, match=r"'made.json' is no claim card"):
        read(tmp_path)


# Ours beside


@pytest.mark.parametrize(
    ("how", "ours", "true"),
    [
        ("at most", 3.0, True),
        ("at most", 3.1, False),
        ("at most", 0.0, True),
        ("at least", 1.0, True),
        ("at least", 0.9, False),
        ("within", 1.0, True),
        ("within", 3.0, True),
        ("within", 3.1, False),
        ("within", 0.9, False),
    ],
)
def test_two_give_or_take_one_is_borne_out_up_to_its_bounds(how, ours, true):
    assert replace(FAR, held=how).bears_out(ours) is true


def test_a_figure_is_the_cells_in_per_cent_with_interval_and_file():
    """FAR 3 % is at most 2 + 1 %, and its interval, 1.7 to 5.2 %, reaches beyond."""
    ours = ours_of(FAR, RECORD)
    assert (ours.state, ours.value, ours.n, ours.seeds, ours.files) == ("held", 3.0, 400, (1,), ("r/0.json",))
    assert ours.interval == pytest.approx((1.7, 5.2))
    assert ours.settled is False
    assert ours_of(FAR, replace(RECORD, far=0.01, intervals={"far": (0.005, 0.02)})).settled is True
    over = ours_of(FAR, replace(RECORD, far=0.09, intervals={"far": (0.07, 0.12)}))
    assert (over.state, over.settled) == ("not held", True)


def test_seeds_are_averaged_and_the_interval_reaches_over_all_of_them():
    """(3 + 5) / 2 = 4 %, above 3; 1.7 to 8 %."""
    ours = ours_of(FAR, RECORD, replace(RECORD, seed=2, far=0.05, n_poisoned=300, intervals={"far": (0.03, 0.08)}))
    assert (ours.state, ours.value, ours.n, ours.seeds) == ("not held", pytest.approx(4.0), 300, (1, 2))
    assert ours.interval == pytest.approx((1.7, 8.0))
    assert ours.settled is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"victim": "minilm-l6:epochs=2"}, "victim minilm-l6:epochs=2 for bert-base-uncased"),
        ({"dataset": "imdb:max_test=100"}, "data imdb:max_test=100"),
        ({"attack": "badnet-rw:poison_rate=0.5"}, "attack badnet-rw:poison_rate=0.5 for badnet-rw"),
        ({"defense": "rap:retries=0"}, "defense rap:retries=0 for rap"),
    ],
)
def test_another_victim_data_or_option_is_not_comparable_and_said(change, said):
    found = beside(CARD, held(replace(RECORD, **change)))
    assert (found.state, found.ours[0].differs, found.ours[0].bears_out) == ("not comparable", (said,), True)
    assert found.reason == f"1 of 1 figures would hold; {said}"


def test_options_of_data_that_change_no_text_are_no_difference():
    assert ours_of(FAR, replace(RECORD, dataset="imdb:revision=abc")).state == "held"


def test_of_several_victims_the_one_like_the_cards_speaks():
    other = replace(RECORD, victim="minilm-l6", far=0.9, intervals={})
    assert ours_of(FAR, other, RECORD).value == 3.0


@pytest.mark.parametrize(
    "change",
    [{"dataset": "yelp"}, {"poisoned_on": "yelp"}, {"attack": "ep"}, {"defense": "strip"}, {"frr": 0.05}, {"protocol": "strict"}],
)
def test_a_result_of_another_cell_is_not_taken(change):
    ours = ours_of(FAR, replace(RECORD, **change))
    assert (ours.state, ours.value, ours.reason) == ("not computed", None, "no such cell in these results")


def test_a_cell_that_failed_leaves_its_reason():
    failed = replace(RECORD, status="failed", reason="no hub", far=None)
    assert beside(CARD, held(failed)).reason == "failed: no hub"
    assert ours_of(FAR, replace(RECORD, far=None)).reason == "nothing could be counted"


def test_a_claim_is_held_where_nothing_that_was_computed_speaks_against_it():
    """FAR 3 % of at most 3; at 5 % there is none; the FRR, 1.2 %, is not within 0.5 of 5 but that is in doubt."""
    other = replace(FAR, frr=0.05)
    doubted = Reported(quantity="frr_test", value=5.0, unit="%", frr=0.01, tolerance=0.5, doubt="ten times its neighbours")
    found = beside(replace(CARD, figures=(FAR, other, doubted)), held(RECORD))
    assert [one.state for one in found.ours] == ["held", "not computed", "not held"]
    assert (found.state, found.reason) == ("held", "1 of 1 figures hold; 2 not counted")
    against = beside(replace(CARD, figures=(FAR, replace(doubted, doubt=None))), held(RECORD))
    assert (against.state, against.reason) == ("not held", "1 of 2 figures hold")


def test_rows_are_those_of_the_cells_cost():
    cost = Cost(
        inputs=10, fit_s=0, victim_rows_per_input=21.0, victim_tokens_per_input=1, helper_rows_per_input={"lm": 30.0, "lm_computed": 9.0}
    )
    rows = Reported(quantity="victim rows", value=21, unit="rows", tolerance=1.05)
    assert ours_of(rows, replace(RECORD, cost=cost)).value == 21.0
    assert ours_of(replace(rows, quantity="lm rows"), replace(RECORD, cost=cost)).value == 30.0
    assert ours_of(rows, replace(RECORD, cost=None)).state == "not computed"


def test_the_fall_of_a_probability_is_the_mean_over_the_histograms_bins():
    """Suspicions -0.3 (once) and -0.1 (thrice) are falls of mean 0.15; poisoned 0.1."""
    names = {name: getattr(RECORD, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")}
    histogram = Histogram(**names, edges=(-0.4, -0.2, 0.0), clean=(1, 3), poisoned=(0, 4))
    fall = Reported(quantity="clean fall", value=0.1, unit="fraction", held="at least")
    assert ours_of(fall, histogram).value == pytest.approx(0.15)
    assert ours_of(replace(fall, quantity="poisoned fall"), histogram).value == pytest.approx(0.1)


def test_a_best_k_needs_a_choice():
    card = replace(CARD, grid={**GRID, "defenses": ["strip:replace_ratio=0.05", "strip"]})
    k = Reported(quantity="best k", value=0.05, unit="fraction", tolerance=0.1)
    few, many = (replace(RECORD, defense=spec, far=far) for spec, far in (("strip:replace_ratio=0.05", 0.2), ("strip", 0.4)))
    assert ours_of(k, few, card=card).reason == "STRIP was run with one k, so none is the best"
    assert (ours_of(k, few, many, card=card).value, ours_of(k, few, many, card=card).state) == (0.05, "held")


def test_a_shape_is_judged_as_compare_judges_it():
    """RAP 3 %, STRIP 4 %, ONION 5 %: RAP is the lowest; on another victim, too, for a shape is one of any victim."""
    (card,) = chosen(shipped(), ids=["rap-shape-rap-lowest"])
    records = [
        replace(RECORD, victim="minilm-l6", defense=name, far=far) for name, far in (("rap", 0.03), ("strip", 0.04), ("onion", 0.05))
    ]
    assert beside(card, held(*records)).state == "held"
    assert beside(card, held(*(replace(one, far=0.09 - (one.far or 0)) for one in records))).state == "not held"
    assert beside(card, held()).state == "not computed"


def test_what_cannot_be_computed_says_why():
    (card,) = chosen(shipped(), ids=["strip-vita-text"])
    assert beside(card, held(RECORD)).state == "not computed"
    assert "LSTM" in beside(card, held(RECORD)).reason


# Text, Markdown, JSON


def test_each_form_shows_reported_ours_and_verdict():
    found = [beside(CARD, held(RECORD)), beside(replace(CARD, id="other", grid={**GRID, "datasets": ["yelp"]}), held(RECORD))]
    lines = [" ".join(line.split()) for line in compared(found, "text").splitlines()]
    assert lines[0] == "made: held (1 of 1 figures hold)"
    assert "far at 1 % 2.00 % <= 3 3.00 % 1.70 to 5.20* 400 held" in lines
    assert lines[-1] == "2 claims: 1 held, 1 not computed"
    page = compared(found, "markdown")
    assert "### made: held" in page
    assert "`other`: no such cell" in page
    content = json.loads(compared(found, "json"))
    assert [one["here"]["state"] for one in content["claims"]] == ["held", "not computed"]
    assert content["claims"][0]["here"]["figures"][0]["value"] == 3.0


def test_a_card_is_written_with_ours(tmp_path):
    write([beside(CARD, held(RECORD))], tmp_path / "cards")
    content = json.loads((tmp_path / "cards" / "made.json").read_text())
    here = content.pop("here")
    assert content == json.loads(text(CARD))
    assert (here["state"], here["figures"][0]["files"]) == ("held", ["r/0.json"])


# Again


def test_what_would_come_from_the_hub_is_left_out_with_the_command_that_would():
    made = again([CARD], Wish.of([], None), offline=True)
    assert not made.blocks
    assert "the data set imdb and the victim bert-base-uncased: not given, and the hub" in made.left_out["made"]
    assert "`rapbench claims --id made --recompute --with imdb:path=FOLDER --victim MODEL`" in made.left_out["made"]
    assert again([CARD], Wish.of(["imdb:path=x"], "minilm-l6"), offline=True).left_out == {}
    assert again([CARD], Wish.of([], None), offline=False).left_out == {}


def test_the_users_options_go_over_the_cards_own():
    card = replace(CARD, grid={**GRID, "defenses": ["strip:replace_ratio=0.05"]})
    made = again([card], Wish.of(["imdb:path=x,max_test=9", "strip:copies=4"], "minilm-l6:epochs=2"), offline=True)
    (block,) = made.blocks["run"]
    assert block["datasets"] == [{"name": "imdb", "path": "x", "max_test": "9"}]
    assert block["defenses"] == [{"name": "strip", "replace_ratio": "0.05", "copies": "4"}]
    assert (block["victim"], block["frr"]) == ("minilm-l6:epochs=2", [0.01, 0.05])


def test_a_spec_of_nothing_in_the_claims_is_refused():
    with pytest.raises(SpecError, match=r"defense of these claims 'imbd'.*did you mean 'imdb'"):
        again([CARD], Wish.of(["imbd:path=x"], None), offline=True)


def test_options_of_one_name_that_are_given_twice_are_refused_and_not_lost():
    with pytest.raises(SpecError, match="--with names 'imdb' twice: write all its options in one, like imdb:path=FOLDER,max_test=100"):
        Wish.of(["imdb:path=x", "strip", "imdb:max_test=9"], None)


def test_what_an_option_cannot_do_is_said_and_not_left_undone(rapbench, tmp_path):
    for more in ([], ["--recompute", "--write-grid", tmp_path / "grid.yaml"]):
        ended = rapbench("claims", *more, "--out-cards", tmp_path / "cards")
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "give a results folder or --recompute, and no --write-grid" in ended.err
    none = rapbench("claims", "--id", "rap-theorem-1", "--id", "strip-vita-text", "--write-grid", tmp_path / "grid.yaml")
    assert none.err.endswith("`rapbench run`: rap-theorem-1 is for `rapbench theorem`, strip-vita-text is for no grid\n")
    assert list(tmp_path.iterdir()) == []


def test_a_written_grid_is_one_that_run_takes(rapbench, tmp_path):
    file = tmp_path / "claims.yaml"
    ended = rapbench("claims", "--id", "rap-imdb-badnet-rw-*", "--id", "rap-theorem-1", "--write-grid", file)
    assert (ended.code, ended.out) == (0, f"{file}\n")
    assert "rap-theorem-1: it is for `rapbench theorem`" in ended.err
    assert len(yaml.safe_load(file.read_text())["blocks"]) == 3
    dry = rapbench("run", "--grid", file, "--dry-run", "--tflops", "20", "--out", tmp_path / "out")
    assert dry.code == 0
    assert "24 cells (0 skipped)" in dry.out  # 3 defenses x 4 FRRs x 2 protocols


def test_every_claim_with_cells_is_in_the_grid_of_all(rapbench, tmp_path):
    file = tmp_path / "claims.yaml"
    assert rapbench("claims", "--write-grid", file).code == 0
    assert len(yaml.safe_load(file.read_text())["blocks"]) > 60


def test_claims_are_listed_and_an_unknown_one_is_one_line(rapbench):
    assert "rap-imdb-ep-rap" in rapbench("claims").out
    assert len(json.loads(rapbench("claims", "--format", "json").out)["claims"]) == 92
    unknown = rapbench("claims", "--id", "nope")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    assert "give --recompute" in rapbench("claims", "--victim", "minilm-l6").err
    assert "no results in" in rapbench("claims", "nowhere").err


def test_results_are_laid_beside_the_claims(rapbench, tmp_path):
    results.write([RECORD], tmp_path / "r")
    ended = rapbench("claims", tmp_path / "r", "--id", "rap-imdb-badnet-rw-rap", "--format", "json", "--out-cards", tmp_path / "cards")
    (claim,) = json.loads(ended.out)["claims"]
    # RAP 0.2001 % + 2 points: 3 % does not hold; the FRR of 1.2 % is within 1 point of 1.0275 %
    assert claim["here"]["state"] == "not held"
    by = {(one["quantity"], one["frr"]): ours for one, ours in zip(claim["figures"], claim["here"]["figures"], strict=True)}
    assert by["far", 0.01]["state"] == "not held"
    assert by["frr_test", 0.01]["state"] == "held"
    assert by["far", 0.01]["files"] == [str(tmp_path / "r" / "cells" / RECORD.file_name)]
    assert (tmp_path / "cards" / "rap-imdb-badnet-rw-rap.json").is_file()
    with pytest.raises(StoreError):
        Held.of([tmp_path / "empty"])


def test_a_claim_is_computed_again_on_data_and_a_victim_of_ones_own(rapbench, tmp_path, tiny_data, tiny_victim_spec):
    arguments = ["claims", "--id", "rap-imdb-badnet-rw-strip", "--id", "rap-yelp-ep-rap", "--with", f"imdb:path={tiny_data}"]
    arguments += ["--with", "strip:copies=2", "--victim", tiny_victim_spec, "--recompute", "--out", tmp_path / "out"]
    ended = rapbench(*arguments, "--executor", "serial", "--device", "cpu", "--format", "json")
    assert (ended.code, "an allowed FRR of 0.005 needs at least 200" in ended.err) == (1, True)  # of 150 held-out texts
    imdb, yelp = json.loads(ended.out)["claims"]
    assert imdb["here"]["state"] == "not comparable"
    by = {(one["quantity"], one["frr"]): ours for one, ours in zip(imdb["figures"], imdb["here"]["figures"], strict=True)}
    assert by["far", 0.005]["reason"].startswith("failed: the defender has 150 held-out texts")
    figure = by["far", 0.01]
    record = {one.frr: one for one in results.read(tmp_path / "out") if one.protocol == "paper"}[0.01]
    assert figure["value"] == pytest.approx(100 * record.far)
    assert any("victim" in one for one in figure["differs"])
    assert any(f"data imdb:path={tiny_data}" in one for one in figure["differs"])
    assert yelp["here"]["state"] == "not computed"
    assert "--with yelp:path=FOLDER" in json.loads(ended.out)["not_computed"]["rap-yelp-ep-rap"]
