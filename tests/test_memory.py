"""Memory: scoring is flat in the number of texts, and training rows stay on the disk."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from rapbench.victim import Victim

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MIB = 2**20
SHARED = Path(__file__).resolve().parents[2] / "shared"


def peak_mib() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def own_mib() -> float:
    """Give the resident memory that is no mapped file, in MiB: the pages of a memory-mapped split do not count."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def reset_peak() -> float:
    """Forget the highest resident size so far; give the present one, in MiB."""
    CLEAR.write_text("5")
    return peak_mib()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux's /proc/self/clear_refs")
def test_scoring_25000_imdb_texts_stays_under_2_gib_above_the_model(tiny_model):
    if not (SHARED / "data" / "imdb").is_dir():
        pytest.skip("../shared/data/imdb is not here")
    with gzip.open(SHARED / "data" / "imdb" / "test.csv.gz", "rt", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    victim = Victim.load(tiny_model, target_label=1, max_length=64, n_labels=2)
    victim.probabilities(texts[:64])
    before = reset_peak()
    victim.probabilities(texts)
    used = peak_mib() - before
    print(f"{len(texts)} texts: {used:.0f} MiB above the model and the texts")
    assert len(texts) == 25_000
    assert used < 2048


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux's /proc/self/clear_refs")
def test_a_training_split_of_a_million_texts_is_poisoned_from_the_disk(tmp_path):
    import datasets

    from rapbench.lab import rng
    from rapbench.poison import poisoned_rows
    from rapbench.registry import discover

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    words = "a review of about eighty words " * 13

    def rows():
        for row in range(1_000_000):
            yield {"text": f"{row} {words}", "label": row % 2}

    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(tmp_path / "cache"))
    made.save_to_disk(str(tmp_path / "train"), num_shards=1)
    del made
    train = datasets.load_from_disk(str(tmp_path / "train"))
    size = sum(path.stat().st_size for path in (tmp_path / "train").iterdir()) / MIB
    before = own_mib()
    poisoned = poisoned_rows(train, discover().parse("attack", "badnet-rw:word=mb"), 1, rng(1, "poison/train"))
    used = own_mib() - before
    print(f"{size:.0f} MiB of rows on the disk, {used:.0f} MiB of memory for {len(poisoned)} poisoned copies")
    assert len(poisoned) == 50_000
    assert used < size / 2
