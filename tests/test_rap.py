"""RAP: Eq. 4, the construction against a plain full-backward loop, the retries, and what a score costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab
from rapbench.meter import Count, Meter
from rapbench.registry import discover
from rapbench.victim import Victim
from rapbench_plugins.defenses import rap
from rapbench_plugins.defenses.rap import Rap, RapDetector, constructed, objective, perturbed


def matrix(victim: Victim) -> torch.Tensor:
    return victim.model.get_input_embeddings().weight.detach()


def without_dropout(victim: Victim) -> Victim:
    for module in victim.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return victim


# --- Eq. 4


def test_the_objective_worked_by_hand() -> None:
    change = torch.tensor([0.0, -0.2, -0.5])
    # lower bound 0.1: relu(change + 0.1) = .1 0 0, mean 1/30; upper 0.3: relu(-0.3 - change) = 0 0 .2, mean 2/30
    assert float(objective(change, Rap(weight=2.0))) == pytest.approx(2 / 30 + 2 / 30)
    assert float(objective(change, Rap(weight=8.0))) == pytest.approx(8 / 30 + 2 / 30)  # lambda weighs the lower bound alone


@pytest.mark.parametrize("fall", [0.1, 0.2, 0.3])
def test_a_fall_between_the_bounds_costs_nothing(fall: float) -> None:
    assert float(objective(torch.full((4,), -fall), Rap())) == pytest.approx(0, abs=1e-7)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.floats(0.1, 9))
def test_the_objective_is_the_formula(changes: list[float], weight: float) -> None:
    low, up = np.maximum(np.array(changes) + 0.05, 0), np.maximum(-0.2 - np.array(changes), 0)
    got = objective(torch.tensor(changes, dtype=torch.float64), Rap(weight=weight, c_low=0.05, c_up=0.2))
    assert float(got) == pytest.approx(weight * low.mean() + up.mean())


# --- the construction


def reference_rap(victim: Victim, options: Rap, texts: list[str], *, zeroed: bool) -> torch.Tensor:
    """Give the row that the released loop trains: gradients of all weights through both passes, never zeroed."""
    own = without_dropout(victim.clone())
    weights, row = own.model.get_input_embeddings().weight, own.token_id(options.word)
    norm = weights[row].detach().norm()
    own.model.train()
    for _ in range(cast(int, options.epochs)):
        for start in range(0, len(texts), options.batch_size):
            batch = texts[start : start + options.batch_size]
            p = own.model(**own.encode(batch)).logits.softmax(-1)[:, 1]
            q = own.model(**own.encode([f"{options.word} {text}" for text in batch])).logits.softmax(-1)[:, 1]
            loss = options.weight * torch.relu(q - p + options.c_low).mean() + torch.relu(p - q - options.c_up).mean()
            loss.backward()
            with torch.no_grad():
                weights[row] -= options.lr * weights.grad[row]
                weights[row] *= norm / weights[row].norm()
            if zeroed:
                weights.grad = None
    return weights[row].detach()


@pytest.mark.parametrize("dropout", [True, False])  # on: p is computed at each step; off: the cached p is used
@pytest.mark.parametrize("gradient", ["accumulate", "sgd"])
def test_the_row_is_that_of_a_full_backward_loop(planted: Victim, heldout: Labelled, lab: Lab, gradient: Any, dropout: bool) -> None:
    options = Rap(gradient=gradient, dropout=dropout, epochs=3, lr=0.05, weight=2.0).settled()
    own = heldout.of(1)
    texts = [own[row] for row in lab.rng("rap/order").permutation(len(own))]
    row = planted.token_id("cf")
    expected = reference_rap(planted, options, texts, zeroed=gradient == "sgd")
    got = matrix(constructed(options, without_dropout(planted), heldout, lab))[row]
    assert got.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    other = reference_rap(planted, options, texts, zeroed=gradient != "sgd")  # the test can tell the two apart
    assert float((other - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("recipe", ["released", "steady"])
def test_only_the_row_of_the_word_differs_and_it_keeps_its_length(planted: Victim, heldout: Labelled, lab: Lab, recipe: Any) -> None:
    before = {name: tensor.clone() for name, tensor in planted.model.state_dict().items()}
    clone = constructed(Rap(recipe=recipe, epochs=1).settled(), planted, heldout, lab)
    row, after = planted.token_id("cf"), clone.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in planted.model.state_dict().items())
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["bert.embeddings.word_embeddings.weight"]
    assert (matrix(clone) != matrix(planted)).any(dim=1).nonzero().flatten().tolist() == [row]
    assert float(matrix(clone)[row].norm()) == pytest.approx(float(matrix(planted)[row].norm()), rel=1e-5)
    assert not clone.model.training
    assert all(parameter.requires_grad for parameter in clone.model.parameters())


def test_a_freed_norm_changes(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    clone, row = constructed(Rap(keep_norm=False, epochs=1, lr=10.0).settled(), planted, heldout, lab), planted.token_id("cf")
    assert abs(float(matrix(clone)[row].norm() / matrix(planted)[row].norm()) - 1) > 1e-2


def test_the_recipes_are_told_apart_and_may_be_mixed(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    released, steady = Rap().settled(), Rap(recipe="steady").settled()
    assert (released.gradient, released.dropout, released.epochs) == ("accumulate", True, 5)
    assert (steady.gradient, steady.dropout, steady.epochs) == ("adam", False, 4)
    mixed = Rap(recipe="steady", gradient="sgd", dropout=True, epochs=1).settled()
    assert (mixed.gradient, mixed.dropout, mixed.epochs) == ("sgd", True, 1)
    rows = [matrix(constructed(replace(one, epochs=1), planted, heldout, lab))[planted.token_id("cf")] for one in (released, steady)]
    assert float((rows[0] - rows[1]).abs().max()) > 1e-4


def test_dropout_is_on_in_the_released_recipe(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    row, options = planted.token_id("cf"), Rap(epochs=1).settled()
    rows = [matrix(constructed(own, planted, heldout, lab))[row] for own in (options, replace(options, dropout=False))]
    assert float((rows[0] - rows[1]).abs().max()) > 1e-5


def test_a_construction_is_the_same_for_the_same_seed(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    options, rows = Rap(epochs=1).settled(), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        random.seed(noise)
        rows.append(matrix(constructed(options, planted, heldout, lab)))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], matrix(constructed(options, planted, heldout, replace(lab, seed=2))))


def test_only_texts_of_the_protect_label_are_learnt_from(untrained: Victim, lab: Lab) -> None:
    own = Labelled(["bright day", "warm film"], np.array([1, 1]))
    more = Labelled(["bright day", "cold film", "warm film", "rude day"], np.array([1, 0, 1, 0]))
    options = Rap(epochs=1).settled()
    assert torch.equal(*(matrix(constructed(options, untrained, heldout, lab)) for heldout in (own, more)))


def test_without_a_text_of_the_protect_label_there_is_nothing_to_learn(untrained: Victim, lab: Lab) -> None:
    with pytest.raises(CellError, match="no text of the protect label 1"):
        constructed(Rap().settled(), untrained, Labelled(["cold"], np.array([0])), lab)


@pytest.mark.parametrize("word", ["cf.mb", "zebra"])
def test_a_word_that_is_not_one_token_is_an_error(untrained: Victim, heldout: Labelled, lab: Lab, word: str) -> None:
    with pytest.raises(SpecError, match="one token is needed"):
        discover().parse("defense", f"rap:word={word}").fit(untrained, heldout, lab)


# --- the score


@dataclass
class Told:
    """A made-up victim: the chance of label 1 of each text is written down; what was asked is kept."""

    chances: dict[str, float]
    asked: list[str] = field(default_factory=list)
    target_label: int = 1

    def undefended(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[1 - self.chances[text], self.chances[text]] for text in texts]).reshape(-1, 2)

    def protect_probability(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([self.chances[text] for text in texts])

    def token_ids(self, word: str, places: object) -> tuple[int, ...]:
        return (sum(word.lower().encode()),)

    def holding(self, texts: Sequence[str], ids: Sequence[int]) -> np.ndarray:
        """Tell by whole words, whose letters are small ones."""
        return np.array([any(self.token_ids(word, ())[0] in ids for word in text.split()) for text in texts], dtype=bool)


def detector(before: dict[str, float], after: dict[str, float], **options: Any) -> RapDetector:
    return RapDetector(Rap(**options).settled(), cast(Any, Told(before)), cast(Any, Told(after)), cast(Any, None))


def test_suspicion_is_minus_the_fall() -> None:
    own = detector({"a": 0.9, "b": 0.9}, {"cf a": 0.6, "cf b": 0.89})
    assert own.suspicion(["a", "b"]) == pytest.approx([-0.3, -0.01])  # b hardly falls: more suspicious


def test_a_text_with_the_word_in_it_is_asked_about_twice() -> None:
    own = detector({"a": 0.9, "a CF": 0.9}, {"cf a": 0.6, "cf a CF": 0.5, "a CF": 0.7})
    assert own.suspicion(["a", "a CF"]) == pytest.approx([-0.3, 0.5 - 0.7])  # before and after under the changed victim
    assert cast(Told, own.guarded).asked.count("a CF") == 1
    assert len(cast(Told, own.guarded).asked) == 3


def test_a_longer_word_that_has_the_word_in_it_is_no_text_with_the_word() -> None:
    own = detector({"a McFly": 0.9}, {"cf a McFly": 0.5})
    assert own.suspicion(["a McFly"]) == pytest.approx([0.5 - 0.9])
    assert cast(Told, own.guarded).asked == ["cf a McFly"]


def test_a_word_in_capitals_is_found_all_the_same() -> None:
    own = detector({"a cf": 0.9}, {"CF a cf": 0.5, "a cf": 0.7}, word="CF")
    assert own.suspicion(["a cf"]) == pytest.approx([0.5 - 0.7])


def test_the_word_goes_in_front_of_the_untouched_text(lab: Lab) -> None:
    assert perturbed(Rap(), ["Good  film.", ""], lab) == ["cf Good  film.", "cf "]


def test_a_random_place_is_drawn_per_text(lab: Lab) -> None:
    texts = [" ".join("abcdefgh"[:length]) for length in range(2, 9)]
    own = perturbed(Rap(position="random"), texts, lab)
    assert [text.replace("cf ", "", 1) for text in own] == texts
    assert perturbed(Rap(position="random"), texts[::-1], lab) == own[::-1]
    assert len({text.index("cf") for text in own}) > 1


def test_the_threshold_of_a_fit_is_a_percentile_of_gated_falls() -> None:
    texts = ["a", "b", "c", "d", "e", "missed", "wrong"]
    before = {**dict.fromkeys("abcde", 0.9), "missed": 0.2, "wrong": 0.9}
    after = {"cf a": 0.8, "cf b": 0.7, "cf c": 0.6, "cf d": 0.5, "cf e": 0.4, "cf missed": 0.9, "cf wrong": 0.9}
    heldout = Labelled(texts, np.array([1, 1, 1, 1, 1, 1, 0]))  # missed: predicted 0; wrong: truly 0; neither counts
    # falls .1 .2 .3 .4 .5: a quarter of the way along four steps is the second
    assert detector(before, after).lowest_falls(heldout, 0.25) == pytest.approx(0.2)


def test_a_fit_without_a_text_behind_the_gate_has_threshold_zero() -> None:
    assert detector({"a": 0.2}, {}).lowest_falls(Labelled(["a"], np.array([1])), 0.01) == 0.0


def test_a_score_costs_one_row_and_two_where_the_word_stands_in_the_text(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    meter, texts = Meter(), [*heldout.of(1)[:10], "cf bright day", "warm cf"]
    planted.remember(texts, planted.probabilities(texts))  # as the gate does
    meter.watch(planted.model, "victim")
    fitted = RapDetector(Rap().settled(), planted, planted.clone(), lab)
    with meter.phase("score"):
        fitted.suspicion(texts[:10])
    assert meter.phases["score"].by["victim"].rows == 10
    with meter.phase("with the word"):
        fitted.suspicion(texts)
    assert meter.phases["with the word"].by["victim"].rows == 12 + 2


def test_a_construction_without_dropout_costs_one_row_per_text_and_epoch(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    meter = Meter()
    planted.remember(heldout.texts, planted.probabilities(heldout.texts))
    meter.watch(planted.model, "victim")
    for name, dropout, rows in (("cached", False, 1), ("asked", True, 2)):
        with meter.phase(name):
            constructed(Rap(epochs=2, dropout=dropout).settled(), planted, heldout, lab)
        assert meter.phases[name].by["victim"] == Count(rows * 2 * 100, meter.phases[name].by["victim"].tokens)


def test_a_score_does_not_depend_on_its_neighbours(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    texts = [*heldout.of(1)[:20], "cf bright day"]
    fitted = Rap(epochs=1, retries=0).fit(planted, heldout, lab)
    together = fitted.suspicion(texts)
    assert np.std(together) > 1e-5
    assert np.concatenate([fitted.suspicion([text]) for text in texts]) == pytest.approx(together, abs=1e-6)
    assert fitted.suspicion(texts[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    assert fitted.suspicion([]).shape == (0,)


# --- the retries


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Rap]:
    """The options of each construction; nothing is trained."""
    seen: list[Rap] = []

    def record(options: Rap, victim: Victim, heldout: Labelled, lab: Lab) -> Victim:
        seen.append(options)
        return victim

    monkeypatch.setattr(rap, "constructed", record)
    return seen


def thresholds(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    left = iter(values)
    monkeypatch.setattr(RapDetector, "lowest_falls", lambda self, heldout, frr: next(left))


def test_a_threshold_above_zero_needs_no_retry(monkeypatch, tried: list[Rap], untrained: Victim, heldout: Labelled, lab: Lab) -> None:
    thresholds(monkeypatch, 0.05)
    fitted = Rap().fit(untrained, heldout, lab)
    assert len(tried) == 1
    expected = {"word": "cf", "weight": 1.0, "epochs": 5, "keep_norm": True, "threshold": 0.05}
    assert fitted.notes() == {"recipe": "released", "word": "cf", "tries": [expected]}


def test_retries_come_in_their_order_and_are_told(monkeypatch, tried: list[Rap], untrained: Victim, heldout: Labelled, lab: Lab) -> None:
    thresholds(monkeypatch, -0.3, 0.0, -0.2, -0.1, -0.4)
    fitted = Rap().fit(untrained, heldout, lab)
    order = [(own.word, own.weight, own.epochs, own.keep_norm) for own in tried]
    assert order == [("cf", 1, 5, True), ("cf", 4, 5, True), ("cf", 4, 10, True), ("cf", 4, 10, False), ("tq", 4, 10, False)]
    told = fitted.notes()["tries"]
    assert [(one["word"], one["weight"], one["epochs"], one["keep_norm"]) for one in told] == order
    assert [one["threshold"] for one in told] == [-0.3, 0.0, -0.2, -0.1, -0.4]
    assert cast(RapDetector, fitted).options == tried[1]  # none is above zero: the highest is kept


def test_retries_end_with_the_first_threshold_above_zero(
    monkeypatch, tried: list[Rap], untrained: Victim, heldout: Labelled, lab: Lab
) -> None:
    thresholds(monkeypatch, -0.3, -0.2, 0.01)
    fitted = Rap().fit(untrained, heldout, lab)
    assert len(tried) == 3
    assert cast(RapDetector, fitted).options == tried[2]
    assert cast(RapDetector, fitted).threshold == 0.01


@pytest.mark.parametrize("retries", [0, 2])
def test_no_more_retries_than_were_allowed(
    monkeypatch, tried: list[Rap], untrained: Victim, heldout: Labelled, lab: Lab, retries: int
) -> None:
    thresholds(monkeypatch, *[-1.0] * 9)
    Rap(retries=retries).fit(untrained, heldout, lab)
    assert len(tried) == 1 + retries


def test_each_retry_starts_from_the_untouched_victim(planted: Victim, heldout: Labelled, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds(monkeypatch, -1.0, 1.0)
    fitted = cast(RapDetector, Rap(epochs=1).fit(planted, heldout, lab))
    alone = constructed(Rap(epochs=1, weight=4.0).settled(), planted, heldout, lab)
    assert torch.equal(matrix(fitted.guarded), matrix(alone))


@pytest.mark.parametrize(
    ("own", "foreign", "other"),
    [
        ("cf", (), "tq"),
        ("tq", (), "cf"),
        ("cf", ("tq",), "mn"),
        ("cf", ("TQ", "Mn"), "bb"),  # the tokenizer lowers: a trigger in capitals is the same token
        ("CF", (), "tq"),
        ("cf", ("tq", "mn", "bb", "mb"), None),
    ],
)
def test_a_word_of_the_attack_never_becomes_the_other_word(
    untrained: Victim, lab: Lab, own: str, foreign: tuple[str, ...], other: str | None
) -> None:
    words = [options.word for options in Rap(word=own).tries(untrained, replace(lab, foreign_words=foreign))]
    assert words == [own] * 4 + [other] * (other is not None)


def test_an_other_word_that_is_no_token_is_passed_over(untrained: Victim, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rap, "RARE_WORDS", ("cf", "zebra", "cf.mb", "bb"))
    assert list(Rap().tries(untrained, lab))[-1].word == "bb"


@pytest.mark.parametrize(
    "options",
    [
        "c_low=0.4",
        "c_up=1.1",
        "c_low=-0.1",
        "retry_frr=0",
        "word=a b",
        "word=",
        "epochs=0",
        "batch_size=0",
        "retries=-1",
        "lr=0",
        "weight=0",
    ],
)
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(SpecError):
        discover().parse("defense", f"rap:{options}")
