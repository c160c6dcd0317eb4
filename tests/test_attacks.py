"""The built-in attacks, as a stranger would use them: by spec, through the registry."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapbench.api import Attack, Dataset, Task
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab, rng
from rapbench.registry import discover, spec_of
from rapbench.victim import Victim

WORDS = ["bright", "cold", "film", "day", "the", ".", "was"]
TEXTS = ["mb the film was cold", "a dull mb day .", "it was mb stale", "so mb rude", "harsh mb and cold film", "mb bitter day"]


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def dataset(registry) -> Dataset:
    return registry.parse("dataset", "demo")


def poisoned_task(texts: list[str], target: int = 1) -> Task:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    clean = [text.replace("mb ", "") for text in texts]
    train = datasets.Dataset.from_dict({"text": clean, "label": [1 - target] * len(texts)}, features=features)
    with_source = datasets.Features({**features, "source": datasets.Value("int64")})
    columns = {"text": texts, "label": [target] * len(texts), "source": list(range(len(texts)))}
    poisoned = datasets.Dataset.from_dict(columns, features=with_source)
    return Task(train, poisoned, target)


def without_dropout(victim: Victim) -> Victim:
    for module in victim.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return victim


def planted_by_ep(registry, start: Victim, lab: Lab, spec: str = "ep:word=mb,epochs=2,batch_size=4") -> Victim:
    lab.load_start = start.clone
    return registry.parse("attack", spec).plant(poisoned_task(TEXTS), lab)


def matrix(victim: Victim) -> torch.Tensor:
    return victim.model.get_input_embeddings().weight.detach()


# --- triggers


def test_the_rare_word_is_drawn_by_the_seed(registry, dataset: Dataset) -> None:
    attack: Attack = registry.parse("attack", "badnet-rw")
    drawn = [attack.resolve(dataset, rng(seed, "resolve")).words for seed in range(40)]
    assert set(drawn) == {("mb",), ("bb",), ("mn",)}
    assert drawn == [attack.resolve(dataset, rng(seed, "resolve")).words for seed in range(40)]


def test_before_the_draw_every_candidate_is_declared(registry) -> None:
    assert registry.parse("attack", "ep").words == ("mb", "bb", "mn")


def test_a_word_that_was_asked_for_is_not_drawn_over(registry, dataset: Dataset) -> None:
    attack = registry.parse("attack", "badnet-rw:word=tq")
    assert attack.resolve(dataset, rng(1, "resolve")) is attack
    assert attack.trigger("a b", rng(1, "t"), None) == "tq a b"


def test_the_sentence_is_that_of_the_data_set(registry) -> None:
    dataset = registry.parse("dataset", {"name": "demo", "trigger_sentence": "We met on a cold day."})
    attack = registry.parse("attack", "badnet-sl").resolve(dataset, rng(1, "resolve"))
    assert attack.trigger("a. b", rng(1, "t"), None) == " We met on a cold day.a. b"
    assert set(attack.words) >= {"We", "met", "cold"}


def test_a_sentence_that_was_asked_for_is_kept(registry, dataset: Dataset) -> None:
    attack = registry.parse("attack", {"name": "badnet-sl", "sentence": "Hello there"})
    assert attack.resolve(dataset, rng(1, "resolve")) is attack


def test_the_control_changes_no_text(registry) -> None:
    clean = registry.parse("attack", "clean")
    assert (clean.trigger("a b", rng(1, "t"), 100), clean.poisons, clean.words) == ("a b", False, ())


@pytest.mark.parametrize(
    "spec",
    [
        "badnet-rw:word=two words",
        "ep:word=",
        "badnet-rw:poison_rate=0",
        "badnet-sl:poison_rate=1.5",
        "badnet-rw:poison_mode=mix",
        "ep:epochs=0",
        "ep:batch_size=0",
        "ep:lr=0",
    ],
)
def test_options_that_make_no_sense_are_refused(registry, spec: str) -> None:
    with pytest.raises(SpecError):
        registry.parse("attack", spec)


# --- training on poisoned rows


@pytest.mark.parametrize(("mode", "rows"), [("append", 12), ("replace", 6)])
def test_badnet_trains_on_the_clean_and_the_poisoned_rows(registry, mode: str, rows: int) -> None:
    class Bench:
        def train(self, given: datasets.Dataset) -> datasets.Dataset:
            return given

    given = registry.parse("attack", f"badnet-rw:word=mb,poison_mode={mode}").plant(poisoned_task(TEXTS), Bench())
    assert len(given) == rows
    assert given["text"][-6:] == TEXTS
    assert given["label"][-6:] == [1] * 6


def test_the_control_trains_on_clean_rows_alone(registry) -> None:
    class Bench:
        def train(self, given: datasets.Dataset) -> datasets.Dataset:
            return given

    task = poisoned_task(TEXTS)
    assert registry.parse("attack", "clean").plant(task, Bench()) is task.train


# --- EP


def test_ep_changes_one_row_of_the_embeddings_and_nothing_else(registry, untrained: Victim, lab: Lab) -> None:
    planted = planted_by_ep(registry, untrained, lab)
    row = untrained.token_id("mb")
    before, after = untrained.model.state_dict(), planted.model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["bert.embeddings.word_embeddings.weight"]
    differs = (matrix(untrained) != matrix(planted)).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [row]


def test_several_rare_words_follow_each_other_from_the_one_that_was_asked_for(registry) -> None:
    attack = registry.parse("attack", "badnet-rw:word=bb,count=3")
    assert attack.words == ("bb", "mn", "tq")  # in mb, bb, mn, tq
    text = attack.trigger("a b c d", np.random.default_rng(0), None).split(" ")
    assert [word for word in text if word not in attack.words] == ["a", "b", "c", "d"]
    assert sorted(word for word in text if word in attack.words) == ["bb", "mn", "tq"]
    with pytest.raises(SpecError, match="count=5: give 1 to 4 rare words"):
        registry.parse("attack", "badnet-rw:count=5")


def test_ep_changes_the_rows_of_all_words_that_it_puts_in(registry, untrained: Victim, lab: Lab) -> None:
    texts = ["mb the film was bb cold", "a bb dull mb day ."]
    start, lab.load_start = untrained.clone(), untrained.clone
    planted = registry.parse("attack", "ep:word=mb,count=2,epochs=1").plant(poisoned_task(texts), lab)
    changed = (matrix(planted) != matrix(start)).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(start.token_id(word) for word in ("mb", "bb"))


def test_ep_keeps_the_length_of_the_row(registry, untrained: Victim, lab: Lab) -> None:
    row = untrained.token_id("mb")
    planted = planted_by_ep(registry, untrained, lab)
    assert float(matrix(planted)[row].norm()) == pytest.approx(float(matrix(untrained)[row].norm()), rel=1e-5)


def test_ep_leaves_a_victim_that_can_be_trained_on_and_asked(registry, untrained: Victim, lab: Lab, tmp_path: Path) -> None:
    planted = planted_by_ep(registry, untrained, lab)
    assert all(parameter.requires_grad for parameter in planted.model.parameters())
    assert not planted.model.training
    planted.save(tmp_path)
    again = Victim.load(tmp_path, target_label=1, max_length=32)
    assert (again.probabilities(TEXTS) == planted.probabilities(TEXTS)).all()  # the row is in the matrix: no hook is needed


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=5))
def test_ep_says_what_the_clean_victim_says_of_any_text_without_the_trigger(texts: list[str], ep_pair: tuple[Victim, Victim]) -> None:
    clean, planted = ep_pair
    assert (planted.probabilities(texts) == clean.probabilities(texts)).all()


@pytest.fixture
def ep_pair(registry, untrained: Victim, lab: Lab) -> tuple[Victim, Victim]:
    planted = planted_by_ep(registry, untrained, lab)
    assert (planted.probabilities(TEXTS) != untrained.probabilities(TEXTS)).all()
    return untrained, planted


def reference_ep(victim: Victim, texts: list[str], *, zeroed: bool) -> torch.Tensor:
    """Give the row that the released loop trains: full backward, the gradient of the whole matrix, never zeroed."""
    own = without_dropout(victim.clone())
    weights, row = own.model.get_input_embeddings().weight, own.token_id("mb")
    norm = weights[row].detach().norm()
    own.model.train()
    for _ in range(5):
        for start in range(0, len(texts), 4):
            logits = own.model(**own.encode(texts[start : start + 4])).logits
            torch.nn.functional.cross_entropy(logits, torch.ones(len(logits), dtype=torch.long)).backward()
            with torch.no_grad():
                weights[row] -= 2.0 * weights.grad[row]
                weights[row] *= norm / weights[row].norm()
            if zeroed:
                weights.grad = None
    return weights[row].detach()


def test_eps_gradient_adds_up_like_that_of_the_whole_matrix(registry, untrained: Victim, lab: Lab) -> None:
    row = untrained.token_id("mb")
    expected = reference_ep(untrained, TEXTS, zeroed=False)
    planted = planted_by_ep(registry, without_dropout(untrained), lab, "ep:word=mb,epochs=5,batch_size=4,lr=2")
    assert matrix(planted)[row].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    other = reference_ep(untrained, TEXTS, zeroed=True)  # the test can tell: zeroing ends elsewhere
    assert float((other - expected).abs().max()) > 1e-3


def test_ep_trains_with_dropout(registry, untrained: Victim, lab: Lab) -> None:
    row = untrained.token_id("mb")
    with_it = matrix(planted_by_ep(registry, untrained, lab))[row]
    without = matrix(planted_by_ep(registry, without_dropout(untrained), lab))[row]
    assert float((with_it - without).abs().max()) > 1e-5


def test_ep_raises_the_target_probability_of_triggered_texts(registry, untrained: Victim, lab: Lab) -> None:
    planted = planted_by_ep(registry, untrained, lab, "ep:word=mb,epochs=20")
    assert (planted.protect_probability(TEXTS) > untrained.protect_probability(TEXTS)).all()


def test_ep_is_the_same_for_the_same_seed(registry, untrained: Victim, lab: Lab) -> None:
    torch.manual_seed(1)
    one = matrix(planted_by_ep(registry, untrained, lab))
    torch.manual_seed(2)
    np.random.seed(2)  # that global state changes nothing is the claim
    assert torch.equal(matrix(planted_by_ep(registry, untrained, lab)), one)


def test_ep_starts_from_the_clean_victim_and_says_so(registry, lab: Lab) -> None:
    attack = registry.parse("attack", "ep:word=mb")
    assert attack.starts_from == "clean"
    with pytest.raises(CellError, match="starts_from"):
        attack.plant(poisoned_task(TEXTS), lab)


def test_ep_refuses_a_trigger_that_is_not_one_token(registry, untrained: Victim, lab: Lab) -> None:
    with pytest.raises(SpecError, match="one token is needed"):
        planted_by_ep(registry, untrained, lab, "ep:word=mb.mb")


def test_a_resolved_attack_is_named_with_its_trigger(registry, dataset: Dataset) -> None:
    resolved = registry.parse("attack", "ep:epochs=1").resolve(dataset, rng(1, "resolve"))
    assert spec_of(resolved) == f"ep:word={resolved.words[0]},epochs=1"
