"""The paper's tables in its layout, from hand-made records."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

import pytest

from rapbench.errors import SpecError
from rapbench.probe import ProbeBlock
from rapbench.registry import discover
from rapbench.report.layout import TITLES, paper_table
from rapbench.report.published import ours
from rapbench.results import Record

VICTIM = "bert-base-uncased"
RAP = Record(
    dataset="imdb",
    attack="ep",
    defense="rap",
    victim=VICTIM,
    seed=1,
    frr=0.01,
    protocol="paper",
    status="ok",
    frr_test=0.0125,
    far=0.005,
    asr=1.0,
    asr_anywhere=0.9629,
    clean_metric=0.9335,
    metric="accuracy",
    n_clean=400,
    n_poisoned=390,
    n_test=800,
    n_triggered=395,
)
STRIP = replace(RAP, defense="strip", far=0.25, n_clean=380)
ONION = replace(RAP, defense="onion", far=None, frr_test=None, status="failed", reason="no level of the purifier fits")
TUNED = replace(RAP, setting="fine-tuned", poisoned_on="yelp", tuning=VICTIM, attack="ripples", asr_anywhere=0.98)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the layout needs of a probe."""

    dataset: str = "amazon"
    setting: str = "main"
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str = "badnet-rw:word=cf"
    victim: str = VICTIM
    seed: int = 1
    source: str = "dataset"
    general: str = "wikitext-103"
    count: int = 20_000
    length: int = 200
    status: str = "ok"
    reason: str | None = None
    asr: float | None = 1.0
    n: int | None = 2000
    trigger: str | None = "cf"


def rows(text: str, number: int = 0) -> list[list[str]]:
    """Give the fields of the n-th Markdown table below its head."""
    block = [block for block in text.split("\n\n") if block.startswith("|")][number]
    return [[field.strip() for field in line.strip("|").split(" |")] for line in block.splitlines()[2:]]


def fields(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("form", ["github", "latex", "csv"])
@pytest.mark.parametrize("number", TITLES)
@pytest.mark.parametrize("records", [[], [ONION], [replace(RAP, protocol="strict")], [replace(RAP, dataset="demo")]])
def test_every_table_stands_whatever_the_results_are(number, form, records):
    assert f"{number}" in paper_table(number, records, [], form)


def test_table_2_has_the_paper_s_rows_in_its_order():
    told = rows(paper_table(2, [], [], "github"))
    assert len(told) == 3 * 3 * 2
    assert [row[:3] for row in told[:3]] == [["IMDB", "BadNet-SL", "FRR"], ["", "", "FAR"], ["", "BadNet-RW", "FRR"]]
    assert [row[0] for row in told if row[0]] == ["IMDB", "Yelp", "Amazon"]


@pytest.mark.parametrize(("number", "n"), [(1, 2), (3, 12), (4, 6), (7, 20), (8, 6), (9, 15), (10, 24), (11, 36), (12, 24)])
def test_the_other_tables_have_the_paper_s_number_of_rows(number, n):
    assert len(rows(paper_table(number, [], [], "github"))) == n


def test_table_2_gives_per_cent_and_the_lowest_far_is_bold():
    told = rows(paper_table(2, [RAP, STRIP, ONION], [], "github"))
    assert told[4] == ["", "EP", "FRR", "1.25", "-- [2]", "1.25"]
    assert told[5] == ["", "", "FAR", "25.00", "-- [2]", "**0.50**"]


def test_of_one_far_alone_none_is_the_lowest():
    assert "**0.50**" not in paper_table(2, [RAP], [], "github")


def test_a_missing_figure_has_a_footnote_and_equal_reasons_share_it():
    text = paper_table(2, [RAP, STRIP, ONION], [], "github")
    told = rows(text)
    assert told[0][3] == told[2][3] == "-- [1]"
    assert told[6][3] == "-- [3]"
    assert text.splitlines()[-3:] == ["- [1] never run", "- [2] failed: no level of the purifier fits", "- [3] not in these results"]


def test_what_ran_under_another_protocol_only_is_said():
    assert "- [2] run under the protocol strict only" in paper_table(2, [replace(RAP, protocol="strict"), STRIP], [], "github")
    assert rows(paper_table(2, [replace(RAP, protocol="strict")], [], "github", protocol="strict"))[5][5] == "0.50"


def test_seeds_are_averaged_and_the_caption_says_so():
    text = paper_table(2, [RAP, replace(RAP, seed=2, far=0.015, n_poisoned=1390)], [], "github")
    assert rows(text)[5][5] == "1.00"  # (0.5 + 1.5) / 2
    assert text.startswith("**Table 2.** ")
    assert f"Victim {VICTIM}; means over seeds 1, 2. Texts behind a figure: 400 (FRR), 390-1,390 (FAR)." in text


def test_a_seed_that_failed_is_named_beside_the_others_mean():
    text = paper_table(2, [RAP, replace(RAP, seed=2, far=None, frr_test=None, status="failed", reason="it broke")], [], "github")
    assert rows(text)[5][5] == "0.50 [2]"
    assert "- [2] without seed 2, failed: it broke" in text


def test_each_victim_has_its_own_table():
    text = paper_table(2, [RAP, replace(RAP, victim="minilm-l6", far=0.3)], [], "github")
    assert (rows(text, 0)[5][5], rows(text, 1)[5][5]) == ("0.50", "30.00")
    assert "Victim minilm-l6; seed 1" in text


def test_of_several_options_the_shortest_spec_stands_and_the_others_are_named():
    text = paper_table(2, [replace(RAP, defense="rap:recipe=steady", far=0.9), RAP], [], "github")
    assert rows(text)[5][5] == "0.50"
    assert "not shown, since a shorter spec stands for them: imdb, ep, rap:recipe=steady" in text


def test_victims_that_share_no_row_share_a_table():
    text = paper_table(2, [RAP, replace(RAP, victim="minilm-l6", dataset="yelp", far=0.3)], [], "github")
    assert text.count("**Table 2.**") == 1
    assert "Victim bert-base-uncased, minilm-l6" in text


def test_a_row_is_of_one_poisoned_victim():
    """Of two caps the shorter spec's victim fills the row, and its missing defense stays missing."""
    text = paper_table(2, [replace(RAP, dataset="imdb:max_train=9"), replace(STRIP, dataset="imdb:max_train=100")], [], "github")
    assert rows(text)[5][3:] == ["-- [2]", "-- [1]", "0.50"]
    assert "- [2] never run on imdb:max_train=9, ep" in text


def test_a_victim_without_figures_does_not_stand_for_one_with_figures():
    failed = replace(RAP, far=None, frr_test=None, status="failed", reason="it broke")
    assert rows(paper_table(2, [failed, replace(RAP, dataset="imdb:max_train=9")], [], "github"))[5][5] == "0.50"


def test_table_4_and_8_are_of_the_fine_tuned_victim_and_the_trigger_anywhere():
    told = rows(paper_table(4, [RAP, TUNED], [], "github"))
    assert told[0] == ["IMDB", "Yelp", "RIPPLES", "98.00", "1.25", "0.50"]
    text = paper_table(8, [RAP, TUNED], [], "github")
    assert rows(text)[0] == ["IMDB", "Yelp", "RIPPLES", "93.35", "98.00"]
    assert "asr_anywhere" in text


def test_table_7_gives_the_control_no_asr():
    text = paper_table(7, [RAP, replace(RAP, attack="clean", far=None)], [], "github")
    assert rows(text)[0] == ["IMDB", "Clean", "93.35", "-- [1]"]
    assert rows(text)[3] == ["", "EP", "93.35", "96.29"]
    assert "- [1] the clean control has no trigger" in text


def test_table_11_has_four_decimals_and_every_level():
    text = paper_table(11, [RAP, replace(RAP, frr=0.05, far=0.00123456)], [], "github")
    told = rows(text)
    assert [row[2] for row in told[8:12]] == ["0.5", "1.0", "3.0", "5.0"]
    assert told[9][3:] == ["-- [1]", "-- [1]", "1.2500", "-- [1]", "-- [1]", "0.5000"]
    assert told[11][8] == "0.1235"


def test_an_ok_record_without_texts_says_so():
    assert "no triggered text passes the gate" in paper_table(11, [replace(RAP, far=None)], [], "github")


def test_table_12_is_of_the_fine_tuned_victim():
    told = rows(paper_table(12, [TUNED], [], "github"))
    assert told[1][3:] == ["1.0", "-- [1]", "-- [1]", "1.2500", "-- [1]", "-- [1]", "0.5000"]


# Table 9


def strip(k: float, far: float, **more: object) -> Record:
    return replace(STRIP, defense=f"strip:replace_ratio={k:g}", far=far, **more)


def test_of_a_sweep_the_best_k_has_the_lowest_far():
    text = paper_table(9, [strip(0.05, 0.3), strip(0.2, 0.1), strip(0.6, 0.2)], [], "github")
    assert rows(text)[2] == ["", "EP", "0.20 [2]"]
    assert "the k with the lowest FAR at 1 % among 0.05, 0.2, 0.6: an oracle's choice" in text


def test_a_k_chosen_on_heldout_texts_is_the_record_s():
    own = [
        replace(STRIP, seed=seed, defense="strip:replace_ratio=auto", notes={"replace_ratio": k, "replace_ratio_from": "heldout"})
        for seed, k in ((1, 0.05), (2, 0.35))
    ]
    text = paper_table(9, own, [], "github")
    assert rows(text)[2][2] == "0.20 [2]"  # the mean
    assert "k chosen on held-out texts, by seed 0.05, 0.35" in text


def test_one_k_is_the_one_that_was_used():
    text = paper_table(9, [strip(0.6, 0.2)], [], "github")
    assert rows(text)[2][2] == "0.60 [2]"
    assert "the k that was used: an option" in text


def test_the_defaults_that_a_spec_leaves_out_are_the_plugin_s():
    plain = discover().parse("defense", "strip")
    assert (plain.replace_ratio, plain.copies) == (ours.REPLACE_RATIO, ours.COPIES)


# Table 1


def test_the_paper_s_probe_is_what_a_probe_grid_asks_for_by_default():
    names = ("general", "count", "length")
    assert tuple(ProbeBlock.model_fields[name].default for name in names) == ours.THE_PAPERS_PROBE


def test_table_1_gives_mean_and_sample_deviation_over_the_seeds():
    probes = [Asked(seed=1, asr=0.98), Asked(seed=2, asr=1.0), Asked(source="random", asr=0.9951)]
    text = paper_table(1, [], probes, "github")
    # 98 and 100: mean 99, deviation sqrt((1 + 1) / 1) = 1.41
    assert rows(text)[0] == ["Amazon", "BadNet", "99.00 (± 1.41)", "-- [1]", "99.51", "1-2"]
    assert "Texts behind a figure: 2,000 (probe ASR)" in text
    assert "triggers: badnet-rw cf" in text


def test_a_probe_of_another_data_set_has_rows_of_its_own():
    told = rows(paper_table(1, [], [Asked(dataset="demo", attack="ep", source="general", asr=0.5)], "github"))
    assert [row[:2] for row in told] == [["Amazon", "BadNet"], ["", "EP"], ["demo", "BadNet"], ["", "EP"]]
    assert told[3][3] == "50.00"


def test_probes_of_other_lengths_are_not_mixed_and_the_paper_s_stand():
    text = paper_table(1, [], [Asked(asr=0.5, length=20, count=9), Asked(asr=0.9)], "github")
    assert rows(text)[0][2] == "90.00"
    assert "amazon, badnet-rw:word=cf, 9 texts of 20 words, general sentences of wikitext-103" in text


def test_a_failed_probe_says_why():
    probe = Asked(asr=None, n=None, status="failed", reason="no corpus")
    assert "failed: no corpus" in paper_table(1, [], [probe], "github")


# Forms


def test_latex_text_holds_no_live_special():
    evil = replace(RAP, victim=r"a_b%\input{x}&$#^~", dataset="imdb:path=/x_{y}")
    text = paper_table(2, [evil], [], "latex")
    assert r"a\_b\%\textbackslash{}input\{x\}\&\$\#\textasciicircum{}\textasciitilde{}" in text
    assert r"imdb:path=/x\_\{y\}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1


def test_latex_rows_have_as_many_fields_as_the_tabular_has_columns():
    text = paper_table(12, [TUNED], [], "latex")
    assert r"\begin{tabular}{llllrrrrrr}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {9}
    assert len(body) == 25  # the head and 24 rows
    assert r"\multirow" not in text


def test_latex_marks_the_lowest_far():
    assert r"\textbf{0.50}" in paper_table(2, [RAP, STRIP], [], "latex")


def test_a_pipe_in_a_spec_does_not_split_a_markdown_row():
    text = paper_table(1, [], [Asked(dataset="a|b", source="general", asr=0.5)], "github")
    assert r"| a\|b " in text


def test_csv_gives_whole_rows_empty_fields_and_the_reasons():
    told = fields(paper_table(2, [RAP, STRIP, ONION], [], "csv"))
    assert (told[5]["Target Dataset"], told[5]["Attack Method"], told[5]["Metric"]) == ("IMDB", "EP", "FAR")
    assert (told[5]["STRIP"], told[5]["ONION"], told[5]["RAP"]) == ("25.00", "", "0.50")
    assert told[5]["Notes"] == "ONION: failed: no level of the purifier fits"
    assert told[0]["Notes"].startswith("STRIP, ONION, RAP: never run")


def test_csv_text_is_no_formula():
    (probed,) = (row for row in fields(paper_table(1, [], [Asked(dataset="=1+1", asr=0.5)], "csv")) if row["Original Dataset"] == "50.00")
    assert probed["Data Set"] == "'=1+1"


def test_an_unknown_table_or_form_is_refused():
    with pytest.raises(SpecError, match=r"table 5 is none of the paper's tables with results \(there are: 1, 2, 3, 4, 7"):
        paper_table(5, [], [], "github")
    with pytest.raises(SpecError, match="form 'html' is unknown"):
        paper_table(2, [], [], "html")
