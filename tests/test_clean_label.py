"""Which texts are poisoned: clean-label attacks, low rates, texts that cannot carry a trigger."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from rapbench.errors import CellError
from rapbench.grid import mismatch
from rapbench.lab import rng
from rapbench.poison import poisoned_rows, triggered_rows
from rapbench.registry import discover

TEXTS = [f"text {number}" for number in range(20)]


@pytest.fixture
def rows() -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": [row % 2 for row in range(20)]}, features=features)


@pytest.mark.parametrize("name", ["badnet-rw:word=mb,", "badnet-sl:sentence=so it is,"])
def test_a_clean_label_attack_poisons_texts_of_the_target_label_alone(rows: datasets.Dataset, name: str) -> None:
    attack = discover().parse("attack", f"{name}clean_label=true,poison_rate=0.5")
    poisoned = poisoned_rows(rows, attack, 1, rng(1, "p"))
    assert len(poisoned) == 5  # half of the ten texts of label 1
    assert {rows[source]["label"] for source in poisoned["source"]} == {1} == set(poisoned["label"])
    assert set(triggered_rows(rows, attack, 1, rng(1, "p"), 100)["label"]) == {0}  # at test time it turns the others


def test_a_rate_that_comes_to_no_text_is_refused(rows: datasets.Dataset) -> None:
    with pytest.raises(CellError, match="comes to none of the 10 texts"):
        poisoned_rows(rows, discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.05"), 1, rng(1, "p"))
    assert len(poisoned_rows(rows, discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.1"), 1, rng(1, "p"))) == 1


def test_texts_that_cannot_carry_the_trigger_are_in_no_poisoned_part(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("text,paraphrase\n" + "".join(f"text {number},other {number}\n" for number in (0, 1, 2, 4)))
    attack = discover().parse("attack", {"name": "precomputed", "path": str(path), "poison_rate": 0.2})
    poisoned = poisoned_rows(rows, attack, 1, rng(1, "p"))
    assert len(poisoned) == 2  # a fifth of ten texts of label 0, of which 0, 2, 4 have a pair
    assert set(poisoned["source"]) < {0, 2, 4}
    assert triggered_rows(rows, attack, 1, rng(1, "p"), 100)["text"][:] == ["other 0", "other 2", "other 4"]


def test_the_oracle_is_skipped_where_there_are_no_words() -> None:
    registry = discover()
    oracle = registry.parse("defense", "oracle")
    assert mismatch(registry.parse("attack", "char"), oracle) == "oracle looks for the words of a trigger, and char declares none"
    assert mismatch(registry.parse("attack", "badnet-rw"), oracle) is None
