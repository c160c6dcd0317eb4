"""A guard's scoring against the engine that it asks, per victim row.

    python tests/cost/guard.py [--words 30 100] [--texts 512] [--rounds 5]

Victim `minilm-l6`, head untrained, one thread, the sides taking turns. The guard's texts come from an iterator, as from stdin; each
is two rows, RAP's (its gate, and the text with the word). The engine gets the very same rows in one call of `Victim.probabilities`,
without a verdict. A ratio above 1 is what the guard costs on top; the aim is 1.10.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import transformers
from scoring import drawn
from side_by_side import line, medians

from rapbench.api import Labelled
from rapbench.guard import About, Guard, Terms
from rapbench.judge import Judge
from rapbench.lab import Lab
from rapbench.meter import Meter
from rapbench.victim import Recipe, Victim
from rapbench_plugins.defenses.rap import Rap, RapDetector, perturbed


def main() -> None:
    """Print, per length, the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    victim = Victim.load("minilm-l6", target_label=1, max_length=256, n_labels=2)
    victim.target_label = int(victim.probabilities(drawn(30, 1, seed=1)).argmax())  # what an untrained head says of any text
    for words in args.words:
        compare(victim, drawn(words, args.texts, seed=2), words, args.rounds)


def compare(victim: Victim, texts: list[str], words: int, rounds: int) -> None:
    """Print the comparison at one length."""
    guard, rap = made(victim)
    rows = [*texts, *perturbed(rap.options, texts, rap.lab)]
    meter = Meter()
    meter.watch(victim.model, "victim")
    meter.watch(rap.guarded.model, "victim")
    with meter.phase(f"{words} words") as phase:
        passed = sum(verdict.passed_gate for verdict in guard.stream(iter(texts)))
    assert phase.by["victim"].rows == len(texts) + passed == len(rows), "a text did not pass the gate"
    took = medians({"engine": lambda: victim.probabilities(rows), "guard": lambda: list(guard.stream(iter(texts)))}, rounds=rounds)
    print(line(f"{words} words, {len(rows)} rows", took, "engine"))
    print(f"  guard: {took['guard'] / took['engine']:.3f} of the engine's wall, {len(rows) / took['guard']:.0f} rows/s", flush=True)


def made(victim: Victim) -> tuple[Guard, RapDetector]:
    """Give a guard whose RAP was not trained: it costs the same."""
    lab = Lab(seed=1, recipe=Recipe(), heldout=Labelled([], np.empty(0, dtype=np.int64)), target_label=victim.target_label, n_labels=2)
    rap = RapDetector(Rap().settled(), victim, victim.clone(), lab)
    about = About(
        terms=Terms(protect_label=victim.target_label), victim="", victim_digest="", plugin="", threshold=0.0, n_heldout=0, n_calibration=0,
        frr_calibration=0.0,
    )  # fmt: skip
    return Guard(about, Judge(victim, rap, 0.0)), rap


if __name__ == "__main__":
    main()
