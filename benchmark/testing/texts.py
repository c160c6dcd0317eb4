"""Texts that plugins stumble over, and how two lists of texts or scores compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ODD = (
    "film",
    "x",
    "...",
    " film ",
    "two  spaces",
    "a\tb\nc",
    "LOUD",
    "naïve café déjà vu",
    "电影 很 好",
    "فيلم جميل",
    "e\u0301 \u200b \u00a0 zero width",
    "👍🏽 👩‍👩‍👧 fine",
    '"quoted", <b>bold</b> & {braces} %s \\n',
    "so " * 1000 + "it was",
    "x" * 5000,
)
"""What data sets hold, too; none of them is blank."""
SHARE = 0.01
NOISE = 1e-6


def changed(one: Sequence[object], other: Sequence[object]) -> list[int]:
    """Give the places at which two sequences differ."""
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def differing(one: NDArray[np.float64], other: NDArray[np.float64]) -> list[int]:
    """Give the rows at which scores differ by more than a hundredth of their range: less is the noise of batches in float32."""
    far = SHARE * float(np.ptp(one)) + NOISE
    return [int(row) for row in np.flatnonzero(~(np.abs(one - other) <= far))]


def shown(text: str) -> str:
    """Give a text as a reason quotes it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
