"""Hostile input in bulk: each border refuses it in one line or reads it rightly, in seconds, and touches nothing else.

A few examples each here, always the same ones. More, and others each time: tests/fuzz/campaign.py.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from fuzz import made
from fuzz.borders import BORDERS, FILES, KINDS, REGISTRY, read_rows, refusal, report, untouched
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from rapbench import results
from rapbench.api import Attack, Purifier
from rapbench.grid import read_blocks
from rapbench.lab import Lab
from rapbench.report.forms import FORMULA
from rapbench.victim import Victim

EXAMPLES = int(os.environ.get("RAPBENCH_FUZZ_EXAMPLES", "0"))
SLOWEST_S = 30


def few(count: int) -> settings:
    """Give the settings of a short, repeatable run, or those of the campaign."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=EXAMPLES or count, derandomize=not EXAMPLES, database=None, suppress_health_check=checks)


@contextmanager
def in_time() -> Iterator[None]:
    """Raise where the block takes longer than anything here should."""

    def late(*given: object) -> None:
        raise AssertionError(f"still at it after {SLOWEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOWEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in, beside a canary."""
    (tmp_path / "canary").write_text("untouched")
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    assert (tmp_path / "canary").read_text() == "untouched"


@contextmanager
def alone(place: Path) -> Iterator[Path]:
    """Give the folder, emptied; raise where something beside it was touched."""
    shutil.rmtree(place)
    place.mkdir()
    with untouched(place.parent, place), in_time():
        yield place


# bytes


@pytest.mark.parametrize("border", BORDERS)
@few(8)
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"")
def test_any_bytes_are_refused_in_a_line_or_read(place: Path, border: str, data: bytes) -> None:
    with alone(place):
        BORDERS[border](data, place)


# specs and grids

FIELDS = {name for found in REGISTRY.found.values() for name in getattr(found.cls, "__dataclass_fields__", {})}
OPTIONS = st.sampled_from([*sorted(FIELDS), "name", "model", ""])
PLUGINS = st.sampled_from([*sorted({name for _, name in REGISTRY.found}), "minilm-l6", "none", "a/b"])


@few(30)
@given(kind=st.sampled_from(KINDS), name=PLUGINS, options=st.dictionaries(OPTIONS | made.TEXTS, made.VALUES, max_size=3))
def test_any_options_make_a_plugin_or_are_refused_in_a_line(place: Path, kind: Any, name: str, options: dict[str, Any]) -> None:
    with alone(place):
        refusal(lambda: REGISTRY.parse(kind, {"name": name, **options}))
        text = ",".join(f"{key}={value}" for key, value in options.items())
        BORDERS["spec"](bytes([KINDS.index(kind)]) + f"{name}:{text}".encode("utf-8", "surrogatepass"), place)


GRID_KEYS = ["datasets", "attacks", "defenses", "victim", "poisoned_on", "finetune", "seeds", "frr", "blocks", "about", "<<"]
GRIDS = st.dictionaries(st.sampled_from(GRID_KEYS) | made.TEXTS, made.VALUES | st.lists(PLUGINS | made.VALUES, max_size=3), max_size=6)
LINES = [
    *("a: &a [x, x]", "b: *a", "<<: *a", "!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!!binary aGk="),
    *("!!set {a}", "- " * 30, f"seeds: [1e999, .nan, .inf, -.inf, 0x{'f' * 100}]", "frr: [1:2:3]", "datasets: [demo]", "attacks: [ep]"),
    *("defenses: [strip]", "? [a]", "---", "...", "%YAML 9.9", "%TAG ! tag:x", "date: 2020-99-99", '"\\ud800": 1', '"\\0": 1', "\t"),
    *("{" * 30, "a: |\n  b", "# \u202e"),
]


@few(30)
@given(
    text=GRIDS.map(lambda content: yaml.safe_dump(content, allow_unicode=True))
    | st.lists(st.sampled_from(LINES), max_size=6).map("\n".join)
)
def test_any_grid_is_cells_or_is_refused_in_a_line(place: Path, text: str) -> None:
    with alone(place):
        BORDERS["grid"](text.encode("utf-8", "surrogatepass"), place)


def test_a_sign_that_a_terminal_obeys_is_written_out_where_a_grid_s_error_quotes_it(tmp_path: Path) -> None:
    """Found by atheris: the YAML reader quotes the line, and U+0604 stood in it as it is."""
    (tmp_path / "grid.yaml").write_text("datasets: [a: [b,\u0604c, \u202ed]\n", encoding="utf-8")
    told = refusal(lambda: read_blocks(str(tmp_path / "grid.yaml")))
    assert told is not None
    assert r"\u0604" in told


# data files


@pytest.mark.parametrize("name", ["test.csv", "test.jsonl", "test.parquet"])
@few(8)
@given(rows=made.ROWS, how=made.HOW)
@example(
    rows=[("a\r\nb\rc\nd", 1), ('"', 0), ("=1+1", 2)],
    how={"mark": True, "end": "\r\n", "ascii": False, "quoting": 1, "compression": "zstd"},
)
def test_rows_come_back_as_they_were_written_or_are_refused(place: Path, name: str, rows: list[made.Row], how: dict[str, Any]) -> None:
    with alone(place):
        for split in ("train", "validation"):
            (place / f"{split}.csv").write_text("text,label\nfine,1\ndull,0\n")
        made.written(place / name, rows, how)
        found, told = read_rows(place)
        if told is None:
            assert found == rows
        else:
            assert any(not text.strip() or "\0" in text for text, _ in rows), told


PIECES = ["text,label", "text\tlabel", "a,1", "b\t0", '{"text": "a", "label": 1}', "a,b,c"]


@pytest.mark.parametrize("name", FILES)
@few(10)
@given(
    lines=st.lists(st.sampled_from([*made.SIGNS, *PIECES]), max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\r", "\n\n"]),
    tail=st.binary(max_size=4),
)
def test_any_lines_of_a_data_file_are_rows_or_are_refused_in_a_line(
    place: Path, name: str, lines: list[str], end: str, tail: bytes
) -> None:
    with alone(place):
        BORDERS["rows"](bytes([FILES.index(name)]) + end.join(lines).encode() + tail, place)


# texts in attacks, victims and defenses


TIMES = st.sampled_from([1, 1, 1, 1, 300])
"""How often a text stands in a row; not a strategy of long texts, which hypothesis would have to print."""


def is_within(parts: list[str], others: list[str]) -> bool:
    """Tell whether the parts stand among the others, in order."""
    rest = iter(others)
    return all(part in rest for part in parts)


@pytest.mark.parametrize("name", ["badnet-rw", "badnet-sl", "clean", "ep", "ripples"])
@few(15)
@given(text=made.WORDY, times=TIMES, seed=st.integers(0, 9), limit=st.sampled_from([None, 1, 100]))
def test_a_trigger_takes_no_word_of_a_text_away(name: str, text: str, times: int, seed: int, limit: int | None) -> None:
    text *= times
    plain = cast(Attack, REGISTRY.parse("attack", name))
    attack = plain.resolve(cast(Any, REGISTRY.parse("dataset", "demo")), np.random.default_rng(seed))
    for work in (attack.trigger, attack.test_trigger):
        with in_time():
            triggered = work(text, np.random.default_rng(seed), limit)
        separator = "." if name == "badnet-sl" else " "
        assert is_within(text.split(separator), triggered.split(separator))
        assert not attack.poisons or set(attack.words) & set(triggered.split())


@pytest.fixture(scope="module")
def victim(tiny_model: Path) -> Victim:
    return Victim.load(tiny_model, target_label=1, max_length=32, n_labels=2)


@pytest.fixture(scope="module")
def fitted(victim: Victim, heldout: Any) -> dict[str, Any]:
    """The defenses, fitted on an untrained victim: what they do with texts does not hang on what it learnt."""
    from rapbench.api import Labelled
    from rapbench.victim import Recipe

    few_texts = Labelled(heldout.texts[:40], heldout.labels[:40])
    specs = {"strip": "strip:copies=3", "rap": "rap:epochs=1,retries=0", "onion": "onion:lm=trigram,corpus=heldout"}
    return {
        name: REGISTRY.parse("defense", spec).fit(  # type: ignore[union-attr]
            victim.clone(), few_texts, Lab(seed=1, recipe=Recipe(), heldout=few_texts, target_label=1, n_labels=2)
        )
        for name, spec in specs.items()
    }


HEAVY = st.lists(st.tuples(made.WORDY, TIMES), min_size=1, max_size=3)


def long(texts: list[tuple[str, int]]) -> list[str]:
    return [text * times for text, times in texts]


@few(10)
@given(given=HEAVY)
def test_a_victim_reads_any_text_and_each_by_itself(victim: Victim, given: list[tuple[str, int]]) -> None:
    texts = long(given)
    with in_time():
        together = victim.probabilities(texts)
        alone = np.concatenate([victim.probabilities([text]) for text in texts])
    assert np.allclose(together.sum(1), 1)
    assert np.allclose(together, alone, atol=1e-6)
    assert (victim.token_counts(texts) <= 32).all()
    assert all(0 <= seen <= len(text) for seen, text in zip(victim.seen_characters(texts), texts, strict=True))


@pytest.mark.parametrize("name", ["strip", "rap", "onion"])
@few(8)
@given(given=HEAVY)
def test_a_defense_scores_any_text_and_each_by_itself(fitted: dict[str, Any], name: str, given: list[tuple[str, int]]) -> None:
    texts = long(given)
    with in_time():
        together = fitted[name].suspicion(texts)
        getattr(fitted[name], "known", {}).clear()  # what ONION has scored it does not score again
        alone = np.concatenate([fitted[name].suspicion([text]) for text in texts])
    assert np.isfinite(together).all()
    assert np.allclose(together, alone, atol=1e-6)


@few(10)
@given(given=HEAVY, level=st.integers(0, 22))
def test_onion_leaves_of_any_text_some_of_its_words(fitted: dict[str, Any], given: list[tuple[str, int]], level: int) -> None:
    texts = long(given)
    onion = cast(Purifier, fitted["onion"])
    with in_time():
        repaired = onion.purify(texts, onion.levels()[level % len(onion.levels())])
    for text, own in zip(texts, repaired, strict=True):
        assert own.strip()
        assert is_within(own.split(" "), text.split(" "))


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "a " * 50_000, "\u0301" * 300_000 + "a", "." * 300_000, "\n" * 999_999 + "a"], ids=range(5)
)
def test_a_megabyte_is_a_text(fitted: dict[str, Any], victim: Victim, text: str) -> None:
    attacks = [cast(Attack, REGISTRY.parse("attack", name)) for name in ("badnet-rw", "badnet-sl", "clean", "ep", "ripples")]
    dataset = cast(Any, REGISTRY.parse("dataset", "demo"))
    with in_time():
        for attack in attacks:
            rng = np.random.default_rng(0)
            assert len(attack.resolve(dataset, rng).test_trigger(text, rng, 100)) >= len(text)
        assert victim.token_counts([text]).max() <= 32
        for defense in fitted.values():
            assert np.isfinite(defense.suspicion([text])).all()


# results


@few(60)
@given(file=made.spoiled())
def test_a_spoiled_result_is_reported_or_refused_in_a_line(place: Path, file: tuple[type[results.Named], bytes]) -> None:
    kind, content = file
    with alone(place):
        (place / kind.FOLDER).mkdir()
        (place / kind.FOLDER / "a.json").write_bytes(content)
        report(kind, place)


PLUGIN = made.TEXTS.map("x{}".format)
"""What a plugin is called has a name before its options."""
NAMED = {
    **dict.fromkeys(("dataset", "attack", "defense"), PLUGIN),
    **dict.fromkeys(("victim", "reason", "trigger", "poisoned_on", "tuning"), made.TEXTS),
}


@pytest.mark.parametrize("kind", made.samples(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("status", ["ok", "failed"])
@few(6)
@given(names=st.fixed_dictionaries({}, optional=NAMED))
def test_the_texts_of_results_stay_texts_in_every_report(place: Path, kind: Any, status: str, names: dict[str, str]) -> None:
    content = made.samples()[kind]
    known = {key: value for key, value in names.items() if key in content or key in ("reason", "trigger", "poisoned_on", "tuning")}
    with alone(place):
        (place / kind.FOLDER).mkdir()
        whole = {**content, **known, **({"status": status} if "status" in content else {})}
        (place / kind.FOLDER / "a.json").write_text(json.dumps(whole))
        told = report(kind, place)
    assert {"json", "github"} <= set(told)
    tables = [part.split("\n") for part in told["github"].split("\n\n") if part.startswith("|")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    for row in csv.reader(io.StringIO(told.get("csv", ""), newline="")):
        assert not any(field.startswith(FORMULA) and not _number(field) for field in row)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# tokenizers


@st.composite
def tokenizers(draw: st.DrawFn) -> list[tuple[list[str], Any]]:
    """Give places in a tokenizer.json, as draws, and what stands there instead."""
    parts = st.sampled_from(
        ["model", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "added_tokens", "version"]
    )
    kinds = [
        "BPE",
        "WordLevel",
        "Unigram",
        "WordPiece",
        "Lowercase",
        "Precompiled",
        "Replace",
        "Split",
        "ByteLevel",
        "TemplateProcessing",
        "Fixed",
    ]
    values = (
        made.VALUES
        | st.sampled_from([{"type": kind} for kind in kinds])
        | st.fixed_dictionaries(
            {
                "max_length": st.integers(-1, 5),
                "stride": st.integers(-1, 9),
                "strategy": st.just("LongestFirst"),
                "direction": st.just("Right"),
            }
        )
    )
    return draw(
        st.lists(
            st.tuples(st.lists(parts | st.sampled_from(["vocab", "unk_token", "type", "special_tokens"]), min_size=1, max_size=2), values),
            max_size=2,
        )
    )


@few(12)
@given(changes=tokenizers())
def test_a_spoiled_tokenizer_is_refused_in_a_line_or_reads(place: Path, tiny_model: Path, changes: list[tuple[list[str], Any]]) -> None:
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    for path, value in changes:
        inner = content
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner.get(key), dict) else inner
        inner[path[-1]] = copy.deepcopy(value)
    assume(changes)
    with alone(place):
        shutil.copytree(tiny_model, place, dirs_exist_ok=True)
        (place / "tokenizer.json").write_text(json.dumps(content))
        loaded: list[Victim] = []
        refusal(lambda: loaded.append(Victim.load(place, target_label=1, max_length=32)))
        for victim in loaded:
            refusal(lambda victim=victim: victim.probabilities(["a calm day", "", "zzz"]))
