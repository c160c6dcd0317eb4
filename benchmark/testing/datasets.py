"""Claims about data sets."""

from __future__ import annotations

import warnings
from typing import Any

from rapbench.api import Dataset
from rapbench.data import SPLITS, check_split
from rapbench.errors import DataError
from rapbench.testing.claims import Doubt, breach, claim
from rapbench.testing.kit import Kit
from rapbench.testing.texts import shown


@claim("dataset", first=True)
def it_loads_as_train_validation_and_test(dataset: Dataset, kit: Kit) -> None:
    """`load` gives a `datasets.DatasetDict` with the three splits."""
    from datasets import DatasetDict

    splits: Any = kit.loaded(dataset)
    if not isinstance(splits, DatasetDict):
        breach(f"load gives {type(splits).__name__}, no datasets.DatasetDict")
    if missing := [split for split in SPLITS if split not in splits]:
        breach(f"the split {missing[0]!r} is missing (there are: {', '.join(sorted(map(str, splits))) or 'none'})")


@claim("dataset")
def every_row_has_a_text_and_a_label(dataset: Dataset, kit: Kit) -> None:
    """`text` is a string column without nulls and blanks, `label` a ClassLabel without nulls, in its range."""
    for split in SPLITS:
        try:
            check_split(kit.loaded(dataset)[split], dataset.name, split)
        except DataError as error:
            breach(str(error))


@claim("dataset")
def its_splits_have_the_same_classes(dataset: Dataset, kit: Kit) -> None:
    """A label means the same in every split."""
    names = {split: getattr(kit.loaded(dataset)[split].features["label"], "names", None) for split in SPLITS}
    for split in SPLITS:
        if names[split] is None or names[split] != names["train"]:
            breach(f"{split} has the classes {names[split]}, train has {names['train']}")


@claim("dataset")
def every_split_has_texts_of_the_target_label_and_of_others(dataset: Dataset, kit: Kit) -> None:
    """Attacks need texts of other labels, defenses held-out texts of the target label."""
    for split in SPLITS:
        labels = set(kit.loaded(dataset)[split]["label"])
        if dataset.target_label not in labels:
            breach(f"{split} has no text of the target label {dataset.target_label}")
        if labels == {dataset.target_label}:
            breach(f"{split} has no text of another label than the target label {dataset.target_label}")


@claim("dataset")
def loading_it_twice_gives_the_same_rows(dataset: Dataset, kit: Kit) -> None:
    """The order, too: results are filed under the options of the data set."""
    with kit.disturbed():
        again = dataset.load()
    for split in SPLITS:
        once = kit.loaded(dataset)[split]
        for column in ("text", "label"):
            if list(once[column]) != list(again[split][column]):
                breach(f"the {column}s of {split} are others the second time: draw with a seed that is an option")


@claim("dataset")
def its_fingerprint_is_the_same_each_time(dataset: Dataset, kit: Kit) -> None:
    """A text that changes with the source alone."""
    once, again = dataset.fingerprint(), dataset.fingerprint()
    if not isinstance(once, str):
        breach(f"fingerprint gives {once!r}, no text")
    if once != again:
        breach(f"fingerprint gives {once!r} and then {again!r}")


@claim("dataset")
def no_text_is_in_two_splits(dataset: Dataset, kit: Kit) -> None:
    """A text of the test split that was trained on flatters the victim; a doubt, for real data have such texts."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        for text in kit.loaded(dataset)[split]["text"]:
            other = seen.setdefault(text, split)
            if other != split:
                warnings.warn(Doubt(f"{shown(text)} is in {other} and in {split}"), stacklevel=2)
                return
