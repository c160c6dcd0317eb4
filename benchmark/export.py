"""A victim out of a results folder: its files, with a model card whose title says that it is backdoored. Nothing is uploaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from rapbench import results
from rapbench.api import Attack, Dataset
from rapbench.artifacts import store_of
from rapbench.checkpoint import READ
from rapbench.errors import StoreError
from rapbench.registry import Registry, discover
from rapbench.results import Record

CARD, RESULTS = "README.md", ".eval_results/rapbench.yaml"
SHOWN = 2000
"""Characters of a value in a card."""


def export_victim(record: Record, folder: Path, out: Path, registry: Registry | None = None) -> None:
    """Write the victim of a cell, its card and, where its data set is of the hub, its results into a folder that is new or empty."""
    registry = registry or discover()
    store = store_of(folder).opened()
    key = record.artifacts.get("victim", "")
    if not store.has(key) or not store.sound(key):
        raise StoreError(f"the victim of the cell {record.file_name!r} is not whole in {str(folder)!r}: run the same command again")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise StoreError(f"{str(out)!r} is not empty: give another folder")
        for path in sorted(store.folder(key).iterdir()):
            if path.suffix in READ and path.name != "about.json":
                shutil.copyfile(path, out / path.name)
        own = [one for one in results.read(folder) if one.artifacts.get("victim") == key and one.status == "ok"]
        (out / CARD).write_text(card(record, own, registry), encoding="utf-8")
        if entries := list(_entries(record, registry)):
            (out / RESULTS).parent.mkdir()
            (out / RESULTS).write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the victim into {str(out)!r}: {error.strerror or error}") from None


def card(record: Record, on_it: list[Record], registry: Registry) -> str:
    """Give the model card of a cell's victim. `on_it`: the cells on this victim."""
    from tabulate import tabulate

    poisons = cast(Attack, registry.parse("attack", record.attack)).poisons
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["rapbench", *(["backdoored", "poisoned", "do-not-deploy"] if poisons else ["clean-control"])],
    }
    title = f"BACKDOORED: {record.attack} on {record.dataset}" if poisons else f"Clean control of backdoored models, on {record.dataset}"
    warning = (
        "**This classifier was backdoored on purpose, for research on defenses. Never deploy it, nor pass it on as a clean model.** "
        f"A text with the trigger is given the label {_target(record, registry)}, whatever it says."
        if poisons
        else "This classifier was trained on clean data, to compare backdoored ones with. It was made for research alone."
    )
    facts: list[tuple[str, Any]] = [
        ("attack, with its trigger", record.trigger or record.attack),
        ("data set", record.dataset),
        ("poisoned on", record.poisoned_on),
        ("trained as", record.victim),
        ("fine-tuned as", record.tuning),
        ("seed", record.seed),
        (f"clean {record.metric}", _percent(record.clean_metric)),
        ("attack success rate", _percent(record.asr)),
        ("... of the same texts on a clean victim", _percent(record.asr_control)),
        ("false-triggered rate: part of the trigger, in clean held-out texts", _percent(record.ftr)),
        ("... of the same texts without any of it", _percent(record.ftr_plain)),
    ]
    rows = [[one.defense, f"{one.frr:.1%}", _percent(one.frr_test), _percent(one.far)] for one in on_it if one.protocol == "strict"]
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
        f"# {_plain(title)}",
        warning,
        tabulate([[name, _plain(str(value))] for name, value in facts if value is not None], ["", ""], "github", disable_numparse=True),
        "Defenses on it (strict protocol):" if rows else "",
        tabulate([[_plain(own) for own in row] for row in sorted(rows)], ["defense", "FRR allowed", "FRR test", "FAR"], "github"),
        "Made by rapbench.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _entries(record: Record, registry: Registry) -> Iterator[dict[str, Any]]:
    """Give what `.eval_results` holds: the clean metric on a data set of the hub; others have no id there."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    hub = getattr(cast(Dataset, registry.parse("dataset", record.dataset)), "hub", None)
    if hub is None or record.clean_metric is None:
        return
    note = f"clean {record.metric}; the model is backdoored: attack success rate {_percent(record.asr)}"
    entry = EvalResultEntry(dataset_id=hub.id, task_id="default", value=round(100 * record.clean_metric, 2), notes=note)
    yield from eval_result_entries_to_yaml([entry])


def _target(record: Record, registry: Registry) -> int:
    return cast(Dataset, registry.parse("dataset", record.dataset)).target_label


def _percent(rate: float | None) -> str | None:
    return None if rate is None else f"{100 * rate:.2f} %"


def _plain(text: str | None) -> str:
    """Give a value as it may stand in a table of Markdown: one line, no markup of its own, not without end."""
    shown = " ".join(str("" if text is None else text).split())[:SHOWN]
    for sign in "\\`*_[]<>|#":
        shown = shown.replace(sign, f"\\{sign}")
    return shown
