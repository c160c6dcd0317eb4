"""Shapes of transformers, and the FLOPs that follow from them.

A token of a forward pass takes 2 FLOPs for each weight of the encoder (embeddings left out) and, for attention's scores and
their weighted sum, 4 * layers * hidden for each token of its row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapbench.errors import RapbenchError


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer. `vocabulary`: of the output matrix, which only language models have."""

    layers: int
    hidden: int
    inner: int
    positions: int = 512
    vocabulary: int = 0

    def token(self, length: float) -> float:
        """Give the forward FLOPs of one token in a row of `length` tokens."""
        weights = self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.inner) + self.vocabulary * self.hidden
        return 2 * weights + 4 * self.layers * self.hidden * length

    def row(self, length: float) -> float:
        """Give the forward FLOPs of a row of `length` tokens."""
        return length * self.token(length)


BASE = Shape(12, 768, 3072)
SHAPES: Mapping[str, Shape] = {
    "minilm-l6": Shape(6, 384, 1536),
    "bert-base-uncased": BASE,
    "bert-base-cased": BASE,
    "roberta-base": BASE,
    "distilbert-base-uncased": replace(BASE, layers=6),
    "bert-large-uncased": Shape(24, 1024, 4096),
    "roberta-large": Shape(24, 1024, 4096),
    "distilgpt2": replace(BASE, layers=6, positions=1024, vocabulary=50257),
    "gpt2": replace(BASE, positions=1024, vocabulary=50257),
    "gpt2-medium": Shape(24, 1024, 4096, 1024, 50257),
}


def known_shape(model: str) -> Shape | None:
    """Give a model's sizes, from the table, or from the config.json of a folder or of the hub's local cache; None without either."""
    if model in SHAPES:
        return SHAPES[model]
    try:
        return shape_of(json.loads(_config(model).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RapbenchError):
        return None


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Give the sizes that a model's config.json states, in whichever words; a KeyError where it states none."""

    def first(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name)), 0)

    layers, hidden = first("num_hidden_layers", "n_layers", "n_layer"), first("hidden_size", "dim", "n_embd")
    if not (layers and hidden):
        raise KeyError("no sizes")
    inner = first("intermediate_size", "hidden_dim", "n_inner", "ffn_dim") or 4 * hidden
    causal = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or ())
    positions = first("max_position_embeddings", "n_positions") or 1 << 20
    return Shape(layers, hidden, inner, positions, first("vocab_size") if causal else 0)


def _config(model: str) -> Path:
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(model)
    return Path(found)
