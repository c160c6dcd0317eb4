"""Repairs of the model: fine-tuning as the options say, and fine-pruning, whose idle units are found, cut by the rule, and stay cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from test_families import TEXTS, made
from transformers.pytorch_utils import Conv1D

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab
from rapbench.registry import discover
from rapbench.standin import StandIn
from rapbench.victim import Recipe, Victim
from rapbench_plugins.defenses.fine_prune import FinePrune, Layer, activity, feed_forward_outputs, kept_cut, ranked
from rapbench_plugins.defenses.finetune import Finetune

SIX = Labelled(TEXTS, np.array([1, 0, 0, 1, 1, 0]))


@dataclass
class Watched(Lab):
    """A lab that trains nothing, and keeps what it was asked for."""

    asked: list[tuple[Lab, datasets.Dataset, Victim]] = field(default_factory=list)

    def train(self, rows: datasets.Dataset, start: Victim | None = None) -> Victim:
        assert start is not None
        self.asked.append((self, rows, start))
        self.log.append({"epochs": [0.5], "kept": 1})
        return start


def watched(lab: Lab, **recipe: Any) -> Watched:
    return Watched(**{**vars(lab), "recipe": Recipe(**recipe)})


def weights(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}


# --- fine-tuning


def test_the_defender_trains_on_all_and_only_the_texts_that_he_was_given(untrained: Victim, lab: Lab) -> None:
    bench = watched(lab)
    fitted = Finetune().fit(untrained, SIX, bench)
    [(own, rows, start)] = bench.asked
    assert (rows["text"], rows["label"]) == (TEXTS, [1, 0, 0, 1, 1, 0])
    assert own.heldout is SIX  # the lab's are 200 others
    assert start is fitted.repaired()
    assert start is not untrained


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (3, 0.5, 7)), ({"epochs": 9, "lr": 0.25}, (9, 0.25, 7)), ({"batch_size": 2}, (3, 0.5, 2))],
)
def test_what_no_option_says_is_as_in_the_victims_recipe(untrained: Victim, lab: Lab, options: dict[str, Any], expected: Any) -> None:
    bench = watched(lab, lr=0.5, batch_size=7, epochs=4, adam_eps=0.125, precision="bf16", select="best")
    fitted = Finetune(**options).fit(untrained, SIX, bench)
    recipe = bench.asked[0][0].recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == expected
    assert (recipe.adam_eps, recipe.precision) == (0.125, "bf16")
    assert recipe.select == "last"  # the best epoch by the texts that it was trained on is no choice
    told = fitted.notes()
    assert (told["epochs"], told["lr"], told["batch_size"], told["texts"]) == (*expected, 6)
    assert told["metric_after_each_epoch"] == [0.5]


def test_the_labs_own_log_is_left_to_the_attacker(untrained: Victim, lab: Lab) -> None:
    bench = watched(lab)
    bench.log.append({"epochs": [0.25], "kept": 1})
    assert Finetune().fit(untrained, SIX, bench).notes()["metric_after_each_epoch"] == [0.5]
    assert bench.log == [{"epochs": [0.25], "kept": 1}]


def test_fine_tuning_changes_the_answers_of_the_repaired_victim_alone(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    before, swapped = weights(planted), Labelled(heldout.texts, 1 - heldout.labels)
    lab.recipe = Recipe(lr=1e-3, batch_size=16, max_length=32)
    fitted = discover().parse("defense", "finetune:epochs=10").fit(planted, swapped, lab)
    assert isinstance(fitted, StandIn)
    told = fitted.repaired().probabilities(heldout.texts).argmax(1)
    assert (told == swapped.labels).mean() > 0.8  # it was taught the contrary
    assert (planted.probabilities(heldout.texts).argmax(1) == heldout.labels).mean() > 0.8
    assert all(torch.equal(tensor, before[name]) for name, tensor in planted.model.state_dict().items())


def test_a_training_costs_four_predictions_per_text_and_epoch() -> None:
    # 100 held-out texts of the protect label, so 200: 2 epochs * 200 * (3 for the training + 1 for the metric after it) = 1600
    work = Finetune(epochs=2).expected_work(10, 100)
    assert work.fit_rows + 2 * work.fit_trained_rows == 1600
    # looked at once, cut by 2 ratios, then trained for 1 epoch: 200 * (1 + 2 + 4) = 1400
    work = FinePrune(ratios=(0.1, 0.2), epochs=1).expected_work(10, 100)
    assert work.fit_rows + 2 * work.fit_trained_rows == 1400


# --- fine-pruning: which units are idle


class Told(torch.nn.Module):
    """One product of three units, in a layer."""

    def __init__(self, product: torch.nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=2)
        self.config.get_text_config = lambda: self.config
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"down": product})])
        self.base_model = self


@dataclass
class Written:
    """A victim whose units' values are written in the text: tokens apart by a semicolon. Shorter texts are padded by tokens of nines."""

    model: Told

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([text.count(";") + 1 for text in texts])

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        rows = [[token.split() for token in text.split(";")] for text in texts]
        longest = max(map(len, rows))
        values = np.array([row + [["9", "9", "9"]] * (longest - len(row)) for row in rows], dtype=np.float32)
        with torch.no_grad():
            self.model.layers[0]["down"](torch.from_numpy(values))
        return np.zeros((len(texts), 2))


def written(product: torch.nn.Module | None = None) -> Written:
    return Written(Told(product or torch.nn.Linear(3, 2)))


def test_a_unit_is_as_active_as_its_values_are_far_from_zero_over_all_tokens_but_the_paddings() -> None:
    victim, texts = written(), ["1 -4 0", "2 0 0;0 -1 0.5", "0 -1 0"]
    # unit 0: 1 + 2 = 3; unit 1: 4 + 1 + 1 = 6, though its mean is the lowest; unit 2: 0.5; nines would make unit 2 the first
    [found] = activity(cast(Any, victim), [victim.model.layers[0]["down"]], texts)
    assert found.tolist() == [3, 6, 0.5]
    [layer] = ranked(cast(Any, victim), texts, "all")
    assert (layer.name, layer.order.tolist()) == ("layers.0.down", [2, 0, 1])
    assert not victim.model.layers[0]["down"]._forward_pre_hooks


@pytest.mark.parametrize("columns", [True, False])
def test_cutting_zeroes_what_the_least_active_units_give_on_and_can_be_taken_back(columns: bool) -> None:
    product: Any = torch.nn.Linear(3, 2) if columns else Conv1D(2, 3)
    by_unit = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])  # (units, hidden)
    product.weight.data.copy_(by_unit.T if columns else by_unit)
    [layer] = ranked(cast(Any, written(product)), ["1 4 0"], "all")  # least active: 2, then 0
    seen = {}
    for ratio in (0.34, 0.67, 0.34, 0.0):  # of 3 units 1.02, 2.01, 1.02, 0
        layer.cut_to(ratio)
        seen[ratio] = (product.weight.T if columns else product.weight).tolist()
    assert seen == {0.34: [[1, 2], [3, 4], [0, 0]], 0.67: [[0, 0], [3, 4], [0, 0]], 0.0: by_unit.tolist()}


@pytest.mark.parametrize(("name", "last"), [("electra", "encoder.layer.1.output.dense"), ("distilbert", "transformer.layer.1.ffn.lin2")])
def test_feed_forward_units_are_told_from_narrow_embeddings_and_attention(last: str, victim: Victim) -> None:
    assert list(feed_forward_outputs(victim.model)) == [last.replace("1", "0", 1), last]
    assert [layer.name for layer in ranked(victim, TEXTS, "last")] == [last]


def test_heads_wider_than_the_model_are_no_feed_forward_units() -> None:
    model = Told(torch.nn.Linear(3, 2))
    model.layers[0]["self_attn"] = torch.nn.ModuleDict({"o_proj": torch.nn.Linear(4, 2)})
    assert list(feed_forward_outputs(cast(Any, model))) == ["layers.0.down"]


def test_a_model_without_such_a_layer_is_refused() -> None:
    with pytest.raises(CellError, match="a Told has no layer that leads from its feed-forward units"):
        ranked(cast(Any, written(torch.nn.Linear(2, 2))), ["1 1"], "all")


# --- fine-pruning: how many are cut


@dataclass
class Falling:
    """A victim of 25 texts, all of label 1, that errs on as many as `errors` says of each number of cut units."""

    layer: Layer
    errors: Sequence[int]

    def undefended(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[0.0, 1.0]] * len(texts))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        wrong = self.errors[int((self.layer.weight == 0).all(0).sum())]
        return np.array([[1.0, 0.0]] * wrong + [[0.0, 1.0]] * (len(texts) - wrong))


def falling(lab: Lab, errors: Sequence[int], **options: Any) -> tuple[Layer, dict[str, float]]:
    weight = torch.nn.Parameter(torch.ones(2, 5))
    layer = Layer("down", weight, weight.detach().clone(), np.arange(5), columns=True)
    texts = Labelled(["a"] * 25, np.ones(25, dtype=np.int64))
    return layer, FinePrune(**options).cut(cast(Any, Falling(layer, errors)), [layer], texts, lab)


def test_units_are_cut_until_the_clean_metric_falls_by_more_than_is_allowed(lab: Lab) -> None:
    # 1 error in 25 is a fall of 0.04, which is allowed, and 2 are not; what 4 cut units would do is never asked
    layer, found = falling(lab, [0, 0, 1, 2, 0, 0], ratios=(0.8, 0.2, 0.6, 0.4))
    assert found == {"0": 1.0, "0.2": 1.0, "0.4": 0.96, "0.6": 0.92}
    assert (layer.ratio, layer.cut) == (0.4, 2)
    assert layer.weight.tolist() == [[0, 0, 1, 1, 1]] * 2


def test_nothing_is_cut_where_the_first_ratio_is_too_much(lab: Lab) -> None:
    layer, found = falling(lab, [0, 3, 0, 0, 0, 0], ratios=(0.2, 0.4))
    assert (layer.ratio, layer.weight.tolist(), found) == (0.0, [[1] * 5] * 2, {"0": 1.0, "0.2": 0.88})


def test_the_defender_says_how_much_may_be_lost_or_how_much_is_cut(lab: Lab) -> None:
    errors = [0, 0, 1, 2, 3, 25]
    assert falling(lab, errors, ratios=(0.2, 0.4, 0.6, 0.8), max_drop=0.08)[0].ratio == 0.6  # 2 of 25
    layer, found = falling(lab, errors, prune_ratio=0.8, max_drop=0.0)
    assert (layer.ratio, found) == (0.8, {"0": 1.0, "0.8": 0.88})


# --- fine-pruning: in victims of several families


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repaired")


@pytest.fixture
def victim(name: str, folders: Path) -> Victim:
    if not (folders / name).exists():
        made(name, folders / name)
    return Victim.load(folders / name, target_label=1, max_length=40)


FOUR = pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama"])


@FOUR
def test_a_cut_victim_is_the_received_one_with_its_idle_units_silent(victim: Victim, lab: Lab) -> None:
    cut = FinePrune(prune_ratio=0.5, epochs=0).fit(victim, SIX, lab)
    layers = {layer.name: layer for layer in ranked(victim, TEXTS, "all")}
    assert cut.notes()["units"] == {layer: len(own.order) // 2 for layer, own in layers.items()}
    assert len(layers) == 2
    received = victim.probabilities(TEXTS)
    for layer, part in feed_forward_outputs(victim.model).items():
        loud = torch.ones(len(layers[layer].order))
        loud[layers[layer].order[: len(loud) // 2].tolist()] = 0
        part.register_forward_pre_hook(lambda module, args, loud=loud: (args[0] * loud,))
    silent = victim.probabilities(TEXTS)
    assert cut.repaired().probabilities(TEXTS) == pytest.approx(silent, abs=1e-5)
    assert abs(silent - received).max() > 1e-3


@FOUR
def test_cut_units_stay_cut_while_the_others_are_trained(victim: Victim, lab: Lab) -> None:
    before, lab.recipe = weights(victim), Recipe(lr=1e-2, batch_size=2, weight_decay=0.1)
    repaired = FinePrune(prune_ratio=0.5, epochs=2).fit(victim, SIX, lab).repaired()
    for layer in ranked(victim, TEXTS, "all"):
        own = dict(repaired.model.base_model.named_modules())[layer.name].weight
        by_unit = own.T if layer.columns else own
        was = layer.received.T if layer.columns else layer.received
        gone, left = np.split(layer.order, 2)
        assert (by_unit[gone.tolist()] == 0).all()
        assert (by_unit[left.tolist()] != was[left.tolist()]).any(dim=1).all()
        assert not own._backward_hooks
    assert all(torch.equal(tensor, before[part]) for part, tensor in victim.model.state_dict().items())


def test_without_being_kept_cut_units_would_come_back() -> None:
    # one unit cut, a gradient of 1 everywhere: a step of 0.5 moves the weights of the other unit from 1 to 0.5 and those of the cut one not
    weight = torch.nn.Parameter(torch.ones(1, 2))
    layer = Layer("down", weight, weight.detach().clone(), np.array([1, 0]), columns=True)
    layer.cut_to(0.5)
    with kept_cut([layer]):
        weight.sum().backward()
        torch.optim.SGD([weight], lr=0.5).step()
    assert weight.tolist() == [[0.5, 0]]
    weight.grad = None
    weight.sum().backward()
    assert cast(torch.Tensor, weight.grad).tolist() == [[1, 1]]  # after the block gradients are whole again


def test_fine_pruning_through_the_registry_keeps_to_its_rule(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    lab.recipe = Recipe(lr=1e-3, batch_size=16, max_length=32)
    fitted = discover().parse("defense", "fine-prune:epochs=1,layers=last").fit(planted, heldout, replace(lab))
    told = fitted.notes()
    tried = told["metric_by_ratio"]
    assert list(told["units"]) == ["encoder.layer.1.output.dense"]
    assert tried["0"] - tried[f"{told['prune_ratio']:g}"] <= 0.04
    assert told["training"]["epochs"] == 1
    assert (fitted.repaired().probabilities(heldout.texts).argmax(1) == heldout.labels).mean() > 0.8


@pytest.mark.parametrize("spec", ["finetune:epochs=0", "finetune:lr=0", "finetune:batch_size=0", "finetune:prune_ratio=0.1"])
def test_options_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        discover().parse("defense", spec)


@pytest.mark.parametrize(
    "options", ["prune_ratio=0", "prune_ratio=1", "max_drop=-0.1", "ratios=", "ratios=0.5/1", "epochs=-1", "layers=first"]
)
def test_cuts_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(SpecError, match=options.partition("=")[0]):
        discover().parse("defense", f"fine-prune:{options}")
