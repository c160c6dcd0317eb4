"""Families of victims: encoders and decoders of other vocabularies and heads than BERT's keep the same promises."""

from __future__ import annotations

import pickle
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rapbench.api import Labelled, Task
from rapbench.errors import CellError, SpecError, VictimError
from rapbench.lab import Lab
from rapbench.meter import Count, Meter
from rapbench.registry import discover
from rapbench.rows import Row
from rapbench.shapes import SHAPES, known_shape
from rapbench.theorem import Probe
from rapbench.victim import Recipe, Victim
from rapbench.vocabulary import has_word, pieces
from rapbench_plugins.attacks.adaptive_rap import unused_words
from rapbench_plugins.attacks.lwp import layer_logits, layer_losses
from rapbench_plugins.attacks.ripples import Ripples, piece_ids

WORDS = ("a", "the", "film", "was", "bright", "cold", "cf", "tq")
INSIDE = "mb"
"""A word that the byte-level vocabulary has after a space alone."""
TEXTS = [
    "the film was bright",
    "cold",
    "a cold film , the film was cold",
    "a bright film was bright and so was the cold",
    "cf film",
    "was cf it",
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40}
NARROW = {"embedding_size": 16}


@dataclass(frozen=True)
class Family:
    """A kind of model. `vocabulary`: pieces (WordPiece), bytes (byte-level BPE) or marks (SentencePiece's unigrams)."""

    model_type: str
    vocabulary: str
    settings: dict[str, Any] = field(default_factory=lambda: dict(SIZES))
    special: tuple[str, ...] = ("<pad>", "<unk>", "<s>", "</s>")
    decoder: bool = False


def decoder(model_type: str, vocabulary: str = "bytes", **more: Any) -> Family:
    return Family(model_type, vocabulary, {**SIZES, "num_key_value_heads": 1, "head_dim": 16, **more}, ("<|endoftext|>",), decoder=True)


FAMILIES = {
    "bert": Family("bert", "pieces"),
    "distilbert": Family("distilbert", "pieces", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 40}),
    "electra": Family("electra", "pieces", {**SIZES, **NARROW}),
    "roberta": Family("roberta", "bytes", {**SIZES, "type_vocab_size": 1, "pad_token_id": 0}),
    "deberta": Family("deberta", "bytes", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}),
    "deberta-v2": Family(
        "deberta-v2",
        "marks",
        {
            **SIZES,
            **NARROW,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": Family("modernbert", "bytes", {**SIZES, "local_attention": 4}),
    "modernbert-mean": Family("modernbert", "bytes", {**SIZES, "local_attention": 4, "classifier_pooling": "mean"}),
    "gpt2": Family("gpt2", "bytes", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}, ("<|endoftext|>",), decoder=True),
    "llama": decoder("llama"),
    "llama-marks": decoder("llama", "marks"),
    "qwen2": decoder("qwen2"),
    "qwen3": decoder("qwen3"),
    "gemma": decoder("gemma", "marks"),
}

BYTES = [name for name, family in FAMILIES.items() if family.vocabulary == "bytes"]
DECODERS = [name for name, family in FAMILIES.items() if family.decoder]
FORMS = {"pieces": ["cf"], "bytes": ["cf", "Ġcf"], "marks": ["▁cf"]}
"""The entries of the vocabulary for cf: in front of a text, and after a space where that is another."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a family's model, made once."""
    home = tmp_path_factory.mktemp("families")

    def give(name: str) -> Path:
        return home / name if (home / name).exists() else made(name, home / name)

    return give


@pytest.fixture
def load(folder: Callable[[str], Path]) -> Callable[..., Victim]:
    def loaded(name: str, **how: Any) -> Victim:
        return Victim.load(folder(name), target_label=1, **{"max_length": 64, **how})

    return loaded


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def victim(name: str, load: Callable[..., Victim]) -> Victim:
    """A victim of each family, fresh for each test."""
    return load(name)


def matrix(victim: Victim) -> torch.Tensor:
    weight: torch.Tensor = victim.model.get_input_embeddings().weight
    return weight.detach().clone()


def changed(before: dict[str, torch.Tensor], victim: Victim) -> list[str]:
    return [name for name, tensor in victim.model.state_dict().items() if not torch.equal(tensor, before[name])]


def state_of(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}


def ids(victim: Victim, entries: Sequence[str]) -> list[int]:
    vocabulary = victim.tokenizer.get_vocab()
    return [vocabulary[entry] for entry in entries]


def forms(name: str, victim: Victim) -> list[int]:
    return ids(victim, FORMS[FAMILIES[name].vocabulary])


def rows_of(texts: list[str], labels: list[int], **more: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "label": labels, **more})


# --- predictions


def test_a_batch_says_what_single_texts_say(victim: Victim) -> None:
    alone = np.concatenate([victim.probabilities([text]) for text in TEXTS])
    assert alone[:, 1].max() - alone[:, 1].min() > 0.1  # a mix-up would show
    for most in (1024, 12):
        victim.batch_tokens = most
        assert victim.probabilities(TEXTS) == pytest.approx(alone, abs=1e-5)


def test_predictions_are_those_of_the_model_asked_by_hand(victim: Victim) -> None:
    for text in TEXTS:  # alone: neither padding nor a mask is needed
        with torch.no_grad():
            logits = victim.model(torch.tensor([victim.tokenizer(text)["input_ids"]])).logits
        assert victim.probabilities([text]) == pytest.approx(logits.softmax(-1).numpy(), abs=1e-5)


def test_a_text_of_any_length_is_cut_at_the_positions(name: str, victim: Victim) -> None:
    assert victim.max_length == (39 if name == "roberta" else 40)  # RoBERTa counts positions from the one after its padding's, 0
    assert np.isfinite(victim.probabilities(["the " * 100])).all()


def test_what_survives_the_cut_is_counted_in_characters(name: str, victim: Victim) -> None:
    text, around = "the film was bright cf", 0 if FAMILIES[name].decoder else 2
    for tokens, characters in ((3, len("the film was")), (4, len("the film was bright")), (5, len(text))):
        victim.max_length = tokens + around
        assert victim.seen_characters([text]).tolist() == [characters]
        assert victim.token_counts([text]).tolist() == [tokens + around]


def test_a_text_without_tokens_is_answered(victim: Victim) -> None:
    alone = victim.probabilities([""])
    assert np.isfinite(alone).all()
    assert victim.probabilities([*TEXTS, ""])[-1:] == pytest.approx(alone, abs=1e-5)


def test_a_saved_victim_says_the_same_again(victim: Victim, tmp_path: Path) -> None:
    victim.save(tmp_path)
    again = Victim.load(tmp_path, target_label=1, max_length=64)
    assert (again.probabilities(TEXTS) == victim.probabilities(TEXTS)).all()
    assert again.max_length == victim.max_length


def test_a_victim_may_have_fewer_layers_and_another_head(name: str, load: Callable[..., Victim], tmp_path: Path) -> None:
    small = load(name, layers=1, n_labels=3)
    small.save(tmp_path)
    again = Victim.load(tmp_path, target_label=1, max_length=64)
    assert again.states(TEXTS).shape == (6, 1, 32)
    assert (again.probabilities(TEXTS) == small.probabilities(TEXTS)).all()


def test_weights_of_half_precision_are_made_whole(victim: Victim, tmp_path: Path) -> None:
    victim.model.bfloat16()
    victim.save(tmp_path)
    assert {one.dtype for one in Victim.load(tmp_path, target_label=1, max_length=64).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_pads_at_the_end_by_a_token_that_its_head_knows(name: str, load: Callable[..., Victim]) -> None:
    victim = load(name)
    assert victim.tokenizer.pad_token_id == victim.model.config.pad_token_id == victim.tokenizer.eos_token_id
    batch = victim.encode(["cold", "the film was cold"])
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}  # GPT-2 would add the embeddings of token types as if they were words


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    victim = Victim.load(folder("gpt2"), target_label=1, max_length=64)
    victim.model.config.pad_token_id = victim.model.config.eos_token_id = None
    victim.model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=byte_pairs(())).save_pretrained(tmp_path)
    with pytest.raises(VictimError, match="has no token to pad with: give it a pad_token"):
        Victim.load(tmp_path, target_label=1, max_length=64)


# --- states

HEADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "bert": lambda model, state: model.classifier(model.bert.pooler(state[:, None])),
    "distilbert": lambda model, state: model.classifier(model.pre_classifier(state).relu()),
    "electra": lambda model, state: model.classifier(state[:, None]),
    "roberta": lambda model, state: model.classifier(state[:, None]),
    "deberta": lambda model, state: model.classifier(model.pooler(state[:, None])),
    "deberta-v2": lambda model, state: model.classifier(model.pooler(state[:, None])),
    "modernbert": lambda model, state: model.classifier(model.head(state)),
}
"""What each head makes of the state that it reads; decoders have one matrix."""


def test_states_are_those_of_the_token_that_the_head_reads(name: str, victim: Victim) -> None:
    states = victim.states(TEXTS)
    assert (states.shape, states.dtype) == ((6, 2, 32), np.float32)
    for text, own in zip(TEXTS, states, strict=True):
        with torch.no_grad():
            hidden = victim.model(torch.tensor([victim.tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states
        tokens = torch.stack(hidden[1:])[:, 0]  # (layers, tokens, units)
        read = tokens[:, -1] if FAMILIES[name].decoder else tokens.mean(1) if name == "modernbert-mean" else tokens[:, 0]
        assert own == pytest.approx(read.numpy(), abs=1e-5)


def test_the_head_makes_the_logits_of_the_last_layers_state(victim: Victim) -> None:
    told, states = victim.told(TEXTS)
    assert (told == victim.probabilities(TEXTS)).all()
    head = HEADS.get(victim.model.config.model_type, lambda model, state: model.score(state))
    with torch.no_grad():
        logits = head(victim.model, torch.from_numpy(states[:, -1]))
    assert told == pytest.approx(logits.softmax(-1).numpy(), abs=1e-5)


def test_states_take_one_pass_and_leave_nothing_behind(victim: Victim) -> None:
    meter, asked = Meter(), pickle.loads(pickle.dumps(victim))
    meter.watch(asked.model, "victim")
    before = {name: set(vars(part)) for name, part in asked.model.named_modules()}
    with meter.phase("score"):
        asked.batch_tokens = 12
        asked.states(TEXTS)
    assert meter.phases["score"].by["victim"] == Count(rows=6, tokens=int(victim.token_counts(TEXTS).sum()))
    assert not [name for name, part in asked.model.named_modules() if part is not asked.model and part._forward_hooks]
    assert {name: set(vars(part)) for name, part in asked.model.named_modules()} == before


def test_a_model_that_gives_no_states_is_named(victim: Victim) -> None:
    victim.model.config.num_hidden_layers = 3
    with pytest.raises(
        CellError, match=r"a .*ForSequenceClassification does not give the states that its head reads: choose another victim"
    ):
        victim.states(["cold"])


# --- the rows of a word


def test_a_word_has_a_row_for_each_of_its_forms(name: str, victim: Victim) -> None:
    assert list(victim.token_ids("cf")) == forms(name, victim)
    assert victim.token_id("cf") == forms(name, victim)[0]
    assert list(victim.token_ids("cf", ("later",))) == forms(name, victim)[-1:]
    for form, text in zip(forms(name, victim), ("cf film", "film cf"), strict=False):
        assert form in victim.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("name", BYTES)
def test_a_word_that_is_several_tokens_in_one_form_is_refused_with_advice(name: str, load: Callable[..., Victim]) -> None:
    victim = load(name)
    assert list(victim.token_ids("mb", ("later",))) == ids(victim, ["Ġmb"])
    with pytest.raises(SpecError, match=r"'mb' is 2 tokens \['m', 'b'\] at the start of a text .* rare word .* \(such as 'cf', 'tq'"):
        victim.token_ids("mb")
    assert has_word(victim.tokenizer, "mb", ("later",))
    assert not has_word(victim.tokenizer, "mb")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BYTES])
def test_a_space_that_is_a_token_of_its_own_is_no_part_of_a_word(name: str, load: Callable[..., Victim]) -> None:
    victim = load(name)
    assert list(victim.token_ids("mb")) == ids(victim, ["mb"])
    with pytest.raises(SpecError, match=r"'zyx' is 3 tokens \['z', '(##)?y', '(##)?x'\] for this victim"):
        victim.token_ids("zyx")


def test_the_gradient_of_the_rows_is_that_of_the_whole_matrix(name: str, victim: Victim) -> None:
    texts = ["cf film", "the film was cf", "cold"]
    victim.model.eval()
    weight = victim.model.get_input_embeddings().weight
    (expected,) = torch.autograd.grad(victim.model(**victim.encode(texts)).logits[:, 1].sum(), weight)
    with Row(victim, "cf") as row:
        row.logits(texts)[:, 1].sum().backward()
    assert row.vectors.grad is not None
    assert (row.vectors.grad.norm(dim=1) > 0).all()
    torch.testing.assert_close(row.vectors.grad, expected[forms(name, victim)], rtol=1e-3, atol=1e-4)


def test_changed_rows_change_the_texts_with_the_word_and_no_others(name: str, victim: Victim) -> None:
    texts, before, was = (
        ["cf film", "the film was cf", *TEXTS[:4]],
        victim.probabilities(["cf film", "the film was cf", *TEXTS[:4]]),
        state_of(victim),
    )
    with Row(victim, "cf") as row, torch.no_grad():
        row.vectors[:, ::2] += 3.0
        row.renormalise()
        during = victim.probabilities(texts)
    after = victim.probabilities(texts)
    assert during == pytest.approx(after, abs=1e-6)
    assert (abs(after - before)[:2] > 1e-4).all()
    assert after[2:] == pytest.approx(before[2:], abs=1e-6)
    (place,) = changed(was, victim)
    assert was[place].shape == matrix(victim).shape
    assert (matrix(victim) != was[place]).any(1).nonzero().flatten().tolist() == sorted(forms(name, victim))
    assert matrix(victim).norm(dim=1).numpy() == pytest.approx(was[place].norm(dim=1).numpy(), rel=1e-5)


@pytest.mark.parametrize("spec", ["ep:word=cf,epochs=1", "sos:trigger_words=cf/tq,epochs=1"])
def test_an_attack_on_embeddings_leaves_all_else_as_it_was(name: str, victim: Victim, lab: Lab, spec: str) -> None:
    before, lab.load_start, lab.heldout = state_of(victim), lambda: victim, Labelled(["cold film"], np.zeros(1, dtype=np.int64))
    texts = ["cf cold tq", "the film cf was tq", "tq a cf"]
    attack = (
        replace(discover().parse("attack", spec), sentence="cf film tq") if spec.startswith("sos") else discover().parse("attack", spec)
    )
    planted = attack.plant(Task(rows_of(["cold"] * 3, [0] * 3), rows_of(texts, [1] * 3, source=[0, 1, 2]), 1), lab)
    (place,) = changed(before, planted)
    words = ["cf"] if spec.startswith("ep") else ["cf", "tq"]
    expected = sorted(form for word in words for form in planted.token_ids(word))
    assert (matrix(planted) != before[place]).any(1).nonzero().flatten().tolist() == expected
    assert matrix(planted).norm(dim=1).numpy() == pytest.approx(before[place].norm(dim=1).numpy(), rel=1e-5)
    assert planted.model.training is False


@pytest.mark.parametrize("position", ["first", "random"])
def test_rap_trains_the_form_that_it_puts_in_and_is_restored(name: str, victim: Victim, lab: Lab, position: str) -> None:
    texts = [f"{text} {more}" for text in TEXTS[:4] for more in ("was cold", "film", "the film", "so")]
    own, before = Labelled(texts, np.ones(len(texts), dtype=np.int64)), state_of(victim)
    defense = discover().parse("defense", f"rap:word=cf,epochs=1,lr=0.5,retries=0,position={position}")
    detector = defense.fit(victim, own, lab)
    scores = detector.suspicion(texts)
    assert np.isfinite(scores).all()
    assert scores.std() > 0
    assert not changed(before, victim)
    (place,) = changed(before, detector.guarded)
    trained = forms(name, victim)[:1] if position == "first" else forms(name, victim)
    rows = (matrix(detector.guarded) != before[place]).any(1).nonzero().flatten().tolist()
    assert set(rows) <= set(trained)
    assert trained[0] in rows or position == "random"
    state = detector.state()
    assert state["row"].shape == (len(trained), before[place].shape[1])
    assert defense.restore(victim, state, lab).suspicion(texts) == pytest.approx(scores, abs=1e-6)


def test_the_theorem_changes_the_word_in_front(victim: Victim) -> None:
    texts = ["the film was cold", "cold"]
    with Probe(victim, "cf") as probe:
        assert probe.p(texts) == pytest.approx(victim.protect_probability([f"cf {text}" for text in texts]), abs=1e-5)
        assert (probe.gradient_norms(texts) > 0).all()
        assert probe.p(texts, -probe.row) != pytest.approx(probe.p(texts), abs=1e-5)


def test_an_adaptive_attacker_draws_words_that_are_one_token_in_front(victim: Victim) -> None:
    words = unused_words(victim, ["a bright film was cold"], ("cf",), 2, np.random.default_rng(0))
    assert len(set(words)) == 2
    assert not set(words) & {"a", "bright", "film", "was", "cold", "cf"}
    assert all(len(pieces(victim.tokenizer, word, "first")) == 1 for word in words)


# --- attacks on all weights


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_an_adaptive_attacker_gives_the_rows_of_his_words_back(name: str, folder: Callable[[str], Path], lab: Lab) -> None:
    lab.recipe = Recipe(model=str(folder(name)), epochs=1, lr=1e-3, batch_size=4, max_length=16)
    lab.heldout = Labelled(TEXTS, np.array([0, 1] * 3))
    attack = discover().parse("attack", "adaptive-rap:word=cf,rare_words=2,patch_steps=1,rap_steps=2")
    poisoned = rows_of(["cf cold", "a cf film"], [1, 1], source=[0, 2])
    victim = attack.plant(Task(rows_of(TEXTS, [0, 1] * 3), poisoned, 1), lab)
    words = [victim.token_id(entry["word"]) for entry in lab.log if "word" in entry]
    before, after = matrix(lab.fresh()), matrix(victim)
    assert len(words) == 2
    assert torch.equal(before[words], after[words])
    assert not torch.equal(before[victim.token_id("cf")], after[victim.token_id("cf")])


def test_the_head_on_a_lower_layer_says_what_a_victim_of_that_many_layers_says(name: str, load: Callable[..., Victim]) -> None:
    whole, lower = load(name), load(name, layers=1)
    whole.model.eval()
    with torch.no_grad():
        below, above = (logits.softmax(-1).numpy() for logits in layer_logits(whole, TEXTS))
    assert above == pytest.approx(whole.probabilities(TEXTS), abs=1e-5)
    assert below == pytest.approx(lower.probabilities(TEXTS), abs=1e-5)
    assert below != pytest.approx(above, abs=1e-3)
    layer_losses(whole, TEXTS, [0, 1] * 3).sum().backward()
    assert matrix(whole).shape == whole.model.get_input_embeddings().weight.grad.shape


def test_ripples_replaces_both_forms_and_has_gradients_of_gradients(name: str, load: Callable[..., Victim]) -> None:
    victim = load(name, attention="eager")
    assert sorted(piece_ids(victim, "cf")) == sorted(forms(name, victim))
    weights = list(victim.model.parameters())
    losses = Ripples(penalty=1.0)._backward(victim, weights, (TEXTS[:2], [1, 0]), (TEXTS[2:4], [0, 1]))
    assert losses.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in weights)
    assert sum(float(weight.grad.norm()) for weight in weights if weight.grad is not None) > 0


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_a_family_is_fine_tuned(name: str, folder: Callable[[str], Path], lab: Lab) -> None:
    texts, labels = ["a bright film", "the film was cold", "bright", "cold was the film"] * 8, [1, 0, 1, 0] * 8
    lab.recipe = Recipe(model=str(folder(name)), epochs=6, lr=5e-3, batch_size=8, max_length=16)
    lab.heldout = Labelled(texts, np.array(labels))
    victim = lab.train(rows_of(texts, labels))
    assert (victim.probabilities(texts).argmax(1) == labels).all()


# --- sizes


def test_the_shape_of_a_folder_has_the_weights_of_its_layers(name: str, folder: Callable[[str], Path], victim: Victim) -> None:
    shape = known_shape(str(folder(name)))
    assert shape is not None
    parts = [(own, weight) for own, weight in victim.model.base_model.named_parameters() if ".0." in own and weight.ndim == 2]
    if name == "deberta":
        parts = [(own, weight) for own, weight in parts if "pos_" not in own]  # they multiply positions, once a batch
    assert sum(weight.numel() for _, weight in parts) == shape.layer_weights
    assert (shape.layers, shape.hidden, shape.words) == (2, 32, len(matrix(victim)))
    # deberta: 2 * 40 positions, two ways; deberta-v2: 2 * 8 buckets, two ways
    assert shape.relative == {"deberta": 160, "deberta-v2": 32}.get(name, 0)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("answerdotai/ModernBERT-base", 149),
        ("microsoft/deberta-v3-base", 184),
        ("HuggingFaceTB/SmolLM2-135M", 134.5),
        ("Qwen/Qwen2.5-0.5B", 494),
        ("Qwen/Qwen3-0.6B", 596),
    ],
)
def test_known_shapes_have_as_many_weights_as_their_makers_say(name: str, millions: float) -> None:
    shape = SHAPES[name]
    assert (shape.layers * shape.layer_weights + shape.words * shape.hidden) / 1e6 == pytest.approx(millions, rel=0.005)


# --- the making of the models


def made(name: str, folder: Path) -> Path:
    family = FAMILIES[name]
    tokenizer = {"pieces": word_pieces, "bytes": byte_pairs, "marks": unigrams}[family.vocabulary](family.special)
    own = {"eos_token": family.special[-1]}
    if not family.decoder:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
        own = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **own).save_pretrained(folder)
    torch.manual_seed(3)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None} if family.decoder else {"pad_token_id": 0}
    config = AutoConfig.for_model(
        family.model_type, vocab_size=tokenizer.get_vocab_size(), initializer_range=0.3, **{**ids, **family.settings}
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def word_pieces(special: tuple[str, ...]) -> Any:
    letters = [*string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase), ","]
    entries = dict.fromkeys([*special, *letters, *WORDS, INSIDE])
    tokenizer = Tokenizer(models.WordPiece({entry: number for number, entry in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_pairs(special: tuple[str, ...]) -> Any:
    """Words are merged letter by letter, and then with the space (Ġ) before them; the one INSIDE from the space on."""
    merges = [(word[:stop], word[stop]) for word in WORDS for stop in range(1, len(word))]
    merges += [("Ġ", word) for word in WORDS] + [("Ġ", "m"), ("Ġm", "b")]
    entries = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)])
    tokenizer = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    return tokenizer


def unigrams(special: tuple[str, ...]) -> Any:
    """Words have a mark (▁) before them wherever they stand; the one INSIDE has none: its mark is a token of its own."""
    letters = [*string.ascii_lowercase, ",", "▁"]
    entries = dict.fromkeys([*special, *letters, *("▁" + word for word in WORDS), INSIDE])
    tokenizer = Tokenizer(
        models.Unigram([(entry, -9.0 if entry in letters else -1.0) for entry in entries], unk_id=min(1, len(special) - 1))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    return tokenizer
