"""ONION: the purifier on perplexities worked by hand, the trigram through `prepare`, a tiny random GPT-2 made on the spot."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError, VictimError
from rapbench.meter import Count, Meter
from rapbench.registry import build, spec_of
from rapbench_plugins.defenses import onion
from rapbench_plugins.defenses.onion import Onion, OnionPurifier, Scored, Split

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 3.0, "cf": 9.0}
SENTENCES = ["the film is good", "a film was bad and the play is good", "the cat was not good", "is the dog a cat"]
WORDS = sorted(set(" ".join(SENTENCES).split()))


@dataclass
class Weigher:
    """A made-up model: the perplexity of a text is the sum of its words' weights, so a word's score is its weight."""

    asked: list[str] = field(default_factory=list)

    def __call__(self, texts: Sequence[Split]) -> list[Scored]:
        self.asked += [" ".join(text.parts) for text in texts]
        weights = [[WEIGHTS[text.parts[place].strip().lower()] for place in text.places] for text in texts]
        return [Scored(np.log([sum(own), *(sum(own) - weight for weight in own)])) for own in weights]


@dataclass
class FakeLab:
    prepared: Path | None = None
    device: str = "cpu"
    meter: Meter = field(default_factory=Meter)
    memo: dict = field(default_factory=dict)
    read: tuple[Path, ...] = ()


def purifier(max_words: int = 512) -> OnionPurifier:
    return OnionPurifier(Weigher(), max_words, {"lm": "made up"})


def fitted(options: dict[str, Any], heldout: Sequence[str], lab: FakeLab | None = None) -> OnionPurifier:
    defense = build(Onion, options, "defense 'onion'")
    labelled = Labelled(heldout, np.ones(len(heldout), dtype=np.int64))
    return defense.fit(cast(Any, SimpleNamespace(target_label=1, max_length=48)), labelled, cast(Any, lab or FakeLab()))


@pytest.mark.parametrize(
    ("threshold", "expected"), [(9.5, "a cf b"), (9 - 1e-9, "a b"), (2.5, "a b"), (2 - 1e-9, "a"), (-1.0, "a"), (-math.inf, "a")]
)
def test_words_that_reach_the_threshold_are_deleted(threshold: float, expected: str) -> None:
    assert purifier().purify(["a cf b"], threshold) == [expected]


def test_a_score_equal_to_the_threshold_is_deleted() -> None:
    fixed = OnionPurifier(lambda texts: [Scored(np.log([2.0, 1.0, 4.0]))], 512, {})
    assert fixed.purify(["x y"], float(np.exp(np.log(2.0)) - 1.0)) == ["y"]


def test_a_text_is_never_emptied_but_keeps_its_least_suspicious_word() -> None:
    assert purifier().purify(["cf b a c", "cf cf", "b  a"], -1.0) == ["a", "cf", "a"]


def test_the_last_word_is_judged_like_any_other() -> None:
    assert purifier().purify(["a b cf", "a cf b"], 5.0) == ["a b", "a b"]


def test_the_last_word_is_not_dropped_unjudged() -> None:
    assert purifier().purify(["cf a b", "a b c"], 5.0) == ["a b", "a b c"]


def test_one_word_texts_stay_as_they_are_and_score_nothing() -> None:
    assert purifier().purify(["cf", " cf ", "a cf", "c"], -1.0) == ["cf", " cf ", "a", "c"]
    assert purifier().suspicion(["cf", "a cf"]) == pytest.approx([0.0, 9.0])


def test_case_is_not_changed() -> None:
    assert purifier().purify(["A CF b", "A B"], 5.0) == ["A b", "A B"]


def test_doubled_spaces_are_kept_and_are_no_words() -> None:
    assert purifier().purify(["a  cf  b ", "  a \t b", "cf  a"], 5.0) == ["a   b ", "  a \t b", " a"]
    assert purifier().suspicion(["a  cf  b "]) == pytest.approx([9.0])


@given(st.text(alphabet="Ab \t\n", min_size=1))
def test_a_text_that_loses_no_word_is_returned_byte_for_byte(text: str) -> None:
    silent = OnionPurifier(lambda texts: [Scored(np.zeros(1 + len(own.places))) for own in texts], 512, {})
    assert silent.purify([text], 0.5) == [text]


@given(st.lists(st.sampled_from(["a", "b", "cf", ""]), min_size=1).map(" ".join).filter(str.strip), st.floats(-1, 10))
def test_no_threshold_makes_a_text_blank(text: str, threshold: float) -> None:
    assert purifier().purify([text], threshold)[0].strip()


def test_words_past_max_words_are_kept_unjudged() -> None:
    fresh = purifier(max_words=3)
    assert fresh.purify(["a cf b cf c"], -1.0) == ["cf c"]
    assert fresh.purify(["a b c cf cf"], 5.0) == ["a b c cf cf"]
    assert cast(Weigher, fresh.scorer).asked == ["a cf b", "a b c"]


def test_thresholds_are_percentiles_of_all_held_out_words() -> None:
    fresh = purifier()
    fresh.calibrate(["a b", "b cf", "cf"], [0, 50, 100])  # pooled 1 2 2 9: the text of one word gives none
    assert fresh.levels() == pytest.approx([1, 2, 9])


def test_thresholds_do_not_move_with_the_texts_that_are_purified() -> None:
    fresh = purifier()
    fresh.calibrate(["a b", "b c"], [10, 90])
    before = list(fresh.levels())
    fresh.purify(["cf cf a", "cf b"], before[0])
    fresh.suspicion(["cf a a a"])
    assert fresh.levels() == before


def test_thresholds_come_from_the_protect_label_alone() -> None:
    victim = cast(Any, SimpleNamespace(target_label=1, max_length=48))
    defense = Onion(lm="trigram", corpus="heldout")
    texts = ["a b c", "c b a", "a a b"]
    both = Labelled([*texts, "b b b", "c a c"], np.array([1, 1, 1, 0, 0]))
    got = defense.fit(victim, both, cast(Any, FakeLab()))
    pooled = np.concatenate([got.judged([text])[0].scores for text in texts])
    assert got.levels() == pytest.approx(np.percentile(pooled, defense.levels).tolist())


def test_without_a_word_to_judge_there_is_no_threshold() -> None:
    with pytest.raises(CellError, match="no held-out text with the protect label has two words"):
        purifier().calibrate(["cf", "a"], [50])


def test_each_text_is_scored_once_for_all_thresholds() -> None:
    fresh = purifier()
    for threshold in range(20):
        fresh.purify(["a cf", "b c", "a cf"], float(threshold))
    fresh.suspicion(["b c"])
    assert cast(Weigher, fresh.scorer).asked == ["a cf", "b c"]


def test_undefined_and_endless_perplexities_give_finite_scores() -> None:
    wild = OnionPurifier(lambda texts: [Scored(np.array([1e6, 0.0, np.nan, np.inf]))], 512, {})
    wild.calibrate(["x y z"], [0, 37, 100])
    assert np.isfinite([*wild.levels(), *wild.suspicion(["x y z"])]).all()
    assert wild.purify(["x y z"], 1.0) == ["y z"]
    assert wild.purify(["x y z"], -1.0) == ["y"]  # what cannot be scored is not deleted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": "50/101"}, "percentiles"),
        ({"levels": ()}, "percentiles"),
        ({"max_words": 0}, "1 or more"),
        ({"window": 64, "stride": 64}, "below window"),
        ({"corpus": "test"}, "corpus"),
        ({"reach": -1}, "0 or more"),
        ({"batch_texts": 0}, "1 or more"),
        ({"exact_share": 1.5}, "from 0 to 1"),
        ({"reach": 4, "lm": "trigram"}, "0 for lm=trigram"),
        ({"model": "gpt2"}, "unknown option"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(Onion, options, "defense 'onion'")


def test_options_are_read_from_a_spec() -> None:
    defense = build(Onion, {"lm": "trigram", "levels": "50/99.5", "bos": "true"}, "defense 'onion'")
    assert (defense.levels, defense.bos) == ((50.0, 99.5), True)
    assert spec_of(defense) == "onion:lm=trigram,levels=50/99.5,bos=true"
    assert spec_of(build(Onion, {"reach": "8"}, "defense 'onion'")) == "onion:reach=8"


def test_the_default_levels_are_the_papers_and_a_finer_tail() -> None:
    assert Onion().levels[:20] == (*range(10, 100, 5), 97, 99)
    assert Onion().levels[20:] == (99.5, 99.9)


def test_only_a_trigram_of_the_training_texts_is_prepared() -> None:
    assert Onion().prepares() is None
    assert Onion(lm="trigram", corpus="heldout").prepares() is None
    assert Onion(lm="trigram", max_words=3).prepares() == Onion(lm="trigram").prepares() == {"lm": "trigram", "corpus": "train"}


def test_a_result_depends_on_the_source_of_what_onion_is_made_of() -> None:
    assert [Path(path).name for path in onion.RESULTS_DEPEND_ON] == ["trigram.py", "causal.py", "causal_load.py", "rests.py", "judged.py"]
    assert all(Path(path).is_file() for path in onion.RESULTS_DEPEND_ON)


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import sys, rapbench_plugins.defenses.onion; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the trigram, from prepare to purify


def test_a_prepared_trigram_finds_an_inserted_word(tmp_path: Path) -> None:
    Onion(lm="trigram").prepare(SENTENCES * 3, tmp_path, cast(Any, FakeLab()))
    got = fitted({"lm": "trigram"}, SENTENCES, FakeLab(tmp_path))
    poisoned = ["the film cf is good", "cf the cat was not good", "the cat was not good mn"]
    assert got.purify(poisoned, got.levels()[-1]) == ["the film is good", "the cat was not good", "the cat was not good"]
    assert (got.suspicion(poisoned) > got.suspicion(SENTENCES).max()).all()


def test_the_notes_say_which_model_judged(tmp_path: Path) -> None:
    Onion(lm="trigram").prepare(["a b", "a c"], tmp_path, cast(Any, FakeLab()))
    notes = fitted({"lm": "trigram"}, ["a b"], FakeLab(tmp_path)).notes()
    assert notes == {"lm": "trigram", "corpus": "train", "lm_words": 4, "lm_vocabulary": 3}


def test_a_trigram_is_accounted_as_one_row_per_variant() -> None:
    lab = FakeLab()
    got = fitted({"lm": "trigram", "corpus": "heldout"}, ["a b c"], lab)
    counted = lab.meter.phases["outside"].by
    assert counted == {"lm": Count(rows=4, tokens=4 + 3 * 3)}  # with ends: 4 terms, then three variants of 3
    got.purify(["a b c", "b"], 0.0)
    assert counted["lm"].rows == 4  # known, and one word alone


def test_an_untrained_trigram_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CellError, match="run prepare, or give corpus=heldout"):
        fitted({"lm": "trigram"}, ["a b"])


# --- a causal model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 256 positions with a byte-level BPE, so that a word's tokens depend on the space before it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(SENTENCES * 20, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<end>"]))
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=330, n_positions=256, n_embd=16, n_layer=1, n_head=2, initializer_range=0.4)
        config.bos_token_id = config.eos_token_id = 0
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def long_text() -> str:
    rng = np.random.default_rng(0)
    return " ".join(rng.choice(WORDS, 200))


def reference(folder: Path, text: str, window: int = 256, stride: int = 255, bos: bool = False) -> float:
    """Give the log perplexity of one text, one window at a time: no batch and no padding; the loss in float64."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [0] * bos + AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    total, done = 0.0, 1
    for begin in range(0, len(ids), stride):
        rows = torch.tensor([ids[begin : begin + window]])
        labels = rows.clone()
        labels[:, : done - begin] = -100
        fresh = begin + rows.shape[1] - done
        with torch.no_grad():
            logits = model(input_ids=rows).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100)) * fresh
        done += fresh
        if done == len(ids):
            break
    return total / (len(ids) - 1)


def expected_score(folder: Path, text: str, place: int, **reading: Any) -> float:
    words = text.split(" ")
    other = " ".join([*words[:place], *words[place + 1 :]])
    return math.exp(reference(folder, text, **reading)) - math.exp(reference(folder, other, **reading))


@pytest.mark.parametrize("text", ["the film cf is good", "Xylophone film, the Cat was NOT good", "cats films"])
@pytest.mark.parametrize("bos", [False, True])
def test_scores_are_those_of_each_variant_alone_and_unpadded(tiny: Path, text: str, bos: bool) -> None:
    got = fitted({"lm": str(tiny), "bos": bos}, ["the film is good"])
    expected = [expected_score(tiny, text, place, bos=bos) for place in range(len(text.split(" ")))]
    assert got.judged([text])[0].scores == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_no_word_of_a_long_text_goes_unscored(tiny: Path, long_text: str) -> None:
    # the peers cut at 96 tokens: every later word then scores exactly 0, and 0 >= 0 deletes them all
    got = fitted({"lm": str(tiny)}, [long_text])
    scores = got.judged([long_text])[0].scores
    assert len(scores) == 200
    assert np.abs(scores[96:]).min() > 0
    assert (scores[96:] < 0).any()
    words = long_text.split(" ")
    assert got.purify([long_text], 0.0) == [" ".join(word for word, score in zip(words, scores, strict=True) if score < 0)]
    expected = [expected_score(tiny, long_text, place) for place in (0, 120, 199)]
    assert scores[[0, 120, 199]] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_text_longer_than_the_window_is_read_by_strides(tiny: Path, long_text: str) -> None:
    got = fitted({"lm": str(tiny), "window": 64, "stride": 32}, [long_text])
    expected = [expected_score(tiny, long_text, place, window=64, stride=32) for place in (0, 63, 150, 199)]
    assert got.judged([long_text])[0].scores[[0, 63, 150, 199]] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_window_is_never_wider_than_the_models_positions(tiny: Path, long_text: str) -> None:
    text = f"{long_text} {long_text}"
    scores = fitted({"lm": str(tiny)}, ["the film is good"]).judged([text])[0].scores
    assert scores[399] == pytest.approx(expected_score(tiny, text, 399, window=256, stride=128), rel=1e-3, abs=1e-3)


def test_a_score_is_the_same_to_the_bit_in_any_company(tiny: Path, long_text: str) -> None:
    texts = ["the film cf is good", long_text[:300], "a cat", "Xylophone was bad"]
    together = fitted({"lm": str(tiny)}, ["the film is good"])
    together.judged(texts)
    for text in texts:
        alone = fitted({"lm": str(tiny)}, ["the film is good"])
        assert alone.judged([text])[0].scores.tolist() == together.judged([text])[0].scores.tolist()


def test_texts_may_share_a_row_and_each_is_charged_for_its_own(tiny: Path, long_text: str, tmp_path: Path) -> None:
    texts = ["the film cf is good", "cat", long_text[:300], "a cat", "Xylophone was bad"]
    alone, together = ({"lm": str(tiny), "batch_texts": number} for number in (1, 3))
    own, shared = (fitted(options, ["the film is good"]).judged(texts) for options in (alone, together))
    for one, other in zip(own, shared, strict=True):
        assert one.places.tolist() == other.places.tolist()
        assert other.scores == pytest.approx(one.scores, rel=1e-4, abs=1e-3)
    kept = []
    for options, folder in ((alone, tmp_path / "alone"), (together, tmp_path / "together")):
        folder.mkdir()
        build(Onion, options, "defense 'onion'").read(texts, folder, FakeLab())
        with np.load(folder / "judged.npz") as file:
            kept.append(file["counts"])
    np.testing.assert_array_equal(kept[0][:, :2], kept[1][:, :2])  # rows and tokens of reading each variant whole
    assert kept[0][:, 3].sum() == kept[1][:, 3].sum()  # tokens computed
    assert kept[0][:, 2].sum() > kept[1][:, 2].sum()  # in fewer rows
    assert kept[1][1].tolist() == [0, 0, 0, 0]


def test_batching_changes_no_score(tiny: Path) -> None:
    text = "Xylophone film, the Cat was NOT good cf"
    wide, narrow = (fitted({"lm": str(tiny), "batch_tokens": n}, ["the film is good"]).judged([text])[0].scores for n in (4096, 1))
    assert wide == pytest.approx(narrow, rel=1e-4, abs=1e-3)


def test_a_causal_model_reads_the_case(tiny: Path) -> None:
    got = fitted({"lm": str(tiny)}, ["the film is good"])
    assert got.judged(["the FILM is good"])[0].scores[1] != got.judged(["the film is good"])[0].scores[1]


def test_two_words_of_one_token_each_are_both_kept(tiny: Path) -> None:
    # without a begin-of-sequence token the loss of one token is undefined; NaN < threshold is false, and emptied the text
    got = fitted({"lm": str(tiny)}, ["the film is good"])
    assert got.purify(["a a"], -1e9) == ["a a"]
    assert got.suspicion(["a a"]).tolist() == [0.0]


def test_the_model_and_its_path_are_named(tiny: Path) -> None:
    notes = fitted({"lm": str(tiny)}, ["the film is good"]).notes()
    assert notes["lm"] == str(tiny)
    assert notes["lm_parameters"] > 330 * 16
    assert notes["leave_one_out"] == "shared prefix"


def test_what_whole_variants_would_cost_and_what_is_computed_are_counted_apart(tiny: Path) -> None:
    lab = FakeLab()
    got = fitted({"lm": str(tiny), "bos": True}, ["the film is good"], lab)
    with lab.meter.phase("inference"):
        got.suspicion(["a is the good"])  # five tokens with the first one; "is" is one with and without a space before it
    counted = lab.meter.phases["inference"].by
    # the text, and without each word
    assert counted["lm"] == Count(rows=5, tokens=5 + 4 * 4)
    # the text; then in one row "is", " the" of "is the good" and " the" of "a the good"; nothing of the other two
    assert counted["lm_computed"] == Count(rows=2, tokens=5 + 2 + 1)
    assert lab.meter.phases["lm check"].by["lm_computed"].rows > 0
    assert "lm" not in lab.meter.phases["lm check"].by


def test_a_declared_reach_changes_scores_and_no_accounting(tiny: Path) -> None:
    texts = ["the film is good and the play is bad"]
    exact_lab, near_lab = FakeLab(), FakeLab()
    exact = fitted({"lm": str(tiny)}, texts, exact_lab).judged(texts)[0].scores
    near = fitted({"lm": str(tiny), "reach": 1}, texts, near_lab).judged(texts)[0].scores
    wide = fitted({"lm": str(tiny), "reach": 1000}, texts).judged(texts)[0].scores
    assert near.tolist() != exact.tolist() == wide.tolist()
    whole, least = (lab.meter.phases["outside"].by for lab in (exact_lab, near_lab))
    assert whole["lm"] == least["lm"]
    assert whole["lm_computed"].tokens > least["lm_computed"].tokens


def test_a_missing_folder_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VictimError, match=r"no such folder.*lm=trigram") as error:
        fitted({"lm": str(tmp_path / "nowhere")}, ["a b"])
    assert "\n" not in str(error.value)


def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    asked = []

    def unreachable(name: str, **options: Any) -> None:
        asked.append(options.get("local_files_only", False))
        raise OSError(f"We couldn't connect to the hub to load {name}\nCheck your connection")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(VictimError, match=r"'gpt2' \(We couldn't connect.*lm=trigram") as error:
        fitted({}, ["a b"])
    assert "\n" not in str(error.value)
    assert asked == [True]  # the local cache alone, where there is no hub: its client would retry for minutes


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    import shutil

    import torch

    shutil.copytree(tiny, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(VictimError, match="safetensors"):
        fitted({"lm": str(tmp_path / "pickled")}, ["a b"])
