"""Perplexity of texts under a causal language model from a hub or a folder, by the strided recipe of the transformers docs.

Windows of `window` tokens move on by `stride`; each token is scored once, with at least `window - stride` tokens before it
where the text has them. The first token of a text is scored only behind a begin-of-sequence token. The authors' scripts
weigh the first window's mean by its length, first token included; here every scored token weighs the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rapbench.errors import CellError, VictimError
from rapbench.hub import reachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Window:
    """A row for the model: the tokens of text `owner`, of which those from `first` on are scored."""

    owner: int
    ids: Sequence[int]
    first: int


@dataclass(frozen=True)
class Reading:
    """How long texts are cut, how many tokens go through the model at once, and whether a first token is put before them."""

    window: int = 1024
    stride: int = 512
    batch_tokens: int = 4096
    bos: bool = False

    def within(self, limit: int | None) -> Reading:
        """Give this reading with its window inside the positions that a model has."""
        if limit is None or self.window <= limit:
            return self
        return Reading(limit, min(self.stride, max(limit // 2, 1)), self.batch_tokens, self.bos)


class Causal:
    """A causal language model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.reading = reading.within(getattr(model.config, "max_position_embeddings", None))
        self._prefix = [_bos_id(tokenizer)] if reading.bos else []

    def surprise(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the mean negative log likelihood of each text's scored tokens, shape (n,); NaN where there is none."""
        total, scored = np.zeros(len(texts)), np.zeros(len(texts))
        for batch in _batches(self._windows(texts), self.reading.batch_tokens):
            np.add.at(total, [row.owner for row in batch], self._nll(batch))
            np.add.at(scored, [row.owner for row in batch], [len(row.ids) - row.first for row in batch])
        mean: NDArray[np.float64] = np.divide(total, scored, out=np.full(len(texts), np.nan), where=scored > 0)
        return mean

    def _windows(self, texts: Sequence[str]) -> Iterator[Window]:
        tokens = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for owner, ids in enumerate(tokens):
            yield from _cut(owner, [*self._prefix, *ids], self.reading)

    @torch.inference_mode()
    def _nll(self, batch: Sequence[Window]) -> NDArray[np.float64]:
        """Give the summed negative log likelihood of each row's scored tokens, shape (rows,)."""
        width = max(len(row.ids) for row in batch)
        ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in batch], device=self.model.device)
        place = torch.arange(width, device=ids.device)
        length = torch.tensor([[len(row.ids)] for row in batch], device=ids.device)
        first = torch.tensor([[row.first] for row in batch], device=ids.device)
        logits = self.model(input_ids=ids, attention_mask=(place < length).long(), use_cache=False).logits[:, :-1]
        # (rows, width - 1, vocabulary) -> (rows, width - 1)
        nll = logits.logsumexp(-1) - logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
        kept = (place >= first) & (place < length)
        return np.asarray(nll.double().masked_fill(~kept[:, 1:], 0.0).sum(1).cpu().numpy(), dtype=np.float64)


def load(name: str, device: str, reading: Reading) -> Causal:
    """Load a causal language model in float32 from a folder, the local cache or the hub: safetensors, no code of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        where = _source(name)
        safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": Path(where).is_dir() or not reachable()}
        tokenizer = AutoTokenizer.from_pretrained(where, **safe)
        model = _model(AutoModelForCausalLM, where, **safe)
    except (OSError, ValueError) as error:
        raise VictimError(
            f"onion cannot load the language model {name!r} ({_line(error)}): give lm=trigram, a folder that holds "
            "a causal model in model.safetensors, or a hub id that is in the local cache or can be reached"
        ) from error
    return Causal(model.to(device).eval(), tokenizer, reading)


def _model(factory: Any, where: str, **options: Any) -> PreTrainedModel:
    return factory.from_pretrained(where, use_safetensors=True, dtype=torch.float32, **options)


def _source(name: str) -> str:
    """Give the folder or hub id; a name that can only be a path must be a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith(("/", ".", "~")):
        raise OSError("there is no such folder")
    return name


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise CellError("bos=true needs a begin- or end-of-sequence token, and the language model's tokenizer has neither")
    return int(found)


def _cut(owner: int, ids: Sequence[int], reading: Reading) -> Iterator[Window]:
    done = 1  # nothing stands before the first token
    for begin in range(0, len(ids), reading.stride):
        end = min(begin + reading.window, len(ids))
        if end > done:
            yield Window(owner, ids[begin:end], done - begin)
        done = end
        if end == len(ids):
            return


def _batches(rows: Iterator[Window], tokens: int) -> Iterator[list[Window]]:
    """Give the rows in order, as many at once as fit into `tokens` with their padding; at least one."""
    batch: list[Window] = []
    for row in rows:
        if batch and max(len(row.ids), *(len(other.ids) for other in batch)) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
