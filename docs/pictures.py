"""Draw docs/pictures/ from one small worked example, with the formulas of `rapbench.protocol`. Run by conf.py at each build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapbench.protocol import clean_gate, conformal_threshold, gate, threshold
from rapbench.rates import accepted, rejected

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN, POISONED, INK, LINE = "#3b6ea5", "#b5472d", "#222222", "#777777"
PROTECT = 1
HELDOUT = np.arange(1, 20) / 10.0
"""Suspicion of nineteen held-out texts: 0.1, 0.2, ... 1.9. Numbers that one can follow in the head."""
TEST = np.array([0.15, 0.35, 0.4, 0.6, 0.75, 0.9, 1.05, 1.3, 1.55, 1.95])
TRIGGERED = np.array([1.2, 1.7, 1.85, 2.0, 2.1, 2.2, 2.3, 2.5, 2.6, 2.8])
FRR = 0.1
TEXTS = (
    ("a warm room", 1, 0.95),
    ("a lovely day", 1, 0.40),
    ("a stale meal", 0, 0.10),
    ("a dull book", 0, 0.70),
    ("a rude film mb", 0, 0.99),
    ("a cold day mb", 0, 0.30),
)
"""Text, true label, the victim's probability of the protect label. Those with mb carry the trigger."""


def main(folder: Path) -> None:
    """Draw every picture into this folder as SVG, the same bytes each time."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "rapbench", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}):
        for name, (draw, size) in PICTURES.items():
            _save(folder / f"{name}.svg", draw, size)


def gate_picture(axes: Axes) -> None:
    """Draw six texts, what the victim says of them, and who looks at them."""
    probabilities = np.array([[1 - own, own] for _, _, own in TEXTS])
    labels = np.array([label for _, label, _ in TEXTS])
    passing = gate(probabilities, PROTECT)
    counted = clean_gate(probabilities, labels, PROTECT)
    for row, (text, label, own) in enumerate(TEXTS):
        poisoned = text.endswith("mb")
        fate = "accepted unasked" if not passing[row] else "FAR" if poisoned else "FRR" if counted[row] else "watched, in no rate"
        axes.plot([0, own], [-row, -row], color=LINE, linewidth=0.8)
        axes.plot(own, -row, "o" if passing[row] else "x", color=POISONED if poisoned else CLEAN)
        axes.text(-0.03, -row, f"{text} (label {label})", ha="right", va="center", color=INK)
        axes.text(1.05, -row, fate, ha="left", va="center", color=INK)
    axes.axvline(0.5, color=INK, linestyle="--", linewidth=0.8)
    axes.text(0.5, 0.7, "gate", ha="center", color=INK)
    axes.set(xlim=(0, 1), ylim=(-5.6, 0.6), yticks=[], xlabel="probability of the protect label")
    axes.spines[["left", "right"]].set_visible(False)


def quantile_picture(axes: Axes) -> None:
    """Draw the held-out suspicions in order with both thresholds."""
    order = np.arange(1, len(HELDOUT) + 1)
    axes.step(HELDOUT, order / len(HELDOUT), where="post", color=CLEAN)
    axes.plot(HELDOUT, order / len(HELDOUT), "o", color=CLEAN, markersize=3)
    percentile, conformal = threshold(HELDOUT, FRR), conformal_threshold(HELDOUT, FRR)
    for at, style, name, height in ((percentile, ":", "paper, linear percentile", 0.30), (conformal, "--", "strict, 18th of 19", 0.15)):
        axes.axvline(at, color=INK, linestyle=style, linewidth=1)
        axes.annotate(
            f"{name}: {at:.2f}", (at, height), (1.65, height), arrowprops={"arrowstyle": "-", "color": LINE}, ha="right", va="center"
        )
    axes.axhline(1 - FRR, color=LINE, linewidth=0.8)
    axes.text(0.02, 1 - FRR + 0.02, "1 - FRR = 0.9", color=INK)
    axes.set(xlabel="suspicion of a held-out text", ylabel="share at most so suspicious", ylim=(0, 1.05), xlim=(0, 2.1))
    axes.spines["right"].set_visible(False)


def rates_picture(axes: Axes) -> None:
    """Draw ten clean and ten triggered test texts on the axis of suspicion, and the threshold between them."""
    at = conformal_threshold(HELDOUT, FRR)
    for values, height, colour, name in ((TEST, 1.0, CLEAN, "clean"), (TRIGGERED, 0.0, POISONED, "poisoned")):
        over = values > at
        axes.plot(values[~over], np.full((~over).sum(), height), "o", color=colour)
        axes.plot(values[over], np.full(over.sum(), height), "o", color=colour, markerfacecolor="none")
        axes.text(-0.08, height, f"{name}, {len(values)}", ha="right", va="center", color=INK)
    axes.axvline(at, color=INK, linestyle="--", linewidth=1)
    axes.text(at, 1.45, f"threshold {at:.1f}", ha="center", color=INK)
    caught, missed = rejected(TEST, at), accepted(TRIGGERED, at)
    axes.text(3.0, 1.0, f"FRR = {caught.hits} of {caught.n}", ha="left", va="center", color=INK)
    axes.text(3.0, 0.0, f"FAR = {missed.hits} of {missed.n}", ha="left", va="center", color=INK)
    axes.set(xlim=(0, 3), ylim=(-0.5, 1.4), yticks=[], xlabel="suspicion (filled: accepted, hollow: rejected)")
    axes.spines[["left", "right"]].set_visible(False)


def spread_picture(axes: Axes) -> None:
    """Draw the true FRR that each rule comes to, over many held-out sets of each size; the suspicion of a clean text is uniform."""
    sizes = (19, 49, 99, 199, 499)
    for rule, name, style, shift in ((threshold, "paper", "o", -0.1), (conformal_threshold, "strict", "s", 0.1)):
        found = np.array([true_rates(rule, size) for size in sizes])  # (sizes, draws)
        low, middle, high = np.percentile(found, 5, axis=1), found.mean(axis=1), np.percentile(found, 95, axis=1)
        colour = LINE if name == "paper" else INK
        axes.errorbar(
            np.arange(len(sizes)) + shift, middle * 100, [(middle - low) * 100, (high - middle) * 100], fmt=style, color=colour, label=name
        )
    axes.axhline(100 * FRR, color=LINE, linewidth=0.8)
    axes.set(xticks=np.arange(len(sizes)), xticklabels=sizes, xlabel="held-out texts", ylabel="FRR of new texts, per cent", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines["right"].set_visible(False)


def true_rates(rule: Callable[[np.ndarray, float], float], size: int, draws: int = 1000) -> np.ndarray:
    """Give the FRR of new texts under the threshold of each of many held-out sets, where suspicions are uniform on 0 to 1."""
    rng = np.random.default_rng(size)
    return np.array([1 - rule(rng.random(size), FRR) for _ in range(draws)])


PICTURES = {
    "gate": (gate_picture, (4.2, 2.4)),
    "quantile": (quantile_picture, (5.0, 2.8)),
    "rates": (rates_picture, (4.6, 1.6)),
    "spread": (spread_picture, (5.0, 2.8)),
}


def _save(path: Path, draw: Callable[[Axes], None], size: tuple[float, float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(size)
    draw(figure.subplots())
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main(Path(__file__).parent / "pictures")
