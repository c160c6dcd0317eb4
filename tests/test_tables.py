"""What becomes of records: tables, CSV, JSON and the files that they are kept in. Figures are worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapbench.cost import Cost
from rapbench.errors import StoreError
from rapbench.report.cell_tables import FOOT, FTR_FOOT, HEADS, STRICT_FOOT, STRICT_HEADS
from rapbench.report.compared import PAIR_FOOT, SEEDS_FOOT
from rapbench.report.tables import in_order, render
from rapbench.results import SCHEMA, Curve, Record, pack, read, read_all, write

OK = Record(
    dataset="demo:n_train=900",
    attack="badnet-rw",
    defense="rap",
    victim="minilm-l6",
    seed=1234,
    frr=0.005,
    protocol="paper",
    status="ok",
    frr_heldout=0.0123,
    frr_test=0.1,
    far=0.00004,
    auroc=0.98765,
    asr=1.0,
    asr_anywhere=0.995,
    asr_control=0.25,
    clean_metric=0.9,
    metric="accuracy",
    threshold=-0.5,
    n_heldout=200,
    n_clean=300,
    n_poisoned=310,
    intervals={"frr_test": (0.05, 0.15), "far": None},
    cost=Cost(
        inputs=3, fit_s=7.0, victim_rows_per_input=2.0, victim_tokens_per_input=9.0, helper_rows_per_input={"trigram": 10.0}, ratio=3.5
    ),
    trigger="badnet-rw:word=mb",
)
FAILED = replace(
    OK, status="failed", reason="too few held-out texts", frr=0.01, far=None, auroc=None, cost=None, n_clean=None, n_poisoned=None
)
SKIPPED = replace(FAILED, status="skipped", reason="rap perturbs with 'mb'", defense="rap:word=mb")
STRICT = replace(
    OK,
    protocol="strict",
    far_at_frr={"0.01": 0.25, "0.05": None},
    asr_defended=0.5,
    clean_metric_defended=0.875,
    n_heldout=99,
    n_clean=8,
    n_poisoned=8,
    intervals={"frr_test": (0.05, 0.15), "far": (0.0, 0.0123), "asr_defended": (0.41, 0.59), "asr": (0.98, 1.0)},
    verdicts={"test": pack(np.zeros(8, dtype=np.bool_)), "poisoned": pack(np.ones(8, dtype=np.bool_))},
    artifacts={"poisoned": "p"},
)
CURVE = Curve(
    dataset="demo", attack="ep", victim="v", seed=1, defense="rap", protocol="paper", points=((0.01, 0.0, 0.5), (0.02, 0.25, 0.0))
)

DEMANDED = {
    *("dataset", "attack", "defense", "frr", "frr_heldout", "frr_test", "far", "auroc", "asr", "asr_anywhere", "clean_metric"),
    *("threshold", "n_clean", "n_poisoned", "seed", "protocol", "status", "reason", "cost"),
    *("setting", "poisoned_on", "tuning", "asr_defended", "clean_metric_defended", "asrd", "asr_before", "survival", "survival_anywhere"),
}


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """Give the rows of the n-th Markdown table of a text, by head."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in blocks[number]]
    return [dict(zip(head, row, strict=True)) for row in body]


# Markdown


def test_the_table_gives_rates_in_per_cent():
    assert table(render([OK], "github")) == [
        {
            "dataset": "demo",
            "attack": "badnet-rw",
            "ASR": "100.00",
            "defense": "rap",
            "FRR allowed": "0.5",
            "FRR held-out": "1.23",
            "FRR test": "10.00",
            "FAR": "0.00",
            "AUROC": "0.9877",
            "ASR defended": "--",
            "clean metric defended": "90.00 -> --",
            "n clean": "300",
            "n poisoned": "310",
            "rows/text": "2.0 + 10.0 trigram",
        }
    ]


def test_a_second_table_gives_the_victim_s_own_figures_once():
    (row,) = table(render([OK, replace(OK, frr=0.05), replace(OK, defense="strip")], "github"), 1)
    assert row == {
        "victim": "minilm-l6",
        "dataset": "demo:n_train=900",
        "seed": "1234",
        "attack": "badnet-rw",
        "trigger": "badnet-rw:word=mb",
        "clean metric": "accuracy 90.00",
        "ASR first 100": "100.00",
        "ASR anywhere": "99.50",
        "ASR control": "25.00",
    }


def test_what_could_not_be_counted_is_two_dashes():
    control = replace(OK, attack="clean", far=None, auroc=None, asr_control=None, n_poisoned=None, cost=None)
    (row,) = table(render([control], "github"))
    assert [row[head] for head in ("FAR", "AUROC", "n poisoned", "rows/text")] == ["--"] * 4
    assert [row["ASR control"] for row in table(render([control, OK], "github"), 1)] == ["25.00", "--"]


def test_a_column_of_the_victims_table_in_which_nothing_stands_is_left_out():
    control = replace(OK, attack="clean", far=None, auroc=None, asr_control=None, n_poisoned=None, cost=None)
    assert "ASR control" not in table(render([control], "github"), 1)[0]


def test_the_victims_table_says_what_the_attack_does_by_itself_and_where_its_trigger_goes():
    tuned = replace(
        OK, setting="fine-tuned", poisoned_on="yelp:max_train=9", tuning="minilm-l6", asrd=0.75, survival=0.9995, asr_before=0.96, asr=1.0,
        intervals={"asr": (0.9881, 1.0)},
    )  # fmt: skip
    (row,) = table(render([tuned, replace(tuned, protocol="strict", defense="strip")], "github"), 2)
    shown = {"poisoned on": "yelp:max_train=9", "ASR first 100": "100.00 [98.8, 100.0]", "ASR control": "25.00", "ASRD": "75.00"}
    assert (shown | {"survival": "99.95", "before": "96.00"}).items() <= row.items()


def test_the_victims_table_has_the_false_triggered_rate_where_an_attack_notes_it():
    rates = {"": 0.25, "mb": 0.25, "bb": 0.5, "mean": 0.375}
    told = replace(OK, attack="sos", attack_notes={"false_trigger_rate": rates})
    text = render([OK, told, replace(told, attack="sos:epochs=1", attack_notes={"steps": 9})], "github")
    assert [row["FTR"] for row in table(text, 1)] == ["--", "37.50 (25.00)", "--"]
    assert FTR_FOOT in text
    assert "FTR" not in render([OK], "github")
    assert [(row["ftr"], row["ftr_plain"]) for row in rows_of(render([told, OK], "csv"))] == [("", ""), ("0.375", "0.25")]
    assert json.loads(render([told], "json"))["cells"][0]["attack_notes"] == {"false_trigger_rate": rates}


@pytest.mark.parametrize("odd", [0.5, {}, {"mean": "much"}, {"mean": [1]}, {"mean": 1.5}, {"mean": -1}, {"mean": 10**400}])
def test_what_is_noted_under_that_name_and_is_no_share_is_not_shown(odd):
    text = render([replace(OK, attack_notes={"false_trigger_rate": odd})], "github")
    assert "FTR" not in text


def test_one_victim_before_and_after_fine_tuning_has_two_rows():
    tuned = replace(OK, setting="fine-tuned", poisoned_on="yelp", tuning="minilm-l6", asr_before=0.96)
    rows = table(render([OK, tuned], "github"), 1)
    assert [(row["poisoned on"], row["before"]) for row in rows] == [("--", "--"), ("yelp", "96.00")]


def test_the_formulas_stand_under_the_tables():
    assert FOOT in render([OK], "github")


def test_cells_without_figures_are_listed_with_their_reason_and_not_in_the_table():
    text = render([SKIPPED, OK, FAILED, replace(FAILED, frr=0.05)], "github")
    assert len(table(text)) == 1
    assert text.splitlines()[-2:] == [
        "failed: demo:n_train=900 badnet-rw rap on minilm-l6, seed 1234, at 1, 5 %: too few held-out texts",
        "skipped: demo:n_train=900 badnet-rw rap:word=mb on minilm-l6, seed 1234, at 1 %: rap perturbs with 'mb'",
    ]


def test_where_no_cell_has_figures_there_is_no_table():
    text = render([FAILED], "github")
    assert "|" not in text
    assert text.startswith("failed: ")


def test_nothing_is_an_empty_text():
    assert render([], "github") == render([], "latex") == ""


def test_options_are_left_out_of_a_name_that_is_clear_without_them():
    rows = table(render([OK, replace(OK, defense="strip"), replace(OK, defense="strip:copies=9")], "github"))
    assert [row["defense"] for row in rows] == ["rap", "strip", "strip:copies=9"]


@pytest.mark.parametrize(("name", "values"), [("seed", (1, 2)), ("victim", ("a", "b:lr=0.1")), ("poisoned_on", ("imdb", "yelp"))])
def test_several_seeds_or_victims_get_a_column(name, values):
    rows = table(render([replace(OK, **{name: value}) for value in values], "github"))
    assert [row[name] for row in rows] == [str(value) for value in values]
    assert name not in table(render([OK], "github"))[0]


def test_a_name_cannot_break_the_markdown_table():
    rows = table(render([replace(OK, attack="a:word=x|y"), replace(OK, attack="a:word=two\nlines")], "github"))
    assert [row["attack"] for row in rows] == ["a:word=two lines", r"a:word=x\|y"]


def test_records_are_ordered_by_victim_data_set_seed_attack_defense_and_frr():
    first = replace(OK, dataset="a", seed=1, attack="b", defense="c", frr=0.01)
    ordered = [
        first,
        replace(first, frr=0.1),
        replace(first, defense="d", frr=0.001),
        replace(first, attack="c", defense="a"),
        replace(first, seed=2, attack="a"),
        replace(first, seed=10, attack="a"),
        replace(first, dataset="b", seed=0),
        replace(first, victim="z", dataset="a"),
    ]
    assert in_order(ordered[::-1]) == ordered


def test_where_settings_are_mixed_each_table_says_where_the_poison_came_from():
    tuned = replace(STRICT, setting="fine-tuned", poisoned_on="yelp", tuning="v:epochs=1")
    records = [
        replace(one, defense=defense, protocol=by) for one in (STRICT, tuned) for defense in ("rap", "strip") for by in ("paper", "strict")
    ]
    text = render(records, "github")
    for number in (0, 1):
        assert [row["poisoned_on"] for row in table(text, number)] == ["--"] * 2 + ["yelp"] * 2
    assert [row["poisoned_on"] for row in table(text, 3)] == ["--", "yelp"]


def test_the_rows_of_one_setting_go_together():
    tuned = replace(OK, setting="fine-tuned", poisoned_on="yelp", tuning="v")
    assert in_order([replace(tuned, frr=0.001), OK, replace(OK, defense="strip")]) == [
        OK,
        replace(OK, defense="strip"),
        replace(tuned, frr=0.001),
    ]


# the protocol strict


def test_the_strict_table_gives_intervals_and_what_is_left_after_the_defense():
    text = render([STRICT], "github")
    assert table(text) == [
        {
            "dataset": "demo",
            "attack": "badnet-rw",
            "defense": "rap",
            "FRR allowed": "0.5",
            "FRR test": "10.00 [5.0, 15.0]",
            "FAR": "0.00 [0.0, 1.2]",
            "FAR at FRR 1 %": "25.00",
            "FAR at FRR 5 %": "--",
            "AUROC": "0.9877",
            "ASR defended": "50.00 [41.0, 59.0]",
            "clean metric defended": "90.00 -> 87.50",
            "n calibration": "99",
        }
    ]
    assert STRICT_FOOT in text
    assert FOOT not in text


def test_the_protocols_have_a_table_each():
    text = render([STRICT, OK], "github")
    assert list(table(text, 0)[0]) == HEADS
    assert list(table(text, 1)[0]) == STRICT_HEADS
    assert text.index(FOOT) < text.index(STRICT_FOOT)


def test_a_warning_marks_its_rows_and_is_told_once():
    few = "4 held-out texts are few"
    records = [replace(STRICT, defense=name, warnings=(few,)) for name in ("rap", "strip:copies=9")] + [replace(STRICT, frr=0.05)]
    text = render(records, "github")
    assert [row["FRR allowed"] for row in table(text)] == ["0.5 !", "5", "0.5 !"]
    assert text.splitlines()[-1] == f"warning: {few}: demo badnet-rw rap (strict), demo badnet-rw strip (strict)"


def test_of_many_cells_with_one_warning_six_are_named():
    text = render([replace(STRICT, attack=f"a{n}", warnings=("few",)) for n in range(9)], "github")
    assert text.splitlines()[-1] == f"warning: few: {', '.join(f'demo a{n} rap (strict)' for n in range(6))} and 3 more"


def test_warnings_stand_before_the_cells_without_figures():
    lines = render([replace(STRICT, warnings=("few",)), FAILED], "github").splitlines()
    assert [line.partition(":")[0] for line in lines[-2:]] == ["warning", "failed"]


def test_where_nothing_can_be_rejected_there_is_no_threshold_and_the_row_stands():
    none = replace(STRICT, threshold=None, frr_heldout=0.0, frr_test=0.0, far=1.0, warnings=("nothing is rejected",), intervals={})
    (row,) = table(render([none], "github"))
    assert (row["FRR allowed"], row["FRR test"], row["FAR"]) == ("0.5 !", "0.00", "100.00")
    assert rows_of(render([none], "csv"))[0]["threshold"] == ""
    assert json.loads(render([none], "json"))["cells"][0]["threshold"] is None


# pairs and seeds


def test_two_defenses_on_the_same_texts_are_compared():
    # rap catches all 8, strip the last 2: 6 only by rap, p = 2 / 2^6; of the clean texts strip rejects one: 1 to 0, p = 1
    strip = replace(
        STRICT,
        defense="strip",
        verdicts={"test": pack(np.arange(8) == 0), "poisoned": pack(np.arange(8) >= 6)},
    )
    text = render([STRICT, strip], "github")
    row = next(line for line in text.splitlines() if "6 / 0" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "demo",
        "badnet-rw",
        "0.5",
        "rap",
        "strip",
        "6 / 0",
        "0.031",
        "1 / 0",
        "1",
    ]
    assert PAIR_FOOT in text


def test_the_protocol_paper_is_not_compared_in_pairs():
    text = render([replace(one, protocol="paper") for one in (STRICT, replace(STRICT, defense="strip"))], "github")
    assert PAIR_FOOT not in text


def test_several_seeds_get_a_table_of_means():
    seeds = [replace(STRICT, seed=seed, asr=1.0, far=far, auroc=None) for seed, far in ((1, 0.1), (2, 0.3))]
    text = render(seeds, "github")
    (row,) = table(text, 2)
    # the deviations from the mean are -10 and 10: sqrt(200 / 1) = 14.14
    assert (row["protocol"], row["seeds"], row["ASR"], row["FAR"], row["AUROC"]) == ("strict", "2", "100.00 ± 0.00", "20.00 ± 14.14", "--")
    assert SEEDS_FOOT in text
    assert SEEDS_FOOT not in render([STRICT], "github")


def test_a_seed_without_a_figure_is_told():
    two = [replace(STRICT, seed=seed, far=far) for seed, far in ((1, 0.1), (2, 0.3), (3, None))]
    assert table(render(two, "github"), 2)[0]["FAR"] == "20.00 ± 14.14 (2)"
    one = [replace(STRICT, seed=seed, far=far) for seed, far in ((1, 0.1), (2, None))]
    assert table(render(one, "github"), 2)[0]["FAR"] == "10.00 (1)"


def test_the_table_of_means_tells_its_victims_apart():
    records = [replace(STRICT, seed=seed, victim=victim) for seed in (1, 2) for victim in ("a", "b")]
    rows = table(render(records, "github"), 2)
    assert [row["victim"] for row in rows] == ["a", "b"]
    assert "seed" not in rows[0]


# LaTeX


def test_latex_has_the_same_rows_and_escapes_names():
    text = render([OK, replace(OK, defense="strip"), replace(OK, defense="strip:max_sources=5,x=1%")], "latex")
    row = next(line for line in text.splitlines() if "max" in line)
    assert r"strip:max\_sources=5,x=1\%" in row
    assert "1.23" in row
    assert row.endswith(r"\\")
    assert text.count(r"\begin{tabular}") == 1


def test_latex_says_what_has_no_figures_in_comments_so_that_it_still_compiles():
    lines = render([OK, replace(FAILED, reason="50 % of {texts}\nare_missing")], "latex").splitlines()
    assert lines[0] == f"% {FOOT}"
    assert lines[-1].startswith("% failed: ")
    assert lines[-1].endswith("50 % of {texts} are_missing")
    assert lines[1].startswith(r"\begin{tabular}")


def test_latex_has_both_protocols_with_their_formulas_and_warnings_in_comments():
    lines = render([OK, replace(STRICT, warnings=("few texts",))], "latex").splitlines()
    heads = [line for line in lines if "FRR allowed" in line]
    assert len(heads) == 2
    assert r"FAR at FRR 1 \%" in heads[1]
    assert [lines[place - 1] for place, line in enumerate(lines) if line.startswith(r"\begin{tabular}")] == [
        f"% {FOOT}",
        f"% {STRICT_FOOT}",
    ]
    assert "10.00 [5.0, 15.0]" in next(line for line in lines if "0.5 !" in line)
    assert lines[-1] == "% warning: few texts: demo badnet-rw rap (strict)"


# CSV


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_fractions_of_all_cells():
    ok, failed = rows_of(render([FAILED, OK], "csv"))
    assert (ok["frr_heldout"], ok["far"], ok["n_clean"], ok["victim_rows_per_input"]) == ("0.0123", "4e-05", "300", "2.0")
    assert (failed["status"], failed["reason"], failed["far"], failed["fit_s"]) == ("failed", "too few held-out texts", "", "")


def test_csv_has_every_figure_that_was_asked_for():
    assert DEMANDED - {"cost"} <= set(rows_of(render([OK], "csv"))[0])


def test_csv_has_both_protocols_and_a_column_for_each_end_of_an_interval():
    paper, strict = rows_of(render([STRICT, OK], "csv"))
    assert (paper["protocol"], strict["protocol"]) == ("paper", "strict")
    assert [strict[name] for name in ("far_low", "far_high", "asr_defended_low", "asr_defended_high")] == ["0.0", "0.0123", "0.41", "0.59"]
    assert [paper[name] for name in ("far_low", "far_high", "asr_defended_low", "frr_test_low")] == ["", "", "", "0.05"]
    assert (strict["far_at_frr_1"], strict["far_at_frr_5"], paper["far_at_frr_1"]) == ("0.25", "", "")


def test_csv_has_the_warnings_in_one_field():
    assert rows_of(render([replace(STRICT, warnings=("one", "two"))], "csv"))[0]["warnings"] == "one; two"


def test_csv_survives_commas_quotes_and_line_breaks():
    reason = 'the "text"\nhas a, comma'
    assert rows_of(render([replace(FAILED, reason=reason)], "csv"))[0]["reason"] == reason


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_a_spreadsheet_takes_no_text_of_a_csv_for_a_formula(start):
    assert rows_of(render([replace(FAILED, reason=f"{start}1+1")], "csv"))[0]["reason"] == f"'{start}1+1"


def test_a_carriage_return_ends_no_row_of_a_csv():
    assert [row["reason"] for row in rows_of(render([replace(FAILED, reason="one\rtwo")], "csv"))] == ["one two"]


def test_a_negative_number_stays_a_number():
    assert rows_of(render([OK], "csv"))[0]["threshold"] == "-0.5"


# JSON


def test_json_is_one_object_with_every_field_that_was_asked_for():
    content = json.loads(render([OK, FAILED], "json"))
    assert set(content) == {"cells"}
    assert all(set(cell) >= DEMANDED for cell in content["cells"])
    ok, failed = content["cells"]
    assert (ok["frr"], ok["far"], ok["threshold"], ok["cost"]["fit_s"]) == (0.005, 0.00004, -0.5, 7.0)
    assert (failed["far"], failed["status"], failed["reason"]) == (None, "failed", "too few held-out texts")


def test_every_format_has_the_cells_in_the_same_order():
    records = [replace(OK, defense=name) for name in ("strip", "onion", "rap")]
    assert [cell["defense"] for cell in json.loads(render(records, "json"))["cells"]] == ["onion", "rap", "strip"]
    assert [row["defense"] for row in rows_of(render(records, "csv"))] == ["onion", "rap", "strip"]
    assert [row["defense"] for row in table(render(records, "github"))] == ["onion", "rap", "strip"]


def test_the_table_has_a_head_for_each_figure():
    assert len(HEADS) == len(set(HEADS)) == len(table(render([OK], "github"))[0])


# files


def test_a_record_reads_back_as_it_was_written(tmp_path):
    whole = replace(STRICT, warnings=("few", "fewer"), setting="fine-tuned", poisoned_on="yelp", tuning="v", notes={"tries": 2})
    whole = replace(whole, attack_notes={"false_trigger_rate": {"": 0.5}})
    write([OK, FAILED, SKIPPED, STRICT, whole], tmp_path)
    assert in_order(read(tmp_path)) == in_order([OK, FAILED, SKIPPED, STRICT, whole])


def test_a_record_from_before_attacks_had_notes_reads_back_without_any(tmp_path):
    write([OK], tmp_path)
    (file,) = (tmp_path / "cells").iterdir()
    content = json.loads(file.read_text())
    del content["attack_notes"]
    file.write_text(json.dumps(content))
    assert read(tmp_path) == [OK]


def test_a_curve_reads_back_as_it_was_written_and_is_no_cell(tmp_path):
    other = replace(CURVE, protocol="strict", setting="fine-tuned", poisoned_on="yelp", tuning="v", points=())
    write([OK, CURVE, other], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "curves"]
    assert sorted(read_all(tmp_path, Curve), key=lambda one: one.protocol) == [CURVE, other]
    assert read(tmp_path) == [OK]


def test_writing_the_same_record_again_leaves_its_file_alone(tmp_path):
    write([OK], tmp_path)
    before = (tmp_path / "cells" / OK.file_name).stat()
    write([OK], tmp_path)
    after = (tmp_path / "cells" / OK.file_name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_cell_that_failed_and_then_went_well_has_one_file(tmp_path):
    write([replace(OK, status="failed", reason="full disk")], tmp_path)
    write([OK], tmp_path)
    assert read(tmp_path) == [OK]


def test_a_file_that_is_garbage_is_written_over(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / OK.file_name).write_bytes(b"\xff\xfe")
    write([OK], tmp_path)
    assert read(tmp_path) == [OK]


HOSTILE = ["../../x", "/etc/passwd", "a\\..\\b", "..", "x" * 5000, "nul\0", "line\nbreak", "Ä ö", "", "strip:lm=/home/me/../gpt2"]


@pytest.mark.parametrize("spec", HOSTILE)
@pytest.mark.parametrize("role", ["dataset", "attack", "defense", "victim"])
def test_a_record_s_file_stays_in_its_folder(spec, role, tmp_path):
    one = replace(OK, **{role: spec})
    write([one], tmp_path)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [one.file_name]
    assert read(tmp_path) == [one]


@given(st.text())
def test_a_file_s_name_is_a_plain_one(spec):
    name = replace(OK, dataset=spec).file_name
    assert Path(name).name == name
    assert len(name) < 128
    assert name.isascii()
    assert name.isprintable()


@pytest.mark.parametrize(
    ("role", "other"),
    [
        *(("dataset", "demo:n_train=901"), ("victim", "minilm-l6:lr=0.1"), ("seed", 1), ("frr", 0.01), ("protocol", "strict")),
        *(("attack", "EP"), ("poisoned_on", "yelp"), ("tuning", "minilm-l6")),
    ],
)
def test_each_combination_has_a_file_of_its_own(role, other):
    assert replace(OK, **{role: other}).file_name != OK.file_name


def test_a_file_of_another_schema_is_refused_with_its_version(tmp_path):
    write([OK], tmp_path)
    path = tmp_path / "cells" / OK.file_name
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA}', '"schema_version": 99'))
    with pytest.raises(StoreError, match=rf"'.*{path.name}' has schema version 99, this rapbench reads {SCHEMA}: "):
        read(tmp_path)


def test_a_result_of_schema_1_says_what_to_do(tmp_path):
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / "old.json"
    path.write_text('{"schema_version": 1, "dataset": "demo", "attack": "ep", "defense": "rap", "frr": 0.01}')
    with pytest.raises(StoreError) as told:
        read(tmp_path)
    assert str(told.value) == (
        f"{str(path)!r} has schema version 1, this rapbench reads 3: "
        "run the same command again with --out on another folder, or read it with the rapbench that wrote it"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema_version": 3, "dataset": "de',
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"schema_version": 3, "dataset": "demo"}',
        b'{"schema_version": 3, "intervals": {"far": 3}}',
        b'{"schema_version": 3, "warnings": 3}',
        b"null",
    ],
)
def test_a_half_written_file_is_named_and_left_alone(content, tmp_path):
    write([OK], tmp_path)
    path = tmp_path / "cells" / "broken.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"^'[^\n]*broken.json' is no result of rapbench: [^\n]*; move it away and run again$"):
        read(tmp_path)
    assert path.read_bytes() == content
    assert len(list((tmp_path / "cells").iterdir())) == 2


@pytest.mark.parametrize("size", [1, 100, 500, -1])
def test_a_cell_of_which_a_part_was_written_is_told_and_written_anew_by_the_next_run(size, tmp_path):
    write([STRICT], tmp_path)
    path = tmp_path / "cells" / STRICT.file_name
    part = path.read_bytes()[:size]
    path.write_bytes(part)
    with pytest.raises(StoreError, match="is no result of rapbench"):
        read(tmp_path)
    assert path.read_bytes() == part
    write([STRICT], tmp_path)
    assert read(tmp_path) == [STRICT]


@pytest.mark.parametrize("points", ["3", "[3]", "[[0.1, 0.2]]", '[["a", 0.1, 0.2]]'])
def test_a_curve_without_triples_of_numbers_is_told(points, tmp_path):
    write([CURVE], tmp_path)
    path = tmp_path / "curves" / CURVE.file_name
    path.write_text(json.dumps({**json.loads(path.read_text()), "points": json.loads(points)}))
    with pytest.raises(StoreError, match="is no result of rapbench"):
        read_all(tmp_path, Curve)


def test_a_field_that_a_later_version_added_is_passed_over(tmp_path):
    write([OK], tmp_path)
    path = tmp_path / "cells" / OK.file_name
    path.write_text(json.dumps({**json.loads(path.read_text()), "shoe_size": 43}))
    assert read(tmp_path) == [OK]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"no results in .*: give the folder of `rapbench run --out`"):
        read(tmp_path)


def test_a_results_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "cells").write_text("")
    with pytest.raises(StoreError, match=r"cannot make the folder .*; choose another --out"):
        write([OK], tmp_path)
