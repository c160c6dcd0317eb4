"""Curves as tables and as pictures, from hand-made points."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rapbench.errors import SpecError, StoreError
from rapbench.report.curves import FOOT, SHOWN, draw, render
from rapbench.results import Curve, read_all, write

RAP = Curve(
    dataset="demo:n_train=9",
    attack="ep:lr=0.1",
    victim="v",
    seed=1,
    defense="rap",
    protocol="paper",
    points=((0.001, 0.0, 1.0), (0.00101, 0.0, 0.96), (0.0098, 0.0125, 0.5), (0.0112, 0.02, 0.25), (0.2, 0.22, 0.0)),
)
STRIP = replace(RAP, defense="strip", points=((0.01, 0.02, 0.75), (0.05, 0.04, 0.5)))
TUNED = replace(RAP, setting="fine-tuned", poisoned_on="yelp:max_train=9", tuning="v:epochs=1")


def rows(text: str) -> list[dict[str, str]]:
    """Give the rows of a Markdown table by head."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(head, row, strict=True)) for row in body]


# tables


def test_the_table_gives_far_and_frr_of_the_nearest_point_in_per_cent() -> None:
    text = render([RAP], "github")
    assert rows(text) == [
        {
            "protocol": "paper",
            "dataset": "demo",
            "attack": "ep",
            "defense": "rap",
            "seed": "1",
            "0.1 %": "100.00 (0.00)",  # the point itself
            "0.2 %": "--",  # no point within 15 % of it
            "0.5 %": "--",
            "1 %": "50.00 (1.25)",  # .0098 is nearer to .01 than .0112
            "2 %": "--",
            "5 %": "--",
            "10 %": "--",
            "20 %": "0.00 (22.00)",
        }
    ]
    assert text.endswith(f"\n\n{FOOT}")


def test_a_curve_without_points_is_a_row_of_dashes() -> None:
    (row,) = rows(render([replace(RAP, points=())], "github"))
    assert [row[f"{100 * frr:g} %"] for frr in SHOWN] == ["--"] * len(SHOWN)


def test_the_rows_are_ordered_and_say_where_the_poison_came_from() -> None:
    given = [replace(RAP, protocol="strict"), TUNED, replace(RAP, seed=10), STRIP, replace(RAP, seed=2), RAP]
    told = [(row["protocol"], row["dataset"], row["defense"], row["seed"]) for row in rows(render(given, "github"))]
    assert told == [
        *(("paper", "demo", "rap", seed) for seed in ("1", "2", "10")),
        ("paper", "demo", "strip", "1"),
        ("paper", "yelp -> demo", "rap", "1"),
        ("strict", "demo", "rap", "1"),
    ]


def test_a_name_cannot_break_the_table() -> None:
    assert rows(render([replace(RAP, defense="rap:word=x|y")], "github"))[0]["defense"] == r"rap:word=x\|y"


def test_latex_has_the_rows_and_the_formula_in_a_comment() -> None:
    first, *lines = render([RAP, STRIP], "latex").splitlines()
    assert first == f"% {FOOT}"
    assert lines[0].startswith(r"\begin{tabular}")
    assert lines[-1] == r"\end{tabular}"
    assert "75.00 (2.00)" in next(line for line in lines if "strip" in line)
    assert r"0.1 \%" in "".join(lines)


def test_csv_has_every_point_as_fractions() -> None:
    read = list(csv.DictReader(io.StringIO(render([STRIP, TUNED], "csv"))))
    assert [row["frr_allowed"] for row in read] == ["0.01", "0.05", "0.001", "0.00101", "0.0098", "0.0112", "0.2"]
    names = {"protocol": "paper", "dataset": "demo:n_train=9", "attack": "ep:lr=0.1", "victim": "v", "seed": "1"}
    assert read[0] == {
        **names, "setting": "main", "poisoned_on": "", "tuning": "", "defense": "strip",
        "frr_allowed": "0.01", "frr_test": "0.02", "far": "0.75"
    }  # fmt: skip
    assert (read[2]["setting"], read[2]["poisoned_on"], read[2]["tuning"]) == ("fine-tuned", "yelp:max_train=9", "v:epochs=1")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_a_spreadsheet_takes_no_name_for_a_formula(start: str) -> None:
    read = list(csv.DictReader(io.StringIO(render([replace(RAP, victim=f"{start}1+1", tuning="")], "csv"))))
    assert {row["victim"] for row in read} == {f"'{start}1+1"}
    assert {row["tuning"] for row in read} == {""}


def test_a_negative_seed_stays_a_number() -> None:
    assert {row["seed"] for row in csv.DictReader(io.StringIO(render([replace(RAP, seed=-1)], "csv")))} == {"-1"}


def test_json_is_one_object_with_every_point() -> None:
    content = json.loads(render([STRIP, RAP], "json"))
    assert set(content) == {"curves"}
    assert [Curve.of(one) for one in content["curves"]] == [RAP, STRIP]


@pytest.mark.parametrize("form", ["github", "latex", "csv", "json"])
def test_where_there_is_no_curve_there_is_one_line(form: str) -> None:
    with pytest.raises(StoreError, match=r"^no curves in this folder: they are written where a defense has scored an attack$"):
        render([], form)


@pytest.mark.parametrize("form", ["github", "latex", "csv", "json"])
def test_the_order_in_which_curves_are_given_does_not_matter(form: str) -> None:
    given = [RAP, STRIP, TUNED, replace(RAP, protocol="strict")]
    assert render(given, form) == render(given[::-1], form)


def test_a_curve_reads_back_as_it_was_written(tmp_path: Path) -> None:
    given = [RAP, STRIP, TUNED, replace(RAP, protocol="strict"), replace(RAP, seed=2)]
    write(given, tmp_path)
    assert sorted(map(repr, read_all(tmp_path, Curve))) == sorted(map(repr, given))


# pictures


def drawn(curves: list[Curve], file: Path, protocol: str = "paper") -> str:
    pytest.importorskip("matplotlib")
    draw(curves, file, protocol)
    return file.read_text()


def test_a_picture_is_drawn_alike_twice(tmp_path: Path) -> None:
    given = [RAP, STRIP, TUNED, replace(RAP, attack="badnet-rw")]
    one, other = (drawn(curves, tmp_path / name) for name, curves in (("one.svg", given), ("other.svg", given[::-1])))
    assert one == other
    assert one.startswith("<?xml")
    assert "<dc:date>" not in one


def titles(picture: str) -> list[str]:
    """Give the texts of a picture, which matplotlib leaves in comments beside their outlines."""
    return re.findall(r"<!-- (.*) -->", picture)


def test_a_panel_per_attack_and_a_line_per_defense(tmp_path: Path) -> None:
    told = titles(drawn([RAP, STRIP, TUNED, replace(RAP, attack="badnet-rw"), replace(RAP, seed=2)], tmp_path / "a.svg"))
    assert [text for text in told if ", " in text] == ["demo, badnet-rw", "demo, ep", "yelp -&gt; demo, ep"]


def test_two_seeds_are_two_lines_of_one_name(tmp_path: Path) -> None:
    told = titles(drawn([RAP, replace(RAP, seed=2), STRIP], tmp_path / "a.svg"))
    assert (told.count("rap"), told.count("strip")) == (1, 1)


def test_the_other_protocol_has_a_picture_of_its_own(tmp_path: Path) -> None:
    assert "strip" not in titles(drawn([RAP, replace(STRIP, protocol="strict")], tmp_path / "a.svg"))
    assert "strip" in titles(drawn([RAP, replace(STRIP, protocol="strict")], tmp_path / "a.svg", "strict"))


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_a_picture_may_be_png_or_pdf(suffix: str, start: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([RAP], tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.gif", "a", "svg", "a.svg.txt"])
def test_another_suffix_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^cannot draw into '[^\n]*{name}': give a file that ends in .svg, .png, .pdf$"):
        draw([RAP], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("curves", [[], [replace(RAP, points=())], [replace(RAP, protocol="strict")]])
def test_where_there_is_nothing_to_draw_there_is_one_line(curves: list[Curve], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^no curves to draw in this folder: [^\n]*$"):
        draw(curves, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(StoreError, match=r"^cannot write '[^\n]*a.svg': No such file or directory; choose another --figure$"):
        draw([RAP], tmp_path / "nowhere" / "a.svg")
