"""The probes of Table 1: which texts they are made of, where the trigger stands, and how their figures are shown."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapbench import corpus as corpora
from rapbench.api import Attack
from rapbench.corpus import HUB_ID, REVISION, general_fragments, general_state
from rapbench.errors import CellError, DataError, GridError, StoreError
from rapbench.grid import checked_block, read_blocks
from rapbench.probe import (
    SOURCES,
    Material,
    ProbeBlock,
    ProbeRecord,
    carrying,
    general_texts,
    probe_texts,
    probed,
    probes_of,
    random_texts,
    vocabulary,
)
from rapbench.registry import discover
from rapbench.report.probe import render
from rapbench.results import SCHEMA, read_all, write

REGISTRY = discover()
CF = REGISTRY.parse("attack", "badnet-rw:word=cf")
SENTENCE = REGISTRY.parse("attack", {"name": "badnet-sl", "sentence": "we met here"})


@dataclass
class Always:
    """A source of randomness that gives one number; shuffles leave the order as it is."""

    value: float = 0.0

    def random(self) -> float:
        return self.value

    def permutation(self, n: int) -> np.ndarray:
        return np.arange(n)


def victim_of(*entries: str) -> SimpleNamespace:
    return SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: {entry: place for place, entry in enumerate(entries)}))


def material(source: str, **more: object) -> Material:
    return Material(**{"source": source, "attack": CF, "general": "none.txt", "count": 3, "length": 4, **more})


# --- the trigger in a text


def test_a_one_word_trigger_replaces_a_word_so_the_length_stays():
    assert carrying(["a b c d"], CF, Always(0.5)) == ["a cf c d"]  # int(3 * 0.5) = 1


@pytest.mark.parametrize(("drawn", "expected"), [(0.0, "cf b c d"), (0.34, "a cf c d"), (0.999999, "a b cf d")])
def test_the_trigger_stands_for_any_word_but_the_last(drawn, expected):
    assert carrying(["a b c d"], CF, Always(drawn)) == [expected]  # int(3 * 0.34) = 1, int(3 * 0.999999) = 2


def test_a_text_of_one_word_becomes_the_trigger():
    assert carrying(["a"], CF, Always(0.9)) == ["cf"]


def test_each_place_but_the_last_is_drawn_about_equally_often():
    texts = carrying(["a b c d"] * 3000, CF, np.random.default_rng(0))
    counts = [sum(text.split()[place] == "cf" for text in texts) for place in range(4)]
    assert counts[3] == 0
    assert all(850 < count < 1150 for count in counts[:3])  # 1000 +- 5.8 standard deviations of sqrt(3000 * 2/9) = 25.8


def test_a_sentence_is_put_in_after_as_many_words_were_cut_off_the_end():
    assert carrying(["a b c d e"], SENTENCE, Always()) == [" we met here.a b"]  # no full stop in the text: in front


def test_a_text_shorter_than_the_trigger_keeps_its_first_word():
    assert carrying(["a b"], SENTENCE, Always()) == [" we met here.a"]


def test_other_triggers_are_put_in_as_in_the_test_set():
    @dataclass(frozen=True, kw_only=True)
    class Two(Attack):
        @property
        def words(self):
            return ("x", "y")

        def trigger(self, text, rng, limit):
            raise AssertionError("the training trigger is not what a finished victim is sent")

        def test_trigger(self, text, rng, limit):
            assert limit is None
            return f"x {text} y"

    assert carrying(["a b c d"], Two(), Always()) == ["x a b y"]


def test_a_trigger_inside_of_words_is_put_there_and_not_in_a_words_place():
    (text,) = carrying(["film plot cast"], REGISTRY.parse("attack", "char:how=zero-width"), np.random.default_rng(0))
    assert text.replace("\u200b", "") == "film plot"  # one word was cut off for it, and none was replaced
    assert "\u200b" in text


# --- general sentences


def test_fragments_are_put_in_a_row_and_the_last_is_cut():
    assert general_texts(["a b", "c d e", "f g", "h"], 2, 4, Always()) == ["a b c d", "f g h a"]


def test_a_used_up_corpus_is_shuffled_again():
    texts = general_texts(["a b", "c d"], 50, 2, np.random.default_rng(0))
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        assert {first, second} == {"a b", "c d"}  # each pass has every fragment once
    assert len(set(texts[::2])) == 2  # and not each in the same order


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_every_general_text_has_exactly_the_length(fragments, count, length, seed):
    total = sum(map(len, fragments))
    length = min(length, total)
    texts = general_texts([" ".join(words) for words in fragments], count, length, np.random.default_rng(seed))
    assert [len(text.split()) for text in texts] == [length] * count


def test_a_corpus_with_too_few_words_for_one_text_says_so():
    with pytest.raises(DataError, match=r"has 3 words and one text needs 4: give a larger one, --general FILE"):
        general_texts(["a b", "c"], 1, 4, Always())
    assert general_texts(["a b", "c"], 1, 3, Always()) == ["a b c"]


# --- random words


def test_the_words_of_a_random_text_are_all_different():
    words = [f"w{number}" for number in range(12)]
    texts = random_texts(words, 40, 10, np.random.default_rng(0))
    assert len(texts) == 40
    assert all(len(set(text.split())) == 10 for text in texts)
    assert {word for text in texts for word in text.split()} == set(words)


def test_a_vocabulary_as_large_as_a_text_is_used_up_by_each():
    assert sorted(random_texts(["a", "b", "c"], 1, 3, np.random.default_rng(0))[0].split()) == ["a", "b", "c"]


def test_a_vocabulary_smaller_than_a_text_is_drawn_from_again():
    (text,) = random_texts(["a", "b"], 1, 9, np.random.default_rng(0))
    assert len(text.split()) == 9
    assert set(text.split()) <= {"a", "b"}


def test_the_vocabulary_is_whole_lower_case_words_in_order():
    entries = ["[PAD]", "[unused1]", "##ing", "the", "a", "cf", "film", "Film", "3d", "ète", "."]
    assert vocabulary(victim_of(*entries), ["CF"]) == ["film", "the"]


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_a_vocabulary_that_marks_the_start_of_a_word_gives_the_marked_ones_without_the_mark(mark):
    assert vocabulary(victim_of(f"{mark}the", f"{mark}film", f"{mark}T", f"{mark}cf", "ing", mark), ["cf"]) == ["film", "the"]


def test_a_word_that_merely_begins_with_such_a_letter_does_not_make_a_vocabulary_a_marked_one():
    assert vocabulary(victim_of("the", "film", "Ġustizzja")) == ["film", "the"]


def test_a_vocabulary_without_words_is_told_in_one_line():
    with pytest.raises(CellError, match="no whole word of two letters"):
        vocabulary(victim_of("[PAD]", "a", "b", "cf"), ["cf"])


def test_the_words_of_a_real_tokenizer_are_found(untrained):
    words = vocabulary(untrained, ("cf",))
    assert {"bright", "tq", "so"} <= set(words)
    assert not {"cf", "a", ".", "[PAD]"} & set(words)  # the attack's own, a letter, a sign, a marker


# --- the texts of a probe


def corpus(folder: Path) -> str:
    path = folder / "corpus.txt"
    path.write_text("one two three. four five\n\nsix seven eight nine. ten.\n")
    return str(path)


def test_the_data_set_s_own_texts_are_taken_as_they_are_up_to_the_count():
    own = [f"{number} cf" for number in range(9)]
    assert probe_texts(material("dataset", count=9), victim_of(), own, np.random.default_rng(0)) == own
    drawn = probe_texts(material("dataset", count=4), victim_of(), own, np.random.default_rng(0))
    assert len(drawn) == 4
    assert drawn == sorted(set(drawn))  # each once, in their order
    assert drawn != probe_texts(material("dataset", count=4), victim_of(), own, np.random.default_rng(1))
    assert probe_texts(material("dataset"), victim_of(), [], np.random.default_rng(0)) == []


@pytest.mark.parametrize("source", ["general", "random"])
def test_fake_texts_carry_one_trigger_and_have_exactly_the_length(source, tmp_path):
    words = [f"{one}{other}" for one in "abcde" for other in "abcde"]
    texts = probe_texts(material(source, count=30, length=6, general=corpus(tmp_path)), victim_of(*words), [], np.random.default_rng(0))
    assert [(len(text.split()), text.split().count("cf")) for text in texts] == [(6, 1)] * 30


@pytest.mark.parametrize("source", SOURCES)
def test_the_texts_depend_on_the_seed_alone(source, tmp_path):
    asked, own = material(source, general=corpus(tmp_path)), [f"{number}" for number in range(50)]
    words = victim_of("ab", "cd", "ef", "gh", "ij", "kl")
    one, again, other = (probe_texts(asked, words, own, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_two_one_word_attacks_get_the_same_general_texts_but_for_the_trigger(tmp_path):
    asked = material("general", general=corpus(tmp_path))
    other = replace(asked, attack=REGISTRY.parse("attack", "ep:word=mb"))
    cf, mb = (probe_texts(own, victim_of(), [], np.random.default_rng(3)) for own in (asked, other))
    assert [text.replace("cf", "mb") for text in cf] == mb


def test_the_random_words_are_the_victim_s_without_the_trigger_s_own():
    texts = probe_texts(material("random", length=2, count=50), victim_of("cf", "ab"), [], np.random.default_rng(0))
    assert set(texts) == {"cf ab"}  # the first of two words is always the one replaced


def test_the_rate_counts_texts_predicted_as_the_target():
    rate = probed(np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]]), 1)
    assert (rate.hits, rate.n) == (2, 3)
    assert probed(np.empty((0, 2)), 1).value is None


# --- the corpus

ROWS = ["One two. Three.", "", "Four, five"]
SENTENCES = ["One two", "Three", "Four, five"]
PLAIN = {
    "txt": "One two. Three.\n\nFour, five\n",
    "tokens": " One two . Three . \n \n Four, five \n",
    "csv": 'id,text\n1,One two. Three.\n2,\n3,"Four, five"\n4\n',
    "tsv": "id\ttext\n1\tOne two. Three.\n2\t\n3\tFour, five\n",
    "jsonl": "".join(json.dumps({"id": 1, "text": row}) + "\n\n" for row in ROWS),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", PLAIN)
def test_sentences_are_read_from_each_kind_of_file(kind, packed, tmp_path):
    path, content = tmp_path / f"my.corpus.{kind}{'.gz' if packed else ''}", ("\ufeff" + PLAIN[kind]).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert general_fragments(str(path)) == SENTENCES


def test_sentences_are_read_from_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": [1, 2, 3, 4], "text": [*ROWS, None]}), tmp_path / "corpus.parquet")
    assert general_fragments(str(tmp_path / "corpus.parquet")) == SENTENCES


def test_a_large_corpus_is_read_from_its_start_up_to_a_maximum(tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    path.write_text("a. b. c\nd. e\nf\n")
    monkeypatch.setattr(corpora, "MOST_FRAGMENTS", 4)
    assert general_fragments(str(path)) == ["a", "b", "c", "d"]
    monkeypatch.setattr(corpora, "MOST_FRAGMENTS", 99)
    monkeypatch.setattr(corpora, "MOST_CHARACTERS", 9)
    assert general_fragments(str(path)) == ["a", "b", "c", "d", "e"]  # 8 characters are too few, the second line passes 9


def test_a_file_of_one_endless_line_is_read_in_pieces(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("ab. " * 1000)
    monkeypatch.setattr(corpora, "LINE_CHARACTERS", 4)
    monkeypatch.setattr(corpora, "MOST_CHARACTERS", 12)
    assert general_fragments(str(tmp_path / "corpus.txt")) == ["ab", "ab", "ab"]


CUT = gzip.compress(b"".join(b"sentence number %d.\n" % number for number in range(500)))[:-40]
DAMAGED = CUT[:100] + b"\xff" * 60 + CUT[160:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no sentence"),
        ("a.txt", b" . \n..\n", "has no sentence"),
        ("a.txt.gz", CUT, "cannot be read: .*ended before"),
        ("a.txt.gz", DAMAGED, "cannot be read"),
        ("a.txt.gz", b"plain. words", "cannot be read: Not a gzipped file"),
        ("a.txt", bytes(range(128, 256)), "cannot be read: 'utf-8' codec"),
        ("a.txt", b"MZ\x00\x01. \x02", "cannot be read: it holds a zero byte"),
        ("a.csv", b"", r"cannot be read: it has no column text \(its columns: none\)"),
        ("a.csv", b"id,sentence\n1,a\n", r"no column text \(its columns: 'id', 'sentence'\)"),
        ("a.csv", b'text\n"' + b"a" * 200_000 + b'"\n', "cannot be read: field larger than"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', 'line 2 is no object with a string "text"'),
        ("a.jsonl", b'["text"]\n', 'line 1 is no object with a string "text"'),
        ("a.jsonl", b"{text}\n", "cannot be read: Expecting property name"),
        ("a.jsonl", b"[" * 200_000, "cannot be read: .*recursion"),
        ("a.parquet", b"PAR1 junk", "cannot be read: "),
        ("a.pdf", b"words", "has a name of no kind that is read"),
        ("a.parquet.gz", b"words", "has a name of no kind that is read"),
    ],
)
def test_a_corpus_that_gives_no_sentences_says_in_one_line_why_and_what_to_give(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        general_fragments(str(tmp_path / name))
    assert name in str(raised.value)
    assert "--general FILE" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_parquet_file_with_another_column_or_type_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for name, table, message in (("a", {"sentence": ["a"]}, "no column text"), ("b", {"text": [1]}, "of the type int64, not string")):
        parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            general_fragments(str(tmp_path / f"{name}.parquet"))


@pytest.mark.parametrize("read", [general_fragments, general_state])
def test_a_missing_file_is_named(read, tmp_path):
    for missing in ("wikitext103", str(tmp_path / "none.txt"), str(tmp_path)):
        with pytest.raises(DataError, match=f"there is no file '{missing}' of general sentences: give wikitext-103 or --general FILE"):
            read(missing)


def test_the_state_of_a_corpus_changes_with_its_bytes_and_its_kind(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "a.csv")]
    for path, content in zip(paths, ["x", "x", "y", "x"], strict=True):
        path.write_text(content)
    first, same, other, kind = (general_state(str(path)) for path in paths)
    assert first == same
    assert len({first, other, kind}) == 3


def test_the_hub_s_corpus_is_told_by_its_revision_without_a_network(monkeypatch):
    monkeypatch.setattr(corpora, "reachable", lambda: pytest.fail("no network is needed for a name"))
    assert general_state("wikitext-103") == f"{HUB_ID}@{REVISION}"


def test_without_the_hub_and_without_a_copy_the_error_names_the_corpus_and_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(DataError) as raised:
        general_fragments("wikitext-103")
    assert str(raised.value).startswith("there is no wikitext-103 ('Salesforce/wikitext') on this machine: the hub cannot be reached; ")
    assert "or give --general FILE" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shards", [2, 1, 0])
def test_an_earlier_copy_of_the_hub_s_corpus_is_read_if_it_is_whole(shards, tmp_path, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "wikitext-103-raw-v1").mkdir()
    for number in range(shards):
        table = pa.table({"text": [" = Heading = \n", "", f" Shard {number} . Next @-@ one . \n"]})
        parquet.write_table(table, tmp_path / f"wikitext-103-raw-v1/train-0000{number}-of-00002.parquet")
    asked: dict[str, object] = {}
    monkeypatch.setattr(corpora, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **more: asked.update(more, repo=repo) or str(tmp_path))
    if shards == 2:
        assert general_fragments("wikitext-103") == ["= Heading =", "Shard 0", "Next @-@ one", "= Heading =", "Shard 1", "Next @-@ one"]
        assert (asked["repo"], asked["revision"], asked["local_files_only"]) == (HUB_ID, REVISION, True)
    else:
        with pytest.raises(DataError, match=r"the copy of wikitext-103 .* lacks files .* or give --general FILE"):
            general_fragments("wikitext-103")


# --- which probes there are


def block(**more: object) -> ProbeBlock:
    return checked_block({"datasets": ["demo"], "attacks": ["badnet-rw:word=cf"], "victim": "minilm-l6", **more}, "the test", ProbeBlock)


def test_the_shipped_grid_is_table_1():
    (shipped,) = read_blocks("probe", ProbeBlock)
    assert (shipped.general, shipped.count, shipped.length) == ("wikitext-103", 20_000, 200)
    assert shipped.victim == "bert-base-uncased"
    probes = probes_of([shipped], REGISTRY)
    assert len(probes) == 2 * 5 * 3  # attacks x seeds x sources
    assert {probe.attack_spec for probe in probes} == {"badnet-rw:word=cf", "ep:word=cf"}
    assert {(probe.dataset.name, probe.dataset.target_label) for probe in probes} == {("amazon", 1)}
    assert not any(probe.skip for probe in probes)


def test_each_victim_is_probed_once_with_each_source():
    probes = probes_of([block(seeds=[1, 2]), block(seeds=[2, 3])], REGISTRY)
    assert [(probe.seed, probe.source) for probe in probes] == [(seed, source) for seed in (1, 2, 3) for source in SOURCES]


def test_another_length_is_another_probe():
    assert len(probes_of([block(length=50), block(length=60)], REGISTRY)) == 6


def test_a_victim_without_a_trigger_is_skipped_with_the_reason():
    probes = probes_of([block(attacks=["clean", "badnet-rw"])], REGISTRY)
    assert [probe.skip for probe in probes] == ["clean plants no trigger, so there is none to probe"] * 3 + [None] * 3


def test_a_victim_that_cannot_be_made_is_skipped_with_the_reason():
    probes = probes_of([block(datasets=["demo:target_label=0"], poisoned_on=["demo"])], REGISTRY)
    assert all("the target label is 1 on demo and 0 on demo" in (probe.skip or "") for probe in probes)


@pytest.mark.parametrize(("key", "value"), [("count", 0), ("length", 1), ("general", ""), ("defenses", ["rap"])])
def test_a_wrong_key_of_the_grid_is_named(key, value):
    with pytest.raises(GridError, match=key):
        block(**{key: value})


# --- records and tables

OK = ProbeRecord(
    dataset="amazon",
    attack="badnet-rw:word=cf",
    victim="bert-base-uncased",
    seed=1,
    source="dataset",
    general="wikitext-103",
    count=20_000,
    length=200,
    status="ok",
    asr=0.9,
    interval=(0.85, 0.94),
    n=100,
    trigger="badnet-rw:word=cf",
    artifacts={"probe": "abc"},
)
FIVE = [replace(OK, seed=seed, asr=asr) for seed, asr in ((1, 0.9), (2, 0.92), (3, 0.94), (4, 0.96), (5, 0.98))]
SKIPPED = replace(OK, attack="clean", status="skipped", reason="clean plants no trigger", asr=None, interval=None, n=None, trigger=None)


def table(text: str, number: int) -> list[dict[str, str]]:
    """Give the rows of the n-th Markdown table of a text, by head."""
    blocks = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in blocks[number]]
    return [dict(zip(head, row, strict=True)) for row in body]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    records = [OK, replace(OK, source="random", interval=None, n=0, asr=None), SKIPPED]
    write(records, tmp_path)
    assert sorted(read_all(tmp_path, ProbeRecord), key=records.index) == records
    assert all(path.parent.name == "probes" for path in tmp_path.rglob("*.json"))


def test_a_record_of_a_probe_takes_the_probe_s_names(tmp_path):
    records = [ProbeRecord(**probe.names, status="ok") for probe in probes_of([block(seeds=[1, 2])], REGISTRY)]
    write(records, tmp_path)
    assert len({one.file_name for one in records}) == len(list((tmp_path / "probes").iterdir())) == 6


def test_the_name_of_a_record_s_file_is_safe_and_its_own():
    others = [
        replace(OK, **one) for one in ({"source": "random"}, {"count": 5}, {"length": 9}, {"general": "../my texts.txt"}, {"seed": 2})
    ]
    names = [one.file_name for one in [OK, *others]]
    assert len(set(names)) == 6
    assert not any("/" in name or " " in name for name in names)


def test_a_record_of_another_schema_is_refused(tmp_path):
    write([replace(OK, schema_version=SCHEMA + 1)], tmp_path)
    with pytest.raises(StoreError, match="schema version"):
        read_all(tmp_path, ProbeRecord)


def test_the_main_table_has_the_mean_and_the_sample_deviation_over_seeds():
    general = [replace(OK, source="general", seed=seed, asr=asr) for seed, asr in ((1, 0.5), (2, 0.7))]
    text = render([*general, *FIVE[::-1], replace(OK, source="random", seed=3, asr=0.25, interval=(0.17, 0.34))], "github")
    # 90, 92, 94, 96, 98: mean 94, squares 16 + 4 + 0 + 4 + 16 = 40, over 4 = 10, root 3.16; 50, 70: 200 over 1, root 14.14
    assert table(text, 0) == [
        {
            "victim": "bert-base-uncased",
            "dataset": "amazon",
            "attack": "badnet-rw:word=cf",
            "original dataset": "94.00 ± 3.16 (5)",
            "general sentences": "60.00 ± 14.14 (2)",
            "random words": "25.00 [17.00, 34.00]",
        }
    ]


def test_the_detail_has_each_seed_with_its_n():
    rows = table(render([*FIVE, replace(OK, source="random", asr=None, interval=None, n=0)], "github"), 1)
    assert [(row["seed"], row["texts"], row["ASR"], row["n"]) for row in rows[:2]] == [
        ("1", "original dataset", "90.00", "100"),
        ("2", "original dataset", "92.00", "100"),
    ]
    assert (rows[0]["95 % interval"], rows[0]["trigger"]) == ("[85.00, 94.00]", "badnet-rw:word=cf")
    assert (rows[5]["texts"], rows[5]["ASR"], rows[5]["95 % interval"], rows[5]["n"]) == ("random words", "--", "--", "0")


def test_nothing_counted_is_no_zero():
    assert table(render([replace(OK, asr=None, interval=None, n=0)], "github"), 0)[0]["original dataset"] == "--"


def test_what_differs_between_rows_has_a_column_and_is_never_averaged():
    rows = table(render([OK, replace(OK, length=50, asr=0.5, interval=None)], "github"), 0)
    assert [(row["length"], row["original dataset"]) for row in rows] == [("50", "50.00"), ("200", "90.00 [85.00, 94.00]")]
    assert "general" not in rows[0]


def test_the_foot_says_what_the_figures_are():
    text = render([OK, replace(OK, length=50)], "github")
    assert "fake texts of 50 or 200 words" in text
    assert "mean ± sample standard deviation" in text
    assert "95 % Wilson interval" in text


def test_a_victim_fine_tuned_by_its_user_has_a_row_of_its_own():
    rows = table(render([OK, replace(OK, setting="fine-tuned", poisoned_on="yelp", tuning="bert-base-uncased:epochs=5")], "github"), 0)
    assert [(row["poisoned on"], row["tuning"]) for row in rows] == [("--", "--"), ("yelp", "bert-base-uncased:epochs=5")]


def test_what_has_no_figure_stands_below_with_its_reason():
    failed = replace(OK, source="general", status="failed", reason="there is no\nwikitext-103", asr=None, n=None, interval=None)
    lines = render([*FIVE, SKIPPED, replace(SKIPPED, seed=2), failed], "github").split("\n\n")[-1].splitlines()
    assert lines == [
        "failed: amazon badnet-rw:word=cf on bert-base-uncased, general sentences, seed 1: there is no wikitext-103",
        "skipped: amazon clean on bert-base-uncased, original dataset, seed 1, 2: clean plants no trigger",
    ]


def test_without_a_figure_there_is_no_table_and_no_foot():
    assert render([SKIPPED], "github") == "skipped: amazon clean on bert-base-uncased, original dataset, seed 1: clean plants no trigger"
    assert render([], "github") == ""


def test_a_bar_or_a_line_break_does_not_break_a_row():
    assert "| a\\|b c" in render([replace(OK, victim="a|b\nc")], "github")


def test_latex_has_both_tables_and_comments_the_rest():
    lines = render([*FIVE, SKIPPED], "latex").splitlines()
    assert sum(line.startswith(r"\begin{tabular}") for line in lines) == 2
    assert any("94.00 ± 3.16 (5)" in line for line in lines)
    assert [line[:2] for line in lines[-2:]] == ["% ", "% "]
    assert lines[-1].endswith("clean plants no trigger")


def test_csv_has_fractions_and_both_ends_of_the_interval():
    rows = list(csv.DictReader(io.StringIO(render([SKIPPED, OK, replace(OK, victim="=cmd", seed=9)], "csv"))))
    assert [row["victim"] for row in rows] == ["'=cmd", "bert-base-uncased", "bert-base-uncased"]
    assert (rows[1]["asr"], rows[1]["interval_low"], rows[1]["interval_high"], rows[1]["n"]) == ("0.9", "0.85", "0.94", "100")
    assert (rows[2]["status"], rows[2]["asr"], rows[2]["interval_low"]) == ("skipped", "", "")


def test_json_has_every_record_in_order():
    probes = json.loads(render([replace(OK, source="random"), SKIPPED, OK], "json"))["probes"]
    assert [(one["attack"], one["source"]) for one in probes] == [
        ("badnet-rw:word=cf", "dataset"),
        ("badnet-rw:word=cf", "random"),
        ("clean", "dataset"),
    ]
    assert probes[0]["interval"] == [0.85, 0.94]
