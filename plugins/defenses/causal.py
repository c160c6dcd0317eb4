"""Perplexity of texts under a causal language model from a hub or a folder, by the strided recipe of the transformers docs.

Windows of `window` tokens move on by `stride`; each token is scored once, with at least `window - stride` tokens before it
where the text has them. The first token of a text is scored only behind a begin-of-sequence token. The authors' scripts
weigh the first window's mean by its length, first token included; here every scored token weighs the same.

Leaving each word out in turn, a text that fits into one window is read once; of each variant only the tokens from the first
that differs are computed, behind the text's own keys and values, the rests of many variants in one row of the model. A text
of l words of one token each costs l + (l - 1) * (l - 2) / 2 tokens then, where reading each variant whole costs l * l.
Short texts may stand in such rows together, each seeing itself alone.

With a `reach` only so many tokens after a deletion are computed, and the rest keep the whole text's values. Of the variants that
read best so far a share is then computed to the end: whoever deletes few words decides about exact scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import _disable_current_modes

from rapbench.errors import CellError
from rapbench.linear import onednn
from rapbench.victim import out_of_memory
from rapbench_plugins.defenses.rests import Rest, beginning, lowest, mean, packs, plain, surprises, visible

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
AGREEMENT = 1e-4
"""Relative difference up to which a model's scores behind a shared prefix equal those of whole texts."""
SMALLEST_CHECK = 16
"""Tokens of the shortest text that a model is checked on."""
ROW_CPU, ROW_ACCELERATOR = 256, 2048
"""Tokens in a row of rests, at most: each looks at all the others of its row, if only to be masked."""


@dataclass(frozen=True)
class Window:
    """A row for the model: the tokens of text `owner`, of which those from `first` on are scored."""

    owner: int
    ids: Sequence[int]
    first: int


@dataclass(frozen=True)
class Reading:
    """How long texts are cut, how many tokens go through the model at once, and whether a first token is put before them.

    `reach`: how many tokens after a deletion are scored anew, 0: all; `exact_share`: of which share of a text's variants all are,
    of those that read best by `reach`. `batch_texts`: how many texts may share a row.
    """

    window: int = 1024
    stride: int = 512
    batch_tokens: int = 4096
    bos: bool = False
    reach: int = 0
    exact_share: float = 0.0
    batch_texts: int = 1

    def within(self, limit: int | None) -> Reading:
        """Give this reading with its window inside the positions that a model has."""
        if limit is None or self.window <= limit:
            return self
        return replace(self, window=limit, stride=min(self.stride, max(limit // 2, 1)))


class Surprise(NamedTuple):
    """What a model says of a text and its variants."""

    log_ppl: NDArray[np.float64]
    """The mean negative log likelihood of each one's scored tokens, shape (1 + variants,); NaN where there is none."""
    computed: int
    """The tokens that the model read for it."""


class Causal:
    """A causal language model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.reading = reading.within(getattr(model.config, "max_position_embeddings", None))
        self._prefix = [_bos_id(tokenizer)] if reading.bos else []
        self.agrees: dict[int, bool] = {}
        """By a length in tokens: whether texts up to it are scored behind a shared prefix, as far as that was found out."""
        self._mingles: bool | None = None

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Give each text's tokens, behind the first token where one is asked for."""
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*self._prefix, *ids] for ids in found]

    def surprise(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Give the mean negative log likelihood of each row's scored tokens, shape (n,); NaN where there is none."""
        total, scored = np.zeros(len(rows)), np.zeros(len(rows))
        windows = (window for owner, ids in enumerate(rows) for window in _cut(owner, ids, self.reading))
        with onednn(self.model):
            for batch in _batches(windows, self.reading.batch_tokens):
                np.add.at(total, [row.owner for row in batch], _halving(self._nll, batch))
                np.add.at(scored, [row.owner for row in batch], [len(row.ids) - row.first for row in batch])
        return mean(total, scored)

    def leave_one_out(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Give what `surprise` gives, of a text (the first row) and of variants of it: where possible from one shared prefix.

        `reach` holds there only: all tokens of a text that is too long, or of a model that cannot share, are scored anew.
        """
        return self.leave_one_out_of_each([rows])[0].log_ppl

    def leave_one_out_of_each(self, texts: Sequence[Sequence[Sequence[int]]]) -> list[Surprise]:
        """Give `leave_one_out` of several texts with their variants; up to `batch_texts` are read at once, where a row holds them."""
        sharing = [self._shares(rows) for rows in texts]
        fits = [rows for rows, shares in zip(texts, sharing, strict=True) if shares]
        found = iter([own for together in self._companies(fits) for own in self._leave_one_out(together, self.reading.reach)])
        return [next(found) if shares else self._by_strides(rows) for rows, shares in zip(texts, sharing, strict=True)]

    def _by_strides(self, rows: Sequence[Sequence[int]]) -> Surprise:
        return Surprise(
            self.surprise(rows), sum(len(window.ids) for owner, ids in enumerate(rows) for window in _cut(owner, ids, self.reading))
        )

    def _shares(self, rows: Sequence[Sequence[int]]) -> bool:
        """Tell whether the variants of a text (the first row) are scored behind its prefix."""
        return len(rows[0]) > 1 and self.shares_prefix(max(map(len, rows)))

    def _companies(self, texts: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[Sequence[Sequence[int]]]]:
        """Give the texts in order, as many at once as may share a row and fit into it; at least one."""
        at_once = self.reading.batch_texts if len(texts) > 1 and self.mingles() else 1
        company: list[Sequence[Sequence[int]]] = []
        for rows in texts:
            if len(company) == at_once or (company and sum(len(own[0]) for own in [*company, rows]) > self._row_tokens):
                yield company
                company = []
            company.append(rows)
        if company:
            yield company

    def shares_prefix(self, length: int) -> bool:
        """Tell whether texts of so many tokens are scored behind a shared prefix: they fit into a window, and the scores agree.

        The model is checked once for each power of two, on drawn tokens, so that no text's scores depend on another text.
        """
        if length > self.reading.window:
            return False
        size = min(max(1 << (length - 1).bit_length(), SMALLEST_CHECK), self.reading.window)
        if size not in self.agrees:
            with _disable_current_modes():  # or a count of operations takes the check for the text's
                self.agrees[size] = self._agree([self._drawn(size, 2 + 2 * self._row_tokens // size)])
        return self.agrees[size]

    def mingles(self) -> bool:
        """Tell whether several texts may share a row: more than one is asked for, and in the fullest rows the scores agree.

        The model is checked once, on drawn texts, of which as many as may share a row fill it.
        """
        if self.reading.batch_texts == 1:
            return False
        if self._mingles is None:
            texts = min(self.reading.batch_texts, max(self._row_tokens // SMALLEST_CHECK, 2))
            length = min(self._row_tokens // texts, self.reading.window)
            company = [self._drawn(length, 4, seed) for seed in range(texts)]
            self._mingles = min(texts, length) > 1 and self.shares_prefix(length) and self._agree_together(company)
        return self._mingles

    def _agree_together(self, company: Sequence[Sequence[Sequence[int]]]) -> bool:
        """Give `_agree`, and that they do not where memory holds no such row: one text at a time may fit."""
        try:
            with _disable_current_modes():
                return self._agree(company)
        except RuntimeError as error:
            if out_of_memory(error):
                return False
            raise

    def beyond(self, rows: Sequence[Sequence[int]]) -> int:
        """Give the tokens of the longest of a text and its variants where that does not fit into a window; else 0."""
        longest = max(map(len, rows))
        return longest if longest > self.reading.window else 0

    def path(self, beyond: int = 0) -> str:
        """Give how texts were scored so far, in words. `beyond`: tokens of the longest that did not fit into a window, 0: all did."""
        cut = f"; those beyond the window of {self.reading.window} tokens by strides, the longest of {beyond}" if beyond else ""
        if not self.shares_prefix(1):
            return f"whole texts{cut}"
        longest = max(size for size, agrees in self.agrees.items() if agrees)
        shared = "shared prefix" if all(self.agrees.values()) else f"shared prefix up to {longest} tokens, whole texts beyond"
        return f"{shared}{cut}"

    def _drawn(self, size: int, variants: int, seed: int = 0) -> list[list[int]]:
        """Give a text of `size` drawn tokens, so many variants of it whose rests are long, and one whose rest is empty."""
        known = min(len(self.tokenizer), self.model.get_input_embeddings().num_embeddings)
        text = np.random.default_rng(seed).integers(known, size=size).tolist()
        early = np.linspace(0, size // 2, variants, dtype=int)  # a rest is long where little is kept
        return [text, *([*text[:place], *text[place + 1 :]] for place in sorted({*early.tolist(), size - 1}))]

    def _agree(self, texts: Sequence[Sequence[Sequence[int]]]) -> bool:
        """Compare both ways to score on texts that are read together, and their variants."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return False
        try:
            shared = self._leave_one_out(texts, reach=0)
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            return False  # a model that cannot take such a mask, such positions or such a cache says so in its own way
        return all(
            np.allclose(own.log_ppl, self.surprise(rows), rtol=AGREEMENT, atol=0.0, equal_nan=True)
            for own, rows in zip(shared, texts, strict=True)
        )

    @property
    def _row_tokens(self) -> int:
        return min(ROW_CPU if self.model.device.type == "cpu" else ROW_ACCELERATOR, self.reading.batch_tokens)

    @torch.inference_mode()
    def _leave_one_out(self, texts: Sequence[Sequence[Sequence[int]]], reach: int) -> list[Surprise]:
        """Read the texts in one row, then the rests of all their variants in as few rows as hold them."""
        lengths = [len(rows[0]) for rows in texts]
        starts = [0, *np.cumsum(lengths).tolist()]
        rests = [Rest.of(ids, rows[0], reach, start) for rows, start in zip(texts, starts, strict=False) for ids in rows[1:]]
        owner = np.repeat(np.arange(len(texts)), [len(rows) - 1 for rows in texts])
        read = np.array([len(rest.read) for rest in rests], dtype=np.int64)
        with onednn(self.model):
            cache, own, first = self._read([rows[0] for rows in texts], rests)
            anew = first + self._packed(rests, cache)
            found = surprises(texts, rests, own, anew)
            if reach:
                best = np.concatenate([lowest(log_ppl[1:], self.reading.exact_share) for log_ppl in found])
                again = [place for place in np.flatnonzero(best).tolist() if not rests[place].whole]
                for place in again:
                    rests[place] = replace(rests[place], end=len(rests[place].ids))
                    read[place] += len(rests[place].read)
                anew[again] = first[again] + self._packed([rests[place] for place in again], cache)
                found = surprises(texts, rests, own, anew)
        computed = np.array(lengths) + np.bincount(owner, weights=read, minlength=len(texts)).astype(int)
        return [Surprise(*of_text) for of_text in zip(found, computed.tolist(), strict=True)]

    def _read(self, texts: Sequence[Sequence[int]], rests: Sequence[Rest]) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
        """Give the texts' keys and values, and two arrays of negative log likelihoods.

        They are of each text's tokens but the first, shape (tokens - texts,), and of each rest's first token, shape (rests,): 0
        where that is not scored, for nothing stands before it, or for the variant ends with what it shares.
        """
        ids = torch.tensor([[token for text in texts for token in text]], device=self.model.device)
        sizes = list(map(len, texts))
        if len(texts) == 1:
            read = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        else:
            nothing = [0] * len(texts)
            read = self.model(
                input_ids=ids,
                attention_mask=visible(sizes, nothing, nothing, 0, self.model),
                position_ids=torch.tensor([[place for size in sizes for place in range(size)]], device=ids.device),
                use_cache=True,
            )
        fresh = [place for place, rest in enumerate(rests) if 0 < rest.kept < len(rest.ids)]
        starts = np.cumsum([0, *sizes]).tolist()
        behind = [start + place for start, size in zip(starts, sizes, strict=False) for place in range(size - 1)]
        asked = [token for text in texts for token in text[1:]] + [rests[place].ids[rests[place].kept] for place in fresh]
        nll = _nll(read.logits[0], asked, behind + [rests[place].start + rests[place].kept - 1 for place in fresh])
        first = np.zeros(len(rests))
        first[fresh] = nll[len(behind) :]
        return plain(read.past_key_values), nll[: len(behind)], first

    def _packed(self, rests: Sequence[Rest], cache: Any) -> NDArray[np.float64]:
        """Give the summed negative log likelihood of each rest's `scored` tokens, shape (rests,).

        `cache`: keys and values of the texts; left as it was.
        """
        return np.concatenate([np.empty(0), *(_halving(partial(self._pack, cache=cache), row) for row in packs(rests, self._row_tokens))])

    def _pack(self, rests: Sequence[Rest], cache: Any) -> NDArray[np.float64]:
        """Give what `_packed` gives, all computed in one row."""
        sizes = [len(rest.read) for rest in rests]
        if not sum(sizes):
            return np.zeros(len(rests))
        device = self.model.device
        owner = np.repeat(np.arange(len(rests)), sizes)
        seen = max(rest.start + rest.kept for rest in rests)
        mask = visible(sizes, [rest.start for rest in rests], [rest.kept for rest in rests], seen, self.model)
        logits = self.model(
            input_ids=torch.tensor([[token for rest in rests for token in rest.read]], device=device),
            attention_mask=mask,
            position_ids=torch.tensor([[rest.kept + step for rest in rests for step in range(len(rest.read))]], device=device),
            past_key_values=beginning(cache, seen),
            use_cache=True,
        ).logits[0]
        nll = _nll(logits, [token for rest in rests for token in rest.scored])
        return np.asarray(np.bincount(owner, weights=nll, minlength=len(rests)), dtype=np.float64)

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
        asked = logits.gather(-1, ids[:, 1:, None]).squeeze(-1).double()
        nll = _log_sum(logits) - asked
        kept = (place >= first) & (place < length)
        return np.asarray(nll.masked_fill(~kept[:, 1:], 0.0).sum(1).cpu().numpy(), dtype=np.float64)


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise CellError("bos=true needs a begin- or end-of-sequence token, and the language model's tokenizer has neither")
    return int(found)


def _halving(run: Callable[[list[T]], NDArray[np.float64]], rows: list[T]) -> NDArray[np.float64]:
    """Give what `run` gives of the rows, shape (rows,): of two halves one after the other where memory does not hold all of them.

    It is tried anew for each row, so that no score hangs on what was scored before.
    """
    try:
        return run(rows)
    except RuntimeError as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    middle = len(rows) // 2  # out of the handler: the error holds what the failed row has taken
    return np.concatenate([_halving(run, rows[:middle]), _halving(run, rows[middle:])])


def _nll(logits: torch.Tensor, tokens: Sequence[int], behind: Sequence[int] | None = None) -> NDArray[np.float64]:
    """Give each token's negative log likelihood, shape (n,), by the logits in its place, or in the place that `behind` names.

    `logits`: shape (places, vocabulary); used up.
    """
    at = torch.arange(len(logits)) if behind is None else torch.tensor(behind)
    at, asked = at.to(logits.device), torch.tensor(tokens, device=logits.device)
    told = logits[at, asked].double()
    nll = _log_sum(logits)[at] - told
    return np.asarray(nll.cpu().numpy(), dtype=np.float64)


def _log_sum(logits: torch.Tensor) -> torch.Tensor:
    """Give the log of the sum of the exponentials over the last axis, float64: in float32 it alone would cost a digit of each score.

    `logits` are used up: a copy of them costs more than the sum.
    """
    highest = logits.amax(-1, keepdim=True)
    return logits.sub_(highest).exp_().sum(-1).double().log() + highest.squeeze(-1).double()


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
