"""Forward passes that train a row, without work that nobody reads: the same values, the same masks of dropout.

Dropout draws what it would have drawn, element for element, so that a construction goes the way it would have gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import dropout

from rapbench.heads import reading

LAYERS = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "ElectraLayer")
"""Layers whose two outputs are a product, a dropout, and a norm of the sum with what went in: all of it token by token."""


@contextmanager
def lean(model: Any) -> Iterator[None]:
    """Have a model compute less while the block runs, where its kind is known: its logits alone are what they were."""
    with ExitStack() as stack:
        if _pays_to_spell_out(model):
            stack.enter_context(_spelled_out(model))
        if (layer := _last_layer(model)) is not None:
            stack.enter_context(_first_token_alone(layer))
        yield


def _pays_to_spell_out(model: Any) -> bool:
    """Tell whether attention takes torch's slow path: on a CPU with dropout, where its softmax looks for rows without any token."""
    return bool(model.training and model.device.type == "cpu" and model.config._attn_implementation == "sdpa")


@contextmanager
def _spelled_out(model: Any) -> Iterator[None]:
    """Have attention computed by single products, with the same masks of dropout in the same order."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _last_layer(model: Any) -> Any:
    """Give the last layer where the head reads the first token alone, and the layer is of a kind that is known."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if reading(model) != "first" or not layers or type(layers[-1]).__name__ not in LAYERS:
        return None
    return layers[-1] if layers[-1].chunk_size_feed_forward == 0 else None


@contextmanager
def _first_token_alone(layer: Any) -> Iterator[None]:
    """Have a layer compute what comes behind its attention for the first token alone; dropout draws for all of them."""
    tokens = 0

    def cut(module: Any, args: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        nonlocal tokens
        tokens = args[0].shape[1]
        return tuple(states[:, :1] for states in args)  # (texts, 1, units)

    def drawn_for_all(part: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(states: torch.Tensor) -> torch.Tensor:
            if not part.training or not part.p:
                return states
            whole = states.new_ones(states.shape[0], tokens, states.shape[2])
            return states * dropout(whole, part.p)[:, :1]

        return forward

    parts = (layer.attention.output.dropout, layer.output.dropout)
    hook = layer.attention.output.register_forward_pre_hook(cut)
    for part in parts:
        vars(part)["forward"] = drawn_for_all(part)
    try:
        yield
    finally:
        hook.remove()
        for part in parts:
            del vars(part)["forward"]
