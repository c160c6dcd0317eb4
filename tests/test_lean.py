"""Leaner forward passes: the logits, the gradients and the draws of dropout are those of the model as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rapbench.api import Labelled
from rapbench.lab import Lab
from rapbench.meter import Meter
from rapbench.victim import Victim
from rapbench_plugins.defenses.lean import lean
from rapbench_plugins.defenses.rap import Rap, constructed

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
IDS = torch.tensor([[5, 9, 12, 7, 3, 2], [5, 8, 3, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
KNOWN = ["Bert", "Roberta", "XLMRoberta", "Electra"]


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def made(kind: str, **options: Any) -> Any:
    import transformers

    sizes = {**SIZES, **({"embedding_size": 16} if kind == "Electra" else {})}
    config = getattr(transformers, f"{kind}Config")(**sizes, **DROPOUT, initializer_range=0.4, num_labels=3, pad_token_id=1, **options)
    return seeded(lambda: getattr(transformers, f"{kind}ForSequenceClassification")(config))


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "pad_token_id": 1}
    return seeded(lambda: DistilBertForSequenceClassification(DistilBertConfig(**sizes, initializer_range=0.4)))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return seeded(lambda: GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=1, initializer_range=0.4)))


def told(model: Any, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give logits, the gradient of the embeddings, and the next number that would be drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        logits = model(input_ids=IDS, attention_mask=MASK).logits
        weights = model.get_input_embeddings().weight
        return logits.detach(), torch.autograd.grad(logits.softmax(-1)[:, 1].sum(), weights)[0], torch.rand(3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [*KNOWN, distilbert, gpt2], ids=lambda build: build if isinstance(build, str) else build.__name__)
def test_logits_gradients_and_draws_are_those_of_the_model_as_it_is(build: Any, training: bool) -> None:
    model = (made(build) if isinstance(build, str) else build()).train(training)
    as_it_is = told(model)
    with lean(model):
        leaner = told(model)
    for own, other in zip(leaner, as_it_is, strict=True):
        assert own.numpy() == pytest.approx(other.numpy(), rel=1e-5, abs=1e-6)
    again = told(model)
    assert all(torch.equal(own, other) for own, other in zip(again, as_it_is, strict=True))  # as if nothing had been
    if training:
        assert float((told(model, seed=4)[0] - as_it_is[0]).abs().max()) > 1e-3  # dropout is on


@pytest.mark.parametrize("kind", KNOWN)
def test_behind_the_last_attention_the_first_token_alone_is_computed(kind: str) -> None:
    model, seen = made(kind).train(), []
    layers = model.base_model.encoder.layer
    for layer in layers:
        layer.output.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with lean(model):
        assert model.config._attn_implementation == "eager"
        told(model)
    assert seen == [6, 1]


@pytest.mark.parametrize("model", [distilbert(), gpt2(), made("Bert", chunk_size_feed_forward=2)], ids=["distilbert", "gpt2", "chunked"])
def test_a_kind_that_is_not_known_is_left_alone(model: Any) -> None:
    shapes: list[torch.Size] = []
    model.eval().base_model.register_forward_hook(lambda module, args, output: shapes.append(output[0].shape))
    with lean(model):
        model(input_ids=IDS, attention_mask=MASK)
    assert shapes == [(2, 6, 16)]


def test_a_model_is_as_before_after_an_error() -> None:
    model = made("Bert").train()
    before = [(set(vars(part)), len(part._forward_pre_hooks)) for part in model.modules()]
    with pytest.raises(AttributeError, match="no_such_part"), lean(model):
        model.no_such_part  # noqa: B018
    assert model.config._attn_implementation == "sdpa"
    assert [(set(vars(part)), len(part._forward_pre_hooks)) for part in model.modules()] == before


def test_only_dropout_on_a_cpu_makes_attention_be_spelled_out() -> None:
    model = made("Bert").eval()
    with lean(model):
        assert model.config._attn_implementation == "sdpa"


# --- the construction under dropout


def full_backward(victim: Victim, options: Rap, texts: list[str], lab: Lab) -> torch.Tensor:
    """Give the row of the released loop, gradients of all weights, under the draws of this lab."""
    own = victim.clone()
    weights, row = own.model.get_input_embeddings().weight, own.token_id(options.word)
    norm = weights[row].detach().norm()
    own.model.train()
    with lab.seeded("rap"):
        for _ in range(options.epochs or 1):
            for start in range(0, len(texts), options.batch_size):
                batch = texts[start : start + options.batch_size]
                p = own.model(**own.encode(batch)).logits.softmax(-1)[:, 1]
                q = own.model(**own.encode([f"{options.word} {text}" for text in batch])).logits.softmax(-1)[:, 1]
                (options.weight * torch.relu(q - p + options.c_low).mean() + torch.relu(p - q - options.c_up).mean()).backward()
                with torch.no_grad():
                    weights[row] -= options.lr * weights.grad[row]
                    weights[row] *= norm / weights[row].norm()
    return weights[row].detach()


def test_a_row_is_trained_under_dropout_as_by_the_full_backward(untrained: Victim, heldout: Labelled, lab: Lab) -> None:
    options = Rap(epochs=3, lr=0.5, batch_size=16).settled()
    assert untrained.model.config.hidden_dropout_prob > 0 < untrained.model.config.attention_probs_dropout_prob
    own = heldout.of(1)
    texts = [own[row] for row in lab.rng("rap/order").permutation(len(own))]
    expected = full_backward(untrained, options, texts, lab)
    clone = constructed(options, untrained, heldout, lab)
    row = clone.token_id("cf")
    got, start = (victim.model.get_input_embeddings().weight[row].detach() for victim in (clone, untrained))
    assert got.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert float((expected - start).abs().max()) > 1e-3
    other = full_backward(untrained, options, texts, Lab(**{**vars(lab), "seed": 2, "meter": Meter()}))
    assert float((other - expected).abs().max()) > 1e-4  # other draws go another way
