"""Cells -> jobs. Cells share their upstream work; a job's key says all that its result depends on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import rapbench
from rapbench import stages
from rapbench.api import Attack
from rapbench.artifacts import Store, content_key
from rapbench.errors import DataError
from rapbench.grid import Cell
from rapbench.registry import Kind, Plugin, Registry, source_digest
from rapbench.stages import Bench, Job
from rapbench.victim import Recipe, model_fingerprint

LIBRARIES = {
    "victim": ("torch", "transformers", "tokenizers", "accelerate", "numpy"),
    "predict": ("torch", "transformers", "tokenizers", "numpy"),
    "prepare": ("torch", "transformers", "numpy"),
    "score": ("torch", "transformers", "tokenizers", "numpy", "scikit-learn"),
}
"""What changes a step's numbers, by step."""

MODULES = {
    "data": ("data.py",),
    "poison": ("poison.py",),
    "victim": ("victim.py", "lab.py", "rows.py"),
    "predict": ("victim.py",),
    "prepare": ("lab.py",),
    "score": ("victim.py", "lab.py", "rows.py", "protocol.py", "cost.py"),
}
"""The files of the core that a step runs, by step."""


@dataclass(frozen=True)
class Group:
    """The cells that differ by FRR only: they are read off the same artifacts. `keys`: role -> artifact."""

    cells: tuple[Cell, ...]
    keys: Mapping[str, str]


@dataclass
class Plan:
    """All jobs of a grid by key, in an order in which they can run, and the cells they serve."""

    groups: list[Group] = field(default_factory=list)
    skipped: list[Cell] = field(default_factory=list)
    refused: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells whose data set cannot be had, with the reason: the others go on."""
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        return [*(cell for group in self.groups for cell in group.cells), *self.skipped, *(cell for cell, _ in self.refused)]

    def missing(self, store: Store) -> dict[str, Job]:
        """Give the jobs that have to run: those that a missing or corrupted result needs."""
        found: dict[str, bool] = {}
        needed: dict[str, Job] = {}
        wanted = [key for group in self.groups for key in _results(group)]
        while wanted:
            key = wanted.pop()
            if key in found:
                continue
            found[key] = store.sound(key)
            if not found[key]:
                needed[key] = self.jobs[key]
                wanted.extend(self.jobs[key].inputs.values())
        return {key: job for key, job in self.jobs.items() if key in needed}


def plan(cells: Iterable[Cell], registry: Registry, bench: Bench) -> Plan:
    """Give the plan of these cells; a DataError where not one of their data sets can be had."""
    made = Plan()
    planner = _Planner(registry, bench, made)
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.skip:
            made.skipped.append(cell)
        else:
            grouped.setdefault(repr(replace(cell, frr=0.0)), []).append(cell)
    for group in grouped.values():
        try:
            made.groups.append(Group(tuple(group), planner.keys(group[0])))
        except DataError as error:
            made.refused += [(cell, str(error)) for cell in group]
    if made.refused and not made.groups:
        raise DataError(made.refused[0][1])
    return made


def _results(group: Group) -> list[str]:
    return [key for role, key in group.keys.items() if role in ("clean", "poisoned", "control", "score")]


@dataclass
class _Planner:
    registry: Registry
    bench: Bench
    made: Plan

    def keys(self, cell: Cell) -> dict[str, str]:
        data = self._data(cell)
        poison, victim = self._victim(cell, cell.attack, data)
        keys = {"data": data, "poison": poison, "victim": victim}
        keys["clean"] = self._predict(cell, victim, data, ["validation", "test"])
        keys["poisoned"] = self._predict(cell, victim, poison, ["first100", "anywhere"])
        if cell.attack.poisons and "clean" in self.registry.names("attack"):
            control = self._victim(cell, self._named_attack(cell, "clean"), data)[1]
            keys["control"] = self._predict(cell, control, poison, ["first100"])
        keys["score"] = self._score(cell, keys)
        return keys

    def _data(self, cell: Cell) -> str:
        dataset = cell.dataset
        goal = ("target_label", "metric", "trigger_sentence")  # the attacker's goal does not change the data
        spec = {name: value for name, value in _options(dataset).items() if name not in goal}
        keyed = {"dataset": spec, "state": dataset.fingerprint()}
        return self._job("data", {"dataset": _options(dataset)}, {}, dataset.name, plugins=[dataset], keyed=keyed)

    def _victim(self, cell: Cell, attack: Attack, data: str) -> tuple[str, str]:
        target = cell.dataset.target_label
        label = f"{cell.dataset.name} {attack.name}"
        poison = self._job(
            "poison", {"attack": _options(attack), "target_label": target, "seed": cell.seed}, {"data": data}, label, plugins=[attack]
        )
        inputs = {"data": data, "poison": poison}
        if attack.starts_from:
            inputs["start"] = self._victim(cell, self._named_attack(cell, attack.starts_from), data)[1]
        spec = {**self._model(cell), "attack": _options(attack), "metric": cell.dataset.metric}
        keyed = {**spec, "source": _model_state(cell.recipe.model, cell.recipe.revision)}
        return poison, self._job("victim", spec, inputs, label, plugins=[attack], keyed=keyed)

    def _named_attack(self, cell: Cell, name: str) -> Attack:
        return cast(Attack, self.registry.parse("attack", name))

    def _predict(self, cell: Cell, victim: str, texts: str, splits: list[str]) -> str:
        label = f"{cell.dataset.name} {cell.attack.name} {splits[-1]}"
        return self._job("predict", {**self._model(cell), "splits": splits}, {"victim": victim, "texts": texts}, label)

    def _score(self, cell: Cell, keys: Mapping[str, str]) -> str:
        defense = cell.defense
        inputs = {role: keys[role] for role in ("data", "poison", "victim", "clean", "poisoned")}
        spec = {**self._model(cell), "defense": _options(defense)}
        prepares = defense.prepares()
        if prepares is not None:
            inputs["prepared"] = self._job(
                "prepare",
                {**self._model(cell), "defense": _options(defense)},
                {"data": keys["data"]},
                f"{cell.dataset.name} {defense.name}",
                plugins=[defense],
                keyed={"prepares": dict(prepares), "seed": cell.seed},
            )
        spec["foreign_words"] = sorted(set(cell.attack.words))
        return self._job("score", spec, inputs, f"{cell.dataset.name} {cell.attack.name} {defense.name}", plugins=[defense])

    def _model(self, cell: Cell) -> dict[str, Any]:
        return {"recipe": asdict(cell.recipe), "target_label": cell.dataset.target_label, "seed": cell.seed}

    def _job(
        self,
        stage: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
        label: str,
        *,
        plugins: Iterable[Plugin] = (),
        keyed: Mapping[str, Any] | None = None,
    ) -> str:
        key = content_key(
            {
                "stage": stage,
                "spec": dict(spec if keyed is None else keyed),
                "inputs": dict(inputs),
                "plugins": [_identity(plugin, self.registry) for plugin in plugins],
                "code": _code(stage),
                "libraries": {name: _version(name) for name in LIBRARIES.get(stage, ())},
                "bench": {"device": self.bench.device, "threads": self.bench.threads} if stage in LIBRARIES else {},
            }
        )
        self.made.jobs.setdefault(key, Job(stage, key, spec, inputs, label))
        return key


def _options(plugin: Plugin | Recipe) -> dict[str, Any]:
    """Give all options as plain JSON values, defaults included: a spec that spells a default is the same cell."""
    plain = {f.name: list(value) if isinstance(value := getattr(plugin, f.name), tuple) else value for f in fields(plugin)}
    return {"name": plugin.name, **plain} if not isinstance(plugin, Recipe) else plain


def _identity(plugin: Plugin, registry: Registry) -> dict[str, str]:
    kind = cast(Kind, next(base.__name__.lower() for base in type(plugin).__mro__ if base.__name__ in ("Dataset", "Attack", "Defense")))
    found = registry.get(kind, plugin.name)
    return {"name": plugin.name, "package": found.package, "version": found.version, "source": source_digest(type(plugin))}


@cache
def _code(stage: str) -> str:
    """Give a digest of the core's code that this step runs."""
    folder = Path(rapbench.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for name in MODULES[stage]:
        digest.update((folder / name).read_bytes())
    helpers = (stages._gated, stages._kept, stages._cost) if stage == "score" else ()
    for function in (stages.STAGES[stage], *helpers):
        digest.update(inspect.getsource(function).encode())
    return digest.hexdigest()


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


@cache
def _model_state(model: str, revision: str | None) -> str:
    return model_fingerprint(model, revision)
