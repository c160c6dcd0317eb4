"""Variants of a text behind the text's own keys and values: what of each is computed, in which rows, and what the rows add up to.

Of each variant only the tokens from the first that differs are computed, the rests of many variants in one row of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIE = 1e-6
"""Relative difference up to which two variants read equally well: a word that stands twice is scored alike."""


@dataclass(frozen=True)
class Rest:
    """What is computed of a variant: its first `kept` tokens are the text's, those from `end` on keep the text's values.

    The text begins at place `start` of the row in which it was read.
    """

    ids: Sequence[int]
    kept: int
    end: int
    start: int = 0

    @classmethod
    def of(cls, ids: Sequence[int], text: Sequence[int], reach: int, start: int = 0) -> Rest:
        """Compare a variant with the text; a token that differs (retokenised at the seam, say) is always scored anew."""
        kept = shared(ids, text)
        if not reach:
            return cls(ids, kept, len(ids), start)
        tail = min(shared(ids[::-1], text[::-1]), len(text) - 1)  # the text's first token has no value
        return cls(ids, kept, min(len(ids), max(kept + reach, len(ids) - tail)), start)

    @property
    def whole(self) -> bool:
        """Tell whether nothing behind what is shared keeps the text's values."""
        return self.end == len(self.ids)

    @property
    def read(self) -> Sequence[int]:
        """Give the tokens that the model reads; behind the last of them the token before `end` is scored."""
        return self.ids[self.kept : max(self.end - 1, self.kept)]

    @property
    def scored(self) -> Sequence[int]:
        """Give the tokens that are scored behind those of `read`, one for one."""
        return self.ids[self.kept + 1 : max(self.end, self.kept + 1)]


def packs(rests: Sequence[Rest], tokens: int) -> Iterator[list[Rest]]:
    """Give the rests in order, as many at once as the model reads `tokens` of; at least one."""
    row: list[Rest] = []
    filled = 0
    for rest in rests:
        if row and filled + len(rest.read) > tokens:
            yield row
            row, filled = [], 0
        row.append(rest)
        filled += len(rest.read)
    if row:
        yield row


def visible(sizes: Sequence[int], starts: Sequence[int], kept: Sequence[int], length: int, model: PreTrainedModel) -> torch.Tensor:
    """Give the mask to be added, shape (1, 1, m, length + m), of parts of `sizes` tokens, m in all, behind `length` tokens read before.

    A token sees the `kept` tokens from `starts` on that its part stands behind, and its own part up to itself.
    """
    device = model.device
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))  # (m,)
    begin, count = (torch.tensor(values)[owner, None].to(device) for values in (starts, kept))
    owner, place = owner.to(device), torch.arange(length, device=device)
    before = (place >= begin) & (place < begin + count)  # (m, length)
    own = (owner[:, None] == owner).tril()  # (m, m)
    hidden = ~torch.cat([before, own], dim=1)
    return torch.zeros(hidden.shape, dtype=model.dtype, device=device).masked_fill_(hidden, torch.finfo(model.dtype).min)[None, None]


def plain(cache: Any) -> Any:
    """Give a cache that holds every key of every layer; raise TypeError for another (of sliding windows, of states)."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise TypeError(f"{type(cache).__name__} does not hold every key of every layer")
    return cache


def beginning(cache: Any, length: int) -> Any:
    """Give a cache of the first `length` tokens of another."""
    from transformers.cache_utils import DynamicCache

    own = DynamicCache()
    for number, layer in enumerate(cache.layers):
        own.update(layer.keys[:, :, :length], layer.values[:, :, :length], number)
    return own


def surprises(
    texts: Sequence[Sequence[Sequence[int]]], rests: Sequence[Rest], own: NDArray[np.float64], anew: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Give of each text the mean negative log likelihood of its scored tokens, then of each variant's, shape (rows,).

    `own`: the texts', shape (tokens - texts,); `anew`: summed over the tokens of each variant that keep no value of its text's.
    """
    found = []
    for rows in texts:
        length, variants = len(rows[0]), len(rows) - 1
        sums = np.concatenate([[0.0], np.cumsum(own[: length - 1])])  # (tokens,): up to each token
        before = sums[[max(rest.kept - 1, 0) for rest in rests[:variants]]]
        far = sums[-1] - sums[[rest.end + length - len(rest.ids) - 1 for rest in rests[:variants]]]
        total = np.concatenate([sums[-1:], before + anew[:variants] + far])
        found.append(mean(total, np.array([len(ids) - 1 for ids in rows])))
        rests, own, anew = rests[variants:], own[length - 1 :], anew[variants:]
    return found


def mean(total: NDArray[np.float64], scored: NDArray[Any]) -> NDArray[np.float64]:
    """Give the mean over what was scored, shape (rows,), of sums and counts; NaN where nothing was."""
    found: NDArray[np.float64] = np.divide(total, scored, out=np.full(len(total), np.nan), where=scored > 0)
    return found


def lowest(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Tell which values are the lowest share of them, rounded up, or equal the last of that but for `TIE`; NaN is highest."""
    count = math.ceil(share * len(values))
    if not count:
        return np.zeros(len(values), dtype=np.bool_)
    bar = np.sort(values)[count - 1]
    return np.asarray(np.isnan(bar) | (values <= bar * (1 + TIE)), dtype=np.bool_)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Give how many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (own, its) in enumerate(pairs) if own != its), min(len(one), len(other)))
