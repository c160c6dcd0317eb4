"""STRIP's and RAP's scoring against the published algorithms one text at a time, and against the undefended engine, per victim row.

    python tests/cost/scoring.py [--words 30 100 230] [--texts 8] [--rounds 5]

Victim `minilm-l6`, head untrained, one thread, the sides taking turns. The plain sides ask the model for one text at a time, as the
released scripts do: STRIP for each copy, RAP without and with the word. Of RAP both sides make the first prediction, which the gate
would have made. The undefended side predicts as many texts of as many words, in one call; tokens per row are printed, so that one
sees how far the copies are like them. RAP gets as many rows as STRIP, not as many texts.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import transformers
from side_by_side import line, medians

from rapbench.api import Labelled
from rapbench.lab import Lab
from rapbench.meter import Meter
from rapbench.victim import Recipe, Victim
from rapbench_plugins.defenses.rap import Rap, RapDetector
from rapbench_plugins.defenses.strip import Strip, StripDetector, ranked_words

WORDS = ["the", "film", "is", "a", "quiet", "honest", "story", "about", "two", "people", "who", "never", "say", "what", "they", "mean"]


def main() -> None:
    """Print, per length, both ratios of both defenses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[30, 100, 230])
    parser.add_argument("--texts", type=int, default=8, help="texts that STRIP scores")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    victim = Victim.load("minilm-l6", target_label=1, max_length=256, n_labels=2)
    meter = Meter()
    meter.watch(victim.model, "victim")
    for words in args.words:
        compare(victim, meter, words, args.texts, args.rounds)


def compare(victim: Victim, meter: Meter, words: int, count: int, rounds: int) -> None:
    """Print the comparisons at one length."""
    options = Strip()
    rows = count * options.copies
    lab = Lab(seed=1, recipe=Recipe(), heldout=Labelled([], np.empty(0, dtype=np.int64)), target_label=1, n_labels=2)
    strip = StripDetector(options, victim, ranked_words(drawn(words, 100, seed=1)), lab)
    rap = RapDetector(Rap().settled(), victim, victim.clone(), lab)
    for_strip, for_rap, others = drawn(words, count, seed=2), drawn(words, rows // 2, seed=3), drawn(words, rows, seed=4)
    sides: dict[str, Callable[[], object]] = {
        "undefended": partial(victim.probabilities, others),
        "strip": partial(strip.suspicion, for_strip),
        "strip, one at a time": partial(plain_strip, victim, options, strip.sources, for_strip),
        "rap": partial(afresh, rap, for_rap),
        "rap, one at a time": partial(plain_rap, victim, rap.guarded, rap.options, for_rap),
    }
    counts = {}
    for name in ("undefended", "strip", "rap"):
        with meter.phase(f"{name}, {words} words") as phase:
            sides[name]()
        counts[name] = phase.by["victim"]
    took = medians(sides, rounds=rounds)
    for name in ("strip", "rap"):
        plain = f"{name}, one at a time"
        print(line(f"{words} words", {own: took[own] for own in (plain, name)}, plain))
        ratio = took[name] / counts[name].rows / (took["undefended"] / counts["undefended"].rows)
        tokens = ", ".join(f"{own} {counts[own].tokens / counts[own].rows:.1f}" for own in ("undefended", name))
        print(f"  {name}: {counts[name].rows} rows, {ratio:.3f} of the undefended engine's wall per row; tokens per row: {tokens}")
    same_copies = np.array([entropy_one_by_one(victim, strip.copies(text)) for text in for_strip[:2]])
    off_strip = abs(same_copies - strip.entropy(for_strip[:2])).max()
    off_rap = abs(afresh(rap, for_rap[:4]) - np.array(plain_rap(victim, rap.guarded, rap.options, for_rap[:4]))).max()
    print(f"  largest difference of a score from one text at a time: strip {off_strip:.1e}, rap {off_rap:.1e}", flush=True)


def drawn(words: int, count: int, *, seed: int) -> list[str]:
    """Give so many texts of so many words."""
    return [" ".join(row) for row in np.random.default_rng(seed).choice(WORDS, size=(count, words))]


def afresh(rap: RapDetector, texts: Sequence[str]) -> np.ndarray:
    """Score with nothing known of the texts."""
    rap.victim._known.clear()
    return rap.suspicion(texts)


# --- the published algorithms, one text at a time


def one_by_one(victim: Victim, text: str) -> list[float]:
    """Give the probabilities of one text from one call of the model."""
    with torch.no_grad():
        return victim.model(**victim.encode([text])).logits.softmax(-1)[0].tolist()


def plain_strip(victim: Victim, options: Strip, sources: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
    """Score as STRIP is published: for each text, N times, replace some words by the best of a drawn text and predict."""
    rng, scores = random.Random(0), []
    for text in texts:
        entropies = []
        for _ in range(options.copies):
            words, source = text.split(" "), rng.choice(sources)
            places = rng.sample(range(len(words)), max(int(len(words) * float(options.replace_ratio)), 1))
            for rank, place in enumerate(places):
                words[place] = source[rank % len(source)]
            entropies.append(entropy(one_by_one(victim, " ".join(words))))
        scores.append(-sum(entropies) / len(entropies))
    return scores


def plain_rap(victim: Victim, guarded: Victim, options: Rap, texts: Sequence[str]) -> list[float]:
    """Score as RAP is published: for each text, predict it without and with the word in front."""
    target = victim.target_label
    return [one_by_one(guarded, f"{options.word} {text}")[target] - one_by_one(victim, text)[target] for text in texts]


def entropy_one_by_one(victim: Victim, copies: Sequence[str]) -> float:
    return sum(entropy(one_by_one(victim, copy)) for copy in copies) / len(copies)


def entropy(probabilities: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


if __name__ == "__main__":
    main()
