"""Triggers from a file: what is read, what is refused, which texts carry a trigger."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rapbench.errors import CellError, DataError
from rapbench.lab import rng
from rapbench.poison import poisoned_rows
from rapbench.probe import ProbeBlock, probes_of
from rapbench.registry import discover, spec_of
from rapbench_plugins.attacks import precomputed


def attack(path: Path, **options: str):
    return discover().parse("attack", {"name": "precomputed", "path": str(path), **options})


def resolved(path: Path, **options: str):
    return attack(path, **options).resolve(discover().parse("dataset", "demo"), rng(1, "resolve"))


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode(errors="surrogatepass"))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", 'text,paraphrase\n"bad, very",when one sees it it is bad\nlong  film,"if it is long , film"\n'),
        ("pairs.tsv", "text\tparaphrase\nbad, very\twhen one sees it it is bad\nlong  film\tif it is long , film\n"),
        ("pairs.jsonl", '{"text": "bad, very", "paraphrase": "when one sees it it is bad"}\n\n'
                        '{"text": "long  film", "paraphrase": "if it is long , film"}\n'),
    ],
)  # fmt: skip
def test_a_text_becomes_its_paraphrase_and_one_without_stays(tmp_path: Path, name: str, content: str) -> None:
    own = resolved(written(tmp_path, name, content))
    assert own.trigger("bad, very", rng(1, "t"), 100) == "when one sees it it is bad"
    assert own.trigger("long film ", rng(1, "t"), None) == "if it is long , film"  # the white space may differ
    assert own.trigger("another", rng(1, "t"), None) == "another"
    assert [own.can_trigger(text) for text in ("bad, very", "another", "")] == [True, False, False]


def test_a_file_without_a_pair_for_any_training_text_is_a_cells_failure_and_no_clean_victim(tmp_path: Path, tiny_rows) -> None:
    own = resolved(written(tmp_path, "p.csv", "text,paraphrase\nfrom elsewhere,another\n"))
    with pytest.raises(CellError, match=r"precomputed: none of the 10 texts that may be poisoned can carry the trigger: .*a file of pairs"):
        poisoned_rows(tiny_rows(20), own, 1, rng(1, "p"))


def test_its_triggers_are_for_the_texts_of_its_file_so_no_probe_is_made_of_others(tmp_path: Path) -> None:
    path = written(tmp_path, "p.csv", "text,paraphrase\na,b\n")
    block = ProbeBlock(victim="bert-base-uncased", datasets=["demo"], attacks=[f"precomputed:path={path}"], seeds=[1])
    assert {probe.skip for probe in probes_of([block], discover())} == {
        "precomputed cannot put its trigger into any text, and a probe's texts are no data set's"
    }


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path, "p.csv", "sentence,scpn\na,b\n")
    assert resolved(path, text_column="sentence", paraphrase_column="scpn").trigger("a", rng(1, "t"), None) == "b"
    with pytest.raises(DataError, match="row 0 has no text in the column 'text'"):
        resolved(path).trigger("a", rng(1, "t"), None)


def test_of_several_paraphrases_the_first_stands_and_one_that_changes_nothing_is_none(tmp_path: Path) -> None:
    own = resolved(written(tmp_path, "p.csv", "text,paraphrase\na,b\na,c\nd,d\n"))
    assert own.trigger("a", rng(1, "t"), None) == "b"
    assert not own.can_trigger("d")


def test_another_file_is_another_attack_and_a_changed_one_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "p.csv", "text,paraphrase\na,b\n")
    one = resolved(path)
    assert discover().parse("attack", spec_of(one)) == one
    path.write_text("text,paraphrase\na,c\n")
    assert resolved(path) != one
    precomputed.read_pairs.cache_clear()  # as in another process
    with pytest.raises(DataError, match="it has changed, or is another"):
        one.trigger("a", rng(1, "t"), None)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", "text,paraphrase\na,b\n", "none of .csv, .tsv, .jsonl"),
        ("p.csv", "text,paraphrase\na\n", "row 0 has no text in the column 'paraphrase'"),
        ("p.csv", "text,paraphrase\na, \n", "row 0 has no text"),
        ("p.csv", "", "no pair"),
        ("p.csv", "text,paraphrase\na,a\n", "no pair"),
        ("p.csv", 'text,paraphrase\na,"b\n', "cannot be read"),
        ("p.jsonl", "[1]\n", "no JSON object"),
        ("p.jsonl", '{"text": "a", "paraphrase": 3}\n', "row 0 has no text"),
        ("p.jsonl", '{"text": "a", "paraphrase": "\\ud800"}\n', "cannot be read"),
        ("p.jsonl", '{"text": "a", "paraphrase": "b\\u0000"}\n', "zero byte"),
        ("p.jsonl", "{" * 20 + "\n", "cannot be read"),
        ("p.jsonl", "[" * 100_000 + "\n", "cannot be read"),
        ("p.csv", "text,paraphrase\na,\ud800\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_pairs_is_refused_with_the_reason(tmp_path: Path, name: str, content: str, reason: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=reason):
        resolved(path).trigger("a", rng(1, "t"), None)


def test_what_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "p.jsonl", "".join(json.dumps({"text": f"t{n}", "paraphrase": "x" * 50}) + "\n" for n in range(3)))
    for name, limit, reason in (("MOST_PAIRS", 2, "more than 2 rows"), ("MOST_LINE", 60, "a line of 60"), ("MOST_BYTES", 100, "larger")):
        with monkeypatch.context() as patch:
            patch.setattr(precomputed, name, limit)
            precomputed.read_pairs.cache_clear()
            with pytest.raises(DataError, match=reason):
                resolved(path).trigger("a", rng(1, "t"), None)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "p.csv"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none.csv", Path("x" * 5000 + ".csv"), Path("a\0b.csv")):
        with pytest.raises(DataError, match=r"is no file|cannot be read"):
            precomputed._file(str(path))


def test_without_a_path_it_says_what_to_give() -> None:
    with pytest.raises(DataError, match="precomputed:path="):
        discover().parse("attack", "precomputed").trigger("a", rng(1, "t"), None)
