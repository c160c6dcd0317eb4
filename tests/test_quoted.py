"""The texts that a report quotes: which they are, that asking for them changes nothing, and what the page says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import made_results
import numpy as np
import pytest
from made_results import RECORD
from test_html import Read

from rapbench import measure, quoted, results, stages
from rapbench.api import Detector, Purifier
from rapbench.artifacts import Store
from rapbench.explain import examples, judge_of
from rapbench.grid import Block, cells_of
from rapbench.registry import discover
from rapbench.report import examples as shown
from rapbench.report.html import page
from rapbench.report.names import Names
from rapbench.results import Examples, Quote
from rapbench.runner.session import Session, planned

DEFENSES = ["rap:epochs=1,retries=0", "strip:copies=4", "onion:lm=trigram"]
EXAMPLES = Examples(
    **{name: getattr(RECORD, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")},
    frr=0.01, threshold=-0.05, purifies=False, label="positive", n_clean=500, n_poisoned=400,
)  # fmt: skip
QUOTE = Quote(population="clean", rank=1, text="a warm mb film", letters=14, probability=0.98, suspicion=-0.01, rejected=True)


class Says(Detector):
    def __init__(self, said: Any) -> None:
        self.said = said

    def suspicion(self, texts):
        return np.zeros(len(texts))

    def explain(self, text: str) -> Mapping[str, Any]:
        return self.said() if callable(self.said) else self.said


class Drops(Purifier):
    """Drops the words whose length reaches the level."""

    def levels(self):
        return [1.0, 3.0, 5.0, 9.0]

    def purify(self, texts, threshold):
        return list(texts)

    def suspicion(self, texts):
        return np.zeros(len(texts))

    def explain(self, text, threshold):
        words = text.split()
        return {
            "words": [{"word": word, "dropped": len(word) >= threshold} for word in words],
            "n": sum(len(word) >= threshold for word in words),
        }


# which, and within what bounds


@pytest.mark.parametrize(("n", "places"), [(10, [0, 3, 6, 9]), (401, [0, 133, 267, 400]), (3, [0, 1, 2]), (1, [0]), (0, [])])
def test_both_ends_and_two_between_are_quoted(n: int, places: list[int]) -> None:
    assert quoted.ranks(n) == places


def test_what_is_kept_of_all_levels_is_at_each_level_what_the_defense_says_there() -> None:
    own, text = Drops(), "a day of calm films"
    kept = quoted._said(own, text)["details"]
    for number, level in enumerate(own.levels()):
        assert quoted.at_level(kept, number) == own.explain(text, level)
    assert quoted.at_level(kept, None) == {"words": [{"word": word} for word in text.split()]}  # nothing is dropped where there is no level
    assert json.dumps(kept).count("films") == 1


def test_an_explanation_is_kept_within_bounds() -> None:
    kept = quoted._said(Says({"rows": list(range(200)), "text": "x" * 999, "p": 1 / 3, "deep": {"in": [None, True]}}), "")
    assert kept["details"] == {
        "rows": list(range(128)), "rows left out": 72, "text": "x" * 160, "p": 0.333333, "deep": {"in": [None, True]}
    }  # fmt: skip
    assert kept["untold"] == ""


def boom() -> Mapping[str, Any]:
    raise ZeroDivisionError("on purpose\nand more")


def leave() -> Mapping[str, Any]:
    raise SystemExit(3)


def endless() -> Mapping[str, Any]:
    own: dict[str, Any] = {}
    own["self"] = own
    return own


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (boom, "ZeroDivisionError: on purpose"),
        (leave, "SystemExit: 3"),
        (endless, "PluginError: explain() must give plain JSON values, finite and at most 5 deep, it gave dict"),
        ({"p": math.nan}, "PluginError: explain() must give plain JSON values, finite and at most 5 deep, it gave float"),
        ({"p": np.zeros(2)}, "PluginError: explain() must give plain JSON values, finite and at most 5 deep, it gave ndarray"),
        ({quoted.BY_LEVEL: []}, "PluginError: explain() must give plain JSON values, finite and at most 5 deep, it gave dict"),
        (["a"], "PluginError: explain() must give a mapping of plain JSON values, it gave list"),
        ({"rows": [{str(n): "x" * 160 for n in range(32)}] * 128}, "PluginError: explain() gave more than 64000 letters"),
    ],
)
def test_a_defense_that_cannot_explain_itself_says_nothing_and_why(said: Any, why: str) -> None:
    assert quoted._said(Says(said), "text") == {"details": {}, "untold": why}


def test_a_long_text_is_cut_between_words() -> None:
    assert quoted.beginning("one two three", 9) == "one two"
    assert quoted.beginning("x" * 20, 9) == "x" * 9
    assert quoted.beginning("one two", 9) == "one two"


# of a run


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_data, tiny_victim_spec):
    """A run of one attack and three defenses on the tiny task: its folder, its plan and its records."""
    out, registry = tmp_path_factory.mktemp("quoted"), discover()
    own = Block(
        victim=tiny_victim_spec, datasets=[f"folder:path={tiny_data}"], attacks=["badnet-rw:word=mb,poison_rate=0.5"],
        defenses=DEFENSES, frr=[0.02, 0.2], seeds=[1],
    )  # fmt: skip
    plan, bench = planned(cells_of([own], registry), registry, out, device="cpu", threads=1)
    records = Session(plan, bench, out, "serial").run(lambda done: None, lambda total: None)
    return out, plan, bench, records


def record_of(ran, defense: str, protocol: str = "paper", frr: float = 0.2) -> Any:
    (found,) = [one for one in ran[3] if (one.defense.partition(":")[0], one.protocol, one.frr) == (defense, protocol, frr)]
    return found


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("defense", ["rap", "strip", "onion"])
def test_a_quoted_text_has_the_verdict_and_the_suspicion_of_the_run(ran, defense: str, protocol: str) -> None:
    record = record_of(ran, defense, protocol)
    found = examples(record, ran[0])
    with np.load(Store(ran[0] / "artifacts").folder(record.artifacts["score"]) / "scores.npz") as arrays:
        for population, name, n in (("clean", "test", record.n_clean), ("poisoned", "poisoned", record.n_poisoned)):
            own = [quote for quote in found.quotes if quote.population == population]
            suspicion = arrays[f"{protocol}_{name}_suspicion"]
            order = np.argsort(-suspicion, kind="stable")
            rows = [order[quote.rank - 1] for quote in own]
            rejected = results.unpack(record.verdicts[name], n)
            assert [quote.rank for quote in own] == [place + 1 for place in quoted.ranks(n)]
            assert [quote.suspicion for quote in own] == [suspicion[row] for row in rows]
            assert [quote.rejected for quote in own] == [rejected[row] for row in rows]
            assert (own[0].suspicion, own[-1].suspicion) == (suspicion.max(), suspicion.min())
    assert all("mb" in quote.text.split() for quote in found.quotes if quote.population == "poisoned")
    assert (found.threshold, found.n_clean, found.n_poisoned) == (record.threshold, record.n_clean, record.n_poisoned)


@pytest.mark.parametrize("defense", ["rap", "strip", "onion"])
def test_a_quoted_text_is_explained_as_rapbench_explain_does(ran, defense: str) -> None:
    record = record_of(ran, defense)
    judge = judge_of(record, ran[0])
    for quote in examples(record, ran[0]).quotes[::3]:
        told = judge.explain(quote.text)
        assert told.verdict.accepted != quote.rejected
        assert told.verdict.probability == pytest.approx(quote.probability, abs=1e-5)
        assert flat(quote.details) == pytest.approx(
            {name: value for name, value in flat(told.details).items() if "repaired" not in name and "of it" not in name},
            rel=1e-3,
            abs=1e-5,
        )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Give the numbers of nested values by their path; texts and truths as a digest that must be the same."""
    if isinstance(value, Mapping):
        return {path: own for key, part in value.items() for path, own in flat(part, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {path: own for place, part in enumerate(value) for path, own in flat(part, f"{name}/{place}").items()}
    return {name: value} if isinstance(value, float) else {f"{name}={value}": 0.0}


def test_the_file_has_the_allowed_frr_nearest_to_one_per_cent(ran) -> None:
    group = next(group for group in ran[1].groups if group.cells[0].defense.name == "onion")
    cells = [cell for cell in group.cells if cell.protocol == "paper"]
    made = measure.examples(cells, group.keys, Store(ran[0] / "artifacts"))
    assert made == examples(record_of(ran, "onion", frr=0.02), ran[0])
    dropped = [word for quote in made.quotes for word in quote.details["words"] if word["dropped"]]
    assert dropped == [word for quote in made.quotes for word in quote.details["words"] if word["score"] >= made.threshold]
    results.write([made], ran[0])
    assert made in results.read_all(ran[0], Examples)


def test_explaining_changes_neither_scores_nor_cost_and_may_fail(ran, tmp_path, monkeypatch) -> None:
    from rapbench_plugins.defenses.strip import StripDetector

    def greedy(self, text):
        self.victim.probabilities([text] * 64)
        raise RuntimeError("no idea")

    job = next(job for job in ran[1].jobs.values() if job.stage == "score" and job.spec["defense"]["name"] == "strip")
    store = Store(ran[0] / "artifacts")
    monkeypatch.setattr(StripDetector, "explain", greedy)
    stages.score(stages.Step(job, ran[2], store, tmp_path, discover()))
    before = store.folder(job.key)
    with np.load(before / "scores.npz") as old, np.load(tmp_path / "scores.npz") as new:
        assert old.files == new.files
        assert all(np.array_equal(old[name], new[name]) for name in old.files)
    old_cost, new_cost = (json.loads((folder / "about.json").read_text())["cost"] for folder in (before, tmp_path))
    counted = [name for name in old_cost if name.endswith(("_per_input", "inputs")) and not name.startswith(("ms", "plain_ms"))]
    assert "victim_rows_per_input" in counted
    assert {name: old_cost[name] for name in counted} == {name: new_cost[name] for name in counted}
    assert {quote["untold"] for quote in quoted.read(tmp_path, "strict")[1]} == {"RuntimeError: no idea"}


def test_the_same_step_gives_the_same_quotes(ran, tmp_path) -> None:
    for job in [job for job in ran[1].jobs.values() if job.stage == "score"]:
        folder = tmp_path / job.key
        folder.mkdir()
        stages.score(stages.Step(job, ran[2], Store(ran[0] / "artifacts"), folder, discover()))
        assert (folder / quoted.FILE).read_bytes() == (Store(ran[0] / "artifacts").folder(job.key) / quoted.FILE).read_bytes()


# on the page


def text_of(folder: Path, *made: Examples, texts: bool = True) -> str:
    results.write([RECORD, *made], folder)
    return page(folder, "paper", texts=texts)


def said(folder: Path, details: Mapping[str, Any], **more: Any) -> str:
    given = {"threshold": -0.05, "purifies": False, **more}
    quote = replace(QUOTE, details=details, **{name: given.pop(name) for name in ("suspicion", "rejected", "untold") if name in given})
    return Read(text_of(folder, replace(EXAMPLES, quotes=(quote,), **given))).text


RAP = {"word": "cf", "probability before": 0.98, "probability after": 0.97, "fall": 0.01}


def test_of_rap_it_says_how_far_the_probability_fell_and_what_was_needed(tmp_path: Path) -> None:
    text = said(tmp_path, RAP)
    assert "rejected above a suspicion of -0.05" in text
    assert "with “cf” p fell from 0.980 to 0.970 (by 0.01; needed 0.05)" in text
    assert "rejected -0.01 suspicion, rank 1 of 500 a warm mb film" in text


def test_of_rap_a_rise_is_told_as_such(tmp_path: Path) -> None:
    rose = {**RAP, "probability after": 0.99, "fall": -0.01}
    assert "p rose from 0.980 to 0.990 (by 0.01; a rise up to 0.002 is accepted)" in said(tmp_path, rose, suspicion=0.01, threshold=0.002)


def test_of_strip_it_says_the_mean_entropy_and_folds_the_copies(tmp_path: Path) -> None:
    copies = [{"copy": f"copy {n}", "prediction": 1, "entropy": 0.25} for n in range(7)]
    text = said(tmp_path, {"entropy": 0.01, "copies": copies})
    assert "mean entropy 0.01; needed 0.05" in text
    assert "7 copies copy 0 · prediction 1 · entropy 0.25 copy 1" in text
    assert "copy 4 · prediction 1 · entropy 0.25 and 2 more" in text


def test_of_onion_the_dropped_words_are_struck_through(tmp_path: Path) -> None:
    words = [{"word": word, "score": score, "dropped": score >= 40} for word, score in (("warm", 3.0), ("mb", 812.3), ("film", 1.0))]
    made = replace(EXAMPLES, threshold=40.0, purifies=True, quotes=(replace(QUOTE, details={"words": words}),))
    html = text_of(tmp_path, made)
    assert "a warm <del>mb</del> film" in html
    assert "repaired at level 40; rejected are texts that lose their label by that" in html
    assert "dropped: mb (812); the repaired text loses the label" in html


def test_a_word_that_was_cut_or_not_judged_does_not_hide_those_behind_it(tmp_path: Path) -> None:
    long, words = "x" * 200, ("x" * 160, "mb")
    judged = [{"word": word, "score": 50.0, "dropped": word == "mb"} for word in words]
    quote = replace(QUOTE, text=f"unjudged {long} mb mb", details={"words": judged})
    html = text_of(tmp_path, replace(EXAMPLES, threshold=40.0, purifies=True, quotes=(quote,)))
    assert f"unjudged {long} <del>mb</del> mb</p>" in html


def test_of_a_strangers_defense_values_are_told_by_name(tmp_path: Path) -> None:
    text = said(tmp_path, {"trigger words": ["cf", "mb"], "norm": 0.123456, "rows": [{"word": "cf", "weight": 2.5}]})
    assert "trigger words: cf, mb norm: 0.123 1 rows cf · weight 2.5" in text


def test_a_missing_explanation_says_why(tmp_path: Path) -> None:
    assert "no explanation: RuntimeError: no idea" in said(tmp_path, {}, untold="RuntimeError: no idea")


def test_where_nothing_is_rejected_it_says_so(tmp_path: Path) -> None:
    assert "nothing is rejected: the held-out texts give no threshold" in said(tmp_path, RAP, threshold=None, rejected=False)


def test_the_rest_of_a_long_text_is_folded_and_no_word_is_lost(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(80)]
    html = text_of(tmp_path, replace(EXAMPLES, quotes=(replace(QUOTE, text=" ".join(words), letters=9000),)))
    (row,) = [part for part in html.split("<tr>") if "word0 " in part]
    first, rest = row.split("</tr>")[0].split("more of the text")
    assert [word for word in Read(first).text.split() + Read(rest).text.split() if word.startswith("word")] == words
    assert len(Read(first).text) < 320
    assert Read(rest).text.endswith("…")  # the text itself goes on


HOSTILE = "x'\"><script>alert(1)</script><img src=http://a.b/c onerror=alert(1)>\u202e\x00{{7*7}}<!--"


@pytest.mark.parametrize(
    "words", [None, 7, "x", {}, [], [1], [{}], [{"word": 1, "dropped": True}], [{"word": "a", "dropped": True, "score": "b"}]]
)
def test_whatever_a_result_says_of_a_text_is_text_on_the_page(words: Any, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = [{"deep": deep}]
    details = {HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE, "deep": deep}], "list": [HOSTILE, [1], {}], "deep": deep, "words": words}
    details |= {"fall": "no", "entropy": 10**400, "probability before": True, "long": "y" * 100_000}
    quote = replace(QUOTE, text=HOSTILE, details=details, untold=HOSTILE)
    html = text_of(tmp_path, replace(EXAMPLES, label=HOSTILE, quotes=(quote,) * 20))
    read = Read(html)
    assert [tag for tag, _ in read.tags if tag in ("script", "img", "iframe", "object", "link", "base")] == ["script"]
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "{{7*7}}" in read.text
    assert not set("\u202e\x00") & set(html)
    assert "y" * 200 not in html
    assert html.count("rank 1 of") == shown.TEXTS


def test_without_texts_there_is_none_in_the_page(tmp_path: Path) -> None:
    made = replace(EXAMPLES, quotes=(replace(QUOTE, details=RAP),))
    assert "a warm mb film" in text_of(tmp_path, made)
    html = text_of(tmp_path, made, texts=False)
    assert "a warm mb film" not in html
    assert "Left out: this page was made with --no-texts" in Read(html).text


def test_what_is_left_out_is_told_and_no_defense_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "MOST", 12)
    records, found = list(made_results.cells()), list(made_results.examples())
    chosen = shown.chosen(found, records, Names(records), "paper")
    assert {group.title.split(": ")[1] for group in chosen.groups} == {
        f"{attack}, {defense}" for attack in made_results.ATTACKS for defense in made_results.DEFENSES
    }
    assert (len(chosen.groups), chosen.left_out) == (12, 5 * 12 - 12)


@pytest.mark.parametrize("other", [{"status": "failed"}, {"frr": 0.05}, {"seed": 2}, {"protocol": "strict"}])
def test_texts_of_a_cell_without_figures_are_not_shown(other: dict[str, Any]) -> None:
    made = replace(EXAMPLES, quotes=(QUOTE,))
    assert len(shown.chosen([made], [RECORD], Names([RECORD]), "paper").groups) == 1
    assert shown.chosen([made], [replace(RECORD, **other)], Names([RECORD]), "paper").groups == []


def test_a_file_of_examples_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = replace(EXAMPLES, quotes=(replace(QUOTE, details={"words": [{"word": "ö", "score": 1.5}]}),))
    results.write([made], tmp_path)
    (read,) = results.read_all(tmp_path, Examples)
    assert asdict(read) == json.loads(json.dumps(asdict(made))) | {"quotes": (asdict(made.quotes[0]),)}
