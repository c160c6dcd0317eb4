"""The prediction engine against what `torch.matmul` reaches in float32 on the model's own shapes, in one run, by turns.

    python tests/cost/engine.py                      # both shapes, all variants and budgets: about a quarter of an hour, one thread
    python tests/cost/engine.py --shape minilm-l6 --budgets 1024 --variants engine onednn

Models have random weights: time depends on shapes alone. A side is one batch of texts of 128 tokens that fills the budget, asked
through `Victim.probabilities`, tokenising and softmax included. The yardstick multiplies as many activations by the weights of every
linear layer, all layers in turn as the model does, and nothing else: no attention, no bias, no normalisation. Beside it stands the same by
oneDNN, which the engine takes, and which on some processors is twice as fast as torch's own.

Beside the products, an eager BERT layer writes and reads its activations again for the exact GELU (four times the hidden size), two
layer norms, two residual sums and the transposes around attention: work that grows with tokens * hidden where the products grow with
tokens * hidden^2, so that small models lose more. The variants try what could save it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import side_by_side
import torch
import transformers
from encoder import WORDS
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rapbench import linear
from rapbench.instruments import counted_flops
from rapbench.victim import Victim

LENGTH = 128
SHAPES = {
    "minilm-l6": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert-base": BertConfig(),
    "tiny": BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, vocab_size=300),
}
WANTED = {"minilm-l6": 0.8, "bert-base": 0.9}
YARDSTICK, ONEDNN = "torch.matmul", "oneDNN's product"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=sorted(SHAPES), nargs="+", default=list(WANTED))
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for shape in args.shape:
        measure(shape, args.budgets, args.variants, args.rounds)


def measure(shape: str, budgets: Sequence[int], variants: Sequence[str], rounds: int) -> None:
    """Print one line per budget and variant: GFLOP/s, and the share of what the yardstick reaches with as many tokens."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(SHAPES[shape]).eval()
    victims = {name: VARIANTS[name](victim(shared(model))) for name in variants}
    victims = agreeing(victim(model), victims)
    products = weights(model)
    flops: dict[str, float] = {}
    sides: dict[str, Callable[[], object]] = {}
    for budget in budgets:
        own, tokens = texts(budget), budget // LENGTH * LENGTH
        sides[f"{budget} {YARDSTICK}"] = partial(multiply, activations(products, tokens), products)
        flops[f"{budget} {YARDSTICK}"] = sum(2.0 * tokens * weight.numel() for weight in products)
        if linear.available():
            upright = [weight.t().contiguous() for weight in products]
            sides[f"{budget} {ONEDNN}"] = partial(multiply_by_onednn, activations(products, tokens), upright)
            flops[f"{budget} {ONEDNN}"] = flops[f"{budget} {YARDSTICK}"]
        for name, asked in victims.items():
            sides[f"{budget} {name}"] = partial(asked.probabilities, own)
            flops[f"{budget} {name}"] = counted_flops(partial(victim(model).probabilities, own[:1])) * len(own)
    took = side_by_side.medians(sides, rounds=rounds)
    report(shape, took, flops)


def report(shape: str, took: dict[str, float], flops: dict[str, float]) -> None:
    """Print GFLOP/s of each side; the best of the yardstick is what the machine reaches."""
    speed = {name: flops[name] / seconds / 1e9 for name, seconds in took.items()}
    reached = max(value for name, value in speed.items() if name.endswith(YARDSTICK))
    wanted = f", wanted {WANTED[shape]:.0%}" if shape in WANTED else ""
    print(f"{shape}, texts of {LENGTH} tokens, one thread; torch.matmul at its best {reached:.1f} GFLOP/s{wanted}")
    print(f"{'tokens':>6} {'side':<16} {'ms':>9} {'GFLOP/s':>8} {'of matmul here':>14} {'of its best':>11}")
    for name, value in speed.items():
        budget, _, side = name.partition(" ")
        here = value / speed[f"{budget} {YARDSTICK}"]
        print(f"{budget:>6} {side:<16} {1000 * took[name]:>9.1f} {value:>8.1f} {here:>14.0%} {value / reached:>11.0%}")


def victim(model: BertForSequenceClassification) -> Victim:
    """Give a victim whose batches hold any budget of this script."""
    return Victim(model, tokenizer(), 1, LENGTH, batch_tokens=1 << 20)


def shared(model: BertForSequenceClassification) -> BertForSequenceClassification:
    """Give a copy with modules of its own and the same weights in memory."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def texts(budget: int) -> list[str]:
    """Give as many texts of 128 tokens, two of them special, as the budget holds."""
    return [" ".join(WORDS[(7 * row + place) % len(WORDS)] for place in range(LENGTH - 2)) for row in range(max(budget // LENGTH, 1))]


def weights(model: BertForSequenceClassification) -> list[torch.Tensor]:
    """Give the weights of the encoder's linear layers in their order, each as (inputs, outputs), contiguous."""
    layers = [part for part in model.bert.encoder.modules() if isinstance(part, nn.Linear)]
    return [layer.weight.detach().t().contiguous() for layer in layers]


def activations(products: Sequence[torch.Tensor], tokens: int) -> dict[int, torch.Tensor]:
    return {width: torch.randn(tokens, width) for width in sorted({len(weight) for weight in products})}


def multiply(inputs: dict[int, torch.Tensor], products: Sequence[torch.Tensor]) -> None:
    with torch.inference_mode():
        for weight in products:
            torch.matmul(inputs[len(weight)], weight)


def multiply_by_onednn(inputs: dict[int, torch.Tensor], upright: Sequence[torch.Tensor]) -> None:
    """Multiply as often by weights of shape (outputs, inputs), by the kernel that the engine takes."""
    with torch.inference_mode():
        for weight in upright:
            linear.product(inputs[weight.shape[1]], weight, None)


def agreeing(plain: Victim, victims: dict[str, Victim]) -> dict[str, Victim]:
    """Give the variants that predict as the plain engine does, and say which do not on this processor; this compiles those that are."""
    expected, kept = plain.probabilities(texts(256)), {}
    for name, own in victims.items():
        off = abs(own.probabilities(texts(256)) - expected).max()
        if off < 1e-5:
            kept[name] = own
        else:
            print(f"{name} is left out: it is {off:.1e} off on this processor")
    return kept


# --- variants


def compiled(own: Victim) -> Victim:
    own.compiled = True
    return own


def frozen(own: Victim) -> Victim:
    """Compile with the weights as constants of the code: they are laid out as the kernels like them, and held twice."""
    from torch._inductor import config

    fast = torch.compile(own.model.forward, dynamic=True, options={"freezing": True})  # apart from the code of `compiled`

    def forward(**batch: torch.Tensor) -> Any:
        with config.patch(freezing=True):  # the tracer reads it as well
            return fast(**batch)

    own.compiled, own._fast = True, (own.model, forward)
    return own


def eager_attention(own: Victim) -> Victim:
    own.model.set_attn_implementation("eager")
    return own


def transposed(own: Victim) -> Victim:
    """Hold each weight as (inputs, outputs) in memory, so that the product reads it along its rows."""
    for layer in linears(own):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return own


def onednn(own: Victim, *, packed: bool = False, gelu: bool = False) -> Victim:
    """Have oneDNN multiply instead of the BLAS, with the bias and (`gelu`) the activation in the same pass.

    The weights stay as they are and are read anew at each call, or are `packed` once: then a change of them would go unseen.
    """
    for part in own.model.modules():
        if gelu and hasattr(part, "intermediate_act_fn"):
            part.dense.activation, part.intermediate_act_fn = "gelu", nn.Identity()
    for layer in linears(own):
        weight = layer.weight.detach()
        kept = torch.ops.mkldnn._reorder_linear_weight(weight, 1024) if packed else weight
        vars(layer)["forward"] = partial(product, weight=kept, bias=layer.bias.detach(), activation=getattr(layer, "activation", "none"))
    return own


def product(inputs: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor, activation: str) -> torch.Tensor:
    # the last argument tells how GELU is taken: "none" is the exact one
    done: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "none" if activation == "gelu" else "")
    return done


def linears(own: Victim) -> list[nn.Linear]:
    return [part for part in own.model.modules() if isinstance(part, nn.Linear)]


VARIANTS: dict[str, Callable[[Victim], Victim]] = {
    "engine": lambda own: own,
    "compiled": compiled,
    "frozen": frozen,
    "eager-attention": eager_attention,
    "transposed": transposed,
    "onednn": onednn,
    "onednn-gelu": partial(onednn, gelu=True),
    "packed": partial(onednn, packed=True),
    "packed-gelu": partial(onednn, packed=True, gelu=True),
}


if __name__ == "__main__":
    main()
