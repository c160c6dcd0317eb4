"""The figures: what each shows, from hand-made results; the files that `rapbench plot` writes; the bins behind the histograms."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_results import COST, RECORD

from rapbench import cli_report, measure, results
from rapbench.artifacts import Store
from rapbench.errors import SpecError, StoreError
from rapbench.grid import Cell
from rapbench.lengths import Timed
from rapbench.registry import discover
from rapbench.report import cost_figures, curves, heatmap, suspicion
from rapbench.report.figures import COLUMNS, DASHES, INK, MARKERS, SERIES, Inline, Key, Panel, Picture, Row, line, sheet, swatches
from rapbench.report.heatmap import _colour, _readable
from rapbench.report.names import Names
from rapbench.report.pictures import FIGURES, asked
from rapbench.results import Curve, Histogram, Record
from rapbench.victim import Recipe

pytest.importorskip("matplotlib")

NAMES = {"dataset": "imdb", "attack": "ep", "victim": "v", "seed": 1, "defense": "rap", "protocol": "paper"}
HISTOGRAM = Histogram(**NAMES, edges=(0.0, 1.0, 2.0), clean=(3, 1), poisoned=(1, 4), thresholds=((0.01, 1.5), (0.05, 0.5)))


@pytest.fixture
def axis() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def texts(axis: Any) -> dict[tuple[float, float], str]:
    return {tuple(text.get_position()): text.get_text() for text in axis.texts}


def folder_of(path: Path) -> Path:
    own = [replace(RECORD, attack="ep"), replace(RECORD, attack="ep", defense="strip", far=0.5, cost=replace(COST, ratio=9.0))]
    results.write([*own, replace(own[0], attack="ep:poison_rate=0.5")], path)
    results.write([replace(HISTOGRAM, victim=RECORD.victim)], path)
    results.write([Curve(**{**NAMES, "victim": RECORD.victim}, points=((0.01, 0.02, 0.5), (0.05, 0.06, 0.1)))], path)
    return path


# the heat map


def test_a_field_is_the_mean_over_seeds_in_per_cent(axis: Any) -> None:
    own = [RECORD, replace(RECORD, seed=2, far=0.15), replace(RECORD, attack="ep", far=1.0), replace(RECORD, dataset="yelp", far=0.5)]
    (panel,) = heatmap.picture(own, Names(own)).panels
    panel.paint(axis)
    assert texts(axis) == {(0, 0): "9", (1, 0): "100", (0, 1): "50"}  # (3 + 15) / 2; yelp with ep is not in the grid
    assert [label.get_text() for label in axis.get_xticklabels()] == ["badnet-rw", "ep"]
    assert panel.words == "FAR in per cent. imdb: badnet-rw 9, ep 100; yelp: badnet-rw 50, ep not in the grid."


def test_what_has_no_figure_says_why_and_an_attack_that_hardly_works_is_marked(axis: Any) -> None:
    own = [replace(RECORD, asr=0.49), replace(RECORD, attack="ep", far=None, status="failed")]
    heatmap.picture(own, Names(own)).panels[0].paint(axis)
    assert texts(axis) == {(0, 0): "3*", (1, 0): "failed"}


def test_a_defense_without_any_figure_has_no_map_and_a_clean_control_no_column() -> None:
    own = [RECORD, replace(RECORD, attack="clean", far=None), replace(RECORD, defense="strip", far=None, status="failed")]
    (panel,) = heatmap.picture(own, Names(own)).panels
    assert (panel.title, "clean" in panel.words) == ("rap", False)


def test_a_clean_control_has_no_column_though_a_cell_of_it_was_skipped() -> None:
    clean = replace(RECORD, attack="clean", far=None, auroc=None, asr_defended=None)
    own = [RECORD, clean, replace(clean, defense="strip", status="skipped")]
    (panel,) = heatmap.picture(own, Names(own)).panels
    assert panel.words == "FAR in per cent. imdb: badnet-rw 3."


def test_the_colours_run_from_blue_over_pale_to_orange() -> None:
    assert [_colour(far) for far in (0.0, 0.5, 1.0)] == ["#2b6cb0", "#f4efe6", "#c2410c"]
    assert _colour(0.25) == "#90aecb"  # half way: (0x2b + 0xf4) / 2 = 143.5 -> 0x90, (0x6c + 0xef) / 2 = 173.5 -> 0xae, 203 = 0xcb


@given(st.floats(0, 1))
def test_the_figure_in_a_field_can_be_read(far: float) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        return sum(
            weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    low, high = sorted(luminance(colour) for colour in (_colour(far), _readable(_colour(far))))
    assert (high + 0.05) / (low + 0.05) >= 4.5


# cost


def test_a_defense_is_a_point_by_cost_and_far_and_its_mean_is_larger(axis: Any) -> None:
    other = replace(RECORD, dataset="yelp", far=0.05, cost=replace(COST, ratio=8.0))
    (panel,) = cost_figures.choice([RECORD, other], Names([RECORD, other])).panels
    panel.paint(axis)
    small, large = axis.get_lines()
    assert small.get_xydata().tolist() == [[2.0, 3.0], [8.0, 5.0]]
    assert large.get_xydata() == pytest.approx(np.array([[4.0, 4.0]]))  # sqrt(2 * 8) times, (3 + 5) / 2 %
    assert large.get_markersize() > small.get_markersize()


def test_a_cell_without_time_or_far_is_no_point() -> None:
    own = [
        replace(RECORD, cost=None),
        replace(RECORD, far=None, attack="clean"),
        replace(RECORD, cost=replace(COST, ratio=None), attack="ep"),
    ]
    assert cost_figures.choice(own, Names(own)).rows == []


def test_cost_by_length_is_one_line_per_defense(axis: Any) -> None:
    left, right = cost_figures.length([RECORD], Names([RECORD])).panels
    left.paint(axis)
    (drawn,) = axis.get_lines()
    assert drawn.get_xydata() == pytest.approx(np.array([[12.0, 4.0], [50.0, 11.0]]))  # (2 + 2) ms and (6 + 5) ms
    assert right.words == "rap: 2 at 12 words, 2.2 at 50 words."  # 1 + 2 / 2 and 1 + 6 / 5


def test_cost_by_length_has_a_row_per_victim_and_device_that_says_which() -> None:
    slow = replace(COST, by_length=(Timed(12, 50, 0.009, 0.003),), device="cuda", device_name="H200")
    big = replace(RECORD, victim="bert-base:epochs=2", cost=slow)
    own = [RECORD, replace(RECORD, attack="ep"), big]
    rows = cost_figures.length(own, Names(own)).rows
    assert [(row.title, row.panels[0].words) for row in rows] == [
        ("bert-base, cuda, H200", "rap: 12 at 12 words, 12 at 12 words."),
        ("minilm-l6, cpu, made up", "rap: 4 at 12 words, 11 at 50 words."),
    ]
    assert [row.title for row in cost_figures.length([RECORD], Names([RECORD])).rows] == [""]


# suspicion


def test_both_populations_are_shares_of_their_own_and_the_threshold_is_the_asked_one(axis: Any) -> None:
    (panel,) = suspicion.picture([HISTOGRAM], "paper", 0.05, Names([HISTOGRAM])).panels
    panel.paint(axis)
    clean, poisoned = (patch.get_data() for patch in axis.patches)
    assert (clean.values.tolist(), poisoned.values.tolist()) == ([75, 25], [20, 80])
    assert axis.get_lines()[0].get_xdata() == [0.5, 0.5]
    assert (
        panel.words
        == "4 clean texts, half of them below 1; 5 poisoned texts, half of them below 2; threshold 0.5 at an allowed FRR of 5 %."
    )


def test_bins_of_unequal_width_are_drawn_alike_and_told_by_their_ends(axis: Any) -> None:
    edges = tuple(float(place**3) for place in range(-6, 7))  # 13 of them
    own = replace(HISTOGRAM, edges=edges, clean=(1,) * 12, poisoned=(1,) * 12, thresholds=((0.01, 4.5),))
    suspicion.picture([own], "paper", 0.01, Names([own])).panels[0].paint(axis)
    assert np.diff(axis.patches[0].get_data().edges).tolist() == [1.0] * 12
    assert axis.get_lines()[0].get_xdata()[0] == 7.5  # half way between 1 and 8, the edges at places 7 and 8
    assert [label.get_text() for label in axis.get_xticklabels()] == ["-125", "-8", "1", "64"]  # every third edge, from -5 ** 3


def test_without_a_threshold_there_is_no_line_and_without_texts_no_panel(axis: Any) -> None:
    (panel,) = suspicion.picture([HISTOGRAM], "paper", 0.02, Names([HISTOGRAM])).panels
    panel.paint(axis)
    assert (len(axis.get_lines()), panel.words.endswith("no threshold.")) == (0, True)
    for empty in (replace(HISTOGRAM, clean=(0, 0)), replace(HISTOGRAM, poisoned=(0, 0)), replace(HISTOGRAM, protocol="strict")):
        assert suspicion.picture([empty], "paper", 0.01, Names([empty])).rows == []


# bins


def histogram_of(root: Path, frrs: tuple[float, ...], **given: list[float]) -> Histogram:
    populations = {"heldout": [1, 2, 3, 4, 5], "test": [], "mistaken": [], "poisoned": [], **given}
    store = Store(root).create()
    with store.attempt("0" * 32, {}) as folder:
        np.savez(folder / "scores.npz", **{f"paper_{name}_suspicion": np.array(own, dtype=np.float64) for name, own in populations.items()})
    registry = discover()
    cell = Cell(
        dataset=registry.parse("dataset", "demo"), attack=registry.parse("attack", "ep"), attack_spec="ep", recipe=Recipe(), seed=1,
        defense=registry.parse("defense", "rap"), frr=frrs[0], protocol="paper",
    )  # fmt: skip
    return measure.histogram([replace(cell, frr=frr) for frr in frrs], {"score": "0" * 32}, store)


def test_every_text_is_in_a_bin_and_every_allowed_frr_has_its_threshold(tmp_path: Path) -> None:
    made = histogram_of(tmp_path, (0.5, 0.25), test=[0, 1, 2, 3, 1e9], poisoned=[4, 4, 5])
    assert (sum(made.clean), sum(made.poisoned)) == (5, 3)
    assert made.thresholds == ((0.25, 4.0), (0.5, 3.0))  # the places .25 * 4 and .5 * 4 from the top of 1..5
    assert (made.dataset, made.attack, made.defense, made.protocol) == ("demo", "ep", "rap", "paper")
    results.write([made], tmp_path)
    assert results.read_all(tmp_path, Histogram) == [made]


@pytest.mark.parametrize("edges", [(0.0, 1.0), (0.0, 1.0, 1.0), (2.0, 1.0, 0.0)])
def test_a_histogram_whose_bins_make_no_sense_is_refused(edges: tuple[float, ...], tmp_path: Path) -> None:
    results.write([HISTOGRAM], tmp_path)
    (file,) = (tmp_path / "histograms").glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "edges": edges}))
    with pytest.raises(StoreError, match=r"^'[^\n]*' is no result of rapbench: [^\n]*edges: rising numbers"):
        results.read_all(tmp_path, Histogram)


@example([0.0, 5e-304], [45312.0])
@example([0.0, 5e-304], [1.0])
@example([0.0, 5e-324], [])
@example([0.0, 4e-322], [])
@example([1e6, 1e6 + 2e-10], [])
@example([1e6] * 5 + [1e6 + 2e-10] * 5 + [1e6 + 1] * 2, [])
@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.lists(st.floats(-1e6, 1e6), max_size=3))
def test_bins_rise_and_hold_every_threshold(suspicions: list[float], thresholds: list[float]) -> None:
    edges = measure._edges(np.array(suspicions, dtype=np.float64), thresholds)
    assert len(edges) == measure.BINS + 1
    assert (np.diff(edges) > 0).all()
    assert all(edges[0] < at < edges[-1] for at in thresholds)
    assert sum(measure._binned(np.array(suspicions, dtype=np.float64), edges)) == len(suspicions)


def test_a_long_tail_does_not_put_half_of_the_texts_into_one_bin(tmp_path: Path) -> None:
    heavy = np.exp(np.linspace(0, 10, 400)).tolist()
    assert max(histogram_of(tmp_path / "a", (0.5,), test=heavy, poisoned=heavy).clean) < 200  # 245 are below the first 40th of the range
    even = np.linspace(0, 10, 400).tolist()
    assert np.ptp(np.diff(histogram_of(tmp_path / "b", (0.5,), test=even, poisoned=even).edges)) < 1e-9


# sheets and pages


def test_no_two_of_many_lines_are_drawn_alike() -> None:
    styles = {(own["color"], own["marker"], own["ls"]) for own in map(line, range(56))}
    assert len(styles) == 56
    assert len({tuple(entry.values())[1:] for entry in swatches([Key("", number) for number in range(56)])}) == 56
    assert len(SERIES) * len(MARKERS) == 56
    assert len(DASHES) == 4


def test_a_long_row_goes_on_in_the_next_line_of_a_sheet(tmp_path: Path) -> None:
    drawn: list[Any] = []
    panels = [Panel(f"panel {number}", "", drawn.append) for number in range(COLUMNS + 1)]
    sheet(Picture("p", [Row("row", panels)]), tmp_path / "a.svg")
    assert len(drawn) == COLUMNS + 1
    assert len({round(axis.get_position().y0, 3) for axis in drawn}) == 2
    assert re.findall("<!-- (row, .*) -->", (tmp_path / "a.svg").read_text()) == [f"row, panel {number}" for number in range(COLUMNS + 1)]


def test_in_a_page_a_colour_has_a_name_and_in_a_file_it_has_none(tmp_path: Path) -> None:
    own = Picture("p", [Row("", [Panel("a", "b", lambda axis: axis.plot([0, 1], color=INK))])])
    inline = Inline()
    text = inline.svg(own, own.rows[0], own.panels[0])
    assert "var(--ink)" in inline.css()
    assert "#" not in inline.css()
    assert 'style="' not in text
    sheet(own, tmp_path / "a.svg")
    assert INK in (tmp_path / "a.svg").read_text()


def test_two_panels_in_a_page_share_no_id() -> None:
    own = Picture("p", [Row("", [Panel("a", "b", lambda axis: axis.plot([0, 1], "o-"))] * 2)])
    inline = Inline()
    first, second = (ElementTree.fromstring(inline.svg(own, own.rows[0], panel)) for panel in own.panels)
    ids = [{one.attrib["id"] for one in root.iter() if "id" in one.attrib} for root in (first, second)]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]


def test_a_name_is_no_formula_and_no_markup() -> None:
    own = Picture("p", [Row("", [Panel("$\\frac<b>", "</desc><script>", lambda axis: axis.set_xlabel("$\\frac</text><script>"))])])
    root = ElementTree.fromstring(Inline().svg(own, own.rows[0], own.panels[0]))
    assert "$\\frac</text><script>" in [one.text for one in root.iter("text")]
    assert not list(root.iter("script"))


# the command


def test_plot_writes_every_figure_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli_report.plot(folder_of(tmp_path / "r"), output=tmp_path / "f" / "g")
    files = [tmp_path / "f" / "g" / f"{name}.svg" for name in FIGURES]
    assert capsys.readouterr().out.splitlines() == [str(file) for file in files]
    assert all(file.read_bytes().startswith(b"<?xml") for file in files)


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_plot_writes_the_asked_figures_in_the_asked_form(form: Any, start: bytes, tmp_path: Path) -> None:
    cli_report.plot(folder_of(tmp_path / "r"), ["length", "heatmap"], form, output=tmp_path / "f")
    assert {file.name for file in (tmp_path / "f").iterdir()} == {f"heatmap.{form}", f"length.{form}"}
    assert (tmp_path / "f" / f"heatmap.{form}").read_bytes().startswith(start)


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cli_report.plot(folder_of(tmp_path / "r"), output=tmp_path / name)
    for name in FIGURES:
        assert (tmp_path / "a" / f"{name}.svg").read_bytes() == (tmp_path / "b" / f"{name}.svg").read_bytes()


def test_a_figure_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^unknown figure 'heatmp'[^\n]*heatmap"):
        asked(folder_of(tmp_path), "paper", ["heatmp"])


def test_what_cannot_be_drawn_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    results.write([replace(RECORD, cost=None)], tmp_path)
    assert [picture.name for picture in asked(tmp_path, "paper")] == ["heatmap"]
    with pytest.raises(StoreError, match=r"^nothing to draw in [^\n]* for suspicion, protocol paper: no cell has the figures for it$"):
        asked(tmp_path, "paper", ["heatmap", "suspicion"])
    none = Record(dataset="d", attack="a", victim="v", seed=1, defense="x", frr=0.01, protocol="paper", status="failed")
    results.write([none], tmp_path / "none")
    with pytest.raises(StoreError, match=r"^nothing to draw in [^\n]* for heatmap, choice, [^\n]*, length, axes, protocol paper"):
        asked(tmp_path / "none", "paper")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^cannot make the folder '[^\n]*': [^\n]*; choose another --output$"):
        cli_report.plot(folder_of(tmp_path / "r"), output=tmp_path / "file" / "f")


def test_curves_keep_the_colour_of_their_defense_in_every_figure() -> None:
    records = [RECORD, replace(RECORD, defense="onion"), replace(RECORD, defense="strip")]
    names = Names(records)
    drawn = curves.picture([Curve(**{**NAMES, "attack": "badnet-rw", "victim": RECORD.victim}, points=((0.01, 0.1, 0.2),))], "paper", names)
    assert drawn.keys == [Key("rap", 1)]  # after onion, which has no curve
    assert [key.number for key in cost_figures.choice(records, names).keys] == [0, 1, 2]
