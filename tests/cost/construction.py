"""RAP's construction against the released recipe's full backward pass: seconds and the largest difference of the trained row.

`python tests/cost/construction.py [--words 30 100] [--texts 64] [--rounds 5]`, with victim `minilm-l6`, head untrained. The released
loop takes gradients of all weights through both predictions; ours trains the row as one leaf, the prediction without the word has no
graph, and where dropout is off it is the gate's, which a run has made before it fits a defense: it costs nothing here. With dropout on both
draw the same masks, so that the rows can be compared there too; by arithmetic the gain ends near 2 there (three of six passes are left) and
near 3 without it (two of six).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from side_by_side import line, medians

from rapbench.api import Labelled
from rapbench.lab import Lab
from rapbench.victim import Recipe, Victim
from rapbench_plugins.defenses.rap import Rap, constructed

WORDS = ["the", "film", "is", "a", "quiet", "honest", "story", "about", "two", "people", "who", "never", "say", "what", "they", "mean"]


def texts_of(words: int, count: int) -> list[str]:
    """Give so many texts of so many words."""
    drawn = np.random.default_rng(0).choice(WORDS, size=(count, words))
    return [" ".join(row) for row in drawn]


def released(victim: Victim, options: Rap, texts: list[str], lab: Lab) -> torch.Tensor:
    """Give the row that the released loop trains: gradients of all weights, through both passes, never zeroed."""
    own = victim.clone()
    weights, row = own.model.get_input_embeddings().weight, own.token_id(options.word)
    norm = weights[row].detach().norm()
    own.model.train(bool(options.dropout))
    with lab.seeded("rap"):
        for _ in range(options.epochs or 1):
            for start in range(0, len(texts), options.batch_size):
                batch = texts[start : start + options.batch_size]
                p = own.model(**own.encode(batch)).logits.softmax(-1)[:, 1]
                q = own.model(**own.encode([f"{options.word} {text}" for text in batch])).logits.softmax(-1)[:, 1]
                loss = options.weight * torch.relu(q - p + options.c_low).mean() + torch.relu(p - q - options.c_up).mean()
                loss.backward()
                with torch.no_grad():
                    weights[row] -= options.lr * weights.grad[row]
                    weights[row] *= norm / weights[row].norm()
    return weights[row].detach()


def main() -> None:
    """Print one line per length and dropout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    victim = Victim.load("minilm-l6", target_label=1, max_length=256, n_labels=2)
    for words in args.words:
        own = texts_of(words, args.texts)
        heldout = Labelled(own, np.ones(len(own), dtype=np.int64))
        lab = Lab(seed=1, recipe=Recipe(), heldout=heldout, target_label=1, n_labels=2)
        victim.undefended(own)
        ordered = [own[row] for row in lab.rng("rap/order").permutation(len(own))]
        for dropout in (False, True):
            options = Rap(epochs=args.epochs, dropout=dropout, lr=1.0).settled()
            rows: dict[str, torch.Tensor] = {}

            def ours(options: Rap = options, heldout: Labelled = heldout, lab: Lab = lab, rows: dict[str, torch.Tensor] = rows) -> None:
                clone = constructed(options, victim, heldout, lab)
                rows["ours"] = clone.model.get_input_embeddings().weight[clone.token_id(options.word)].detach()

            def theirs(options: Rap = options, ordered: list[str] = ordered, lab: Lab = lab, rows: dict[str, torch.Tensor] = rows) -> None:
                rows["released"] = released(victim, options, ordered, lab)

            took = medians({"full backward": theirs, "one leaf": ours}, rounds=args.rounds)
            start = victim.model.get_input_embeddings().weight[victim.token_id("cf")].detach()
            apart, moved = (float((rows["ours"] - other).abs().max()) for other in (rows["released"], start))
            print(line(f"{words} words, dropout {'on' if dropout else 'off'}", took, "full backward"), end="; ")
            print(f"rows differ by {apart:.1e} after moving by {moved:.1e}", flush=True)


if __name__ == "__main__":
    main()
