"""oneDNN's products stand in for torch's own: same values, gradients and gradients of gradients; nothing is left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from rapbench import linear as rooms
from rapbench.instruments import counted_flops
from rapbench.linear import available, lay_out, onednn, product

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layer(inputs: int = 6, outputs: int = 4) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs)


def test_it_is_available_where_torch_has_it() -> None:
    assert available()


def test_a_product_is_worked_by_hand() -> None:
    # (1, 2) times ((3, 4), (5, 6)) transposed: 1*3 + 2*4 = 11 and 1*5 + 2*6 = 17, plus (1, -1)
    got = product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([1.0, -1.0]))
    assert got.tolist() == [[12.0, 16.0]]
    assert product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), None).tolist() == [[11.0]]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_gradients_and_their_gradients_are_torchs_own(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(1)
    inputs, weight, bias = torch.randn(shape, dtype=torch.float32), torch.randn(4, 6), torch.randn(4)
    leaves = [inputs, weight, *([bias] if biased else [])]
    told = []
    for function in (product, linear):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        done = function(own[0], own[1], own[2] if biased else None)
        first = torch.autograd.grad(done.square().sum(), own, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), own)
        told.append((done, *first, *second))
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_model_predicts_the_same_and_is_as_before_afterwards(untrained: Any) -> None:
    batch = untrained.encode(["the film was so bright", "a day"])
    untrained.model.eval()
    plain = untrained.model(**batch).logits
    seen: list[str] = []
    with onednn(untrained.model):
        parts = [part for part in untrained.model.modules() if type(part) is torch.nn.Linear]
        seen += [vars(part)["forward"].__func__.__qualname__ for part in parts]
        torch.testing.assert_close(untrained.model(**batch).logits, plain, rtol=1e-5, atol=1e-5)
    assert len(seen) == 14  # six in each of two layers, the pooler and the classifier
    assert not any("forward" in vars(part) for part in untrained.model.modules())


@pytest.mark.parametrize("rows", [1, 5, 700])
def test_weights_that_are_laid_out_beforehand_give_the_same_products(rows: int) -> None:
    torch.manual_seed(2)
    model = torch.nn.Sequential(layer(6, 40), torch.nn.Tanh(), Conv1D(3, 40), torch.nn.Linear(3, 2, bias=False))
    inputs = torch.randn(1, rows, 6)
    plain = model(inputs)
    lay_out(model)
    torch.testing.assert_close(model(inputs), plain, rtol=0, atol=0)  # outside of a block torch's own
    with torch.inference_mode(), onednn(model):
        assert counted_flops(lambda: model(inputs)) == 2 * rows * (6 * 40 + 40 * 3 + 3 * 2)
        for part in (model[0], model[2], model[3]):
            torch.nn.init.zeros_(part.weight)
        torch.testing.assert_close(model(inputs), plain, rtol=1e-5, atol=1e-5)  # by the weights that were laid out


def test_what_stood_there_comes_back_also_after_an_error() -> None:
    own = layer()
    vars(own)["forward"] = before = lambda input: input
    with pytest.raises(KeyError), onednn(own):
        raise KeyError
    assert vars(own)["forward"] is before


def test_blocks_nest() -> None:
    own, inputs = layer(), torch.ones(1, 6)
    with onednn(own):
        with onednn(own):
            assert "forward" in vars(own)
        assert "forward" in vars(own)
        torch.testing.assert_close(own(inputs), linear(inputs, own.weight, own.bias))
    assert "forward" not in vars(own)


def test_a_deep_copy_multiplies_by_its_own_weights() -> None:
    own = torch.nn.Sequential(layer())
    with onednn(own):
        twin = copy.deepcopy(own)
        with torch.no_grad():
            own[0].weight.zero_()
    inputs = torch.ones(1, 6)
    torch.testing.assert_close(twin(inputs), linear(inputs, twin[0].weight, twin[0].bias))


def test_weights_that_change_meanwhile_are_seen() -> None:
    own, inputs = layer(), torch.ones(1, 6)
    with onednn(own), torch.no_grad():
        own(inputs)
        own.weight.fill_(1.0)
        own.bias.zero_()
        assert own(inputs).tolist() == [[6.0] * 4]


def test_the_layer_of_gpt_2_has_its_weight_the_other_way() -> None:
    torch.manual_seed(0)
    own, inputs = Conv1D(4, 6), torch.randn(3, 6)
    plain = own(inputs)
    with onednn(own):
        torch.testing.assert_close(own(inputs), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    own = layer().to(dtype)
    with onednn(own):
        assert "forward" not in vars(own)


def test_autocast_is_torchs_own_business() -> None:
    own, inputs = layer(), torch.ones(1, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = own(inputs)
        with onednn(own):
            assert torch.equal(own(inputs), plain)
    assert plain.dtype == torch.bfloat16


def test_operations_are_counted_as_ever(untrained: Any) -> None:
    # 3 tokens through 2 layers of hidden 32 and inner 64, the attention, the head: as worked out in test_cost
    expected = 2 * (3 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 3 * 3 * 32) + 2 * 32 * 32 + 2 * 32 * 2
    assert counted_flops(lambda: untrained.probabilities(["so"])) == expected


def test_a_product_of_no_rows_is_torchs_own() -> None:
    own = layer()
    with onednn(own):
        inputs = torch.empty(0, 6, requires_grad=True)
        own(inputs).sum().backward()
    assert inputs.grad is not None


def test_a_clone_made_inside_has_torchs_own_layers(untrained: Any) -> None:
    with onednn(untrained.model):
        twin = untrained.clone()
    assert not any("forward" in vars(part) for part in twin.model.modules())


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "available", lambda: False)
    own = layer()
    with onednn(own):
        assert "forward" not in vars(own)
