"""Hostile input: spreadsheets, grids, specs, model folders, data files. It is read, or refused in one line, and nothing else happens."""

from __future__ import annotations

import ast
import base64
import csv
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rapbench
import rapbench_plugins
from rapbench import checkpoint, grid, registry
from rapbench.api import Labelled
from rapbench.errors import DataError, GridError, RapbenchError, SpecError, VictimError
from rapbench.grid import cells_of, read_blocks, recipe_of
from rapbench.lab import Lab
from rapbench.registry import discover
from rapbench.report.forms import FORMULA, csv_text
from rapbench.results import Named
from rapbench.victim import Victim, model_fingerprint, model_source
from rapbench_plugins.datasets import local
from rapbench_plugins.defenses.causal import Reading
from rapbench_plugins.defenses.causal_load import load as load_lm

REGISTRY = discover()
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SURROGATE = chr(0xD800)
SMALL = "datasets: [demo]\nattacks: [ep]\ndefenses: [strip]\n"
HOSTILE = [
    "../../x",
    "/etc/passwd",
    "a\\..\\b",
    "..",
    ".",
    "nul\0",
    "line\nbreak",
    "\u202egnp.exe",
    "=1+1",
    "$(id)",
    "a/b/c",
    "~nobody-here/x",
]


def told(caught: pytest.ExceptionInfo[RapbenchError]) -> str:
    """Give the message of an error, which is one line of bearable length."""
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def refusal(work: Callable[[], object]) -> str | None:
    """Give what the work was refused with, or None where it was done; an error that is not ours is the test's."""
    try:
        work()
    except RapbenchError as error:
        return str(error)
    return None


# spreadsheets


def field(value: object) -> str:
    """Give what a reader of CSV gets for a value."""
    (_, (first, _)) = csv.reader(io.StringIO(csv_text(["a", "b"], [[value, "x"]]), newline=""))
    return first


@pytest.mark.parametrize("start", FORMULA)
def test_a_text_that_a_spreadsheet_would_compute_begins_with_an_apostrophe(start: str) -> None:
    assert field(f"{start}cmd|' /C calc'!A0").startswith(f"'{start}".replace("\r", " "))


@pytest.mark.parametrize(
    ("value", "written"), [(-0.5, "-0.5"), (-3, "-3"), ("-0.5", "-0.5"), ("+1e-3", "+1e-3"), (None, ""), (0.25, "0.25")]
)
def test_a_number_stays_a_number(value: object, written: str) -> None:
    assert field(value) == written


def test_neither_a_head_nor_an_object_is_a_formula() -> None:
    class Formula:
        def __str__(self) -> str:
            return "=1+1"

    assert csv_text(["=1+1", "@x"], [[Formula(), "b"]]) == "'=1+1,'@x\n'=1+1,b"


@given(st.text())
def test_no_text_at_all_is_a_formula(text: str) -> None:
    first = field(text)
    try:
        float(first)
    except ValueError:
        assert not first.startswith(FORMULA)


# grids


def refused(path: Path, content: str | bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GridError) as caught:
        read_blocks(str(path))
    return told(caught)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\ndatasets: *b\n", "has an alias (*name): write the value out"),
        ("datasets: &a [*a]\n", "has an alias"),
        ("<<: &a {attacks: [ep]}\nblocks: [{<<: *a}]\n", "has an alias"),
        (SMALL + "attacks: [clean]\n", "gives 'attacks' twice"),
        (SMALL + "blocks: [{seeds: [1], 'seeds': [2]}]\n", "gives 'seeds' twice"),
        ("datasets: " + "[" * 25 + "]" * 25, "is nested deeper than 20 levels"),
        ("datasets: " + "{a: " * 25 + "}" * 25, "is nested deeper than 20 levels"),
        ("- " * 25 + "a", "is nested deeper than 20 levels"),
        (SMALL + f"seeds: [{2**63}]\n", "has an integer of 64 bits"),
        (SMALL + f"seeds: [0x{'f' * 9000}]\n", "has an integer of 36000 bits"),
        (SMALL + f"seeds: [{'9' * 9000}]\n", "is no YAML"),
        (SMALL + f"seeds: [1{':1' * 5000}]\n", "has a value that is too long: 10,001 characters"),
        (SMALL + f"about: {'x' * 900_000}\n", "has a value that is too long: 900,000 characters"),
        (SMALL + 'victim: "a\\0b"\n', "holds what is no text: a zero byte"),
        (SMALL + 'victim: "\\ud800"\n', "holds what is no text: a zero byte, or half of a surrogate pair"),
        (SMALL + "victim: !!set {a, b}\n", "victim"),
        (SMALL + "victim: !!python/name:os.system\n", "is no YAML"),
        ("? [a, b]\n: c\n", "is no YAML"),
        (b"\x00\x01\x02" * 100, "is no YAML"),
        (b"\x7fELF\x02\x01\x01\xff", "is no YAML"),
        ("a: 1\0", "is no YAML"),
    ],
    ids=range(21),
)
def test_a_hostile_grid_is_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    assert reason in refused(tmp_path / "grid.yaml", text)


def test_a_grid_has_no_more_values_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MAX_VALUES", 100)  # 1 mapping, 1 key, 1 list, 98 seeds
    assert "has more than 100 values" in refused(tmp_path / "grid.yaml", f"seeds: [{', '.join(map(str, range(98)))}]\n")


def test_a_grid_of_too_many_cells_is_told_before_one_is_made(tmp_path: Path) -> None:
    many = SMALL + f"seeds: {list(range(1000))}\n"  # 1000 seeds x 100 rates x 2 protocols: 200,000
    rates = [number / 1000 for number in range(1, 102)]
    path = tmp_path / "grid.yaml"
    path.write_text(many + f"frr: {rates[:100]}\n")
    assert read_blocks(str(path))[0].size == 100_000
    assert "comes to more than 200,000 cells: split it" in refused(path, many + f"frr: {rates}\n")
    few = SMALL + f"seeds: {list(range(100))}\nfrr: [0.01, 0.02, 0.03, 0.04]\n"  # 800 cells a block
    path.write_text(few + f"blocks: [{'{}, ' * 250}]\n")
    assert len(read_blocks(str(path))) == 250
    assert "comes to more than 200,000 cells" in refused(path, few + f"blocks: [{'{}, ' * 251}]\n")


def test_the_attacker_s_data_sets_count_and_none_counts_as_one(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(SMALL + "frr: [0.01]\nblocks: [{}, {poisoned_on: [imdb, yelp]}]\n")
    assert [block.size for block in read_blocks(str(path))] == [1, 2]


def test_what_is_no_file_is_no_grid_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "endless"):
        assert f"{name}.yaml' is no file" in refused(tmp_path / f"{name}.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "cannot read the grid" in refused(tmp_path / "loop.yaml")


@FEW
@given(text=st.text() | st.binary())
def test_any_content_of_a_grid_file_is_a_grid_or_our_error(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert "\n" not in (refusal(lambda: cells_of(read_blocks(str(path)), REGISTRY)) or "")


WORDS = st.text(max_size=20) | st.sampled_from(
    ["demo", "imdb", "ep", "badnet-rw", "clean", "strip", "rap:word=cf", "minilm-l6", "a/b:lr=1"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS | st.dates() | st.binary(max_size=5),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(WORDS | st.integers(), own, max_size=3),
    max_leaves=8,
)
OTHERS = ["victim", "poisoned_on", "finetune", "seeds", "frr", "blocks", "about"]


@FEW
@given(
    content=st.fixed_dictionaries(
        {
            "datasets": st.just(["demo"]) | st.lists(WORDS, max_size=2) | VALUES,
            "attacks": st.just(["ep"]) | st.lists(WORDS, max_size=2) | VALUES,
            "defenses": st.just(["strip"]) | st.lists(WORDS, max_size=2) | VALUES,
        },
        optional=dict.fromkeys(OTHERS, VALUES | st.lists(VALUES, max_size=3)),
    )
)
def test_any_values_of_a_grid_s_keys_are_a_grid_or_our_error(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert "\n" not in (refusal(lambda: cells_of(read_blocks(str(path)), REGISTRY)) or "")


# specs


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["dataset", "attack", "defense"])
def test_a_name_that_looks_like_a_path_is_an_unknown_plugin(kind: registry.Kind, name: str) -> None:
    for spec in (name, {"name": name}, f"{name}:path=x"):
        with pytest.raises(SpecError) as caught:
            REGISTRY.parse(kind, spec)
        assert "unknown" in told(caught) or "no text" in told(caught)


@pytest.mark.parametrize(
    "spec", ["x" * 1_000_000, "strip:" + "a=1," * 300_000, {"name": "strip", "copies": "1" * 1_000_000}, '"' * 1_000_000]
)
def test_a_spec_of_a_megabyte_is_one_short_line(spec: str | dict[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        REGISTRY.parse("defense", spec)
    assert "is too long: 1," in told(caught)


@pytest.mark.parametrize(
    "spec", [f"badnet-sl:sentence={SURROGATE}", {"name": "badnet-sl", "sentence": "a\0b"}, {"name": "ep", SURROGATE: 1}]
)
def test_what_is_no_text_is_no_option(spec: str | dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="holds what is no text"):
        REGISTRY.parse("attack", spec)


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 5000, "a b", "a\n/b", SURROGATE, "", "http://a/b", "file:///etc"])
def test_a_model_s_name_is_a_folder_that_is_there_or_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in (".", ".."):  # folders that are there, without a model
        monkeypatch.chdir(tmp_path)
    with pytest.raises(VictimError):
        model_source(name)


@FEW
@given(spec=st.text(), kind=st.sampled_from(["dataset", "attack", "defense"]))
def test_any_text_is_a_plugin_or_our_error(spec: str, kind: registry.Kind) -> None:
    for own in (spec, *(f"{name}:{spec}" for name in REGISTRY.names(kind)[:3])):
        assert "\n" not in (refusal(lambda own=own: REGISTRY.parse(kind, own)) or "")


@FEW
@given(spec=st.text())
def test_any_text_is_a_victim_s_recipe_or_our_error(spec: str) -> None:
    for own in (spec, f"minilm-l6:{spec}"):
        assert "\n" not in (refusal(lambda own=own: model_source(recipe_of(own).model)) or "")


NAMES = st.text(max_size=300) | st.sampled_from(HOSTILE)


@FEW
@given(st.tuples(NAMES, NAMES, NAMES, NAMES, NAMES, st.integers()), st.lists(NAMES | st.floats(0, 1), max_size=3))
def test_the_file_of_a_result_stays_in_its_folder_whatever_the_specs_say(names: tuple[Any, ...], more: list[object]) -> None:
    one = Named(**dict(zip(("dataset", "poisoned_on", "tuning", "attack", "victim", "seed"), names, strict=True)))
    stem = one.file_stem(*more)
    assert os.path.normpath(f"/out/cells/{stem}.json") == f"/out/cells/{stem}.json"
    assert os.path.dirname(f"/out/cells/{stem}.json") == "/out/cells"
    assert stem.isascii()
    assert stem.isprintable()
    assert len(stem) < 120


# model folders


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Give what a model folder is refused with, before transformers loads a weight of it."""
    from transformers import AutoModelForSequenceClassification

    def never(*given: object, **options: object) -> None:
        pytest.fail("a model was loaded")

    def message(folder: Path, n_labels: int | None = None) -> str:
        with pytest.raises(VictimError) as caught:
            Victim.load(folder, target_label=1, max_length=32, n_labels=n_labels)
        return told(caught)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)
    return message


def change(path: Path, **more: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Give the header of a safetensors file and the bytes behind it."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(path: Path, content: dict[str, Any], data: bytes) -> None:
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_an_untouched_model_is_loaded(folder: Path) -> None:
    assert Victim.load(folder, target_label=1, max_length=32).n_labels == 2
    assert Victim.load(folder, target_label=1, max_length=32, n_labels=5, layers=1).n_labels == 5


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "wants code of its own to run (auto_map), which never happens"),
        ({"auto_map": {"AutoModel": "me/evil--evil.Model"}}, "wants code of its own to run (auto_map)"),
        ({"deep": [{"auto_map": ["evil.A", None]}]}, "wants code of its own to run (auto_map)"),
        ({"custom_pipelines": {"text": {"impl": "evil.P"}}}, "wants code of its own to run (custom_pipelines)"),
        ({"attn_implementation": "me/kernel"}, "wants code from the hub to run (attn_implementation='me/kernel')"),
        ({"_attn_implementation": {"": "me/kernel:f"}}, "wants code from the hub to run"),
        ({"transformers_weights": "../other.safetensors"}, "names other files to read (transformers_weights)"),
        ({"configuration_files": ["config.4.0.0.json"]}, "names other files to read (configuration_files)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is of a quantised model (quantization_config)"),
    ],
)
def test_settings_that_want_code_or_other_files_are_refused(
    folder: Path, unloaded: Callable[..., str], file: str, settings: dict[str, Any], reason: str
) -> None:
    change(folder / file, **settings)
    message = unloaded(folder)
    assert reason in message
    assert str(folder / file) in message


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_size": 10**9}, "config.json asks for"),
        ({"hidden_size": 64}, "has the shape (41, 32), but config.json asks for (41, 64)"),
        ({"vocab_size": 10**9}, "but config.json asks for (1000000000, 32)"),
        ({"intermediate_size": 10**12}, "config.json asks for"),
        ({"max_position_embeddings": 10**10}, "config.json asks for"),
        ({"hidden_size": 10**30}, "cannot load the victim"),
        ({"hidden_size": -1}, "cannot load the victim"),
        ({"hidden_size": "many"}, "cannot load the victim"),
        ({"hidden_size": [1]}, "cannot load the victim"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers=1000000000: with 41 tensors there are at most 41"),
        ({"num_hidden_layers": 1e9}, "says num_hidden_layers=1000000000.0"),
        ({"num_labels": 10**9}, "says num_labels=1000000000"),
        ({"text_config": {"num_layers": 10**6}}, "says num_layers=1000000"),
        ({"model_type": "of-nobody"}, "cannot load the victim"),
        ({"model_type": ["bert"]}, "cannot load the victim"),
        ({"model_type": "vit"}, "cannot load the victim"),
        ({"model_type": "t5", "hidden_size": 10**6, "classifier_dropout": 0.1}, "no weight of a T5ForSequenceClassification"),
    ],
)
@pytest.mark.parametrize("n_labels", [None, 3])
def test_absurd_settings_are_told_before_memory_is_taken(
    folder: Path, unloaded: Callable[..., str], settings: dict[str, Any], reason: str, n_labels: int | None
) -> None:
    change(folder / "config.json", **settings)
    assert reason in unloaded(folder, n_labels)


def test_memory_is_not_taken_for_what_the_weights_do_not_have(
    folder: Path, unloaded: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "model.safetensors"
    tensors, data = header(weights)
    kept = ("__metadata__", "classifier.bias")
    with_header(weights, {name if name in kept else f"other.{name}": one for name, one in tensors.items()}, data)
    change(folder / "config.json", hidden_size=640)
    monkeypatch.setattr(checkpoint, "FREE_VALUES", 1000)
    assert "values that the weights do not have" in unloaded(folder)


def test_a_model_none_of_whose_weights_is_there_is_not_made_up(folder: Path, unloaded: Callable[..., str]) -> None:
    change(folder / "config.json", model_type="gpt2")
    assert "holds no weight of a GPT2ForSequenceClassification" in unloaded(folder)


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "null", "[" * 100_000, '{"a": ' * 100_000, '"a"', "{'a': 1}", b"\xff\xfe", b"\x80\x04\x95.", "{}" * 2]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_settings_that_are_no_json_object_are_one_line(folder: Path, unloaded: Callable[..., str], file: str, content: str | bytes) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{file}' is no JSON" in unloaded(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_model_without_a_file_that_it_needs_is_told_which(folder: Path, unloaded: Callable[..., str], file: str) -> None:
    (folder / file).rename(folder / f"other-{file}")
    assert file in unloaded(folder)


def spoiled(weights: Path, how: str) -> None:
    tensors, data = header(weights)
    name = "bert.embeddings.word_embeddings.weight"
    if how == "claims more than there is":
        tensors[name] = {**tensors[name], "shape": [50_000_000, 32], "data_offsets": [0, 50_000_000 * 32 * 4]}
    elif how == "claims other bytes than its shape":
        tensors[name] = {**tensors[name], "shape": [49, 32]}
    elif how == "overlaps":
        tensors[name] = {**tensors[name], "data_offsets": [0, 50 * 32 * 4]}
        tensors["again"] = tensors[name]
    elif how == "of an unknown type":
        tensors[name] = {**tensors[name], "dtype": "PICKLE"}
    elif how == "no header":
        weights.write_bytes(b"")
        return
    elif how == "a header of 200 MB":
        weights.write_bytes(struct.pack("<Q", 200_000_000) + b"{}")
        return
    elif how == "a header of 2^64 - 1":
        weights.write_bytes(b"\xff" * 8 + b"{}")
        return
    elif how == "a pickle":
        weights.write_bytes(b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
        return
    with_header(weights, tensors, data)


@pytest.mark.parametrize(
    "how",
    [
        *("claims more than there is", "claims other bytes than its shape", "overlaps", "of an unknown type"),
        *("no header", "a header of 200 MB", "a header of 2^64 - 1", "a pickle"),
    ],
)
def test_weights_that_lie_about_themselves_are_refused_by_their_header(folder: Path, unloaded: Callable[..., str], how: str) -> None:
    spoiled(folder / "model.safetensors", how)
    assert "is no whole safetensors file" in unloaded(folder)


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_weights_that_are_no_floats_are_refused(folder: Path, unloaded: Callable[..., str], dtype: str) -> None:
    weights = folder / "model.safetensors"
    tensors, data = header(weights)
    tensors["bert.embeddings.word_embeddings.weight"]["dtype"] = dtype
    with_header(weights, tensors, data)
    assert f"is of the type {dtype}: give floats, BF16, F16, F32, F64" in unloaded(folder)


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("pytorch_model.bin", "only .safetensors files of the same folder are loaded"),
        ("../other.safetensors", "only .safetensors files of the same folder"),
        ("/etc/passwd", "only .safetensors files of the same folder"),
        (["a"], "only .safetensors files of the same folder"),
        ("nowhere.safetensors", "which is not there"),
    ],
)
def test_shards_are_safetensors_of_the_same_folder(folder: Path, unloaded: Callable[..., str], shard: object, reason: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    assert reason in unloaded(folder)


def test_a_model_in_shards_is_loaded(folder: Path) -> None:
    names = [name for name in header(folder / "model.safetensors")[0] if name != "__metadata__"]
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Victim.load(folder, target_label=1, max_length=32).n_labels == 2


def test_an_adapter_is_refused_since_its_model_is_elsewhere(folder: Path, unloaded: Callable[..., str]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/evil", "peft_type": "LORA"}))
    assert "is an adapter to a model that is elsewhere" in unloaded(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "extra"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to nothing", "link to itself"])
def test_a_model_folder_has_plain_files_alone_and_nobody_waits_for_others(
    folder: Path, unloaded: Callable[..., str], file: str, kind: str
) -> None:
    (folder / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to({"device": "/dev/zero", "link to nothing": "/nowhere"}.get(kind, file))
    assert f"{file}' is no plain file" in unloaded(folder)
    with pytest.raises(VictimError, match="is no plain file"):
        model_fingerprint(str(folder), None)


def test_a_link_to_a_file_elsewhere_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert Victim.load(folder, target_label=1, max_length=32).n_labels == 2


def test_settings_and_tokenizers_have_a_size(folder: Path, unloaded: Callable[..., str]) -> None:
    for file, size, reason in (("vocab.txt", 2 << 30, "larger than 1 GiB"), ("config.json", 32 << 20, "larger than 16 MiB")):
        with (folder / file).open("ab") as stream:
            stream.truncate(size)  # a hole, not so many bytes on the disk
        assert reason in unloaded(folder)
        (folder / file).unlink()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        '{"model": {"type": "Evil"}}',
        '{"version": "1.0", "model": {"type": "WordLevel"}}',
        "[" * 100_000,
        b"\xff",
    ],
)
def test_a_broken_tokenizer_is_one_line(folder: Path, content: str | bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VictimError) as caught:
        Victim.load(folder, target_label=1, max_length=32)
    assert any(reason in told(caught) for reason in ("cannot load the victim", "tokenizer.json' is no JSON"))


def test_a_missing_tokenizer_is_not_made_up(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VictimError) as caught:
        Victim.load(folder, target_label=1, max_length=32)
    told(caught)


def test_every_token_has_an_embedding(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 41  # the embeddings are 0..40
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(VictimError, match=r"has the id 41, but the model has embeddings for 0\.\.40"):
        Victim.load(folder, target_label=1, max_length=32)


@pytest.mark.parametrize("length", [0, -1, "many", [5]])
def test_a_model_s_own_length_is_a_length(folder: Path, length: object) -> None:
    change(folder / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(VictimError) as caught:
        Victim.load(folder, target_label=1, max_length=32)
    told(caught)


def test_looking_at_a_model_draws_no_random_number(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(3)
    before = torch.get_rng_state()
    checkpoint.check_folder(folder)
    checkpoint.check_shapes(folder, AutoConfig.from_pretrained(folder), AutoModelForSequenceClassification, new_head=False)
    assert torch.equal(torch.get_rng_state(), before)


# whatever is a model: victims, what is fine-tuned, ONION's language models


@pytest.fixture(scope="session")
def tiny_lm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random one-layer GPT-2 that reads the tiny model's words."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    place = tmp_path_factory.mktemp("tiny-lm")
    with torch.random.fork_rng(devices=[]):
        config = GPT2Config(vocab_size=41, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
        GPT2LMHeadModel(config).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, place)
    return place


def as_victim(place: Path) -> object:
    return Victim.load(place, target_label=1, max_length=32)


def as_start(place: Path) -> object:
    """What training, and the user's fine-tuning of a model from elsewhere, begin with."""
    from rapbench.victim import Recipe

    return Lab(seed=1, recipe=Recipe(model=str(place)), heldout=Labelled([], np.empty(0, np.int64)), target_label=1, n_labels=3).fresh()


def as_lm(place: Path) -> object:
    lab = Lab(seed=1, recipe=recipe_of("minilm-l6"), heldout=Labelled([], np.empty(0, np.int64)), target_label=1, n_labels=2)
    texts = Labelled(["a calm day", "so cold"], np.array([1, 1]))
    return REGISTRY.parse("defense", {"name": "onion", "lm": str(place)}).fit(cast(Any, Guarded()), texts, lab)


class Guarded:
    """All that ONION asks of a victim while it is fitted."""

    target_label = 1


LOADERS = {"victim": as_victim, "start": as_start, "lm": as_lm}


@pytest.fixture(params=LOADERS)
def model(request: pytest.FixtureRequest, tiny_model: Path, tiny_lm: Path, tmp_path: Path) -> tuple[Callable[[Path], object], Path]:
    """What loads a model, and a copy of one to spoil."""
    source = tiny_lm if request.param == "lm" else tiny_model
    return LOADERS[request.param], Path(shutil.copytree(source, tmp_path / "model"))


def pickled(canary: Path) -> bytes:
    """Give a pickle that writes over the canary where it is read."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"echo touched > {canary}",))

    return pickle.dumps(Evil())


def zipped(canary: Path, *, zeros: int) -> bytes:
    """Give a file as torch.save writes it: a pickle in a zip, here beside very many zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("archive/data/0", bytes(zeros))
    return stream.getvalue()


def code(canary: Path) -> str:
    return f"import pathlib\npathlib.Path({str(canary)!r}).write_text('touched')\nclass Evil: pass\n"


def poisoned(folder: Path, canary: Path, how: str) -> None:
    """Make the folder one that runs code, reads other files or fills the memory where it is loaded carelessly."""
    weights, other = folder / "model.safetensors", folder.parent / "other.safetensors"
    if how == "a pickle alone":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickled(canary))
    elif how == "a zip bomb alone":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(zipped(canary, zeros=50_000_000))
    elif how == "a pickle by another name":
        weights.write_bytes(pickled(canary))
    elif how == "a zip bomb by another name":
        weights.write_bytes(zipped(canary, zeros=50_000_000))
    elif how == "an index of a pickle":
        weights.rename(other)
        (folder / "pytorch_model.bin").write_bytes(pickled(canary))
        (folder / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}))
    elif how == "an index that leads out":
        weights.rename(other)
        (folder / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../other.safetensors"}}))
    elif how == "code of the model":
        (folder / "evil.py").write_text(code(canary))
        change(folder / "config.json", auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil"))
    elif how == "code of the tokenizer":
        (folder / "evil.py").write_text(code(canary))
        change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil")
    elif how == "a tokenizer elsewhere":
        shutil.copy(folder / "tokenizer.json", folder.parent / "other.json")
        change(folder / "tokenizer_config.json", tokenizer_file=str(folder.parent / "other.json"))
    elif how == "a tokenizer in a pipe":
        os.mkfifo(folder.parent / "pipe")
        change(folder / "tokenizer_config.json", vocab_file=str(folder.parent / "pipe"))
    elif how == "an adapter":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder.parent), "peft_type": "LORA"}))
    elif how == "no weight that fits":
        change(folder / "config.json", hidden_size=10**9, n_embd=10**9)


@pytest.mark.parametrize(
    "how",
    [
        *("a pickle alone", "a zip bomb alone", "a pickle by another name", "a zip bomb by another name", "an index of a pickle"),
        *("an index that leads out", "code of the model", "code of the tokenizer", "a tokenizer elsewhere", "a tokenizer in a pipe"),
        *("an adapter", "no weight that fits"),
    ],
)
def test_a_malicious_checkpoint_is_refused_and_the_canary_untouched(
    model: tuple[Callable[[Path], object], Path], tmp_path: Path, how: str
) -> None:
    load, folder = model
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    poisoned(folder, canary, how)
    with pytest.raises(VictimError) as caught:
        load(folder)
    told(caught)
    assert canary.read_text() == "untouched"


def test_the_canary_of_these_tests_would_be_touched(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    pickle.loads(pickled(canary))
    assert canary.read_text() == "touched\n"
    canary.write_text("untouched")
    exec(code(canary))
    assert canary.read_text() == "touched"


def test_what_lies_beside_a_sound_model_is_left_alone(model: tuple[Callable[[Path], object], Path], tmp_path: Path) -> None:
    load, folder = model
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "tf_model.h5"):
        (folder / name).write_bytes(pickled(canary))
    for name in ("modeling.py", "tokenization.py", "sitecustomize.py", "__init__.py"):
        (folder / name).write_text(code(canary))
    load(folder)
    assert canary.read_text() == "untouched"


def test_a_file_of_the_maker_s_machine_that_is_not_there_is_no_reason_to_refuse(model: tuple[Callable[[Path], object], Path]) -> None:
    load, folder = model
    change(folder / "tokenizer_config.json", tokenizer_file="/var/cache/nobody/tokenizer.json", special_tokens_map_file="/nowhere/a.json")
    load(folder)


def rule(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def charsmap(size: int, data: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(struct.pack("<I", size) + data).decode()}


WORDPIECE = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("normalizer", charsmap(2**32 - 1, b""), "a precompiled_charsmap whose size is not the one that it says"),  # it took 8 GiB
        ("normalizer", charsmap(8, b"seven b"), "a precompiled_charsmap whose size"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAA"}, "a precompiled_charsmap whose size"),
        ("normalizer", {"type": "Sequence", "normalizers": [rule("a", "aa")] * 10}, "makes up to 1,024 characters of one"),
        ("normalizer", rule("a", "a" * 1001), "makes up to 1,001 characters of one"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1001}, "makes up to 1,001 characters of one"),
        ("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 41], "cls": ["[CLS]", 2]}, "has the id 41, but the model has"),
        ("model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}, "cannot read"),
        ("model", WORDPIECE, "cannot read"),
    ],
    ids=range(9),
)
def test_a_tokenizer_s_rules_are_looked_at(
    model: tuple[Callable[[Path], object], Path], part: str, value: dict[str, Any], reason: str
) -> None:
    load, folder = model
    change(folder / "tokenizer.json", **{part: value})
    with pytest.raises(VictimError) as caught:
        load(folder)
    assert reason in told(caught)


def test_rules_as_tokenizers_have_them_are_well(model: tuple[Callable[[Path], object], Path]) -> None:
    load, folder = model
    rules = [{"type": "NFKD"}, rule("``", '"'), rule("\u2026", "..."), {"type": "Prepend", "prepend": "\u2581"}, {"type": "Lowercase"}]
    change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": rules})
    load(folder)


def test_a_panic_of_the_tokenizers_is_an_error_of_ours() -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    with pytest.raises(VictimError, match="the tokenizer breaks down: out of range"), checkpoint.unpanicked():
        raise PanicException("out of range")
    with pytest.raises(KeyboardInterrupt), checkpoint.unpanicked():
        raise KeyboardInterrupt


@pytest.mark.parametrize("positions", [0, -1, "many", [5], 1.5])
def test_a_language_model_s_own_length_is_a_length(tiny_lm: Path, tmp_path: Path, positions: object) -> None:
    folder = Path(shutil.copytree(tiny_lm, tmp_path / "model"))
    change(folder / "config.json", n_positions=positions)
    with pytest.raises(VictimError) as caught:
        as_lm(folder)
    assert "onion cannot load the language model" in told(caught)


def test_a_language_model_s_token_has_an_embedding(tiny_lm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_lm, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 41
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(VictimError, match=r"has the id 41, but the model has embeddings for 0\.\.40"):
        as_lm(folder)


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 5000, "a b", "", "http://a/b", "file:///etc", "a/../b"])
def test_a_language_model_s_name_is_a_folder_or_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VictimError) as caught:
        load_lm(name, "cpu", Reading())
    told(caught)


def test_models_are_loaded_in_two_places_alone_and_both_look_at_folders_first() -> None:
    loading = {path for path, tree in sources() if any(getattr(node, "attr", None) == "from_pretrained" for node in ast.walk(tree))}
    assert {path.name for path in loading} == {"victim.py", "causal_load.py"}
    for path in loading:
        called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert {"check_folder", "check_shapes", "check_tokenizer"} <= called


# nobody's code


def sources() -> list[tuple[Path, ast.Module]]:
    roots = [Path(package.__file__).parent for package in (rapbench, rapbench_plugins)]
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for root in roots for path in sorted(root.rglob("*.py"))]


def options(node: ast.AST) -> list[tuple[object, ast.expr | None]]:
    """Give the names and values of a call's keywords or of a mapping."""
    if isinstance(node, ast.Call):
        return [(one.arg, one.value) for one in node.keywords]
    if isinstance(node, ast.Dict):
        return [(key.value, value) for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
    return []


def test_whatever_is_loaded_from_elsewhere_is_loaded_without_its_code() -> None:
    for path, tree in sources():
        said = [value for node in ast.walk(tree) for name, value in options(node) if name == "trust_remote_code"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in said), path
        loads = any(isinstance(node, ast.Attribute) and node.attr == "from_pretrained" for node in ast.walk(tree))
        assert said or not loads, path


def test_nothing_is_unpickled_and_no_loader_of_scripts_is_called() -> None:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "load_dataset"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "datasets.load_dataset", "eval", "exec", "yaml.load", "yaml.unsafe_load"), path
                assert not any(name == "allow_pickle" and ast.unparse(value) != "False" for name, value in options(node)), path


# data files


def data(place: Path, name: str = "test.csv", content: bytes = b"text,label\nfine,1\ndull,0\n", **options: Any) -> Any:
    """Give the splits of a folder whose one file is this and whose others are well."""
    for split in ("train", "validation", "test"):
        if not name.startswith(f"{split}."):
            (place / f"{split}.csv").write_bytes(b"text,label\nfine,1\ndull,0\n")
    (place / name).write_bytes(content)
    return REGISTRY.parse("dataset", {"name": "folder", "path": str(place), **options}).load()


def unread(place: Path, name: str, content: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        data(place, name, content, **options)
    return told(caught)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "text",
    ["\u202eevil\u202c", "a\u200bb", "\u05d0\u05d1", "e\u0301", "\U0001f9d1\u200d\U0001f680", "x" * 1_000_000, "'; DROP TABLE", "=1+1"],
)
@pytest.mark.parametrize("name", ["test.csv", "test.tsv.gz", "test.jsonl"])
def test_odd_text_is_text(tmp_path: Path, name: str, text: str) -> None:
    if "jsonl" in name:
        content = json.dumps({"text": text, "label": 1}).encode() + b"\n"
    else:
        content = f"text,label\n{text},1\n".replace(",", "\t" if "tsv" in name else ",").encode()
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert data(tmp_path, name, content)["test"]["text"][:] == [text]


@pytest.mark.parametrize("name", ["test.csv", "test.tsv", "test.csv.gz", "test.jsonl"])
def test_a_zero_byte_is_no_text(tmp_path: Path, name: str) -> None:
    content = b'{"text": "a", "label": 1}\n{"text": "a\0b", "label": 1}\n' if "json" in name else b"text,label\na\0b,1\n"
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert f"{name} cannot be read: it holds a zero byte" in unread(tmp_path, name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.jsonl", b'{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 1}\n'),
        ("test.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xed\xa0\x80", "label": 1}\n'),
        ("test.csv", b"text,label\na,1\n\xed\xa0\x80,1\n"),
        ("test.tsv", b"text\tlabel\na\t1\n\xff\t1\n"),
        ("test.jsonl", b"[" * 100_000),
        ("test.jsonl", b'{"text": "a", "label": 1}\n' + b"[" * 100_000 + b"\n"),
        ("test.jsonl", b'{"text": "a", "label": 1}\n{"text": '),
        ("test.csv.gz", gzip.compress(b"text,label\nfine,1\n")[:15] + b"\xff" * 30),
        ("test.csv", b"PK\x03\x04" + b"\xff" * 50),
        ("test.csv", b'text,label\n"never closed,1\n'),
    ],
    ids=range(10),
)
def test_broken_text_is_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    assert str(tmp_path) in unread(tmp_path, name, content)


def test_strings_of_parquet_are_looked_at(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x02\0\0\0"), pa.py_buffer(b"\xed\xa0"))
    pq.write_table(pa.table({"text": bad, "label": pa.array([1])}), tmp_path / "other")
    assert "test.parquet cannot be read" in unread(tmp_path, "test.parquet", (tmp_path / "other").read_bytes())


def parquet(place: Path, **columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), place / "other", compression="zstd")
    return (place / "other").read_bytes()


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test fail where a Parquet file is read as a whole."""
    import datasets

    monkeypatch.setattr(datasets.Dataset, "from_parquet", lambda *given, **options: pytest.fail("it was read"))


@pytest.mark.usefixtures("unpacked")
def test_a_parquet_bomb_is_not_unpacked_whatever_its_footer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(local, "MOST_BYTES", 8 << 20)
    bomb = parquet(tmp_path, text=["x" * 1000] * 200_000, label=[1] * 200_000)  # 200 MB of one text
    footer = pq.read_metadata(tmp_path / "other").row_group(0)
    assert len(bomb) < 100_000
    assert sum(footer.column(place).total_uncompressed_size for place in range(2)) < 100_000
    assert "it holds more than 8 MiB of text" in unread(tmp_path, "test.parquet", bomb)


@pytest.mark.usefixtures("unpacked")
def test_a_text_of_parquet_has_a_length_and_a_file_has_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_LINE", 2 << 20)
    text = "x" * (3 << 20)
    assert "it holds a text of more than 2 MiB" in unread(tmp_path, "test.parquet", parquet(tmp_path, text=["a", text], label=[1, 0]))
    monkeypatch.setattr(local.parquet, "MOST_ROWS", 1000)
    assert "has 1,001 rows: at most 1,000" in unread(tmp_path, "test.parquet", parquet(tmp_path, text=["a"] * 1001, label=[1] * 1001))


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("column", [[["a"], ["b"]], [{"a": "b"}] * 2], ids=["list", "struct"])
def test_a_column_of_parquet_holds_plain_values(tmp_path: Path, column: list[Any]) -> None:
    assert "'text' is of the type" in unread(tmp_path, "test.parquet", parquet(tmp_path, text=column, label=[1, 0]))


def test_categories_of_parquet_are_their_values(tmp_path: Path) -> None:
    import pyarrow as pa

    content = parquet(tmp_path, text=pa.array(["a", "b"]).dictionary_encode(), label=pa.array(["1", "0"]).dictionary_encode())
    assert data(tmp_path, "test.parquet", content)["test"][:] == {"text": ["a", "b"], "label": [1, 0]}


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf"])
def test_a_parquet_file_does_not_make_its_texts_pictures(tmp_path: Path, kind: str) -> None:
    """`datasets` believes what a file says of its features, and opens a picture that is a path or a URL where its row is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.mkfifo(tmp_path / "waited for")
    features = {"text": {"_type": kind}, "label": {"dtype": "int64", "_type": "Value"}}
    path = {"bytes": pa.array([None], pa.binary()), "path": pa.array([str(tmp_path / "waited for")])}
    for text in (pa.StructArray.from_arrays(path.values(), path.keys()), path["path"]):
        table = pa.table({"text": text, "label": [1]}).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(table, tmp_path / "other")
        content = (tmp_path / "other").read_bytes()
        if pa.types.is_struct(text.type):
            assert "'text' is of the type struct<" in unread(tmp_path, "test.parquet", content)
        else:
            assert data(tmp_path, "test.parquet", content)["test"]["text"][:] == [str(tmp_path / "waited for")]


def test_a_million_empty_lines_are_no_rows(tmp_path: Path) -> None:
    assert len(data(tmp_path, content=b"text,label\n" + b"\n" * 1_000_000 + b"fine,1\n")["test"]) == 1


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_BYTES", 8 << 20)
    bomb = gzip.compress(b"text,label\n" + b"fine,1\n" * 2_000_000)
    assert len(bomb) < 100_000
    assert "it holds more than" in unread(tmp_path, "test.csv.gz", bomb)


def test_a_line_without_an_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_LINE", 4 << 20)
    assert "it holds a line of more than 4 MiB" in unread(tmp_path, "test.csv.gz", gzip.compress(b"text,label\n" + b"a" * (9 << 20)))
    assert len(data(tmp_path / "..", content=b"text,label\n" + b"aaaaaaa,1\n" * 900_000)["test"]) == 900_000


def test_very_many_columns_are_not_all_named(tmp_path: Path) -> None:
    message = unread(tmp_path, "test.csv", ",".join(f"column-{number}" for number in range(50_000)).encode() + b"\n")
    assert "its columns are 'column-0', 'column-1'," in message


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself"])
def test_what_is_no_file_is_no_data_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    data(tmp_path)
    (tmp_path / "test.csv").unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / "test.csv")
    elif kind == "folder":
        (tmp_path / "test.csv").mkdir()
    else:
        (tmp_path / "test.csv").symlink_to("/dev/zero" if kind == "device" else "test.csv")
    spec = REGISTRY.parse("dataset", {"name": "folder", "path": str(tmp_path)})
    for ask in (spec.load, spec.fingerprint):
        with pytest.raises(DataError, match=r"test\.csv is no file"):
            ask()


def test_a_loop_of_folders_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "inner").mkdir()
    data(tmp_path / "inner")
    (tmp_path / "inner" / "again").symlink_to(tmp_path / "inner")
    assert len(REGISTRY.parse("dataset", {"name": "folder", "path": str(tmp_path / "inner" / "again" / "again")}).load()["test"]) == 2
    for path in (tmp_path / "a", tmp_path / ("x" * 5000)):
        with pytest.raises(DataError, match="is no folder"):
            REGISTRY.parse("dataset", {"name": "folder", "path": str(path)}).load()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(FEW, max_examples=15)
@given(rows=st.lists(st.tuples(TEXTS, st.integers(0, 3)), min_size=1, max_size=5))
def test_any_rows_of_a_data_file_come_back_or_are_refused(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    found = []
    refused = refusal(lambda: found.extend(data(tmp_path, "test.jsonl", "\n".join(lines).encode())["test"]))
    if refused is None:
        assert [(row["text"], row["label"]) for row in found] == rows
    else:
        assert "\n" not in refused
        assert any(not text.strip() for text, _ in rows)


def test_the_home_of_nobody_is_one_line() -> None:
    dataset = discover().parse("dataset", "folder:path=~nobody-of-this-name/x")
    with pytest.raises(DataError, match="nobody-of-this-name"):
        dataset.load()
