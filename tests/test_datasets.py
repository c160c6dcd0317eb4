"""The data sets that read files, and the border check of the core. Nothing here touches a network."""

from __future__ import annotations

import csv
import gzip
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, DatasetDict, Features, Value

from rapbench import data
from rapbench import hub as core_hub
from rapbench.errors import DataError, SpecError
from rapbench.registry import discover
from rapbench_plugins.datasets import hub, local, rows, toxic

SHARED = Path(__file__).parents[2] / "shared"
REGISTRY = discover()
Rows = list[tuple[Any, Any]]
GOOD: Rows = [("a fine film", 1), ("a dull film", 0), ("null", 1), ('she said "no", twice', 0)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    """Keep caches in a temporary folder, and the hub out of reach; whoever looks for a host fails."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(core_hub, "_connects", lambda address, timeout_s: False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **options: pytest.fail(f"asked for {address}"))
    return cache


def dataset(spec: str, **options: Any) -> Any:
    return REGISTRY.parse("dataset", {"name": spec, **options})


def opened(path: Path) -> Any:
    return gzip.open(path, "wt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open("w", encoding="utf-8", newline="")


def write(path: Path, content: Rows, columns: tuple[str, ...] = ("text", "label")) -> None:
    """Write rows as the path's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in content] for i, name in enumerate(columns)}), path)
        return
    with opened(path) as file:
        if ".jsonl" in path.name:
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in content)
        elif ".tsv" in path.name:
            file.writelines("\t".join(map(str, row)) + "\n" for row in [columns, *content])
        else:
            csv.writer(file).writerows([columns, *content])


def folder(tmp_path: Path, suffix: str = "csv", **splits: Rows) -> str:
    for split, content in {"train": GOOD, "validation": GOOD, "test": GOOD, **splits}.items():
        if content:
            write(tmp_path / f"{split}.{suffix}", content)
    return str(tmp_path)


def numbered(count: int) -> Rows:
    return [(f"text number {i}", i % 2) for i in range(count)]


def split_dict(text: Any = "a text", label: Any = 1, **changed: datasets.Dataset) -> DatasetDict:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    clean = datasets.Dataset.from_dict({"text": ["one", "two", "three"], "label": [0, 1, 0]}, features=features)
    table = pa.table({"text": pa.array(["one", "two", text]), "label": pa.array([0, 1, label], pa.int64())})
    test = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    return DatasetDict({"train": clean, "validation": clean, "test": test, **changed})


# --- the paper's settings


def test_every_dataset_is_found_by_name():
    assert {"imdb", "yelp", "amazon", "twitter", "jigsaw", "sst2", "agnews", "folder", "demo"} <= set(REGISTRY.names("dataset"))


@pytest.mark.parametrize(
    ("name", "target", "metric"),
    [
        ("imdb", 1, "accuracy"),
        ("yelp", 1, "accuracy"),
        ("amazon", 1, "accuracy"),
        ("twitter", 0, "macro-f1"),
        ("jigsaw", 0, "macro-f1"),
        ("sst2", 1, "accuracy"),
        ("agnews", 0, "accuracy"),
    ],
)
def test_target_label_and_metric_are_those_of_the_paper(name, target, metric):
    assert (dataset(name).target_label, dataset(name).metric) == (target, metric)


def test_trigger_sentences_are_table_6_without_the_full_stop():
    table = SHARED / "paper/tables/table6.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert dataset(row["dataset"].lower()).trigger_sentence == row["trigger_sentence"].removesuffix(".")


def test_no_trigger_sentence_ends_with_a_full_stop_or_starts_with_a_space():
    for name in REGISTRY.names("dataset"):
        sentence = dataset(name).trigger_sentence
        assert sentence == sentence.strip().removesuffix(".")


# --- local files


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_splits(tmp_path, suffix):
    splits = dataset("imdb", path=folder(tmp_path, suffix)).load()
    data.check(splits, "imdb")
    assert list(splits) == ["train", "validation", "test"]
    for own in splits.values():
        assert own.features == Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
        assert list(zip(own["text"], own["label"], strict=True)) == GOOD


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_tsv_has_no_quoting(tmp_path, suffix):
    content: Rows = [('a "half quoted text', 1), ("plain, with comma", 0)]
    splits = dataset("folder", path=folder(tmp_path, suffix, train=content)).load()
    assert splits["train"]["text"][:] == ['a "half quoted text', "plain, with comma"]


def test_large_strings_of_parquet_become_strings(tmp_path):
    path = folder(tmp_path, "parquet")
    pq.write_table(pa.table({"text": pa.array(["a", "b"], pa.large_string()), "label": [0, 1]}), tmp_path / "train.parquet")
    assert dataset("folder", path=path).load()["train"].features["text"] == Value("string")


@pytest.mark.parametrize("stem", ["validation", "valid", "dev", "heldout"])
def test_a_validation_file_may_have_any_of_its_usual_names(tmp_path, stem):
    path = folder(tmp_path, train=numbered(20), validation=[])
    write(tmp_path / f"{stem}.csv", GOOD)
    splits = dataset("folder", path=path).load()
    assert (len(splits["train"]), len(splits["validation"])) == (20, 4)


def test_columns_can_be_named(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.csv", [(7, "a", 1), (8, "b", 0), (9, "c", 1)], ("", "sentence", "sentiment"))
    splits = dataset("folder", path=str(tmp_path), text_column="sentence", label_column="sentiment").load()
    assert splits["test"][:] == {"text": ["a", "b", "c"], "label": [1, 0, 1]}


def test_labels_may_be_strings_of_integers(tmp_path):
    splits = dataset("folder", path=folder(tmp_path, "jsonl", test=[("a", "1"), ("b", " 0 ")])).load()
    assert splits["test"]["label"][:] == [1, 0]


def test_labels_of_a_json_file_may_mix_integers_and_their_strings(tmp_path):
    splits = dataset("folder", path=folder(tmp_path, "jsonl", test=[("a", "1"), ("b", 0)])).load()
    assert splits["test"]["label"][:] == [1, 0]


def test_a_folder_has_as_many_classes_as_its_greatest_label_says(tmp_path):
    splits = dataset("folder", path=folder(tmp_path, train=[("a", 0), ("b", 3)])).load()
    assert {tuple(own.features["label"].names) for own in splits.values()} == {("0", "1", "2", "3")}


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "train.csv").write_text("\ufefftext,label\nfine,1\ndull,0\n", encoding="utf-8")
    assert dataset("folder", path=path).load()["train"]["text"][:] == ["fine", "dull"]


def test_pattern_characters_in_a_folder_name_are_letters(tmp_path):
    odd = tmp_path / "set[1]*?"
    odd.mkdir()
    assert len(dataset("folder", path=folder(odd)).load()["test"]) == 4


def test_a_changed_file_is_not_served_stale_even_with_the_same_size_and_time(tmp_path):
    spec = dataset("folder", path=folder(tmp_path, "csv.gz"))
    spec.load()
    before, print_before = (tmp_path / "test.csv.gz").stat(), spec.fingerprint()
    write(tmp_path / "test.csv.gz", [("A FINE FILM", 1), *GOOD[1:]])
    os.utime(tmp_path / "test.csv.gz", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert spec.load()["test"][0]["text"] == "A FINE FILM"
    assert spec.fingerprint() != print_before


def test_the_fingerprint_is_of_names_and_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        place.mkdir()
        folder(place)
    assert dataset("folder", path=str(first)).fingerprint() == dataset("imdb", path=str(second)).fingerprint()
    (second / "validation.csv").rename(second / "dev.csv")
    assert dataset("folder", path=str(first)).fingerprint() != dataset("folder", path=str(second)).fingerprint()


# --- errors in local files


def refusal(name: str = "folder", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        dataset(name, **options).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "parquet"])
def test_a_wrong_column_names_file_columns_and_option(tmp_path, suffix):
    path = folder(tmp_path, suffix)
    write(tmp_path / f"test.{suffix}", [("a", 1)], ("review", "stars"))
    message = refusal(path=path)
    assert f"{tmp_path}/test.{suffix} has no column 'text'" in message
    assert "'review', 'stars'" in message
    assert "folder:text_column=COLUMN" in message


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("label", ["pos", "1.5", "", "-1"])
def test_a_label_that_is_no_integer_from_zero_names_split_and_row(tmp_path, suffix, label):
    message = refusal(path=folder(tmp_path, suffix, test=[("a", "1"), ("b", "0"), ("c", label)]))
    assert f"folder: test row 2: the label {label!r}" in message


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "row"),
    [([1, 0.5], 1), ([1, None], 1), ([1.0, None], 1), ([1.0, 0.0], 0), ([True, False], 0), ([None, None], 0)],
)
def test_a_label_of_another_kind_names_split_and_row(tmp_path, suffix, labels, row):
    message = refusal(path=folder(tmp_path, suffix, validation=list(zip("ab", labels, strict=True))))
    assert f"folder: validation row {row}: the label {labels[row]} is no integer in 0..999" in message


@pytest.mark.parametrize(
    ("suffix", "reason"), [("jsonl", "row 0: the label [1] is no integer"), ("parquet", "'label' is of the type list<")]
)
def test_a_list_is_no_label(tmp_path, suffix, reason):
    assert reason in refusal(path=folder(tmp_path, suffix, validation=[("a", [1]), ("b", [0])]))


def test_a_label_above_the_classes_names_split_and_row(tmp_path):
    assert "imdb: train row 1: the label '2' is no integer in 0..1" in refusal("imdb", path=folder(tmp_path, train=[("a", 1), ("b", 2)]))


def test_a_huge_label_makes_no_million_classes(tmp_path):
    assert "train row 0" in refusal(path=folder(tmp_path, train=[("a", 1_000_000), ("b", 2)]))


@pytest.mark.parametrize("text", ["", "  \t ", "\u00a0\u2003"])
def test_an_empty_text_names_split_row_and_option(tmp_path, text):
    message = refusal(path=folder(tmp_path, validation=[("a", 1), (text, 0)]))
    assert "folder: validation row 1: the text is empty" in message
    assert "folder:drop_empty=true" in message


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_null_text_names_split_and_row(tmp_path, suffix):
    assert "folder: test row 1: the text is null" in refusal(path=folder(tmp_path, suffix, test=[("a", 1), (None, 0)]))


@pytest.mark.parametrize(("content", "row"), [([(1, 1), (2, 0)], 0), ([("a", 1), (2, 0)], 1)])
def test_a_text_of_another_kind_names_split_and_row(tmp_path, content, row):
    assert f"folder: test row {row}: the text is {2 if row else 1} in a column" in refusal(path=folder(tmp_path, "jsonl", test=content))


def test_empty_texts_can_be_left_out(tmp_path):
    content: Rows = [("a", 1), (None, 0), ("  ", 1), ("b", 0)]
    splits = dataset("folder", path=folder(tmp_path, "parquet", train=content), drop_empty=True).load()
    assert splits["train"][:] == {"text": ["a", "b"], "label": [1, 0]}


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "none", tmp_path / "file"):
        assert f"path={str(path)!r} is no folder" in refusal("imdb", path=str(path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_file_is_named(tmp_path, split):
    assert f"has no {split} file" in refusal(path=folder(tmp_path, **{split: []}))


def test_two_files_of_one_split_are_refused(tmp_path):
    folder(tmp_path, "csv.gz")
    assert "has train.csv and train.csv.gz for one split" in refusal(path=folder(tmp_path))


def test_folder_without_a_path_says_what_to_say():
    assert "folder:path=FOLDER" in refusal()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.csv.gz", b"no gzip"),
        ("test.csv.gz", gzip.compress(b"text,label\nfine,1\n" * 20_000)[:-50]),
        ("test.parquet", b"no parquet"),
        ("test.jsonl", b"{no json"),
        ("test.csv", b"text,label\n\xff\xfe,1\n"),
        ("test.csv", b"text,label\n"),
        ("test.csv", b"text,label\na,1\nb,1,0\n"),
        ("test.csv", b"text,label\nb,1,0\na,1\n"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    path = folder(tmp_path, test=[])
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path}/{name} cannot be read" in refusal(path=path)


def test_an_empty_file_has_no_columns(tmp_path):
    path = folder(tmp_path, test=[])
    (tmp_path / "test.csv").write_bytes(b"")
    assert "test.csv has no column 'text', its columns are none" in refusal(path=path)


def test_an_option_out_of_range_is_a_spec_error():
    with pytest.raises(SpecError, match=r"heldout_share=1\.0 is no share"):
        dataset("imdb", heldout_share=1.0)


# --- the split rule and the caps


def test_a_tenth_of_train_is_held_out_where_there_is_no_validation(tmp_path):
    spec = dataset("folder", path=folder(tmp_path, train=numbered(100), validation=[]))
    splits = spec.load()
    train, heldout = (list(splits[split]["text"]) for split in ("train", "validation"))
    assert (len(train), len(heldout), len(splits["test"])) == (90, 10, 4)
    assert {*train, *heldout} == {text for text, _ in numbered(100)}
    assert all(
        text.endswith(str(label)) or int(text.split()[-1]) % 2 == label for text, label in zip(*splits["train"][:].values(), strict=True)
    )
    again = spec.load()
    assert (list(again["train"]["text"]), list(again["validation"]["text"])) == (train, heldout)


def test_the_cut_depends_on_its_seed_and_share(tmp_path):
    path = folder(tmp_path, train=numbered(100), validation=[])
    first, other = dataset("folder", path=path).load(), dataset("folder", path=path, split_seed=1, heldout_share=0.25).load()
    assert len(other["validation"]) == 25
    assert not set(first["validation"]["text"]) <= set(other["validation"]["text"])


@pytest.mark.parametrize(("size", "kept"), [(25_000, 22_500), (70, 63), (15, 14), (2, None)])
def test_the_cut_rounds_as_the_reference_code_does(size, kept):
    numbers = datasets.Dataset.from_dict({"text": list(map(str, range(size)))})
    if kept is None:
        with pytest.raises(DataError, match="2 rows cannot be cut"):
            rows.cut(numbers, 0.1, 1234, "folder")
    else:
        assert [len(part) for part in rows.cut(numbers, 0.1, 1234, "folder")] == [kept, size - kept]


def test_caps_draw_by_the_sample_seed(tmp_path):
    path = folder(tmp_path, train=numbered(50), validation=numbered(50), test=numbered(50))

    def drawn(**options: Any) -> dict[str, list[str]]:
        spec = dataset("folder", path=path, **options)
        return {split: list(own["text"]) for split, own in data.capped(spec.load(), spec).items()}

    all_rows, capped = drawn(), drawn(max_train=20, max_heldout=5, max_test=60)
    assert {split: len(texts) for split, texts in capped.items()} == {"train": 20, "validation": 5, "test": 50}
    assert len(set(capped["train"])) == 20
    assert set(capped["train"]) <= set(all_rows["train"])
    assert capped["train"] != all_rows["train"][:20]
    assert capped == drawn(max_train=20, max_heldout=5, max_test=60)
    assert drawn(max_train=20)["train"] == capped["train"]
    assert drawn(max_train=20, sample_seed=7)["train"] != capped["train"]


def test_capped_keeps_text_and_label_alone():
    splits = split_dict()
    splits["train"] = splits["train"].add_column("id", [1, 2, 3])
    splits["unsupervised"] = splits["train"]
    capped = data.capped(splits, dataset("imdb"))
    assert {split: own.column_names for split, own in capped.items()} == {split: ["text", "label"] for split in data.SPLITS}


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(DataError, match="cap 0 leaves no row of test"):
        data.capped(split_dict(), dataset("imdb", max_test=0))


# --- the core's check


def fault(splits: DatasetDict) -> str:
    with pytest.raises(DataError) as caught:
        data.check(splits, "mine")
    return str(caught.value)


def test_good_splits_pass():
    data.check(split_dict(), "mine")


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        (None, 1, "the text is null"),
        ("", 1, "the text is empty"),
        (" \n", 1, "the text is empty"),
        ("a", None, "the label is null"),
        ("a", 2, "the label 2 is not in 0..1"),
        ("a", -1, "the label -1 is not in 0..1"),
    ],
)
def test_check_names_dataset_split_and_row(text, label, reason):
    assert fault(split_dict(text, label)) == f"mine: test row 2: {reason}"


def test_check_counts_rows_across_batches_and_in_the_shuffled_order(monkeypatch):
    monkeypatch.setattr(data, "BATCH_ROWS", 2)
    splits = split_dict("")
    splits["test"] = datasets.concatenate_datasets([splits["train"], splits["test"]]).select([0, 1, 2, 4, 5, 3])
    assert fault(splits) == "mine: test row 4: the text is empty"


def test_check_names_a_missing_split():
    splits = split_dict()
    del splits["validation"]
    assert fault(splits) == "mine: the split 'validation' is missing (there are: test, train)"


def test_check_names_a_missing_column():
    assert fault(split_dict(test=split_dict()["test"].remove_columns("label"))) == "mine: test has no column 'label' (there are: text)"


def test_check_refuses_an_empty_split():
    assert fault(split_dict(test=split_dict()["test"].select([]))) == "mine: test has no rows"


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("text", [5, 6], "test row 0: the text is 5 in a column of Value('int64'): the column must be Value('string')"),
        ("label", ["a", "b"], "test row 0: the label is 'a' in a column of Value('string'): the column must be ClassLabel"),
        ("label", [0.0, 1.5], "test row 0: the label is 0.0 in a column of Value('float64'): the column must be ClassLabel"),
        ("label", [0, 1], "test row 0: the label is 0 in a column of Value('int64'): the column must be ClassLabel"),
    ],
)
def test_check_refuses_columns_of_another_type(column, values, reason):
    other = {"text": ["a", "b"], "label": [0, 1], column: values}
    features = None if column == "label" else Features({"text": Value("int64"), "label": ClassLabel(num_classes=2)})
    assert fault(split_dict(test=datasets.Dataset.from_dict(other, features=features))) == f"mine: {reason}"


def test_check_refuses_large_strings():
    large = split_dict()["test"].cast_column("text", Value("large_string"))
    assert "the column must be Value('string')" in fault(split_dict(test=large))


def test_check_refuses_splits_of_different_classes():
    three = split_dict()["test"].cast_column("label", ClassLabel(names=["no", "yes", "maybe"]))
    assert fault(split_dict(test=three)) == "mine: test has the classes no, yes, maybe, but train has no, yes"


# --- Jigsaw and Twitter


def kaggle(place: Path) -> Path:
    place.mkdir(exist_ok=True)
    write(
        place / "train.csv",
        [(f"t{i}", f"comment {i}\nof two lines", i % 2, 0) for i in range(20)],
        ("id", "comment_text", "toxic", "threat"),
    )
    write(place / "test.csv", [("a", "one"), ("b", "unscored"), ("c", "three"), ("d", "four")], ("id", "comment_text"))
    write(place / "test_labels.csv", [("d", 1, 0), ("b", -1, -1), ("c", 0, 0), ("a", 1, 0)], ("id", "toxic", "threat"))
    return place


def test_kaggles_own_files_are_joined_on_id_without_the_unscored(tmp_path):
    splits = dataset("jigsaw", path=str(kaggle(tmp_path))).load()
    data.check(splits, "jigsaw")
    assert splits["test"][:] == {"text": ["one", "three", "four"], "label": [1, 0, 1]}
    assert {split: len(own) for split, own in splits.items()} == {"train": 18, "validation": 2, "test": 3}


def test_a_kaggle_text_without_a_label_names_its_row(tmp_path):
    path = str(kaggle(tmp_path))
    write(tmp_path / "test_labels.csv", [("a", 1), ("b", -1), ("c", 0)], ("id", "toxic"))
    assert "jigsaw: test row 3: the id 'd' is not in the file of the test labels" in refusal("jigsaw", path=path)


def test_jigsaws_fingerprint_covers_the_test_labels(tmp_path):
    spec = dataset("jigsaw", path=str(kaggle(tmp_path)))
    before = spec.fingerprint()
    write(tmp_path / "test_labels.csv", [("a", 0), ("b", 0), ("c", 0), ("d", 0)], ("id", "toxic"))
    assert spec.fingerprint() != before


def test_jigsaw_takes_plain_text_and_label_too(tmp_path):
    assert len(dataset("jigsaw", path=folder(tmp_path)).load()["test"]) == 4


def test_hate_and_offence_are_offensive_and_the_rest_is_not():
    tweets = datasets.Dataset.from_dict({"tweet": ["hate", "offence", "neither"], "class": [0, 1, 2]})
    assert toxic.offensive(tweets, "twitter")[:] == {"tweet": ["hate", "offence", "neither"], "label": [1, 1, 0]}


def test_twitter_says_what_to_get_and_names_its_substitute():
    message = refusal("twitter")
    for part in ("Founta", "train.csv and test.csv", "twitter:path=FOLDER", "twitter:source=tdavidson"):
        assert part in message
    with pytest.raises(DataError, match="in no public hub"):
        dataset("twitter").fingerprint()


def test_twitter_takes_local_files(tmp_path):
    assert dataset("twitter", path=folder(tmp_path)).load()["test"].features["label"].names == ["inoffensive", "offensive"]


# --- the hub


def cached(cache: Path, spec: Any, files: dict[str, Rows], columns: tuple[str, ...]) -> Path:
    """Lay files out as an earlier fetch from the hub leaves them."""
    home = cache / "hub" / f"datasets--{spec.hub.id.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        write(snapshot / name, content, columns)
    return snapshot


@pytest.mark.parametrize("name", ["imdb", "yelp", "amazon", "jigsaw", "sst2", "agnews"])
def test_without_the_hub_one_line_says_what_to_get_and_where_to_put_it(name):
    message = refusal(name)
    assert f"{name}: the hub cannot be reached for {dataset(name).hub.id!r}" in message
    assert "train.csv" in message
    assert f"{name}:path=FOLDER" in message


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(core_hub, "getproxies", dict)
    monkeypatch.setattr(core_hub, "_connects", lambda address, timeout_s: stuck.wait())
    assert not hub.reachable(timeout_s=0.01)
    stuck.set()


def test_the_hub_is_asked_where_its_endpoint_says(monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://mirror.example:8443/hf")
    monkeypatch.setattr(core_hub, "getproxies", dict)
    monkeypatch.setattr(core_hub, "_connects", lambda address, timeout_s: asked.append(address) or True)
    assert hub.reachable()
    assert asked == [("mirror.example", 8443)]


def test_nobody_is_asked_offline_or_behind_a_proxy(monkeypatch):
    monkeypatch.setattr(core_hub, "_connects", lambda address, timeout_s: pytest.fail("asked"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(core_hub, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    assert hub.reachable()


def test_an_earlier_fetch_serves_without_a_hub(no_network):
    spec = dataset("agnews")
    content: Rows = [(f"news {i}", i % 4) for i in range(20)]
    cached(no_network, spec, {"data/train-00000-of-00001.parquet": content, "data/test-00000-of-00001.parquet": content}, ("text", "label"))
    splits = spec.load()
    data.check(splits, "agnews")
    assert {split: len(own) for split, own in splits.items()} == {"train": 18, "validation": 2, "test": 20}
    assert splits["test"][3] == {"text": "news 3", "label": 3}


def test_amazon_takes_the_content_of_every_shard(no_network):
    spec, columns = dataset("amazon"), ("label", "title", "content")
    shards = {f"amazon_polarity/train-0000{i}-of-00002.parquet": [(i, "a title", f"{i} {n}") for n in range(5)] for i in range(2)}
    cached(no_network, spec, {**shards, "amazon_polarity/test-00000-of-00001.parquet": [(1, "a title", "good")]}, columns)
    splits = spec.load()
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == sorted(f"{i} {n}" for i in range(2) for n in range(5))
    assert splits["test"][:] == {"text": ["good"], "label": [1]}


def test_a_fetch_that_lacks_a_shard_is_refused(no_network):
    spec = dataset("amazon")
    cached(no_network, spec, {"amazon_polarity/train-00000-of-00004.parquet": [(1, "a", "b")]}, ("label", "title", "content"))
    assert "lacks files 'train-*.parquet' (there are: amazon_polarity/train-00000-of-00004.parquet)" in refusal("amazon")


def test_sst2_is_tested_on_its_dev_set(no_network):
    files = {
        "data/train-00000-of-00001.parquet": [(i, f"sentence {i}", i % 2) for i in range(10)],
        "data/validation-00000-of-00001.parquet": [(0, "dev", 1)],
        "data/test-00000-of-00001.parquet": [(0, "hidden", -1)],
    }
    cached(no_network, dataset("sst2"), files, ("idx", "sentence", "label"))
    splits = dataset("sst2").load()
    assert splits["test"][:] == {"text": ["dev"], "label": [1]}
    assert (len(splits["train"]), len(splits["validation"])) == (9, 1)


def test_the_substitute_of_twitter_is_cut_in_three(no_network):
    spec = dataset("twitter", source="tdavidson")
    content: Rows = [(n % 3, f"tweet {n}") for n in range(100)]
    cached(no_network, spec, {"data/train-00000-of-00001.parquet": content}, ("class", "tweet"))
    splits = spec.load()
    data.check(splits, "twitter")
    assert {split: len(own) for split, own in splits.items()} == {"train": 81, "validation": 9, "test": 10}
    assert {text for own in splits.values() for text in own["text"]} == {f"tweet {n}" for n in range(100)}
    assert all((int(text.split()[1]) % 3 != 2) == label for own in splits.values() for text, label in zip(*own[:].values(), strict=True))


def test_jigsaw_of_the_hub_is_kaggles_files(no_network, tmp_path):
    snapshot = cached(no_network, dataset("jigsaw"), {"train.csv": []}, ("id",))
    kaggle(snapshot)
    assert dataset("jigsaw").load()["test"]["text"][:] == ["one", "three", "four"]


def test_a_pinned_revision_is_not_replaced_by_another_in_the_cache(no_network):
    content: Rows = [(f"news {i}", i % 4) for i in range(20)]
    files = {"data/train-00000-of-00001.parquet": content, "data/test-00000-of-00001.parquet": content}
    cached(no_network, dataset("agnews"), files, ("text", "label"))
    assert "cannot be reached" in refusal("agnews", revision="1" * 40)


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("404\nno such thing")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = refusal("imdb")
    assert "the hub gives no 'stanfordnlp/imdb' at revision 'main': 404;" in message


def test_the_fingerprint_of_a_hub_set_is_its_id_and_revision():
    assert dataset("imdb").fingerprint() == "stanfordnlp/imdb@main"
    assert dataset("sst2", revision="abc").fingerprint() == "stanfordnlp/sst2@abc"


# --- manners


def test_progress_bars_are_back_after_a_load(tmp_path, capfd):
    path = folder(tmp_path)
    verbosity = datasets.utils.logging.get_verbosity()
    datasets.enable_progress_bars()
    dataset("folder", path=path).load()
    assert not datasets.are_progress_bars_disabled()
    assert datasets.utils.logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")


def test_the_digest_reads_files_as_a_stream(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x" * 3_000_000)
    assert local.digest([tmp_path / "a.csv"]) == local.digest([tmp_path / "a.csv"])
    assert len(local.digest([tmp_path / "a.csv"])) == 32


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("imdb", (22_500, 2_500, 25_000)),
        ("amazon", (18_407, 2_462, 4_992)),
        ("yelp", (7_151, 894, 894)),
        ("twitter", (19_825, 2_478, 2_479)),
        ("jigsaw", (9_740, 1_217, 1_218)),
        ("sst2", (6_920, 872, 1_821)),
        ("agnews", (8_000, 2_000, 7_600)),
    ],
)
@pytest.mark.real_data
def test_the_real_sets_load_and_pass_the_check(name, sizes):
    place = SHARED / "data" / name
    if not place.is_dir():
        pytest.skip(f"{place} is not there")
    spec = dataset(name, path=str(place))
    splits = spec.load()
    data.check(splits, name)
    assert tuple(len(splits[split]) for split in data.SPLITS) == sizes
    assert set(np.unique(splits["train"]["label"])) == set(range(splits["train"].features["label"].num_classes))
