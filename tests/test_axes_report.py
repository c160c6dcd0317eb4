"""Does it still work when ...: what varies in a results folder, as a table and as a figure. Figures are worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_results import RECORD

from rapbench import cli_report, results
from rapbench.errors import StoreError
from rapbench.report import axes, axis_figures
from rapbench.report.axis_figures import MOST
from rapbench.report.html import page
from rapbench.report.marks import Marks
from rapbench.results import Record

KNOWN = Marks({"rap": "", "strip": "", "random": "floor"})
LOW = replace(RECORD, attack="badnet-rw:poison_rate=0.01", far=0.5, auroc=0.75, asr=0.6, intervals={"far": (0.45, 0.55)})
VARIANTS = {
    "poison_rate": ({"attack": "badnet-rw:poison_rate=0.01"}, ["1 %", "10 %"]),  # 10 % is the default
    "triggers": ({"attack": "badnet-rw:count=3"}, ["1", "3"]),  # one word by default
    "epochs": ({"victim": "minilm-l6:epochs=10"}, ["3", "10"]),  # three by default
    "heldout": ({"defense": "rap:heldout=64"}, ["64", "all"]),
    "victim": ({"victim": "roberta-base"}, ["minilm-l6", "roberta-base"]),
}


def shape(*records: Record) -> list[tuple[str, list[str]]]:
    return [(one.axis, [point.value for point in one.points]) for one in axes.found(records, KNOWN)]


def rows_of(text: str) -> list[dict[str, str]]:
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(head, row, strict=True)) for row in body]


# what varies


@pytest.mark.parametrize("axis", VARIANTS)
def test_an_axis_is_found_where_specs_are_equal_but_for_its_option(axis: str) -> None:
    other, values = VARIANTS[axis]
    assert shape(RECORD, replace(RECORD, **other)) == [(axis, values)]


def test_every_axis_of_a_grid_has_a_title() -> None:
    from rapbench.axes import AXES

    assert list(axes.TITLES) == list(AXES)
    assert set(VARIANTS) == set(AXES)


@pytest.mark.parametrize(
    "other",
    [
        {"attack": "ep"},
        {"attack": "badnet-rw:word=cf"},
        {"attack": "badnet-rw:word=cf,poison_rate=0.01"},
        {"defense": "strip"},
        {"dataset": "yelp", "attack": "badnet-rw:poison_rate=0.01"},
        {"defense": "rap:heldout=64", "attack": "badnet-rw:poison_rate=0.01"},
        {"seed": 2},
    ],
)
def test_what_differs_in_something_else_or_in_two_things_is_no_axis(other: dict[str, object]) -> None:
    assert shape(RECORD, replace(RECORD, **other)) == []


def test_other_options_stay_in_the_name_and_an_attack_has_the_default_of_its_own() -> None:
    own = [replace(RECORD, attack=attack) for attack in ('ripples:word="a, b"', 'ripples:word="a, b",poison_rate=0.01')]
    (one,) = axes.found(own, KNOWN)
    assert [point.value for point in one.points] == ["1 %", "50 %"]
    assert one.names.attack == 'ripples:word="a, b"'


def test_the_default_of_an_attack_that_is_not_installed_is_not_guessed() -> None:
    assert shape(replace(RECORD, attack="stranger"), replace(RECORD, attack="stranger:poison_rate=0.2")) == []
    rated = [replace(RECORD, attack=f"stranger:poison_rate={rate}") for rate in (0.5, 0.2)]
    assert shape(*rated) == [("poison_rate", ["20 %", "50 %"])]


def test_what_is_no_number_is_left_out() -> None:
    assert shape(RECORD, *(replace(RECORD, defense=f"rap:heldout={odd}") for odd in ("many", "nan"))) == []


def test_values_rise_as_numbers() -> None:
    own = [replace(RECORD, defense=f"rap:heldout={n}") for n in (16, 256, 64, 1024)]
    assert shape(*own, RECORD) == [("heldout", ["16", "64", "256", "1024", "all"])]


def test_a_cell_without_a_far_is_no_point() -> None:
    assert shape(RECORD, replace(LOW, status="failed"), replace(LOW, far=None)) == []


def test_a_user_s_fine_tuning_follows_the_victim() -> None:
    tuned = replace(RECORD, poisoned_on="yelp", setting="fine-tuned", tuning="minilm-l6")
    longer = replace(tuned, victim="minilm-l6:epochs=5", tuning="minilm-l6:epochs=5")
    other = replace(tuned, victim="roberta-base", tuning="roberta-base")
    assert shape(tuned, longer, other) == [("epochs", ["3", "5"]), ("victim", ["minilm-l6", "roberta-base"])]


def test_one_seed_has_its_interval_and_several_their_mean_and_range() -> None:
    (one,) = axes.found([RECORD, LOW, replace(LOW, seed=2, far=0.7, asr=0.8)], KNOWN)
    low, high = one.points
    assert (low.seeds, low.far, low.far_ends, low.asr) == (2, pytest.approx(0.6), (0.5, 0.7), pytest.approx(0.7))
    assert (high.seeds, high.far, high.far_ends) == (1, 0.03, (0.017, 0.052))


# the table


def test_the_table_has_a_row_per_value() -> None:
    own = [one for base in (RECORD, LOW) for one in (base, replace(base, defense="random"), replace(base, frr=0.05, far=0.9))]
    text = axes.render(own, "github", "paper", KNOWN)
    assert rows_of(text)[0] == {
        "axis": "poison rate", "value": "1 %", "dataset": "imdb", "attack": "badnet-rw", "defense": "rap",
        "AUROC": "0.7500", "FAR": "50.00 [45.0, 55.0]", "ASR": "60.00", "seeds": "1",
    }  # fmt: skip
    assert [(row["defense"], row["value"]) for row in rows_of(text)] == [
        ("rap", "1 %"), ("rap", "10 %"), ("random (floor)", "1 %"), ("random (floor)", "10 %"),
    ]  # fmt: skip
    assert "FAR at an allowed FRR of 1 %, protocol `paper`" in text
    assert "neither is a contender" in text


def test_csv_and_json_have_fractions() -> None:
    (low, _) = csv.DictReader(io.StringIO(axes.render([RECORD, LOW], "csv", "paper", KNOWN)))
    assert [low[name] for name in ("axis", "value", "attack", "mark", "far", "far_low", "asr")] == [
        "poison_rate", "1 %", "badnet-rw", "contender", "0.5", "0.45", "0.6",
    ]  # fmt: skip
    told = json.loads(axes.render([RECORD, LOW], "json", "paper", KNOWN))["axes"]
    assert (told[1]["far_high"], told[1]["poisoned_on"], list(told[0])) == (0.052, None, list(low))


def test_latex_has_the_foot_in_a_comment() -> None:
    lines = axes.render([RECORD, LOW], "latex", "paper", KNOWN).splitlines()
    assert lines[0].startswith("% Cells that differ in one thing alone.")
    assert r"1 \%" in next(line for line in lines if "75" in line)


def test_where_nothing_varies_it_says_how_to_vary_it(tmp_path: Path) -> None:
    results.write([RECORD], tmp_path)
    with pytest.raises(StoreError, match=r"^nothing is varied alone here under the protocol strict: run a grid with axes, say axes: "):
        cli_report.report(tmp_path, table="axes", protocol="strict")


# the figure


def drawn(*records: Record) -> Any:
    return axis_figures.picture(axes.found(records, KNOWN), 0.01, KNOWN)


def test_an_axis_is_three_panels_with_a_line_per_attack_and_defense() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    made = drawn(RECORD, LOW, replace(RECORD, defense="random", far=0.9), replace(LOW, defense="random", far=1.0))
    assert [(row.title, [panel.title for panel in row.panels]) for row in made.rows] == [
        ("imdb, poison rate", ["AUROC", "FAR at 1 %", "ASR"])
    ]
    assert [key.label for key in made.keys] == ["rap, badnet-rw", "random (floor), badnet-rw", "badnet-rw, undefended"]
    axis = Figure().subplots()
    made.panels[1].paint(axis)
    assert [one.get_ydata() for one in axis.get_lines()] == [pytest.approx([50.0, 3.0]), pytest.approx([100.0, 90.0])]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1 %", "10 %"]
    bars = [segment[:, 1].tolist() for one in axis.collections for segment in one.get_segments()]
    assert bars[:2] == [pytest.approx([45.0, 55.0]), pytest.approx([1.7, 5.2])]
    assert made.panels[1].words == (
        "FAR (%). rap, badnet-rw: 50.0 at 1 %, 3.0 at 10 %; random (floor), badnet-rw: 100.0 at 1 %, 90.0 at 10 %."
    )
    assert made.panels[2].words == "ASR (%). badnet-rw, undefended: 60.0 at 1 %, 98.0 at 10 %."


def test_a_line_that_lacks_a_value_has_its_points_at_the_right_ones() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    middle = replace(RECORD, attack="badnet-rw:poison_rate=0.05")
    strip = [replace(one, defense="strip") for one in (RECORD, LOW)]
    axis = Figure().subplots()
    drawn(RECORD, LOW, middle, *strip).panels[0].paint(axis)
    rap, without = (one.get_xdata() for one in axis.get_lines()[:2])
    assert [round(float(x)) for x in rap] == [0, 1, 2]
    assert [round(float(x)) for x in without] == [0, 2]


def test_the_undefended_line_has_every_value_that_some_defense_has() -> None:
    middle = replace(RECORD, attack="badnet-rw:poison_rate=0.05", asr=0.8)
    strip = [replace(one, defense="strip") for one in (RECORD, LOW, middle)]
    made = drawn(RECORD, LOW, replace(middle, status="failed", reason="memory", far=None), *strip)
    assert made.panels[2].words == "ASR (%). badnet-rw, undefended: 60.0 at 1 %, 80.0 at 5 %, 98.0 at 10 %."


def test_where_lines_are_many_each_attack_has_a_row() -> None:
    own = [replace(one, defense=f"d{n}") for one in (RECORD, LOW) for n in range(MOST + 1)]
    made = drawn(*own)
    assert [row.title for row in made.rows] == ["imdb, poison rate: badnet-rw"]
    assert [key.label for key in made.keys] == [*(f"d{n}" for n in range(MOST + 1)), "undefended"]


def test_plot_and_the_page_draw_it_where_there_is_such_data(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    results.write([RECORD, LOW], tmp_path / "r")
    cli_report.plot(tmp_path / "r", ["axes"], output=tmp_path / "f")
    assert (tmp_path / "f" / "axes.svg").read_bytes().startswith(b"<?xml")
    text = page(tmp_path / "r", "paper", texts=False)
    assert '<section id="axes"' in text
    assert "rap, badnet-rw: 50.0 at 1 %, 3.0 at 10 %" in text
    results.write([RECORD], tmp_path / "plain")
    assert 'id="axes"' not in (text := page(tmp_path / "plain", "paper", texts=False))
    assert 'href="#axes"' not in text
