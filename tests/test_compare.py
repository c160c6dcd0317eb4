"""The paper's numbers as data, and ours beside them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from rapbench.errors import SpecError
from rapbench.report import published
from rapbench.report.claims import claims
from rapbench.report.compare import Comparison, compare, conditions, render
from rapbench.results import Record

SHARED = Path(__file__).parents[2] / "shared" / "paper" / "tables"
PLACE = ("target_dataset", "poisoned_dataset", "attack", "defense", "frr_train")
VICTIM = "bert-base-uncased"
RAP = Record(
    dataset="yelp",
    attack="badnet-rw",
    defense="rap",
    victim=VICTIM,
    seed=1,
    frr=0.01,
    protocol="paper",
    status="ok",
    frr_test=0.02,
    far=0.0051,
    asr_anywhere=0.99,
    clean_metric=0.97,
    n_clean=500,
    n_poisoned=480,
    n_test=1000,
    n_triggered=490,
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a comparison needs of a probe."""

    dataset: str = "amazon"
    setting: str = "main"
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str = "ep"
    victim: str = VICTIM
    seed: int = 1
    source: str = "general"
    general: str = "wikitext-103"
    count: int = 20_000
    length: int = 200
    status: str = "ok"
    reason: str | None = None
    asr: float | None = 0.9899
    n: int | None = 300
    trigger: str | None = "cf"


def beside(comparisons: list[Comparison]) -> list[Comparison]:
    return [one for one in comparisons if one.ours is not None]


def one_of(comparisons: list[Comparison], **names: object) -> Comparison:
    (found,) = (one for one in comparisons if all(getattr(one, name) == value for name, value in names.items()))
    return found


# The published tables


def rounded(text: str) -> str:
    return str(Decimal(text).quantize(Decimal("0.01"), ROUND_HALF_UP))


def test_the_tables_that_are_not_repeated_agree_with_those_that_are_kept():
    """Tables 2 and 3: 45 rows, FRR and FAR; Table 4: 6 rows, FRR, FAR and the ASR of Table 8. 108 in all."""
    full = {tuple(row[name] for name in PLACE): row for number in (10, 11, 12) for row in published.table(number)}
    asr = {tuple(row[name] for name in PLACE[:3]): row["asr"] for row in published.table(8)}
    pairs = []
    for row in (row for number in (2, 3, 4) for row in published.table(number)):
        kept = full[tuple(row[name] for name in PLACE)]
        pairs += [(row[name], rounded(kept[name])) for name in ("frr_test", "far_test")]
    pairs += [(row["asr"], asr[tuple(row[name] for name in PLACE[:3])]) for row in published.table(4)]
    assert len(pairs) == 108
    assert [pair for pair in pairs if pair[0] != pair[1]] == []


def test_seventeen_cells_of_onion_are_missing_in_the_paper_and_no_others():
    lacking = [
        (one.spot.target, one.spot.poisoned, one.spot.attack, one.spot.frr)
        for one in published.printed()
        if one.value is None and one.spot.quantity == "FAR"
    ]
    toxic = [(name, name, attack, frr) for name in published.TOXIC for attack in ("BadNet-SL", "BadNet-RW", "EP") for frr in (0.03, 0.05)]
    tuned = [("IMDB", "Amazon", "RIPPLES", 0.005), ("Twitter", "Jigsaw", "RIPPLES", 0.05)]
    assert sorted(lacking) == sorted([*toxic, *tuned, *(("Twitter", "Jigsaw", "BadNet-SL", frr) for frr in (0.01, 0.03, 0.05))])
    assert len(lacking) == 17
    missing = [one.spot for one in published.printed() if one.value is None]
    assert {spot.defense for spot in missing} == {"ONION"}
    assert Counter(spot.quantity for spot in missing) == {"FRR": 17, "FAR": 17}


def test_every_number_of_the_paper_is_there_once():
    """6 probes; 20 clean metrics and 15 ASRs; 6 and 6; 15 ks; 72, 108 and 72 rows of FRR and FAR."""
    counts = Counter(one.tables[0] for one in published.printed())
    assert counts == {1: 6, 7: 35, 8: 12, 9: 15, 10: 144, 11: 216, 12: 144}
    assert len({one.spot for one in published.printed()}) == 572


def test_the_rows_of_tables_2_3_and_4_are_known_as_such():
    counts = Counter(number for one in published.printed() for number in one.tables[1:])
    assert counts == {2: 54, 3: 36, 4: 6 * 3}


def test_the_suspicious_cells_are_marked_and_no_others():
    doubtful = [
        (one.spot.target, one.spot.attack, one.spot.defense, one.spot.quantity, one.value) for one in published.printed() if one.doubt
    ]
    assert doubtful == [
        ("Yelp", "BadNet-RW", "STRIP", "FAR", 29.3211),
        ("Yelp", "BadNet-RW", "STRIP", "FAR", 31.379),
        ("Yelp", "EP", "ONION", "FRR", 5.7589),
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/paper/tables")
def test_the_tables_are_the_reference_s_unchanged():
    folder = Path(published.__file__).parent
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == {
        path.name: path.read_bytes() for path in SHARED.glob("*.csv")
    }


# Comparisons


def test_a_record_stands_beside_its_frr_and_far():
    found = beside(compare([RAP], []))
    far = one_of(found, quantity="FAR")
    assert (far.tables, far.target, far.attack, far.defense, far.frr) == ((11, 2), "Yelp", "BadNet-RW", "RAP", 0.01)
    assert (far.published, far.n, far.seeds, far.note) == (0.0, 480, (1,), None)
    assert far.ours == pytest.approx(0.51)
    assert far.difference == pytest.approx(0.51)
    assert one_of(found, quantity="FRR").difference == pytest.approx(2.0 - 1.0472)
    assert one_of(found, quantity="ASR").difference == pytest.approx(99.0 - 98.63)  # the trigger anywhere
    assert one_of(found, quantity="clean metric").difference == pytest.approx(97.0 - 97.37)
    assert len(found) == 4


def test_seeds_are_averaged_and_the_smallest_n_is_told():
    far = one_of(beside(compare([RAP, replace(RAP, seed=2, far=0.0151, n_poisoned=100)], [])), quantity="FAR")
    assert (far.ours, far.n, far.seeds) == (pytest.approx(1.01), 100, (1, 2))


def test_variants_are_kept_apart_the_shortest_first():
    others = [replace(RAP, defense="rap:recipe=steady", far=0.2), replace(RAP, victim="a-much-longer-name", far=0.3), RAP]
    found = [one for one in beside(compare(others, [])) if one.quantity == "FAR"]
    assert [str(one.variant) for one in found] == [
        f"{VICTIM}, yelp, badnet-rw, rap",
        "a-much-longer-name, yelp, badnet-rw, rap",
        f"{VICTIM}, yelp, badnet-rw, rap:recipe=steady",
    ]


def test_the_victim_s_own_figures_are_told_once_whatever_the_defenses():
    found = beside(compare([RAP, replace(RAP, defense="strip"), replace(RAP, frr=0.05)], []))
    assert sum(one.quantity == "ASR" for one in found) == 1


def test_the_fine_tuned_victim_is_not_the_main_one():
    tuned = replace(RAP, dataset="imdb", setting="fine-tuned", poisoned_on="yelp", tuning=VICTIM, attack="badnet-sl")
    found = beside(compare([tuned], []))
    assert {one.tables[0] for one in found} == {8, 12}
    assert one_of(found, quantity="ASR").tables == (8, 4)
    assert beside(compare([replace(tuned, dataset="yelp", poisoned_on="imdb")], [])) == []  # the paper has no such


def test_a_probe_stands_beside_table_1():
    (probe,) = beside(compare([], [Asked()]))
    assert (probe.attack, probe.source, probe.published) == ("EP", "general", 99.99)
    assert probe.difference == pytest.approx(-1.0)


def test_a_shorter_probe_is_not_the_paper_s_condition():
    found = compare([], [Asked(length=20, count=9), Asked()])
    assert conditions(found) == ["probes of 9 texts of 20 words, general sentences of wikitext-103"]
    assert [one.ours for one in beside(found)] == [pytest.approx(98.99)] * 2
    assert conditions(compare([], [Asked()])) == []


def test_a_best_k_is_a_fraction():
    sweep = [replace(RAP, defense=f"strip:replace_ratio={k}", far=far) for k, far in (("0.05", 0.4), ("0.7", 0.3))]
    best = one_of(beside(compare(sweep, [])), quantity="best k")
    assert (best.published, best.ours, best.difference) == (0.6, 0.7, pytest.approx(0.1))


def test_a_figure_that_the_paper_lacks_is_shown_without_difference():
    own = replace(RAP, dataset="twitter", defense="onion", frr=0.03)
    far = one_of(beside(compare([own], [])), quantity="FAR")
    assert (far.published, far.ours, far.difference) == (None, pytest.approx(0.51), None)
    assert "the paper has none" in render([far], [], "github")


def test_strict_records_are_left_aside_unless_asked_for():
    strict = replace(RAP, protocol="strict")
    assert beside(compare([strict], [])) == []
    assert len(beside(compare([strict], [], protocol="strict"))) == 4


@pytest.mark.parametrize("form", ["github", "csv", "json"])
@pytest.mark.parametrize(
    "records", [[], [replace(RAP, status="failed", reason="it broke", far=None, frr_test=None)], [replace(RAP, protocol="strict")]]
)
def test_results_without_figures_are_dashes_with_reasons(records, form):
    found = compare(records, [])
    assert len(found) == 572
    assert beside(found) == []
    assert all(one.note for one in found)
    assert render(found, claims(records, []), form)


def test_the_reason_of_a_failed_cell_is_the_record_s():
    failed = replace(RAP, status="skipped", reason="rap perturbs\nwith 'mb'", far=None, frr_test=None)
    far = one_of(compare([failed], []), target="Yelp", attack="BadNet-RW", defense="RAP", frr=0.01, quantity="FAR")
    assert far.note == "skipped: rap perturbs with 'mb'"
    other = one_of(compare([failed], []), target="Yelp", attack="BadNet-RW", defense="RAP", frr=0.05, quantity="FAR")
    assert other.note == "never run"
    assert one_of(compare([failed], []), target="IMDB", attack="EP", defense="RAP", frr=0.05, quantity="FAR").note == "not in these results"


# Conditions


def test_the_paper_s_victim_on_whole_data_is_the_paper_s_condition():
    assert conditions(compare([RAP, replace(RAP, dataset="imdb:revision=abc")], [])) == []
    assert "the paper's conditions." in render(compare([RAP], []), [], "github")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"victim": "minilm-l6"}, "victim minilm-l6"),
        ({"victim": f"{VICTIM}:epochs=1"}, f"victim {VICTIM}:epochs=1"),
        ({"dataset": "yelp:max_train=2000"}, "data yelp:max_train=2000"),
        ({"dataset": "yelp:path=/x"}, "data yelp:path=/x"),
    ],
)
def test_what_is_not_the_paper_s_condition_is_named(change, named):
    found = compare([replace(RAP, **change)], [])
    assert conditions(found) == [named]
    head = render(found, [], "github").split("\n\n")[0]
    assert "Compare shapes, not levels" in head
    assert named in head


# Forms


def table_of(text: str, heading: str) -> list[list[str]]:
    blocks = text.split("\n\n")
    block = blocks[blocks.index(heading) + 1]
    return [[field.strip() for field in line.strip("|").split(" |")] for line in block.splitlines() if not line.startswith("|-")]


def test_markdown_has_a_table_for_each_of_the_paper_s_with_signed_differences():
    text = render(compare([RAP], []), [], "github")
    head, *rows = table_of(text, "### Table 11 (and 2)")
    assert head[:10] == [
        *("target", "attack", "FRR allowed", "defense"),
        *("FRR paper", "FRR ours", "FRR difference", "FAR paper", "FAR ours", "FAR difference"),
    ]
    (row,) = (row for row in rows if row[:4] == ["Yelp", "BadNet-RW", "1", "RAP"])
    assert row[4:] == ["1.0472", "2.0000", "+0.9528", "0.0000", "0.5100", "+0.5100", "500/480"]
    assert len(rows) == 108
    assert text.startswith("4 of the 572 numbers of the paper have one of ours.")


def test_a_difference_of_nothing_has_no_minus():
    text = render(compare([replace(RAP, clean_metric=0.97369999)], []), [], "github")
    assert ["Yelp", "BadNet-RW", "97.37", "97.37", "+0.00"] in [row[:5] for row in table_of(text, "### Table 7")]


def test_suspicious_cells_have_a_dagger_and_a_footnote():
    text = render(compare([], []), [], "github")
    rows = {tuple(row[:4]): row for row in table_of(text, "### Table 11 (and 2)")}
    assert rows["Yelp", "EP", "0.5", "ONION"][4] == "5.7589†"
    assert rows["Yelp", "BadNet-RW", "1", "STRIP"][7] == "31.3790†"
    assert text.count("- † ") == 2


def test_the_claims_stand_in_every_form():
    told = claims([], [])
    assert "| 9       |" in render([], told, "github")
    assert len(json.loads(render([], told, "json"))["claims"]) == 9
    *_, last = csv.DictReader(io.StringIO(render([], told, "csv")))
    assert last["quantity"] == "claim 9"
    assert last["note"].startswith("not testable: ")


def test_csv_has_a_row_per_number_and_variant():
    rows = list(csv.DictReader(io.StringIO(render(compare([RAP], []), [], "csv"))))
    assert len(rows) == 572
    (row,) = (row for row in rows if row["quantity"] == "FAR" and row["ours"])
    assert (row["tables"], row["published"], row["our_victim"], row["our_defense"], row["n"]) == ("11 2", "0.0", VICTIM, "rap", "480")


def test_a_spec_is_no_formula_and_no_table_cell():
    evil = replace(RAP, victim="=cmd|x", defense="rap:word=a|b")
    text = render(compare([evil], []), [], "github")
    assert r"rap:word=a\|b" in text
    assert r"victim =cmd\|x" in text
    assert "'=cmd|x" in render(compare([evil], []), [], "csv")


def test_json_names_the_conditions():
    content = json.loads(render(compare([replace(RAP, victim="minilm-l6")], []), [], "json"))
    assert content["not_the_papers_conditions"] == ["victim minilm-l6"]
    assert len(content["comparisons"]) == 572


def test_an_unknown_form_is_refused():
    with pytest.raises(SpecError, match="form 'latex' is unknown"):
        render([], [], "latex")
