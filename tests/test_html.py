"""The HTML page of a results folder: what it says, what it refuses to be made to do, how large it is."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import made_results
import pytest
import yaml
from made_results import COST, RECORD

from rapbench import cli_report, results
from rapbench.errors import SpecError, StoreError
from rapbench.grid import cells_of, checked_block, read_blocks
from rapbench.registry import discover
from rapbench.report import provenance
from rapbench.report.html import MOST_PANELS, page
from rapbench.report.names import Names, plain
from rapbench.report.summary import Line, judged, lines
from rapbench.results import Curve, Histogram, Record

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ORDER = ("dataset", "poisoned_on", "tuning", "attack", "victim", "seed", "defense", "frr", "protocol")
VOID = {"meta", "input", "wbr", "path", "use"}


class Read(HTMLParser):
    """A page as its start tags with attributes, and its text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.pop(len(self._open) - 1 - self._open[::-1].index(tag))

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts.append(data)
        elif "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def curve_of(one: Record) -> Curve:
    names = {name: getattr(one, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")}
    return Curve(**names, points=((0.01, 0.01, 0.5), (0.05, 0.04, 0.25)))


def histogram_of(one: Record) -> Histogram:
    names = {name: getattr(one, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")}
    return Histogram(**names, edges=(0.0, 1.0, 2.0), clean=(9, 1), poisoned=(0, 8), thresholds=((0.01, 1.5),))


def folder_of(path: Path, *records: Record, drawn: bool = True) -> Path:
    results.write(records, path)
    if drawn:
        results.write([made(one) for one in records if one.far is not None for made in (curve_of, histogram_of)], path)
    return path


def said(*records: Record) -> dict[str, str]:
    return {one.head: one.text for one in lines(records, Names(records))}


# what it says


def test_the_sections_have_what_was_measured(tmp_path: Path) -> None:
    text = Read(page(folder_of(tmp_path, RECORD, replace(RECORD, protocol="strict")), "paper")).text
    for shown in (
        "What each defense does about each attack",
        "stopped FAR 3.0 % [1.7, 5.2]",
        "Protocol paper",
        "Protocol strict",
        "Victims",
    ):
        assert shown in text, shown
    assert "3.00 [1.7, 5.2]" in text  # FAR with its interval, in the tables of both protocols
    assert "10 clean texts, half of them below 1; 8 poisoned texts, half of them below 2; threshold 1.5 at an allowed FRR of 1 %." in text
    assert "rap: FAR 50.0 % at an allowed FRR of 1 %, 25.0 % at an allowed FRR of 5 %." in text
    assert "device" not in text
    assert "torch 2.13; cpu made up; 1 thread" in text
    assert "1 threads" not in text


def test_the_summary_says_what_is_stopped_and_at_what_price() -> None:
    through = replace(RECORD, attack="ep", far=0.9, frr_test=0.03)
    told = said(RECORD, through, replace(RECORD, defense="strip", far=0.2), replace(through, defense="strip", far=0.3))
    assert told["Not every attack is stopped"] == "Some defense stops (FAR at most 5 %) 1 of 2 pairs of attack and data set. None stops ep."
    assert told["rap"] == (
        "It stops badnet-rw; lets 90.0 % of ep through. "
        "It rejects 1.2 to 3.0 % of clean texts where 1 % were allowed, and takes 2.0 times as long as an undefended prediction."
    )
    assert told["strip"].startswith("It stops none of the attacks; lets 20.0 % of badnet-rw and 30.0 % of ep through.")


def test_where_nothing_holds_it_says_so() -> None:
    told = said(replace(RECORD, far=0.6), replace(RECORD, defense="strip", far=0.4))
    assert told["No defense stops any attack here"] == "The lowest FAR is 40.0 %: strip against badnet-rw on imdb."
    assert told["Which to pick"].endswith("None of them stops these attacks as a whole.")


def test_one_lucky_seed_stops_nothing() -> None:
    told = said(replace(RECORD, far=0.0), replace(RECORD, seed=2, far=0.2))
    assert told["No defense stops any attack here"] == "The lowest FAR is 10.0 %: rap against badnet-rw on imdb."
    assert told["rap"].startswith("It stops badnet-rw in 1 of 2 cells; lets 20.0 % of badnet-rw through.")


def test_where_all_is_stopped_it_says_so_too() -> None:
    assert (
        said(RECORD)["Every attack is stopped by some defense"]
        == "Some defense stops (FAR at most 5 %) 1 of 1 pair of attack and data set."
    )


def test_a_rejection_rate_above_the_allowed_one_is_told_where_chance_does_not_explain_it() -> None:
    over = replace(RECORD, frr_test=0.05, intervals={"frr_test": (0.03, 0.08)})
    assert "more than chance explains in 1 of 2 cells" in said(over, replace(RECORD, attack="ep"))["rap"]
    assert "chance" not in said(RECORD)["rap"]


def test_an_attack_that_does_not_work_is_no_success_of_a_defense() -> None:
    weak = replace(RECORD, asr=0.3, far=0.0)
    told = said(weak)
    assert told["Nothing to judge"] == "No cell with an attack that works has figures yet."
    assert "badnet-rw on imdb (30.0 %)" in told["The attacks"]
    assert judged([weak], Names([weak])) == []


def test_the_pick_is_what_no_other_beats_in_both() -> None:
    cheap = replace(RECORD, defense="onion", far=0.5, cost=replace(COST, ratio=1.5))
    dear = replace(RECORD, defense="strip", far=0.4, cost=replace(COST, ratio=9.0))
    assert said(RECORD, cheap, dear)["Which to pick"] == (  # rap: 3 % at 2.0 times
        "Over the 1 combination that all of them faced, no other is both cheaper and lets less through than "
        "rap (mean FAR 3.0 %, 2.0 times) and onion (mean FAR 50.0 %, 1.5 times); strip is beaten on both."
    )


def test_defenses_that_did_not_face_the_same_are_not_compared() -> None:
    assert "Which to pick" not in said(RECORD, replace(RECORD, defense="strip", attack="ep"))


def test_few_heldout_texts_are_a_caution() -> None:
    idle = replace(RECORD, warnings=("too few",), threshold=None)
    assert said(RECORD, replace(idle, attack="ep"))["Caution"] == (
        "1 of 2 cells have too few held-out texts, or no fitting level, for a firm threshold; in 1 of these nothing is rejected at all."
    )


@pytest.mark.parametrize(("frrs", "usual"), [((0.005, 0.01, 0.05), 0.01), ((0.03, 0.05), 0.03), ((0.005, 0.02), 0.005)])
def test_the_words_are_about_the_allowed_frr_nearest_to_one_per_cent(frrs: tuple[float, ...], usual: float) -> None:
    assert results.usual_frr(frrs) == usual


def test_the_verdict_on_an_attack_is_the_mean_with_its_range() -> None:
    fars = (0.0, 0.02, 0.4)
    own = [replace(RECORD, dataset=name, far=far) for name, far in zip(("imdb", "yelp", "amazon"), fars, strict=True)]
    (verdict,) = judged(own, Names(own))[0].verdicts
    assert (verdict.word, verdict.low, verdict.high, verdict.n, verdict.interval) == ("mostly stopped", 0.0, 0.4, 3, None)
    assert verdict.mean == pytest.approx(0.14)


# names


def test_one_name_over_data_sets_is_one_defense_and_two_on_one_data_set_are_two() -> None:
    low, high = (replace(RECORD, defense=f"strip:copies=8,replace_ratio={ratio}") for ratio in (0.05, 0.4))
    elsewhere = replace(high, dataset="yelp:path=x")
    assert Names([low, elsewhere]).defenses == ["strip"]
    assert Names([low, high]).defenses == ["strip:replace_ratio=0.05", "strip:replace_ratio=0.4"]
    assert Names([low, elsewhere]).homes == ["imdb", "yelp"]


def test_where_the_poison_came_from_and_which_victim_is_in_the_name_of_a_row() -> None:
    tuned = replace(RECORD, setting="fine-tuned", poisoned_on="yelp:max_train=9", tuning="minilm-l6:epochs=1")
    assert Names([tuned]).homes == ["yelp -> imdb"]
    assert Names([RECORD, replace(RECORD, victim="bert-base-uncased")]).homes == ["imdb, bert-base-uncased", "imdb, minilm-l6"]


def test_what_is_not_to_be_seen_is_shown_as_such() -> None:
    assert plain("a\x1b[2J\u202eb\n c\ud800") == "a\ufffd[2J\ufffdb c\ufffd"
    assert plain("नमस्\u200dते") == "नमस्\u200dते"
    assert plain("abcdef", 4) == "abc…"


# provenance


def names_of(records: list[Record]) -> set[tuple[object, ...]]:
    return {
        (one.dataset, one.poisoned_on, one.tuning, one.attack, one.victim, one.seed, one.defense, one.frr, one.protocol) for one in records
    }


def computed(blocks: list[dict[str, object]]) -> set[tuple[object, ...]]:
    cells = cells_of([checked_block(block, "the page") for block in blocks], discover())
    return {tuple(cell.names[name] for name in ORDER) for cell in cells}


TUNED = replace(
    RECORD,
    setting="fine-tuned",
    dataset="imdb:path=some folder",
    poisoned_on="yelp:max_train=9",
    attack='badnet-sl:sentence="it\'s a, b"',
    victim="minilm-l6:epochs=7,lr=0.0001",
    tuning="minilm-l6:lr=5e-05,batch_size=8",  # epochs are the default again
)


@pytest.mark.parametrize("one", [RECORD, TUNED], ids=["main", "fine-tuned"])
def test_the_command_of_a_row_computes_that_row(one: Record) -> None:
    both = [replace(one, frr=frr, protocol=protocol) for frr in (0.01, 0.05) for protocol in ("paper", "strict")]
    ((_, command),) = provenance.commands(both)
    words = shlex.split(command)
    assert (words[:2], words[-2:]) == (["rapbench", "run"], ["--out", "again"])
    block: dict[str, object] = {}
    for flag, value in zip(words[2:-2:2], words[3:-2:2], strict=True):
        if flag in ("--victim", "--finetune"):
            block[flag[2:]] = value
        else:
            key = {"--frr": "frr", "--poisoned-on": "poisoned_on"}.get(flag, f"{flag[2:]}s")
            own = block.setdefault(key, [])
            assert isinstance(own, list)
            own.append(float(value) if key == "frr" else int(value) if key == "seeds" else value)
    assert computed([block]) == names_of(both)


def test_the_grid_of_the_page_is_the_grid_of_the_folder(tmp_path: Path) -> None:
    records = [replace(RECORD, attack=attack, frr=frr) for attack in ("ep", "badnet-rw") for frr in (0.01, 0.03)]
    records += [replace(TUNED, defense="strip:copies=5", frr=0.02), replace(RECORD, seed=7, attack="ep")]
    file = tmp_path / "grid.yaml"
    file.write_text(provenance.grid([replace(one, protocol=protocol) for one in records for protocol in ("paper", "strict")]))
    made = {tuple(cell.names[name] for name in ORDER) for cell in cells_of(read_blocks(str(file)), discover())}
    assert made == names_of([replace(one, protocol=protocol) for one in records for protocol in ("paper", "strict")])


def test_a_full_product_is_one_block() -> None:
    records = [replace(RECORD, attack=attack, defense=defense) for attack in ("ep", "badnet-rw") for defense in ("rap", "strip")]
    content = yaml.safe_load(provenance.grid(records))
    assert (content["attacks"], content["defenses"], "blocks" in content) == (["badnet-rw", "ep"], ["rap", "strip"], False)


def test_a_command_with_signs_that_cannot_be_shown_is_not_shown() -> None:
    ((_, command),) = provenance.commands([replace(RECORD, dataset="imdb:path=a\nrm -rf b")])
    assert command == "its names hold signs that cannot be shown: take the grid"


# costs


def costs(tmp_path: Path, *records: Record) -> list[list[str]]:
    """Give the fields of the page's cost table, row by row, its heads first."""
    text = page(folder_of(tmp_path, *records), "paper")
    (found,) = re.findall(r"<table\b(?:(?!</table>).)*What each defense costs.*?</table>", text, re.DOTALL)
    rows = (re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr\b.*?</tr>", found, re.DOTALL))
    return [[re.sub(r"<[^>]*>", "", field).strip() for field in row] for row in rows]


def test_a_defense_that_failed_has_a_row_with_the_reason_among_the_costs(tmp_path: Path) -> None:
    failed = replace(RECORD, defense="strip", status="failed", reason="no memory", far=None, cost=None)
    heads, rap, strip = costs(tmp_path, RECORD, failed)
    assert (heads[:3], heads[-1]) == (["dataset", "attack", "defense"], "bench")
    assert (rap[:3], rap[heads.index("x time")]) == (["imdb", "badnet-rw", "rap"], "2.00")
    assert strip == ["imdb", "badnet-rw", "strip", *["--"] * (len(heads) - 4), "failed: no memory"]


def test_costs_of_two_seeds_say_which(tmp_path: Path) -> None:
    heads, *rows = costs(tmp_path, RECORD, replace(RECORD, seed=2))
    assert (heads[:4], [row[2] for row in rows]) == (["dataset", "attack", "seed", "defense"], ["1", "2"])


# what others wrote


HOSTILE = "x'\"><script>alert(1)</script><img src=http://a.b/c onerror=alert(1)>\u202e\x00]]></style>$\\frac{{{{7*7}}<!--"


def test_a_hostile_name_reason_or_warning_is_text_everywhere(tmp_path: Path) -> None:
    bad = replace(
        RECORD, dataset=HOSTILE, attack=HOSTILE, defense=HOSTILE, victim=HOSTILE, trigger=HOSTILE, metric=HOSTILE,
        warnings=(HOSTILE,), made_by={HOSTILE: HOSTILE},
    )  # fmt: skip
    failed = replace(bad, status="failed", reason=HOSTILE, attack="ep", far=None, cost=None)
    text = page(folder_of(tmp_path, bad, failed, replace(bad, protocol="strict"), replace(bad, defense=f"{HOSTILE}:a=1")), "paper")
    read = Read(text)
    assert [tag for tag, _ in read.tags if tag in ("script", "img", "style", "iframe", "object", "link", "base")] == ["style", "script"]
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert {value[0] for _, own in read.tags for name, value in own.items() if name in ("href", "src", "xlink:href")} == {"#"}
    assert "{{7*7}}" in read.text
    assert not set("\u202e\x00") & set(text)


def test_the_policy_of_the_page_allows_its_own_script_alone(tmp_path: Path) -> None:
    read = Read(page(folder_of(tmp_path, RECORD), "paper"))
    (policy,) = [own["content"] for tag, own in read.tags if own.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256("".join(read.scripts).encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


# the file


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    records = [RECORD, replace(RECORD, attack="ep"), replace(RECORD, defense="strip", far=0.7)]
    assert page(folder_of(tmp_path / "a", *records), "paper") == page(folder_of(tmp_path / "b", *records[::-1]), "paper")


def test_a_figure_is_labelled_a_table_has_a_caption_and_no_id_stands_twice(tmp_path: Path) -> None:
    read = Read(page(folder_of(tmp_path, RECORD, replace(RECORD, attack="ep"), replace(RECORD, protocol="strict")), "paper"))
    ids = [own["id"] for _, own in read.tags if "id" in own]
    assert len(ids) == len(set(ids))
    figures = [own for tag, own in read.tags if tag == "svg" and "aria-hidden" not in own]
    assert len(figures) == 1 + 2 + 2 + 2 + 2  # heat map of rap; two attacks chosen, drawn, binned; two by length
    assert all(own["role"] == "img" and own["aria-label"] and own["aria-describedby"] in ids for own in figures)
    assert [tag for tag, _ in read.tags].count("table") == [tag for tag, _ in read.tags].count("caption")
    assert {own.get("scope") for tag, own in read.tags if tag == "th"} == {"col", "row"}
    used = [own["href"][1:] for _, own in read.tags if "href" in own] + [
        own["clip-path"].removeprefix("url(#").removesuffix(")") for _, own in read.tags if "clip-path" in own
    ]
    assert set(used) <= set(ids)


def test_a_page_of_500_cells_is_below_a_megabyte(tmp_path: Path) -> None:
    assert len(list(made_results.cells())) == 500
    text = page(made_results.write(tmp_path), "strict")
    assert len(text.encode()) < 1_000_000
    assert text.count('<svg viewBox="0 0 230.4 126"') == MOST_PANELS  # five data sets, four attacks, three defenses: all of them


def test_panels_beyond_the_most_are_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapbench.report.html.MOST_PANELS", 1)
    text = Read(page(folder_of(tmp_path, RECORD, replace(RECORD, attack="ep")), "paper")).text
    assert "1 more panels are left out here, to keep the page small: rapbench plot DIR suspicion draws them all." in text


# half of it


def test_a_half_done_run_says_how_far_it_is(tmp_path: Path) -> None:
    waiting = replace(RECORD, attack="ep", status="interrupted", reason="the run ended before this cell", far=None, cost=None, asr=None)
    text = Read(page(folder_of(tmp_path, RECORD, waiting), "paper")).text
    assert "Not finished. 1 of 2 cells have figures; 1 are still to be computed" in text
    assert "1 interrupted, 1 ok, of 2 cells." in text
    assert "the run ended before this cell" in text


@pytest.mark.parametrize("status", ["skipped", "failed", "interrupted", "blocked"])
def test_a_folder_without_a_single_figure_is_a_page_with_the_reasons(status: str, tmp_path: Path) -> None:
    none = Record(
        dataset="imdb", attack="ep", victim="v", seed=1, defense="rap", frr=0.01, protocol="paper", status=status, reason="so it is"
    )
    text = Read(page(folder_of(tmp_path, none), "paper")).text
    assert f"1 {status}, of 1 cells." in text
    assert "so it is" in text
    assert "No cell has a FAR yet." in text


def test_results_without_histograms_or_curves_say_how_to_get_them(tmp_path: Path) -> None:
    text = Read(page(folder_of(tmp_path, RECORD, drawn=False), "paper")).text
    assert "No histograms in this folder: the same rapbench run again writes them." in text
    assert "No curves in this folder" in text


def test_a_control_without_any_poison_is_a_page(tmp_path: Path) -> None:
    control = replace(RECORD, attack="clean", far=None, auroc=None, asr_control=None, asr_defended=None, n_poisoned=None, intervals={})
    assert "Nothing to judge" in Read(page(folder_of(tmp_path, control), "paper")).text


def test_a_curve_of_a_defense_that_has_no_cell_is_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, RECORD)
    results.write([curve_of(replace(RECORD, defense="strip"))], tmp_path)
    assert "strip" not in Read(page(tmp_path, "paper")).text


# the command


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^no results in [^\n]*$"):
        page(tmp_path, "paper")
    with pytest.raises(StoreError, match=r"^no cell of the protocol strict in [^\n]*: give the other --protocol$"):
        page(folder_of(tmp_path, RECORD), "strict")


def test_the_page_goes_to_stdout_or_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = folder_of(tmp_path / "out", RECORD), tmp_path / "report.html"
    cli_report.report(folder, form="html")
    printed = capsys.readouterr().out
    assert printed.startswith("<!doctype html>")
    cli_report.report(folder, form="html", output=file)
    assert (capsys.readouterr().out, file.read_text(encoding="utf-8")) == (f"{file}\n", printed)
    cli_report.report(folder, form="github", output=tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("| dataset")


def test_a_page_is_not_thrown_at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, RECORD)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SpecError, match=r"^a page is not for the terminal: give --output report\.html, or send it into a file$"):
        cli_report.report(folder, form="html")


def test_the_page_takes_no_table(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^the page holds all tables: leave --table 2 out"):
        cli_report.report(folder_of(tmp_path, RECORD), form="html", table="2")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^cannot write '[^\n]*report.html': No such file or directory; choose another --output$"):
        cli_report.report(folder_of(tmp_path, RECORD), form="html", output=tmp_path / "nowhere" / "report.html")


def test_lines_are_whole_sentences() -> None:
    for one in lines(list(made_results.cells())[:40], Names(made_results.cells())):
        assert isinstance(one, Line)
        assert re.fullmatch(r"[A-Z0-9].*\.", one.text), one
