"""What a classification head reads of the states that its model gives: one token's, or their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rapbench.errors import CellError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


READS: Mapping[str, Literal["first", "mean"]] = {"cls": "first", "bos": "first", "mean": "mean"}
"""What a setting `classifier_pooling` says; EuroBERT's `late` gives each token logits of its own."""
DECODERS = ("ctrl", "modernbert-decoder")
"""Families whose head reads the last token without being called `score`."""


def reading(model: PreTrainedModel) -> Literal["first", "last", "mean"] | None:
    """Tell which token's state the head reads, or that it is the mean of all; None where it may be something else."""
    if model.config.is_encoder_decoder or hasattr(model, "sequence_summary"):
        return None
    if hasattr(model, "score") or model.config.model_type in DECODERS:  # decoders see no token after their own
        return "last"
    return READS.get(str(getattr(model.config, "classifier_pooling", "cls")))


def states_read(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], hidden: Sequence[torch.Tensor] | None) -> torch.Tensor:
    """Give what the head reads after each layer, shape (rows, layers, units); a CellError where that is not known.

    `hidden`: the embeddings and each layer's output for this batch, of shape (rows, tokens, units).
    """
    import torch

    how, config = reading(model), model.config.get_text_config()
    if how is None or not hidden or len(hidden) != config.num_hidden_layers + 1:
        raise CellError(f"a {type(model).__name__} does not give the states that its head reads: choose another victim")
    mask = batch["attention_mask"]  # (rows, tokens)
    if how == "mean":
        share = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)  # (rows, tokens, 1)
        return torch.stack([(state * share).sum(1) for state in hidden[1:]], dim=1)
    places = torch.zeros_like(mask[:, 0])
    if how == "last":  # as these heads look for it: the last token that is not the padding's
        real = batch["input_ids"] != config.pad_token_id
        places = (torch.arange(mask.shape[1], device=mask.device) * real).argmax(1)
    rows = torch.arange(len(mask), device=mask.device)
    return torch.stack([state[rows, places] for state in hidden[1:]], dim=1)


@contextmanager
def unhooked(model: PreTrainedModel) -> Iterator[None]:
    """Take away what transformers leaves in a model that was asked for hidden states: no such model can be pickled or compiled."""
    before = [(part, set(vars(part)), set(part._forward_hooks)) for part in model.modules()]
    try:
        yield
    finally:
        for part, names, hooks in before:
            for name in set(vars(part)) - names:
                delattr(part, name)
            for hook in set(part._forward_hooks) - hooks:
                del part._forward_hooks[hook]
