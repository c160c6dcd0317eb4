"""A causal language model from a folder, the local cache or a hub: safetensors, looked at before anything is built of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rapbench.checkpoint import check_folder, check_shapes, check_tokenizer, unpanicked
from rapbench.errors import VictimError
from rapbench.hub import reachable
from rapbench.linear import lay_out
from rapbench.victim import HUB_ID
from rapbench_plugins.defenses.causal import Causal, Reading


def load(name: str, device: str, reading: Reading) -> Causal:
    """Load a causal language model in float32 from a folder, the local cache or the hub: safetensors, no code of its own."""
    try:
        place = _source(name)
        with unpanicked():
            model, tokenizer = _loaded(place)
        if isinstance(place, Path):
            check_tokenizer(place, tokenizer, len(model.get_input_embeddings().weight))
        _check_positions(model)
    except Exception as error:  # `tokenizers` raises nothing narrower, and what breaks here is the model, whoever made it
        raise VictimError(
            f"onion cannot load the language model {name[:200]!r} ({_line(error)}): give lm=trigram, a folder that holds "
            "a causal model in model.safetensors, or a hub id that is in the local cache or can be reached"
        ) from error
    _fuse(model)
    model.to(device).eval()
    lay_out(model)
    return Causal(model, tokenizer, reading)


def _fuse(model: Any) -> None:
    """Have GPT-2's activation computed by torch's own kernel instead of eight operations: the same function."""
    from transformers.activations import NewGELUActivation

    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is NewGELUActivation:
                setattr(part, name, torch.nn.GELU(approximate="tanh"))


def _source(name: str) -> str | Path:
    """Give the folder, looked at, or the hub id; a name that can only be a path must be a folder."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False of a name that no file system takes
        check_folder(folder)
        return folder
    if name.startswith(("/", ".", "~")):
        raise OSError("there is no such folder")
    if not HUB_ID.fullmatch(name) or ".." in name:
        raise OSError("it is neither a folder nor a hub id of the form owner/name")
    return name


def _loaded(place: str | Path) -> tuple[Any, Any]:
    """Give model and tokenizer; of a folder only where its weights have the shapes that its settings ask for."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": isinstance(place, Path) or not reachable()}
    if isinstance(place, Path):
        check_shapes(place, AutoConfig.from_pretrained(place, **safe), AutoModelForCausalLM, new_head=False)
    tokenizer = AutoTokenizer.from_pretrained(place, **safe)
    return AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **safe), tokenizer


def _check_positions(model: Any) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ValueError(f"it has {most!r} positions by its config.json: there it should be 1 or more")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
