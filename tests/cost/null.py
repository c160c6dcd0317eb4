"""What the cost record says of a defense that is one more undefended prediction, which is 2 in all: `python tests/cost/null.py`.

Victim `minilm-l6`, head untrained, one thread; each run scores other texts of 10 to 90 words. What differs from 2 is the instrument's.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
import transformers
from encoder import WORDS

from rapbench.gauge import Gauge
from rapbench.meter import Meter
from rapbench.victim import Victim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--texts", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    victim, meter = Victim.load("minilm-l6", target_label=1, max_length=128, n_labels=2), Meter()
    meter.watch(victim.model, "victim")
    for seed in range(args.runs):
        gauge = Gauge(meter, "cpu", victim.probabilities, victim.token_counts)
        meter.phases.clear()
        gauge.scored("inference", drawn(args.texts, seed), victim.protect_probability)
        cost = gauge.cost()
        flops = (cost.flops_per_input or 0.0) / (cost.plain_flops_per_input or 1.0)
        batches = ", ".join(f"{1 + one.defense_s / one.plain_s:.3f}" for one in gauge.timed if one.plain_s)
        told = f"rows {cost.victim_rows_per_input:g}, FLOPs {flops:.3f} times, time {cost.ratio:.3f} times"
        print(f"{told} (batches {batches}); load {os.getloadavg()[0]:.2f}", flush=True)


def drawn(count: int, seed: int) -> list[str]:
    """Give so many texts of 10 to 90 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(10, 91))) for _ in range(count)]


if __name__ == "__main__":
    main()
