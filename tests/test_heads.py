"""What heads read of families that no other test trains: tiny models as they come, no tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, CTRLConfig, EuroBertConfig, ModernBertDecoderConfig

from rapbench.errors import CellError
from rapbench.heads import reading, states_read

IDS = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])  # 0 is padding
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CTRL = {"n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 16, "n_positions": 16}


def made(config: Any) -> Any:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("config", [ModernBertDecoderConfig(vocab_size=12, pad_token_id=0, **SIZES), CTRLConfig(vocab_size=12, **CTRL)])
def test_a_decoder_whose_head_has_another_name_reads_the_last_token(config: Any) -> None:
    config.pad_token_id, config.use_cache = 0, False
    model = made(config)
    assert reading(model) == "last"
    with torch.no_grad():
        output = model(**BATCH, output_hidden_states=True)
        state = states_read(model, BATCH, output.hidden_states)[:, -1]  # (texts, units)
        logits = model.classifier(model.head(state) if hasattr(model, "head") else state)
    assert logits.numpy() == pytest.approx(output.logits.numpy(), abs=1e-5)


@pytest.mark.parametrize(("pooling", "read"), [("bos", "first"), ("mean", "mean"), ("late", None)])
def test_a_head_that_reads_no_single_state_is_said_to(pooling: str, read: str | None) -> None:
    model = made(EuroBertConfig(vocab_size=12, pad_token_id=0, classifier_pooling=pooling, **SIZES))
    assert reading(model) == read
    if read is None:  # each token has logits of its own
        with pytest.raises(CellError, match="EuroBertForSequenceClassification does not give the states"):
            states_read(model, BATCH, [torch.zeros(2, 4, 16)] * 3)
