"""Floors and ceilings in every report, and the kinds of defenses: a filter or a repair has no threshold. Figures are worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_results import COST, RECORD

from rapbench import results
from rapbench.interop import frame
from rapbench.report import cost, curves, kinds, provenance, tables
from rapbench.report.cost_figures import choice
from rapbench.report.examples import chosen
from rapbench.report.marks import Marks, marks
from rapbench.report.names import Names
from rapbench.report.summary import lines
from rapbench.results import Curve, Examples, Quote, Record, pack

KNOWN = Marks({"rap": "", "strip": "", "noise": "floor", "seer": "ceiling"})
NOISE, SEER = replace(RECORD, defense="noise", far=0.0), replace(RECORD, defense="seer", far=0.0)
STRICT = replace(
    RECORD,
    protocol="strict",
    artifacts={"poisoned": "p"},
    n_clean=8,
    n_poisoned=8,
    verdicts={"test": pack(np.zeros(8, dtype=np.bool_)), "poisoned": pack(np.ones(8, dtype=np.bool_))},
)
FILTER = replace(
    STRICT, defense="cube", threshold=None, precision=0.5, recall=0.75, removed=0.125, asr_defended=0.0625, cost=replace(COST, ratio=1.0)
)
REPAIR = replace(FILTER, defense="fine-prune", precision=None, recall=None, removed=None)


def rows_of(text: str, number: int = 0) -> list[dict[str, str]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in blocks[number]]
    return [dict(zip(head, row, strict=True)) for row in body]


def csv_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def said(*records: Record) -> dict[str, str]:
    return {one.head: one.text for one in lines(records, Names(records, KNOWN))}


# marks


def test_the_plugins_say_what_is_a_floor_or_a_ceiling() -> None:
    assert [marks().word(spec) for spec in ("rap:word=cf", "random", "length", "max-softmax", "oracle", "stranger")] == [
        "contender", "floor", "floor", "floor", "ceiling", "unknown",
    ]  # fmt: skip


def test_floors_and_ceilings_stand_behind_the_contenders_in_that_order() -> None:
    ordered = tables.in_order([SEER, NOISE, replace(RECORD, defense="strip"), RECORD], KNOWN)
    assert [one.defense for one in ordered] == ["rap", "strip", "noise", "seer"]
    assert Names(ordered, KNOWN).defenses == ["rap", "strip", "noise (floor)", "seer (ceiling)"]


def test_every_table_names_them_as_such_and_says_what_that_means() -> None:
    own = [replace(one, defense=name) for one in (STRICT, replace(STRICT, protocol="paper")) for name in ("rap", "noise", "seer")]
    failed = replace(RECORD, defense="noise", attack="ep", status="failed", reason="so it is", far=None, cost=None)
    text = tables.render([*own, failed], "github", KNOWN)
    for number in (0, 1):
        assert [row["defense"] for row in rows_of(text, number)] == ["rap", "noise (floor)", "seer (ceiling)"]
    assert [(row["one"], row["other"]) for row in rows_of(text, 3)] == [
        ("rap", "noise (floor)"), ("rap", "seer (ceiling)"), ("noise (floor)", "seer (ceiling)"),
    ]  # fmt: skip
    assert text.count("neither is a contender.") == 2
    assert "failed: imdb ep noise (floor) on minilm-l6" in text
    assert tables.render(own, "latex", KNOWN).count("noise (floor)") == 2


def test_a_table_of_contenders_alone_says_nothing_of_marks_and_a_stranger_is_named() -> None:
    assert "contender" not in tables.render([RECORD], "github", KNOWN)
    assert "not known whether they are floors or ceilings: x." in tables.render([replace(RECORD, defense="x:a=1")], "github", KNOWN)


def test_a_strange_name_adds_no_line_to_a_foot() -> None:
    text = tables.render([replace(RECORD, defense="x\n\n% y")], "latex", KNOWN)
    assert all(line.startswith("%") for line in text.splitlines() if "not known" in line or line.strip() == "y")


def test_data_have_a_column_for_the_mark(tmp_path: Path) -> None:
    own = [RECORD, NOISE, replace(RECORD, defense="stranger")]
    words = ["contender", "unknown", "floor"]  # rap, stranger, then the floor
    assert [row["mark"] for row in csv_of(tables.render(own, "csv", KNOWN))] == words
    assert [cell["mark"] for cell in json.loads(tables.render(own, "json", KNOWN))["cells"]] == words
    assert [row["mark"] for row in csv_of(cost.render(own, {}, "csv", KNOWN))] == words
    assert [one["mark"] for one in json.loads(cost.render(own, {}, "json", KNOWN))["costs"]] == words
    results.write([RECORD, replace(RECORD, defense="random")], tmp_path)
    assert dict(zip(frame(tmp_path).defense, frame(tmp_path).mark, strict=True)) == {"rap": "contender", "random": "floor"}


def test_the_csv_of_costs_keeps_its_columns_where_nothing_was_measured() -> None:
    failed = replace(NOISE, status="failed", reason="so it is", cost=None)
    measured, without = csv_of(cost.render([RECORD, failed], {}, "csv", KNOWN))
    assert (measured["mark"], without["mark"], without["reason"], without["inputs"]) == ("contender", "floor", "so it is", "")
    assert list(measured) == list(without)


def test_the_tables_of_costs_and_curves_name_them_too() -> None:
    text = cost.render([SEER, NOISE, RECORD], {}, "github", KNOWN)
    assert [row["defense"] for row in rows_of(text)] == ["rap", "noise (floor)", "seer (ceiling)"]
    assert [row["defense"] for row in rows_of(text, 1)][:3] == ["rap", "noise (floor)", "seer (ceiling)"]
    names = {"dataset": "imdb", "attack": "ep", "victim": "v", "seed": 1, "protocol": "paper"}
    own = [Curve(**names, defense=name, points=((0.01, 0.0, 0.5),)) for name in ("noise", "rap")]
    text = curves.render(own, "github", KNOWN)
    assert [row["defense"] for row in rows_of(text)] == ["rap", "noise (floor)"]
    assert text.endswith("neither is a contender.")


def test_legends_and_commands_name_them_too() -> None:
    own = [RECORD, NOISE]
    assert [key.label for key in choice(own, Names(own, KNOWN)).keys] == ["rap", "noise (floor)"]
    assert [what for what, _ in provenance.commands(own, KNOWN)] == [
        "imdb, badnet-rw, rap, seed 1",
        "imdb, badnet-rw, noise (floor), seed 1",
    ]


def test_in_words_neither_stops_an_attack_for_the_others_nor_is_one_to_pick() -> None:
    weak, dear = replace(RECORD, far=0.4), replace(RECORD, defense="strip", far=0.3, cost=replace(COST, ratio=9.0))
    told = said(weak, dear, NOISE, SEER)  # both of these let nothing through, at twice the time
    assert told["No defense stops any attack here"] == "The lowest FAR is 30.0 %: strip against badnet-rw on imdb."
    assert "rap (mean FAR 40.0 %, 2.0 times)" in told["Which to pick"]
    assert not {"noise", "seer"} & set(told["Which to pick"].replace("(", " ").split())
    assert told["noise (floor)"].endswith(" It is a floor: it knows nothing of triggers.")
    assert told["seer (ceiling)"].endswith(" It is a ceiling: it is told the words of the trigger, as no defender is.")
    assert list(told).index("strip") < list(told).index("noise (floor)") < list(told).index("seer (ceiling)")


def test_floors_alone_are_nothing_to_judge_by() -> None:
    assert said(NOISE)["No contender here"] == "Only floors and ceilings, which others are measured by, have figures."


# kinds


def test_a_filter_and_a_repair_have_one_row_without_an_allowed_frr() -> None:
    own = [replace(one, frr=frr) for one in (FILTER, REPAIR, STRICT) for frr in (0.005, 0.01, 0.03, 0.05)]
    text = tables.render(own, "github")
    rows = rows_of(text)
    assert [(row["defense"], row["FRR allowed"]) for row in rows] == [
        ("cube", "-"), ("fine-prune", "-"), ("rap", "0.5"), ("rap", "1"), ("rap", "3"), ("rap", "5"),
    ]  # fmt: skip
    shown = {"FRR test": "1.20 [0.5, 2.6]", "FAR": "3.00 [1.7, 5.2]", "AUROC": "0.9900", "ASR defended": "6.25"}
    shown |= {"clean metric defended": "91.00 -> 90.00", "precision": "50.00", "recall": "75.00", "removed": "12.50"}
    assert shown.items() <= rows[0].items()
    assert [rows[1][name] for name in ("precision", "recall", "removed", "ASR defended")] == ["--", "--", "--", "6.25"]
    assert text.count(kinds.FOOT.strip()) == 1


def test_the_paper_s_table_has_them_too_and_no_columns_of_filters_without_one() -> None:
    rows = rows_of(tables.render([replace(one, protocol="paper") for one in (FILTER, STRICT)], "github"))
    assert [(row["FRR allowed"], row["ASR defended"], row["precision"]) for row in rows] == [("-", "6.25", "50.00"), ("1", "3.00", "--")]
    assert "precision" not in rows_of(tables.render([STRICT, REPAIR], "github"))[0]


def test_two_without_a_threshold_are_one_pair_and_with_a_watcher_one_per_frr() -> None:
    own = [replace(one, frr=frr) for one in (FILTER, REPAIR, STRICT) for frr in (0.01, 0.05)]
    assert [(row["one"], row["other"], row["FRR allowed"]) for row in rows_of(tables.render(own, "github"), 2)] == [
        ("cube", "fine-prune", "-"), ("cube", "rap", "1"), ("fine-prune", "rap", "1"), ("cube", "rap", "5"), ("fine-prune", "rap", "5"),
    ]  # fmt: skip


def test_several_seeds_of_a_filter_are_one_mean() -> None:
    own = [replace(FILTER, seed=seed, frr=frr, far=far) for seed, far in ((1, 0.1), (2, 0.3)) for frr in (0.01, 0.05)]
    (row,) = rows_of(tables.render(own, "github"), 2)
    assert (row["FRR allowed"], row["FAR"]) == ("-", "20.00 ± 14.14")  # deviations of 10: sqrt(200 / 1)


@pytest.mark.parametrize(
    "other",
    [
        {"threshold": 0.5},
        {"warnings": ("nothing is rejected",)},
        {"status": "failed"},
        {"cost": replace(COST, repaired=(0.25,))},  # a purifier whose level has no end
    ],
)
def test_what_only_lacks_a_threshold_is_no_filter(other: dict[str, object]) -> None:
    assert kinds.stands_in(FILTER)
    assert not kinds.stands_in(replace(FILTER, **other))


def test_data_keep_every_cell_of_a_filter() -> None:
    own = [replace(FILTER, frr=frr, notes={"training_set": {"rows": 8, "removed": 1}}) for frr in (0.01, 0.05)]
    assert [(row["threshold"], row["precision"]) for row in csv_of(tables.render(own, "csv"))] == [("", "0.5"), ("", "0.5")]
    assert json.loads(tables.render(own, "json"))["cells"][0]["notes"] == {"training_set": {"rows": 8, "removed": 1}}
    assert len(json.loads(cost.render(own, {}, "json"))["costs"]) == 1


def test_words_say_of_a_filter_what_its_victim_loses_and_of_no_allowed_frr() -> None:
    assert said(FILTER)["cube"] == "It stops badnet-rw. The victim that it puts in place of the received one loses 1.2 % of clean texts."


def test_example_texts_of_a_filter_are_said_to_be_judged_by_another_victim() -> None:
    quote = Quote(population="clean", rank=1, text="a text", letters=6, probability=0.9, suspicion=0.7, rejected=True)
    names = {name: getattr(FILTER, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol", "frr")}
    own = Examples(**names, threshold=None, purifies=True, label="good", n_clean=4, n_poisoned=4, quotes=(quote,))
    (group,) = chosen([own], [FILTER], Names([FILTER]), "strict").groups
    assert group.rule.startswith("Rejected are texts to which the victim that is deployed instead gives another label than “good”")
