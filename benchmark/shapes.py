"""Shapes of transformers, and the FLOPs that follow from them.

A token of a forward pass takes 2 FLOPs for each weight of the encoder (embeddings left out) and, for attention's scores and
their weighted sum, 4 * layers * hidden (the queries' size, where it is another) for each token of its row. What attention leaves out
(windows, tokens to come) is counted as if it did not.
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
    words: int = 0
    """Rows of the embedding matrix; 0: not known."""
    queries: int = 0
    """Units of all heads' queries together; 0: as many as hidden ones."""
    keys: int = 0
    """Units of all heads' keys, and of their values; 0: as many as of queries. Heads may share them."""
    gated: bool = False
    """Whether a third matrix gates the feed-forward part."""
    relative: int = 0
    """Relative positions that a token's attention looks up beside the tokens (DeBERTa), over all ways of doing so."""

    @property
    def layer_weights(self) -> int:
        """How many weights the matrices of a layer have."""
        queries = self.queries or self.hidden
        keys = self.keys or queries
        return 2 * self.hidden * (queries + keys) + (3 if self.gated else 2) * self.hidden * self.inner

    def token(self, length: float) -> float:
        """Give the forward FLOPs of one token in a row of `length` tokens."""
        weights = self.layers * self.layer_weights + self.vocabulary * self.hidden
        queries = self.queries or self.hidden
        return 2 * weights + 4 * self.layers * queries * length + 2 * self.layers * queries * self.relative

    def row(self, length: float) -> float:
        """Give the forward FLOPs of a row of `length` tokens."""
        return length * self.token(length)


BASE = Shape(12, 768, 3072)
LARGE = Shape(24, 1024, 4096)
SHAPES: Mapping[str, Shape] = {
    "minilm-l6": Shape(6, 384, 1536),
    "bert-base-uncased": BASE,
    "bert-base-cased": BASE,
    "bert-large-uncased": LARGE,
    "distilbert-base-uncased": replace(BASE, layers=6),
    "roberta-base": replace(BASE, words=50265),
    "roberta-large": replace(LARGE, words=50265),
    "distilroberta-base": replace(BASE, layers=6, words=50265),
    "google/electra-small-discriminator": Shape(12, 256, 1024),
    "google/electra-base-discriminator": BASE,
    "microsoft/deberta-v3-small": replace(BASE, layers=6, words=128100, relative=1024),
    "microsoft/deberta-v3-base": replace(BASE, words=128100, relative=1024),
    "answerdotai/ModernBERT-base": Shape(22, 768, 1152, 8192, words=50368, gated=True),
    "distilgpt2": replace(BASE, layers=6, positions=1024, vocabulary=50257, words=50257),
    "gpt2": replace(BASE, positions=1024, vocabulary=50257, words=50257),
    "gpt2-medium": replace(LARGE, positions=1024, vocabulary=50257, words=50257),
    "HuggingFaceTB/SmolLM2-135M": Shape(30, 576, 1536, 8192, words=49152, keys=192, gated=True),
    "HuggingFaceTB/SmolLM2-360M": Shape(32, 960, 2560, 8192, words=49152, keys=320, gated=True),
    "Qwen/Qwen2.5-0.5B": Shape(24, 896, 4864, 32768, words=151936, keys=128, gated=True),
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 3072, 40960, words=151936, queries=2048, keys=1024, gated=True),
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
    positions, words = first("max_position_embeddings", "n_positions") or 1 << 20, first("vocab_size")
    heads, shared, width = first("num_attention_heads"), first("num_key_value_heads"), first("head_dim")
    queries = heads * width if heads * width != hidden else 0
    keys = shared * (width or hidden // heads) if heads and shared and shared != heads else 0
    return Shape(layers, hidden, inner, positions, words if causal else 0, words, queries, keys, _is_gated(config), _relative(config))


def _is_gated(config: Mapping[str, Any]) -> bool:
    """Tell whether the feed-forward part has a gate: in every family that uses SiLU, and in some others."""
    named = str(config.get("model_type")).startswith(("gemma", "modernbert"))
    return named or config.get("hidden_act") in ("silu", "swish")


def _relative(config: Mapping[str, Any]) -> int:
    """Give how many relative positions DeBERTa's attention looks up, at most: both ways, back and forth."""
    if not config.get("relative_attention"):
        return 0
    named = ("position_buckets", "max_relative_positions", "max_position_embeddings")
    reach = next((size for size in (int(config.get(name) or 0) for name in named) if size > 0), 0)
    return 2 * reach * sum(way in (config.get("pos_att_type") or ()) for way in ("c2p", "p2c"))


def _config(model: str) -> Path:
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(model)
    return Path(found)
