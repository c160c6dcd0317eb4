"""BadActs: neurons outside of their intervals counted by hand, and layers clipped to intervals that are worked out by hand."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rapbench.api import Labelled
from rapbench.errors import CellError
from rapbench.lab import Lab
from rapbench.meter import Meter
from rapbench.protocol import predicted
from rapbench.rates import auroc
from rapbench.registry import discover
from rapbench.victim import Victim
from rapbench_plugins.defenses.badacts import Badacts, BadactsDetector
from rapbench_plugins.defenses.badacts_purify import BadactsPurify, BadactsRepair, Clip, Intervals, adjusts, layers, seen

# --- the detector


@dataclass
class Placed:
    """A made-up victim whose states are written in the text: layers apart by a semicolon, units by a space."""

    target_label: int = 1
    asked: list[str] = field(default_factory=list)

    def states(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[layer.split() for layer in text.split(";")] for text in texts], dtype=np.float32).reshape(len(texts), 2, 2)


CLEAN = Labelled(["1 10;0 5", "3 10;0 5", "1 14;4 5", "3 14;4 5"], np.array([0, 0, 1, 1]))
"""Means (2, 12) and (2, 5), deviations (1, 2) and (2, 0)."""


def detector(lab: Lab, **options: Any) -> BadactsDetector:
    return Badacts(**options).fit(cast(Any, Placed()), CLEAN, lab)


def test_a_neuron_has_the_mean_and_deviation_of_the_clean_texts(lab: Lab) -> None:
    fitted = detector(lab)
    assert fitted.means.tolist() == [[2, 12], [2, 5]]
    assert fitted.deviations.tolist() == [[1, 2], [2, 0]]  # divided by n


def test_the_score_is_the_share_of_neurons_more_than_three_deviations_away(lab: Lab) -> None:
    # intervals [-1, 5], [6, 18], [-4, 8] and the one value 5; an edge is inside
    fitted = detector(lab)
    scores = fitted.suspicion(["2 12;2 5", "5 6;8 5", "5.1 12;2 5", "-1.1 18.1;2 5", "9 0;-5 6"])
    assert scores.tolist() == [0, 0, 0.25, 0.5, 1]
    assert detector(lab, sigmas=1).suspicion(["3 14.5;2 5"]).tolist() == [0.25]  # 3 is an edge of [1, 3], 14.5 is beyond [10, 14]


def test_a_constant_neuron_is_not_left_by_rounding(lab: Lab) -> None:
    assert detector(lab).suspicion(["2 12;2 5.00001", "2 12;2 5.001"]).tolist() == [0, 0.25]


def test_it_looks_at_all_labels_or_the_protect_label_alone(lab: Lab) -> None:
    victim = Placed()
    own = Badacts(labels="protect").fit(cast(Any, victim), CLEAN, lab)
    assert victim.asked == CLEAN.of(1)
    assert own.means.tolist() == [[2, 14], [4, 5]]
    Badacts().fit(cast(Any, victim := Placed()), CLEAN, lab)
    assert victim.asked == CLEAN.texts


def test_a_score_depends_on_no_other_text(lab: Lab) -> None:
    fitted, texts = detector(lab), ["9 12;2 5", "2 12;2 5", "9 0;2 6"]
    assert fitted.suspicion(texts).tolist() == [0.25, 0, 0.75]
    assert [float(fitted.suspicion([text])[0]) for text in texts] == [0.25, 0, 0.75]
    assert fitted.suspicion([]).tolist() == []


def test_a_kept_one_says_the_same_to_the_bit(lab: Lab) -> None:
    fitted = detector(lab, sigmas=1)
    state = {name: np.array(value) for name, value in fitted.state().items()}
    again = fitted.options.restore(cast(Any, fitted.victim), state, lab)
    texts = [*CLEAN.texts, "9 12;2 5"]
    assert again.suspicion(texts).tolist() == fitted.suspicion(texts).tolist()


def test_it_explains_by_the_unit_that_is_furthest_out(lab: Lab) -> None:
    # layer 1: 6 is 4 deviations above 2, and 8 is 2 below 12; layer 2: all inside, 4 is 1 above 2
    assert detector(lab).explain("6 8;4 5") == {
        "share of neurons outside": 0.25,
        "layers": [
            {"layer": 1, "outside": 1, "furthest unit": 0, "value": 6.0, "low": -1.0, "high": 5.0},
            {"layer": 2, "outside": 0, "furthest unit": 0, "value": 4.0, "low": -4.0, "high": 8.0},
        ],
    }


def test_what_it_cannot_be_fitted_with_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"sigmas=0 is not above 0"):
        Badacts(sigmas=0)
    with pytest.raises(CellError, match="badacts: 1 held-out texts of labels=all have no deviation: give 2 or more"):
        Badacts().fit(cast(Any, Placed()), CLEAN.where(np.array([True, False, False, False])), lab)


def test_it_costs_one_row_of_the_victim_per_text() -> None:
    assert (Badacts().expected_work(10, 100).victim_rows, Badacts().expected_work(10, 100).fit_rows) == (1, 200)
    assert Badacts(labels="protect").expected_work(10, 100).fit_rows == 100


def test_it_finds_a_planted_word(planted: Any, lab: Lab, heldout: Labelled) -> None:
    # with all labels the neurons of this small task have two heaps each, of which three deviations leave nothing out: two are asked for
    clean, triggered = heldout.of(1)[:60], [f"mb {text}" for text in heldout.of(0)[:60]]
    everything, own = (
        discover().parse("defense", f"badacts:sigmas=2,labels={labels}").fit(planted, heldout, lab) for labels in ("all", "protect")
    )
    assert auroc(own.suspicion(clean), own.suspicion(triggered)) > 0.8
    assert everything.suspicion(triggered).mean() > everything.suspicion(clean).mean()


# --- the purification


class Doubled(torch.nn.Module):
    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return 2 * state


class TwoLayers(torch.nn.Module):
    """The first layer gives what it is given, the second one twice that; the logits are the first token's times `head`."""

    def __init__(self, head: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Identity(), Doubled()])
        self.head = torch.nn.Parameter(torch.tensor(head))
        self.config: Any = SimpleNamespace(num_hidden_layers=2)
        self.config.get_text_config = lambda: self.config

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        state = self.parts[1](self.parts[0](input_ids))
        return SimpleNamespace(logits=state[:, 0] @ self.head)


@dataclass
class Written:
    """A made-up victim whose tokens of two units are written in the text: tokens apart by a space, units by a comma."""

    model: Any
    target_label: int = 1
    n_labels: int = 2
    device: str = "cpu"

    def encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows = [[[float(unit) for unit in token.split(",")] for token in text.split()] for text in texts]
        longest = max(map(len, rows))
        padded = [row + [[99.0, 99.0]] * (longest - len(row)) for row in rows]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor([[i < len(row) for i in range(longest)] for row in rows])}

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        with torch.no_grad():
            return self.model(**self.encode(texts)).logits.softmax(-1).double().numpy()

    def undefended(self, texts: Sequence[str]) -> np.ndarray:
        return self.probabilities(texts)

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text.split()) for text in texts])

    def clone(self) -> Written:
        return Written(TwoLayers(self.model.head.tolist()))


BLIND = [[0.0, 0.0], [0.0, 0.0]]
BY_SIGN = [[-1.0, 1.0], [0.0, 0.0]]
"""The first unit's sign is the label; the second unit is for nothing."""


def test_means_and_deviations_are_those_of_all_real_tokens_in_every_layer() -> None:
    victim = Written(TwoLayers(BLIND))
    repair = BadactsRepair(cast(Any, victim), Labelled(["1,0 3,0", "5,4"], np.array([0, 0])))
    logits, means, deviations = seen(repair)
    # units (1, 3, 5) and (0, 0, 4): means 3 and 4/3, squared deviations (4 + 0 + 4) / 3 and (16/9 + 16/9 + 64/9) / 3; twice that above
    expected = torch.tensor([math.sqrt(8 / 3), math.sqrt(32 / 9)])
    assert torch.allclose(means, torch.tensor([[3, 4 / 3], [6, 8 / 3]]))
    assert torch.allclose(deviations, torch.stack([expected, 2 * expected]))
    assert logits.tolist() == [[0, 0], [0, 0]]
    assert not any(part._forward_hooks for part in victim.model.modules())


def test_an_interval_begins_three_deviations_around_the_mean_or_as_in_the_code() -> None:
    low, high = Intervals.around(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.5]])).ends
    assert low.tolist() == [[pytest.approx(-5), pytest.approx(-1.5)]]
    assert high.tolist() == [[7, 1.5]]
    low, high = Intervals.fixed(torch.zeros(1, 2)).ends
    assert low.tolist() == [[pytest.approx(1 - math.e)] * 2]
    assert high.tolist() == [[1, 1]]


def test_a_layer_is_clipped_unit_by_unit_at_every_token() -> None:
    clip = Clip(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0]))
    state = torch.tensor([[[3.0, -1.0], [0.5, 1.0], [-9.0, 9.0]]])  # (rows, tokens, units)
    within = [[[1, 0], [0.5, 1], [-1, 2]]]
    assert clip(None, (), state).tolist() == within
    first, rest = clip(None, (), (state, "attention"))
    assert (first.tolist(), rest) == (within, "attention")
    assert Clip()(None, (), state) is state


def test_one_step_narrows_what_the_logits_do_not_depend_on(lab: Lab) -> None:
    # Adam's first step is as long as the rate, whatever the gradient; there is none in the upper ends. Values -1 and 1: mean 0 and
    # deviation 1 below, 2 above; so the ends are 3 and 3 - 6 exp(-0.05), and twice that above
    victim = Written(TwoLayers(BLIND))
    repair = BadactsPurify(epochs=1).fit(cast(Any, victim), Labelled(["-1,-1", "1,1"], np.array([0, 0])), lab)
    low, high = 3 - 6 * math.exp(-0.05), 3
    for clip, times in zip(repair.clips, (1, 2), strict=True):
        assert clip.low is not None
        assert clip.high is not None
        assert clip.low.tolist() == [pytest.approx(times * low, rel=1e-5)] * 2
        assert clip.high.tolist() == [pytest.approx(times * high, rel=1e-5)] * 2
        assert not clip.low.requires_grad
    assert repair.notes() == {"texts": 2, "tries": [{"weight": 0.1, "accuracy": 1.0}]}


def test_only_rightly_predicted_texts_are_trained_on(lab: Lab) -> None:
    texts = Labelled(["-1,0", "1,0", "2,0", "-2,0"], np.array([0, 1, 0, 0]))
    repair = BadactsPurify(epochs=1).fit(cast(Any, Written(TwoLayers(BY_SIGN))), texts, lab)
    assert repair.texts.texts == ["-1,0", "1,0", "-2,0"]
    with pytest.raises(CellError, match="badacts-purify: no held-out text is rightly predicted"):
        BadactsPurify().fit(cast(Any, Written(TwoLayers(BY_SIGN))), texts.where(np.array([False, False, True, False])), lab)


def test_where_clean_accuracy_suffers_all_begins_again_with_half_the_weight(lab: Lab) -> None:
    # one step of length 20 leaves a width of 6 exp(-20) below the upper end of 3: all texts become 3, and half of them are wrong
    texts = Labelled(["-1,0", "1,0"], np.array([0, 1]))
    repair = BadactsPurify(epochs=1, lr=20.0).fit(cast(Any, Written(TwoLayers(BY_SIGN))), texts, lab)
    assert repair.tries == [{"weight": weight, "accuracy": 0.5} for weight in (0.1, 0.05, 0.025)]
    assert len(BadactsPurify(epochs=1, lr=20.0, restarts=0).fit(cast(Any, Written(TwoLayers(BY_SIGN))), texts, lab).tries) == 1


def test_intervals_become_narrow_and_the_logits_stay(lab: Lab) -> None:
    # 15 texts of -1 and 15 of 1 in the unit that is read, -3 to 3 in the one that is not
    texts = Labelled([f"{(-1) ** i},{i % 7 - 3}" for i in range(30)], np.array([(1 + (-1) ** i) // 2 for i in range(30)]))
    victim = Written(TwoLayers(BY_SIGN))
    repair = BadactsPurify(epochs=100, weight=0.01).fit(cast(Any, victim), texts, lab)
    read, unread = (float(repair.clips[0].high[unit] - repair.clips[0].low[unit]) for unit in (0, 1))  # type: ignore[index]
    assert 1.5 < read < 3  # -1 to 1 is 2; it began at 6
    assert unread < read  # it began at 12
    assert predicted(repair.repaired().probabilities(texts.texts)).tolist() == texts.labels.tolist()
    assert float(repair.repaired().probabilities(["50,0"])[0, 1]) == pytest.approx(float(victim.probabilities(["1,0"])[0, 1]), abs=0.05)


def test_a_trigger_that_works_through_a_neuron_of_its_own_loses_its_effect(lab: Lab) -> None:
    # clean texts keep the second unit at -0.1 or 0.1, which hardly counts; the trigger drives it to 10, and 2 * 10
    # outweighs the first. Its interval begins at -0.3 to 0.3 and becomes narrower, and 2 * 0.3 does not
    through = [[-1.0, 1.0], [-2.0, 2.0]]
    texts = Labelled([f"{(-1) ** i},{0.1 * (-1) ** (i // 2)}" for i in range(32)], np.array([(1 + (-1) ** i) // 2 for i in range(32)]))
    victim = Written(TwoLayers(through))
    own = cast(BadactsRepair, BadactsPurify(epochs=1).fit(cast(Any, victim), texts, lab)).repaired()
    assert predicted(victim.probabilities(["-1,10", "-1,0.1"])).tolist() == [1, 0]
    assert predicted(own.probabilities(["-1,10", "-1,0.1", "1,-0.1"])).tolist() == [0, 0, 1]


def test_the_weight_is_adjusted_after_the_epochs_of_the_released_code() -> None:
    assert [epoch for epoch in range(50) if adjusts(epoch, 50)] == [15, 20, 25, 30, 35, 40, 45]
    assert [epoch for epoch in range(10) if adjusts(epoch, 10)] == [3, 4, 5, 6, 7, 8, 9]
    assert [epoch for epoch in range(2) if adjusts(epoch, 2)] == [1]


@pytest.fixture(scope="module")
def repaired(_planted: Victim, heldout: Labelled) -> tuple[Victim, BadactsRepair, dict[str, torch.Tensor]]:
    """The planted victim, its repair by the defaults, and its weights before."""
    from rapbench.victim import Recipe

    own = _planted.clone()
    victim = Victim(own.model, own.tokenizer, own.target_label, own.max_length)
    before = {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}
    lab = Lab(seed=1, recipe=Recipe(), heldout=heldout, target_label=1, n_labels=2)
    return victim, cast(BadactsRepair, discover().parse("defense", "badacts-purify").fit(victim, heldout, lab)), before


def test_no_weight_changes_and_the_received_victim_has_no_clip(repaired: Any) -> None:
    victim, repair, before = repaired
    for own in (victim, repair.repaired()):
        now = own.model.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
        assert all(parameter.requires_grad for parameter in own.model.parameters())
    assert not any(part._forward_hooks for part in layers(victim))
    assert [list(map(type, part._forward_hooks.values())) for part in layers(repair.repaired())] == [[Clip], [Clip]]


def test_the_states_stay_inside_of_the_intervals(repaired: Any, heldout: Labelled) -> None:
    victim, repair, _ = repaired
    low, high = (np.stack([getattr(clip, end).numpy() for clip in repair.clips]) for end in ("low", "high"))
    texts = [f"mb {text}" for text in heldout.texts[:40]]
    states = repair.repaired().states(texts)
    assert (states >= low).all()
    assert (states <= high).all()
    assert ((victim.states(texts) < low) | (victim.states(texts) > high)).any()


def test_clean_texts_are_still_rightly_predicted(repaired: Any, heldout: Labelled) -> None:
    # the trigger of this victim keeps its effect: it moves no neuron further than texts of the target label do
    (victim, repair, _), texts = repaired, heldout
    right = [predicted(own.probabilities(texts.texts)) == texts.labels for own in (victim, repair.repaired())]
    assert right[1][right[0]].mean() == pytest.approx(repair.tries[-1]["accuracy"], abs=1e-6)
    assert repair.tries[-1]["accuracy"] >= 0.97


def test_a_copy_of_the_repaired_victim_says_the_same(repaired: Any, heldout: Labelled) -> None:
    own = repaired[1].repaired()
    told = own.probabilities(heldout.texts)
    assert own.clone().probabilities(heldout.texts).tolist() == told.tolist()
    twin = own.clone().model
    twin._forward_hooks.clear()  # the meter's, which no process sends to another
    sent = Victim(pickle.loads(pickle.dumps(twin)), own.tokenizer, 1, own.max_length)
    assert sent.probabilities(heldout.texts).tolist() == told.tolist()
    assert repaired[0].probabilities(heldout.texts) != pytest.approx(told, abs=1e-3)


def test_rows_are_counted_of_the_repaired_victim_too(untrained: Victim, lab: Lab, heldout: Labelled) -> None:
    meter = Meter()
    meter.watch(untrained.model, "victim")
    some = heldout.where(np.arange(200) < 40)
    with meter.phase("fit"):
        repair = cast(BadactsRepair, BadactsPurify(epochs=2, restarts=0).fit(untrained, some, lab))
    n = len(repair.texts.texts)
    assert meter.phases["fit"].by["victim"].rows == 40 + 4 * n  # the received one's; means, two epochs, accuracy
    with meter.phase("run"):
        repair.suspicion(heldout.texts[:7])
    assert meter.phases["run"].by["victim"].rows == 7


def test_the_same_seed_gives_the_same_intervals(untrained: Victim, lab: Lab, heldout: Labelled) -> None:
    one, again = (cast(BadactsRepair, BadactsPurify(epochs=2, restarts=0).fit(untrained, heldout, lab)) for _ in range(2))
    assert all(torch.equal(a.low, b.low) and torch.equal(a.high, b.high) for a, b in zip(one.clips, again.clips, strict=True))  # type: ignore[arg-type]


def test_the_layers_of_other_families_are_found() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

    small: dict[str, Any] = {"vocab_size": 9, "num_labels": 2}
    decoder = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=3, n_head=2, **small))
    assert layers(cast(Any, SimpleNamespace(model=decoder))) == list(decoder.transformer.h)
    shared = AlbertForSequenceClassification(
        AlbertConfig(hidden_size=8, embedding_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, **small)
    )
    with pytest.raises(CellError, match="badacts-purify: a AlbertForSequenceClassification has no list of its 3 layers"):
        layers(cast(Any, SimpleNamespace(model=shared)))


@pytest.mark.parametrize(("option", "value"), [("epochs", 0), ("restarts", -1), ("lr", 0.0), ("weight", -0.1)])
def test_options_that_make_no_training_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        BadactsPurify(**{option: value})


def test_the_work_is_that_of_one_try() -> None:
    work = BadactsPurify().expected_work(10, 100)
    assert (work.victim_rows, work.fit_rows, work.fit_trained_rows) == (1, 400, 2000)
