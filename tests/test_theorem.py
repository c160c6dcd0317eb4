"""Theorem 1 of RAP: its arithmetic by hand, the gradient against finite differences, and what a check leaves behind."""

from __future__ import annotations

import dataclasses
import json
import random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapbench import theorem
from rapbench.checks import Theorem
from rapbench.errors import CellError, SpecError
from rapbench.poison import insert_word
from rapbench.report.theorem import summary, tables
from rapbench.theorem import Probe, Push, Sample, bounds, check, judged


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def sample(**changed: Any) -> Sample:
    """Give sigma_1 = 0.9, sigma_2 = 0.1, a = 0.95 - 0.25 = 0.7, b = 0.5 * 0.4 / 0.2 = 1."""
    pushes = [Push(0.05, array(0.04, 0.2), array(0.0, 0.0)), Push(0.1, array(0.25, 0.3), array(0.02, 0.22))]
    first = Sample(array(0.9, 0.99), array(0.02, 0.1), array(0.8, 0.95), array(0.2, 0.1), pushes)
    return dataclasses.replace(first, **changed)


# --- the arithmetic


def test_the_symbols_are_those_worked_by_hand() -> None:
    got = bounds(sample(), 0, [])
    assert (got.sigma_1, got.sigma_2, got.gradient) == (0.9, 0.1, 0.2)
    assert got.a == pytest.approx(0.7)
    assert got.b == pytest.approx(1.0)
    assert (got.condition_1, got.condition_2, got.a_in_range) == (True, True, True)


def test_the_inequality_is_that_worked_by_hand() -> None:
    low, middle, high = bounds(sample(), 0, [0.04, 0.2, 0.3]).inequalities
    # 0.04 is reached at radius 0.05: 2 * 0.7 * 0.05 / 1 = 0.07, not below 0.04
    assert (low.sigma, low.left, low.holds) == (0.05, pytest.approx(0.07), False)
    # 0.2 at radius 0.1: 0.14 < 0.2; both clean texts fall by 0.2 or more, one of the two triggered ones by less
    assert (middle.sigma, middle.left, middle.holds) == (0.1, pytest.approx(0.14), True)
    assert (middle.protect_share, middle.triggered_share, middle.concludes) == (1.0, 0.5, False)
    # no radius takes 0.3 from both texts
    assert dataclasses.astuple(high) == (0.3, None, None, None, None, None, None)


def test_the_conclusion_may_hold_where_the_inequality_does_not() -> None:
    (side,) = bounds(sample(), 0, [0.04]).inequalities
    assert side.holds is False
    assert side.concludes is True  # at 0.05 no triggered text falls at all


def test_trimming_replaces_the_extremes_by_quantiles() -> None:
    # of 21 texts the 5 %-quantile is the second lowest, the 95 % one the second highest
    twenty = np.linspace(0.8, 0.9, 20)
    odd = sample(
        p_protect=np.append(twenty, 0.3),
        p_other=np.append(1 - twenty, 0.7),
        p_triggered=np.append(np.full(20, 0.9), 0.4),
        gradient_norms=np.append(np.linspace(0.1, 0.3, 20), 9.0),
        pushes=[Push(0.05, np.append(np.full(20, 0.3), -0.1), np.append(np.zeros(20), 0.5))],
    )
    stated, trimmed = bounds(odd, 0, [0.2]), bounds(odd, 0.05, [0.2])
    assert (stated.condition_1, stated.condition_2, stated.inequalities[0].sigma) == (False, False, None)
    assert (trimmed.condition_1, trimmed.condition_2) == (True, True)
    assert (trimmed.sigma_1, trimmed.sigma_2, trimmed.gradient) == (pytest.approx(0.8), pytest.approx(0.2), pytest.approx(0.3))
    assert (trimmed.a, trimmed.b) == (pytest.approx(0.65), pytest.approx(0.5))  # b: 0.5 * 0.3 / 0.3
    (side,) = trimmed.inequalities
    assert (side.left, side.holds, side.concludes) == (pytest.approx(0.13), True, True)  # 2 * 0.65 * 0.05 / 0.5
    assert (side.protect_share, side.triggered_share) == (pytest.approx(20 / 21), pytest.approx(20 / 21))


@pytest.mark.parametrize("p_other", [0.5, 0.8])
def test_where_another_text_is_taken_for_the_protect_label_nothing_can_be_tested(p_other: float) -> None:
    got = bounds(sample(p_other=array(0.1, p_other)), 0, [0.2])
    assert (got.condition_1, got.b) == (False, None)
    assert (got.inequalities[0].sigma, got.inequalities[0].left, got.inequalities[0].holds) == (0.1, None, None)


def test_a_doubtful_protect_text_fails_condition_1_and_leaves_b() -> None:
    got = bounds(sample(p_protect=array(0.5, 0.9)), 0, [])
    assert (got.condition_1, got.b) == (False, pytest.approx(1.0))


def test_a_trigger_that_fails_once_fails_condition_2() -> None:
    assert not bounds(sample(p_triggered=array(0.5, 0.9)), 0, []).condition_2


@pytest.mark.parametrize(("p", "inside"), [(0.5, False), (0.51, True), (0.99, True), (1.0, False)])
def test_a_lies_strictly_between_a_quarter_and_three_quarters(p: float, inside: bool) -> None:
    assert bounds(sample(p_triggered=array(p)), 0, []).a_in_range is inside


def test_without_any_gradient_b_does_not_exist() -> None:
    assert bounds(sample(gradient_norms=array(0.0)), 0, []).b is None


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.01, 0.05]),
)
def test_a_larger_delta_never_needs_a_smaller_perturbation(falls: list[list[float]], q: float) -> None:
    pushes = [Push(0.1 * (number + 1), array(*own), array(0.0)) for number, own in enumerate(falls)]
    sigmas = [side.sigma for side in bounds(sample(pushes=pushes), q, [0.05, 0.1, 0.2, 0.3]).inequalities]
    ordered = [float("inf") if sigma is None else sigma for sigma in sigmas]
    assert ordered == sorted(ordered)


# --- the gradient and the change


def finite_differences(victim: Any, ids: torch.Tensor) -> torch.Tensor:
    """Give the gradient of p of one text, ids (1, tokens), by central differences over its embeddings, (tokens * hidden,)."""
    inputs = victim.model.get_input_embeddings()(ids).detach()[0]  # (tokens, hidden)
    size = 1e-5
    steps = size * torch.eye(inputs.numel(), dtype=inputs.dtype).reshape(-1, *inputs.shape)  # (tokens * hidden, tokens, hidden)
    with torch.no_grad():
        sides = [victim.model(inputs_embeds=inputs + sign * steps).logits.softmax(-1)[:, victim.target_label] for sign in (1, -1)]
    return (sides[0] - sides[1]) / (2 * size)


def test_the_gradient_norm_is_that_of_finite_differences(untrained: Any) -> None:
    untrained.model.double().eval()
    texts = ["bright book", "a dull day . so cold"]  # of two lengths, so that one is padded
    by_hand = [finite_differences(untrained, untrained.encode([f"cf {text}"])["input_ids"]).norm() for text in texts]
    with Probe(untrained, "cf") as probe:
        assert probe.gradient_norms(texts) == pytest.approx([float(norm) for norm in by_hand], rel=1e-5)


class Linear(torch.nn.Module):
    """Two logits, 0 and the sum over all tokens of weight . embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(4, 2)
        self.words.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.4]))

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.words

    def forward(self, input_ids: torch.Tensor) -> Any:
        score = (self.words(input_ids) @ self.weight).sum(1)  # (texts,)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(score), score], dim=1))


class Toy:
    """A victim over the words 0-3."""

    target_label = 1

    def __init__(self) -> None:
        self.model = Linear()

    def token_id(self, word: str) -> int:
        return int(word)

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[int(word) for word in text.split()] for text in texts])}


def test_the_gradient_norm_of_a_linear_victim_is_worked_by_hand() -> None:
    # the text "0 0 0" with 0 in front: four tokens, score 0, p = 1/2; dp/d(each token) = p (1 - p) * (0.3, 0.4), of norm 0.25 * 0.5;
    # over four tokens sqrt(4) times as much: 0.25
    with Probe(cast(Any, Toy()), "0") as probe:
        assert probe.gradient_norms(["0 0 0"]) == pytest.approx([0.25])


def test_only_the_inserted_word_is_changed() -> None:
    # "3 0" and "3 3" with 3 in front; the change (1, 0) adds 0.3 to the log-odds, once, though 3 stands there three times:
    # before 0.7 + 0.7 and 0.7 + 0.7 + 0.7
    with Probe(cast(Any, Toy()), "3") as probe, torch.no_grad():
        odds = probe.log_odds(["3 0", "3 3"], torch.tensor([1.0, 0.0]))
    assert odds.tolist() == pytest.approx([1.7, 2.4])


def test_the_search_finds_the_best_change_of_a_linear_victim() -> None:
    # within radius 0.2 it is -0.2 * (0.6, 0.8)
    toy = cast(Any, Toy())
    with Probe(toy, "1") as probe:
        texts = ["1 1", "2 2", "3 3"]
        search = theorem.Search(probe, texts, probe.p(texts), 20, np.random.default_rng(0))
        assert search.change(torch.zeros(2), 0.2).tolist() == pytest.approx([-0.12, -0.16], abs=1e-6)


def test_certainty_beyond_float32_is_not_rounded_to_one() -> None:
    # the score of fifty words 3 is 50 * 0.7 = 35, and 1 - p about e^-35: float32 would say 1 from 17 on
    with Probe(cast(Any, Toy()), "0") as probe:
        assert probe.p([" ".join("3" * 50)])[0] < 1


# --- a check


@pytest.fixture
def texts(tiny_text: Any, lab: Any) -> tuple[list[str], list[str], list[str]]:
    source = random.Random(31)
    protect, other = ([tiny_text(source, label) for _ in range(12)] for label in (1, 0))
    return protect, other, [insert_word(text, "mb", lab.rng(text)) for text in other]


def checked(victim: Any, texts: tuple[list[str], list[str], list[str]], **options: Any) -> Theorem:
    return check(victim, *texts, word="cf", rng=np.random.default_rng(3), **{"steps": 4, **options})


def test_a_check_leaves_the_victim_as_it_was(planted: Any, texts: Any) -> None:
    planted.model.train()
    before = {name: tensor.clone() for name, tensor in planted.model.state_dict().items()}
    required = [parameter.requires_grad for parameter in planted.model.parameters()]
    checked(planted, texts)
    assert all(torch.equal(before[name], tensor) for name, tensor in planted.model.state_dict().items())
    assert [parameter.requires_grad for parameter in planted.model.parameters()] == required
    assert all(parameter.grad is None for parameter in planted.model.parameters())
    assert planted.model.training
    assert not planted.model.get_input_embeddings()._forward_hooks


def test_the_order_of_the_texts_does_not_matter(planted: Any, texts: Any) -> None:
    assert checked(planted, tuple(own[::-1] for own in texts)) == checked(planted, texts)


def test_a_check_reports_every_quantity_with_its_texts(planted: Any, texts: Any) -> None:
    got = checked(planted, texts, deltas=(0.1,), trims=(0.0, 0.05))
    assert [one.q for verdict in got.verdicts for one in verdict.bounds] == [0.0, 0.05] * len(got.verdicts)
    assert {one.n for one in got.distributions} == {12}
    assert len(got.distributions) == 4 + 2 * len(theorem.RADII)
    named = {one.name: dict(one.quantiles) for one in got.distributions}
    with Probe(planted, "cf") as probe:
        assert named["p, protect label"][0] == pytest.approx(probe.p(texts[0]).min(), abs=1e-6)
        assert named["gradient norm, other labels"][100] == pytest.approx(probe.gradient_norms(texts[1]).max(), rel=1e-3)
    for one in got.distributions:
        values = [value for _, value in one.quantiles]
        assert values == sorted(values)


def test_p_is_the_victims_own_probability(planted: Any, texts: Any) -> None:
    with Probe(planted, "cf") as probe:
        assert probe.p(texts[0]) == pytest.approx(planted.protect_probability([f"cf {text}" for text in texts[0]]), abs=1e-5)


def test_the_search_takes_more_from_the_least_falling_text_than_random_changes_do(planted: Any, texts: Any) -> None:
    protect = texts[0]
    with Probe(planted, "cf") as probe:
        p, radius = probe.p(protect), 4 * float(probe.row.norm())
        found = theorem.Search(probe, protect, p, 20, np.random.default_rng(0)).change(torch.zeros_like(probe.row), radius)
        random_ones = torch.randn(50, len(probe.row), generator=torch.Generator().manual_seed(0))
        others = [(p - probe.p(protect, radius * one / one.norm())).min() for one in random_ones]
        assert float(found.norm()) <= radius * (1 + 1e-5)
        assert (p - probe.p(protect, found)).min() > max(others)


def test_a_result_is_json_without_nan(planted: Any, texts: Any) -> None:
    got = checked(planted, texts, deltas=(0.1, 2.0))  # no p can fall by 2
    assert json.loads(json.dumps(dataclasses.asdict(got), allow_nan=False))["word"] == "cf"
    assert got.verdicts[0].bounds[0].inequalities[1].sigma is None


@pytest.mark.parametrize(("missing", "kind"), list(enumerate(["protect-label", "other-label", "triggered"])))
def test_a_kind_without_texts_is_refused(untrained: Any, missing: int, kind: str) -> None:
    texts = [["a film"], ["a book"], ["a day"]]
    texts[missing] = []
    with pytest.raises(CellError, match=f"there is no {kind} text"):
        check(untrained, *texts, word="cf", rng=np.random.default_rng(0))


def test_a_word_of_several_tokens_is_refused(untrained: Any) -> None:
    with pytest.raises(SpecError, match="one token is needed"):
        check(untrained, ["a film"], ["a book"], ["a day"], word="nowhere", rng=np.random.default_rng(0))


# --- the report


def made(one: Sample, q: float = 0.0) -> Theorem:
    return judged(one, "cf", 1.0, [0.04, 0.2], [q])


def said(one: Sample, q: float = 0.0) -> str:
    return summary(made(one, q).verdicts[0])


def test_the_summary_says_what_holds_and_what_fails() -> None:
    head = "Theorem 1 on all texts (2 of the protect label, 2 of others, 2 triggered): "
    assert said(sample()) == head + "at q = 0 (as stated) the conditions hold, and the inequality holds for delta = 0.2."
    assert said(sample(p_other=array(0.8, 0.8)), 0.05) == (
        f"{head}at q = 5 % condition (1) (sigma_1 = 0.9045, sigma_2 = 0.8) fails, "  # 0.9 + 0.05 * 0.09
        "and the inequality cannot be tested: b is not positive."
    )


def test_the_summary_names_the_delta_that_is_nearest() -> None:
    # five times the gradient: b = 0.2, left sides 0.35 and 0.7: 8.75 times 0.04, 3.5 times 0.2
    assert "holds for no delta (nearest: 0.7 for delta = 0.2)" in said(sample(gradient_norms=array(1.0, 1.0)))


def test_the_summary_says_where_nothing_was_reached() -> None:
    assert "no perturbation tried reaches any delta" in said(sample(pushes=[]))


def test_the_tables_have_a_row_for_each_population_and_quantity() -> None:
    text = tables(made(sample()))
    assert text.count("| 0.14 ") == 2  # the left side for delta = 0.2, on all texts and on those judged rightly, which are all
    for one in theorem.distributions(sample()):
        assert f"| {one.name} " in text
    assert "| 50 % " in text


# --- the texts judged rightly


def test_texts_judged_wrongly_are_left_out_of_the_second_verdict() -> None:
    # a third text of each kind on the wrong side of 1/2, with a gradient and a fall that would decide every inf and sup
    pushes = [Push(0.1, array(0.25, 0.3, -0.4), array(0.02, 0.1, 0.9))]
    odd = sample(
        p_protect=array(0.9, 0.99, 0.3),
        p_other=array(0.02, 0.1, 0.7),
        p_triggered=array(0.8, 0.95, 0.4),
        gradient_norms=array(0.2, 0.1, 9.0),
        pushes=pushes,
    )
    everything, rightly = made(odd).verdicts
    assert (everything.counts, rightly.counts) == ((3, 3, 3), (2, 2, 2))
    assert (everything.bounds[0].condition_1, everything.bounds[0].b) == (False, None)
    (one,) = rightly.bounds
    assert (one.sigma_1, one.sigma_2, one.gradient, one.b) == (0.9, 0.1, 0.2, pytest.approx(1.0))
    assert (one.condition_1, one.condition_2) == (True, True)
    assert (one.inequalities[1].left, one.inequalities[1].holds, one.inequalities[1].concludes) == (pytest.approx(0.14), True, True)


@pytest.mark.parametrize("kind", ["p_protect", "p_other", "p_triggered"])
def test_without_a_text_judged_rightly_there_is_no_second_verdict(kind: str) -> None:
    wrong = array(0.9, 0.9) if kind == "p_other" else array(0.1, 0.1)
    assert [verdict.population for verdict in made(sample(**{kind: wrong})).verdicts] == ["all texts"]


def test_the_search_looks_at_the_clean_texts_judged_rightly_alone() -> None:
    # with 0 in front the score of "1 1" is 0.6 and of "9 9", were it -1 each, negative: here row 0 turned to (-1, -1)
    toy = Toy()
    toy.model.words.weight.data[0] = torch.tensor([-1.0, -1.0])
    seen: list[list[str]] = []

    class Spied(theorem.Search):
        def change(self, start: torch.Tensor, radius: float) -> torch.Tensor:
            seen.append(self.texts)
            return start

    with Probe(cast(Any, toy), "1") as probe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(theorem, "Search", Spied)
        theorem.measured(probe, ["3 3", "0 0"], ["0"], ["3"], 2, np.random.default_rng(0))
    assert seen == [["3 3"]] * len(theorem.RADII)
