"""A causal language model leaving each word out: behind a shared prefix as one by one, and with a reach worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapbench.meter import Count, Meter
from rapbench_plugins.defenses.causal import SMALLEST_CHECK, Causal, Reading
from rapbench_plugins.defenses.causal_load import load
from rapbench_plugins.defenses.rests import Rest

VOCABULARY = 330
CORPUS = ["the film is good", "a film was bad and the play is good", "the cat was not good", "is the dog a cat"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level BPE, so that a word's tokens depend on the space before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")


def gpt2(positions: int = 256) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"n_positions": positions, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **config))


def llama(kind: str = "Llama", **options: Any) -> Any:
    """Rotary positions and grouped keys; of any kind that is shaped so."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        **options,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.4))


def falcon() -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
    return FalconForCausalLM(FalconConfig(vocab_size=VOCABULARY, alibi=True, **sizes))


def gpt_neo(window: int = 8, positions: int = 256) -> Any:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": window, "max_position_embeddings": positions}
    shape = {"attention_types": [[["global", "local"], 1]], "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": 0}
    return GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, **shape, **sizes))


def both_ways() -> Any:
    """A model that also looks ahead: a shared prefix does not hold for it."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 256}
    return BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, initializer_range=0.4, **sizes))


def sliding() -> Any:
    return llama("Mistral", sliding_window=8)


def made(build: Callable[[], Any], tokenizer: Any, **reading: Any) -> Causal:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    return Causal(model.eval(), tokenizer, Reading(**reading))


@torch.no_grad()
def alone(lm: Causal, ids: Sequence[int]) -> float:
    """Give the mean negative log likelihood of one row by the model's own loss: no batch, no padding, no cache."""
    return float(lm.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss) if len(ids) > 1 else float("nan")


def left_out(lm: Causal, text: str) -> list[list[int]]:
    words = text.split(" ")
    return lm.tokens([text, *(" ".join([*words[:place], *words[place + 1 :]]) for place, word in enumerate(words) if word)])


def without_each(ids: Sequence[int]) -> list[list[int]]:
    return [[*ids], *([*ids[:place], *ids[place + 1 :]] for place in range(len(ids)))]


TEXTS = [
    "the film cf is good",
    "Xylophone film, the Cat was NOT good",
    "cats films",
    "the the the cat",
    " a  cat   and  dog ",
    "a a",
    "cat",
]


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_scores_behind_a_shared_prefix_are_those_of_each_variant_alone(build: Any, tokenizer: Any, bos: bool, text: str) -> None:
    lm = made(build, tokenizer, bos=bos)
    rows = left_out(lm, text)
    assert lm.leave_one_out(rows) == pytest.approx([alone(lm, ids) for ids in rows], rel=1e-5, nan_ok=True)
    assert lm.path() == "shared prefix"


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("batch_tokens", [1, 7, 64])
def test_the_rests_of_a_text_may_need_several_rows(build: Any, tokenizer: Any, batch_tokens: int) -> None:
    lm = made(build, tokenizer, batch_tokens=batch_tokens)
    rows = left_out(lm, "Xylophone film, the Cat was NOT good and the dog is a cat")
    calls = []
    lm.model.register_forward_pre_hook(lambda *call: calls.append(call[2]["input_ids"].shape), with_kwargs=True)
    lm.shares_prefix(len(rows[0]))
    calls.clear()
    assert lm.leave_one_out(rows) == pytest.approx([alone(lm, ids) for ids in rows], rel=1e-5)
    packs = [tokens for _, tokens in calls[1 : -len(rows)]]  # the text was read first, then come the calls of `alone`
    longest = max(len(Rest.of(ids, rows[0], 0).read) for ids in rows[1:])
    assert len(packs) > 1
    assert max(packs) <= max(batch_tokens, longest)


def test_a_text_that_does_not_fit_into_a_window_is_read_whole(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer, window=8, stride=4)
    rows = left_out(lm, "Xylophone film, the Cat was NOT good")
    assert not lm.shares_prefix(len(rows[0]))
    assert lm.leave_one_out(rows).tolist() == lm.surprise(rows).tolist()
    fits = without_each(range(5, 13))
    assert lm.shares_prefix(8)
    assert lm.beyond(fits) == 0
    assert lm.leave_one_out(fits) == pytest.approx([alone(lm, ids) for ids in fits], rel=1e-5)


def test_the_longest_text_beyond_the_window_is_in_the_words_about_the_path(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer, window=8, stride=4)
    assert lm.beyond(without_each(range(5, 13))) == 0
    assert lm.beyond(without_each(range(5, 14))) == 9
    assert lm.beyond([[5] * 8, [5] * 10, [5] * 9]) == 10  # a variant of a text that fits, retokenised at the seam
    assert (lm.path(), lm.path(10)) == ("shared prefix", "shared prefix; those beyond the window of 8 tokens by strides, the longest of 10")
    assert made(of_few_places, tokenizer).path(301) == "shared prefix; those beyond the window of 300 tokens by strides, the longest of 301"
    assert made(both_ways, tokenizer).path(257) == "whole texts; those beyond the window of 256 tokens by strides, the longest of 257"


@pytest.mark.parametrize("build", [bloom, falcon, both_ways, sliding])
def test_a_model_that_cannot_share_a_prefix_reads_whole_texts(build: Any, tokenizer: Any) -> None:
    lm = made(build, tokenizer, reach=1)
    rows = left_out(lm, "Xylophone film, the Cat was NOT good cf")
    assert lm.leave_one_out(rows).tolist() == lm.surprise(rows).tolist()
    assert lm.path() == "whole texts"


def test_local_attention_by_places_in_a_row_is_found_out(tokenizer: Any) -> None:
    lm = made(gpt_neo, tokenizer)
    assert lm.path() == "whole texts"
    rows = without_each(range(5, 45))
    assert lm.leave_one_out(rows) == pytest.approx([alone(lm, ids) for ids in rows], rel=1e-5)


def test_a_model_that_fails_on_long_texts_still_shares_short_ones(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = made(gpt2, tokenizer)
    scored = Causal._leave_one_out

    def wrong(self: Causal, texts: Any, reach: int) -> list[Any]:
        found = zip(texts, scored(self, texts, reach), strict=True)
        return [own._replace(log_ppl=own.log_ppl * (1 + 2e-4 * (len(rows[0]) > 40))) for rows, own in found]

    monkeypatch.setattr(Causal, "_leave_one_out", wrong)
    assert [lm.shares_prefix(length) for length in (200, 64, 33, 32, 2)] == [False, False, False, True, True]
    assert lm.path() == "shared prefix up to 32 tokens, whole texts beyond"


NO_MEMORY = [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_too_little_memory_is_no_reason_to_take_another_path(error: RuntimeError, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*given: Any, **named: Any) -> None:
        raise error

    lm = made(gpt2, tokenizer)
    monkeypatch.setattr(Causal, "_pack", exhausted)
    with pytest.raises(type(error)):
        lm.shares_prefix(4)
    assert lm.agrees == {}


@pytest.mark.parametrize("error", NO_MEMORY)
def test_texts_share_no_row_where_memory_does_not_hold_such_a_one(
    error: RuntimeError, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = made(gpt2, tokenizer, batch_texts=4)
    read = Causal._read

    def scarce(self: Causal, texts: Any, rests: Any) -> Any:
        if len(texts) > 1:
            raise error
        return read(self, texts, rests)

    monkeypatch.setattr(Causal, "_read", scarce)
    assert not lm.mingles()
    assert lm.shares_prefix(16)


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("method", ["_pack", "_nll"])
def test_a_row_that_memory_does_not_hold_is_halved(
    method: str, error: RuntimeError, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = made(gpt2, tokenizer)
    rows = left_out(lm, "the film cf is good and the dog is a cat")
    shared, whole = lm.leave_one_out(rows), lm.surprise(rows)
    fits, sizes = getattr(Causal, method), list[int]()

    def scarce(self: Causal, some: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 2:
            raise error
        return fits(self, some, *given, **named)

    monkeypatch.setattr(Causal, method, scarce)
    np.testing.assert_allclose(lm.leave_one_out(rows), shared, rtol=1e-6)
    np.testing.assert_allclose(lm.surprise(rows), whole, rtol=1e-6)
    assert max(sizes) > 2
    assert sum(size <= 2 for size in sizes) > 2


def test_a_text_has_the_same_bits_whatever_was_scored_before(tokenizer: Any) -> None:
    texts = ["the film cf is good", "Xylophone film, the Cat was NOT good and the dog is a cat", "a cat"]
    fresh = [made(gpt2, tokenizer) for _ in texts]
    single = [lm.leave_one_out(left_out(lm, text)).tolist() for lm, text in zip(fresh, texts, strict=True)]
    lm = made(gpt2, tokenizer)
    for place in (0, 1, 2, 1, 0):
        np.testing.assert_array_equal(lm.leave_one_out(left_out(lm, texts[place])), single[place])


def test_what_has_nothing_to_score_is_undefined(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer)
    assert np.isnan(lm.leave_one_out([[5, 6], [6], [5]])).tolist() == [False, True, True]
    assert np.isnan(lm.leave_one_out([[5], []])).all()
    assert np.isnan(lm.leave_one_out([[], []])).all()
    assert np.isnan(lm.leave_one_out([[5, 6], []])).tolist() == [False, True]


def test_the_activation_of_one_kernel_is_the_models_own(tokenizer: Any, tmp_path: Path) -> None:
    plain = made(gpt2, tokenizer)
    plain.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load(str(tmp_path), "cpu", Reading())
    assert [type(block.mlp.act).__name__ for block in (lm.model.transformer.h[1], plain.model.transformer.h[1])] == [
        "GELU",
        "NewGELUActivation",
    ]
    rows = without_each(range(5, 25))
    assert lm.surprise(rows) == pytest.approx(plain.surprise(rows), rel=1e-6)


# --- texts in company


def read_with(lm: Causal, texts: Sequence[Sequence[Sequence[int]]]) -> tuple[list[Any], list[int]]:
    """Give the scores, and the tokens of each call of the model; the checks of the model come before."""
    lm.shares_prefix(max(len(ids) for rows in texts for ids in rows))
    lm.mingles()
    sizes: list[int] = []
    with lm.model.register_forward_pre_hook(lambda *call: sizes.append(call[2]["input_ids"].numel()), with_kwargs=True):
        return lm.leave_one_out_of_each(texts), sizes


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("reach", [0, 2])
@pytest.mark.parametrize("bos", [False, True])
def test_a_text_in_company_has_the_scores_that_it_has_alone(build: Any, tokenizer: Any, bos: bool, reach: int) -> None:
    lone, together = (made(build, tokenizer, bos=bos, reach=reach, batch_texts=number) for number in (1, 5))
    texts = [left_out(lone, text) for text in TEXTS]
    for own, its in zip(together.leave_one_out_of_each(texts), lone.leave_one_out_of_each(texts), strict=True):
        assert own.log_ppl == pytest.approx(its.log_ppl, rel=1e-6, nan_ok=True)
        assert own.computed == its.computed
    assert together.path() == lone.path() == "shared prefix"


def test_texts_in_company_are_read_in_one_row_and_their_rests_in_another(tokenizer: Any) -> None:
    texts = [without_each([5, 6, 7, 8]), without_each([9, 10, 11])]
    # alone: 4 tokens, then "b c" of b c d and "c" of a c d; 3 tokens, then "b" of b c
    assert read_with(made(gpt2, tokenizer), texts)[1] == [4, 3, 3, 1]
    assert read_with(made(gpt2, tokenizer, batch_texts=2), texts)[1] == [7, 4]


def test_no_more_texts_share_a_row_than_asked_for_and_than_fit(tokenizer: Any) -> None:
    pairs = [[[5, 6]]] * 5
    assert read_with(made(gpt2, tokenizer, batch_texts=2), pairs)[1] == [4, 4, 2]
    assert read_with(made(gpt2, tokenizer, batch_texts=9, batch_tokens=7), pairs)[1] == [6, 4]
    assert read_with(made(gpt2, tokenizer, batch_texts=9, batch_tokens=1), pairs)[1] == [2] * 5


@pytest.mark.parametrize("build", [bloom, both_ways, sliding])
def test_a_model_that_cannot_share_a_prefix_reads_each_of_several_whole(build: Any, tokenizer: Any) -> None:
    lm = made(build, tokenizer, batch_texts=4)
    texts = [left_out(lm, text) for text in TEXTS[:3]]
    for own, rows in zip(lm.leave_one_out_of_each(texts), texts, strict=True):
        assert own.log_ppl.tolist() == lm.surprise(rows).tolist()
        assert own.computed == sum(map(len, rows))


def far_sighted() -> Any:
    """Its attention is local by places in a row, further than the texts below are long, and less far than rows of them."""
    return gpt_neo(window=256, positions=1024)


def of_few_places() -> Any:
    return gpt2(positions=300)


def deaf() -> Any:
    """A model that hears of a mask only when there are keys to hide from before: alone it agrees, in company texts see each other."""
    model = gpt2()
    forward = model.forward

    def without(*given: Any, attention_mask: Any, past_key_values: Any = None, position_ids: Any = None, **named: Any) -> Any:
        heard = attention_mask if past_key_values is not None or attention_mask.dim() == 2 else None
        return forward(*given, attention_mask=heard, past_key_values=past_key_values, position_ids=position_ids, **named)

    model.forward = without
    return model


@pytest.mark.parametrize("build", [far_sighted, deaf])
def test_a_model_whose_texts_would_see_each_other_reads_them_one_by_one(build: Any, tokenizer: Any) -> None:
    lone, lm = (made(build, tokenizer, batch_texts=number) for number in (1, 16))
    texts = [without_each(range(5 + number, 19 + number)) for number in range(16)]
    alone = [lone.leave_one_out(rows) for rows in texts]
    apart = [np.abs(own.log_ppl / its - 1).max() for own, its in zip(lm._leave_one_out(texts, 0), alone, strict=True)]
    assert max(apart) > 1e-3  # what would be scored if nobody looked
    assert lm.path() == "shared prefix"
    assert not lm.mingles()
    assert [own.log_ppl.tolist() for own in lm.leave_one_out_of_each(texts)] == [own.tolist() for own in alone]


def test_rows_may_hold_more_tokens_than_a_model_has_positions(tokenizer: Any) -> None:
    lm = made(of_few_places, tokenizer, batch_texts=16)
    texts = [without_each(range(5 + number, 19 + number)) for number in range(16)]
    found, sizes = read_with(lm, texts)
    assert lm.mingles()
    assert sizes[0] == 16 * 14
    assert 300 - 224 < max(sizes[1:]) <= 256
    for own, rows in zip(found, texts, strict=True):
        assert own.log_ppl == pytest.approx([alone(lm, ids) for ids in rows], rel=1e-5)


def test_a_check_in_company_reads_no_more_than_may_stand_in_a_row(tokenizer: Any) -> None:
    for batch_texts, batch_tokens in ((2, 64), (9, 64), (9, 1), (2, 4096)):
        lm = made(gpt2, tokenizer, batch_texts=batch_texts, batch_tokens=batch_tokens)
        lm.shares_prefix(SMALLEST_CHECK)
        sizes: list[int] = []
        with lm.model.register_forward_pre_hook(lambda *call, sizes=sizes: sizes.append(call[2]["input_ids"].shape[1]), with_kwargs=True):
            assert lm.mingles() == (batch_tokens > 1)
        assert max(sizes, default=0) <= min(batch_tokens, 256)


def test_a_long_text_among_short_ones_is_read_whole(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer, window=8, stride=4, batch_texts=4)
    texts = [without_each(range(5, 5 + length)) for length in (4, 20, 6)]
    for own, rows in zip(lm.leave_one_out_of_each(texts), texts, strict=True):
        assert own.log_ppl == pytest.approx(lm.surprise(rows), rel=1e-5)


# --- what is computed


def counted(lm: Causal, rows: Sequence[Sequence[int]]) -> Count:
    lm.shares_prefix(len(rows[0]))
    meter = Meter()
    meter.watch(lm.model, "lm_computed")
    (found,) = lm.leave_one_out_of_each([rows])
    count = meter.phases["outside"].by["lm_computed"]
    assert found.computed == count.tokens
    return count


def test_only_what_follows_a_deletion_is_computed(tokenizer: Any) -> None:
    # a b c d: the text; "b c" of b c d, "c" of a c d; the first token behind a deletion is scored by the text's own logits
    assert counted(made(gpt2, tokenizer), without_each([5, 6, 7, 8])) == Count(rows=2, tokens=4 + 2 + 1)


def test_a_doubled_word_is_no_change_until_it_differs(tokenizer: Any) -> None:
    # a a b: without either a, "b" behind "a" is all that is new
    assert counted(made(gpt2, tokenizer), without_each([5, 5, 6])) == Count(rows=1, tokens=3)


@pytest.mark.parametrize("words", [30, 100])
def test_half_of_the_tokens_of_all_variants_are_computed(tokenizer: Any, words: int) -> None:
    tokens = counted(made(gpt2, tokenizer), without_each(range(5, 5 + words))).tokens
    assert tokens == words + (words - 1) * (words - 2) // 2
    assert tokens <= 0.55 * words * (words + 1)


# --- a declared reach


@torch.no_grad()
def log_loss(lm: Causal, ids: Sequence[int]) -> float:
    """Give the negative log likelihood of the last token behind the others."""
    return -float(lm.model(input_ids=torch.tensor([ids[:-1]])).logits[0, -1].log_softmax(-1)[ids[-1]])


def test_behind_a_reach_tokens_keep_the_values_of_the_whole_text(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer, reach=1)
    a, b, c, d = 5, 6, 7, 8
    in_text = {b: log_loss(lm, [a, b]), c: log_loss(lm, [a, b, c]), d: log_loss(lm, [a, b, c, d])}
    expected = [
        (in_text[b] + in_text[c] + in_text[d]) / 3,
        (in_text[c] + in_text[d]) / 2,  # b c d: nothing stands before b, the one token within reach
        (log_loss(lm, [a, c]) + in_text[d]) / 2,  # a c d
        (in_text[b] + log_loss(lm, [a, b, d])) / 2,  # a b d
        (in_text[b] + in_text[c]) / 2,  # a b c
    ]
    assert lm.leave_one_out(without_each([a, b, c, d])) == pytest.approx(expected, rel=1e-5)
    assert counted(lm, without_each([a, b, c, d])) == Count(rows=1, tokens=4)


def test_within_a_reach_of_two_the_second_token_is_scored_anew(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer, reach=2)
    a, b, c, d, e = 5, 6, 7, 8, 9
    found = lm.leave_one_out(without_each([a, b, c, d, e]))
    of_e = log_loss(lm, [a, b, c, d, e])
    assert found[1] == pytest.approx((log_loss(lm, [b, c]) + log_loss(lm, [a, b, c, d]) + of_e) / 3, rel=1e-5)  # b c d e
    assert found[2] == pytest.approx((log_loss(lm, [a, c]) + log_loss(lm, [a, c, d]) + of_e) / 3, rel=1e-5)  # a c d e
    # the text; "b" of b c d e, "c" of a c d e, "d" of a b d e
    assert counted(lm, without_each([a, b, c, d, e])) == Count(rows=2, tokens=5 + 3)


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_reach_beyond_the_text_is_exact(build: Any, tokenizer: Any, bos: bool, text: str) -> None:
    exact, wide = (made(build, tokenizer, bos=bos, reach=reach) for reach in (0, 1000))
    rows = left_out(exact, text)
    np.testing.assert_array_equal(wide.leave_one_out(rows), exact.leave_one_out(rows))


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("batch_texts", [1, 3])
def test_of_the_words_that_look_worst_by_reach_a_share_is_scored_exactly(build: Any, tokenizer: Any, batch_texts: int) -> None:
    near, exact, both = (
        made(build, tokenizer, reach=reach, exact_share=share, batch_texts=batch_texts) for reach, share in ((2, 0), (0, 0), (2, 0.3))
    )
    texts = [without_each(range(first, first + 14)) for first in (5, 20, 35)]
    by_reach, exactly = ([own.log_ppl[1:] for own in lm.leave_one_out_of_each(texts)] for lm in (near, exact))
    for own, its, fully in zip(both.leave_one_out_of_each(texts), by_reach, exactly, strict=True):
        worst = np.argsort(its)[:5]  # 0.3 of 14 words are 4.2
        expected = its.copy()
        expected[worst] = fully[worst]
        assert own.log_ppl[1:] == pytest.approx(expected, rel=1e-6)
        assert np.abs(fully - its)[worst].max() > 1e-4
        # of the variant without word k the model reads 1 token behind what both share, then all 12 - k of those that are read to the end
        again = sum(12 - k for k in worst if k < 11)
        assert own.computed == 14 + 12 + again


def test_a_word_that_stands_three_times_in_a_row_has_one_score(tokenizer: Any) -> None:
    lm, exact = made(gpt2, tokenizer, reach=1, exact_share=0.25), made(gpt2, tokenizer)
    some_scored = 0
    for drawn in range(30):
        ids = np.random.default_rng(drawn).integers(5, 200, size=10).tolist()
        rows = without_each([*ids[:3], ids[3], ids[3], ids[3], *ids[4:]])
        own = lm.leave_one_out(rows)[4:7]
        assert own == pytest.approx([own[0]] * 3, rel=1e-6)
        some_scored += bool(np.isclose(own[0], exact.leave_one_out(rows)[4], rtol=1e-6))
    assert 0 < some_scored < 30  # on either side of the cut


def test_with_all_words_scored_exactly_a_reach_changes_no_score(tokenizer: Any) -> None:
    exact, all_of_them = made(gpt2, tokenizer), made(gpt2, tokenizer, reach=1, exact_share=1.0)
    rows = without_each(range(5, 25))
    assert all_of_them.leave_one_out(rows) == pytest.approx(exact.leave_one_out(rows), rel=1e-6)


@pytest.mark.parametrize(
    ("ids", "text", "reach", "kept", "end"),
    [
        ([1, 3, 4, 5], [1, 2, 3, 4, 5], 0, 1, 4),
        ([1, 3, 4, 5], [1, 2, 3, 4, 5], 2, 1, 3),
        ([1, 8, 9, 4, 5], [1, 2, 3, 4, 5], 1, 1, 3),  # two tokens at the seam are others than in the text: both are new
        ([1, 2], [1, 2, 3], 1, 2, 2),  # the last word left out: nothing is new
        ([1, 2, 1, 2], [1, 2, 1, 2, 1, 2], 1, 4, 4),  # begins and ends as the text does
        ([1, 2, 7, 8], [7, 8], 1, 0, 3),  # the text's first token has no value to keep
        ([], [1], 1, 0, 0),
    ],
)
def test_the_rest_of_a_variant(ids: list[int], text: list[int], reach: int, kept: int, end: int) -> None:
    rest = Rest.of(ids, text, reach)
    assert (rest.kept, rest.end) == (kept, end)
    assert len(rest.read) == len(rest.scored) == max(end - kept - 1, 0)


def test_a_loss_keeps_the_digits_that_a_sum_in_float32_would_round_away(tokenizer: Any) -> None:
    lm = made(gpt2, tokenizer)
    torch.nn.init.zeros_(lm.model.get_output_embeddings().weight)
    # every token is as likely as any other of the 330: log 330 = 5.799, which float32 knows to 5e-7
    rows = without_each([5, 6, 7, 8])
    for scored in (lm.surprise(rows), lm.leave_one_out(rows)):
        assert scored == pytest.approx([np.log(330)] * 5, abs=1e-12)
