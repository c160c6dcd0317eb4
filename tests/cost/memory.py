"""Peak memory of scoring 1,000 texts and 10,000 texts of about 30 words, each in a fresh process: `python tests/cost/memory.py`.

What is printed is the highest resident size above that of the warmed-up process that holds model and texts already, so
what a defense needs for each text shows as growth; so does what oneDNN keeps per shape of a batch, up to 1,024 products: with
`--primitives 32` it keeps so few, and what grows is our own. Linux only: it resets VmHWM through /proc/self/clear_refs.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import encoder

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
SIDES = {"undefended": "", "strip": "strip:copies=4", "rap": "rap", "onion": "onion:lm=trigram"}
"""What scores, and the defense behind it."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    asked.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=list(SIDES))
    asked.add_argument("--primitives", type=int, metavar="N", help="products that oneDNN keeps, by default its own 1,024")
    asked.add_argument("--one", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.one:
        print(peak_above(given.one, given.sizes[0]))
        return
    for side in given.sides:
        peaks = {size: _in_a_fresh_process(side, size, given.primitives) for size in given.sizes}
        shown = ", ".join(f"{size} texts {peak:.1f} MiB" for size, peak in peaks.items())
        (few, low), (many, high) = min(peaks.items()), max(peaks.items())
        slope = (high - low) * 2**10 / max(1, many - few)
        print(f"{side}: {shown} above the warmed-up process; {slope:+.2f} KiB a text from {few} to {many}", flush=True)


def peak_above(side: str, size: int) -> float:
    """Give by how many MiB the peak of scoring so many texts is above what the process holds before."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    source = random.Random(0)
    texts = _texts(source, size)
    with tempfile.TemporaryDirectory() as scratch:
        run = _scorer(side, Path(scratch), source)
        run(_texts(source, 256))
        CLEAR.write_text("5")
        before = _status_mib("VmHWM")
        run(texts)
        return _status_mib("VmHWM") - before


def _in_a_fresh_process(side: str, size: int, primitives: int | None) -> float:
    own = [sys.executable, "-W", "ignore", __file__, "--one", side, "--sizes", str(size)]
    kept = {} if primitives is None else {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(primitives)}
    return float(subprocess.run(own, capture_output=True, text=True, check=True, env={**os.environ, **kept}).stdout)


def _scorer(side: str, folder: Path, source: random.Random) -> Callable[[Sequence[str]], object]:
    """Give what scores texts: the victim, or a defense fitted on 200 held-out texts."""
    import numpy as np

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.registry import discover
    from rapbench.victim import Recipe, Victim

    model = encoder.make(folder / "model", hidden=128)
    victim = Victim.load(model, target_label=1, max_length=64, n_labels=2)
    if side == "undefended":
        return victim.probabilities
    heldout = Labelled(_texts(source, 200), np.arange(200, dtype=np.int64) % 2)
    lab = Lab(seed=1, recipe=Recipe(), heldout=heldout, target_label=1, n_labels=2, prepared=folder)
    if side == "rap":
        from rapbench_plugins.defenses.rap import Rap, RapDetector

        return RapDetector(Rap(word="cf").settled(), victim, victim.clone(), lab).suspicion  # its row is untrained
    defense = discover().parse("defense", SIDES[side])
    if defense.prepares() is not None:
        defense.prepare(heldout.texts, folder, lab)
    return defense.fit(victim, heldout, lab).suspicion


def _texts(source: random.Random, n: int) -> list[str]:
    return [" ".join(source.choices(encoder.WORDS, k=source.randint(25, 35))) for _ in range(n)]


def _status_mib(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
