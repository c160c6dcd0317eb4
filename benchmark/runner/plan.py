"""Cells -> jobs. Cells share their upstream work; a job's key says all that its result depends on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import rapbench
from rapbench import stages
from rapbench.api import Attack, Dataset, Task
from rapbench.artifacts import Store, content_key
from rapbench.checks import Check
from rapbench.corpus import WIKITEXT, general_state
from rapbench.errors import DataError
from rapbench.grid import Cell, Planted
from rapbench.probe import Probe
from rapbench.registry import Kind, Plugin, Registry, source_digest
from rapbench.stages import Bench, Job
from rapbench.victim import Recipe, model_fingerprint

Asked = Cell | Probe | Check

LIBRARIES = {
    "victim": ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scikit-learn"),
    "finetune": ("torch", "transformers", "tokenizers", "accelerate", "numpy"),
    "predict": ("torch", "transformers", "tokenizers", "numpy"),
    "prepare": ("torch", "transformers", "numpy"),
    "read": ("torch", "transformers", "tokenizers", "numpy"),
    "score": ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scikit-learn"),
    "probe": ("torch", "transformers", "tokenizers", "numpy"),
    "theorem": ("torch", "transformers", "tokenizers", "numpy"),
}
"""What changes a step's numbers, by step."""

MODULES = {
    "data": ("data.py",),
    "poison": ("poison.py",),
    "victim": ("victim.py", "copied.py", "linear.py", "lab.py", "rows.py", "rates.py", "heads.py", "vocabulary.py"),
    "finetune": ("victim.py", "copied.py", "linear.py", "lab.py", "rates.py"),
    "predict": ("victim.py", "copied.py", "linear.py"),
    "prepare": ("lab.py",),
    "read": ("lab.py", "linear.py", "meter.py"),
    "score": (
        "victim.py",
        "copied.py",
        "linear.py",
        "lab.py",
        "rows.py",
        "rates.py",
        "heads.py",
        "vocabulary.py",
        "protocol.py",
        "cost.py",
        "gauge.py",
        "meter.py",
        "lengths.py",
        "instruments.py",
        "quoted.py",
        "standin.py",
    ),
    "probe": ("victim.py", "copied.py", "linear.py", "probe.py", "corpus.py"),
    "theorem": ("victim.py", "copied.py", "vocabulary.py", "theorem.py", "checks.py"),
}
"""The files of the core that a step runs, by step."""


HELPERS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "poison": (Attack.poisonable, Attack.can_trigger, Attack.test_trigger),
    "victim": (Task.appended, Task.replaced, Attack.training_set, Attack.plant),
    "predict": (stages._finite,),
    "probe": (stages._finite,),
    "theorem": (stages._drawn,),
    "score": (
        Task.appended,
        Task.replaced,
        Attack.training_set,
        stages._defenders,
        stages._suspects,
        stages._gated,
        stages._scored,
        stages._calibrating,
        stages._kept,
        stages._checked_scores,
        stages._dtype,
    ),
}
"""The functions of `stages`, and of the contract where it has a default, that a step runs, by step."""


NEEDED: Mapping[type[Planted], tuple[str, ...]] = {Cell: ("clean", "poisoned", "score"), Probe: ("probe",), Check: ("theorem",)}
"""The roles of the artifacts without which there is no result, by what is asked."""
WELCOME = ("control", "before")
"""The roles that are read where they are there."""


@dataclass(frozen=True)
class Group:
    """What is read off the same artifacts: the cells that differ by FRR and protocol only, one probe, one check.

    `keys`: role -> artifact.
    """

    cells: tuple[Asked, ...]
    keys: Mapping[str, str]

    @property
    def needed(self) -> tuple[str, ...]:
        return NEEDED[type(self.cells[0])]


@dataclass
class Plan:
    """All jobs of a grid by key, in an order in which they can run, and the cells they serve."""

    groups: list[Group] = field(default_factory=list)
    skipped: list[Asked] = field(default_factory=list)
    refused: list[tuple[Asked, str]] = field(default_factory=list)
    """Cells whose data set cannot be had, with the reason: the others go on."""
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def cells(self) -> list[Asked]:
        return [*(cell for group in self.groups for cell in group.cells), *self.skipped, *(cell for cell, _ in self.refused)]

    def missing(self, store: Store) -> dict[str, Job]:
        """Give the jobs that have to run: those that a missing or corrupted result needs."""
        return self.upstream(store, [key for group in self.groups for key in _results(group)])

    def upstream(self, store: Store, wanted: Iterable[str]) -> dict[str, Job]:
        """Give the jobs that have to run for these artifacts to be there, themselves included."""
        seen: set[str] = set()
        needed: set[str] = set()
        level = list(dict.fromkeys(wanted))
        while level:  # all keys of a level in one question
            sound = store.sound_among(level)
            seen.update(level)
            gone = [key for key in level if key not in sound]
            needed.update(gone)
            level = [own for own in dict.fromkeys(own for key in gone for own in self.jobs[key].inputs.values()) if own not in seen]
        return {key: job for key, job in self.jobs.items() if key in needed}


def plan(cells: Iterable[Asked], registry: Registry, bench: Bench) -> Plan:
    """Give the plan of these cells; a DataError where not one of their data sets can be had."""
    made = Plan()
    planner = _Planner(registry, bench, made)
    grouped: dict[str, list[Asked]] = {}
    for cell in cells:
        if cell.skip:
            made.skipped.append(cell)
        else:
            alike = replace(cell, frr=0.0, protocol="") if isinstance(cell, Cell) else cell
            grouped.setdefault(repr(alike), []).append(cell)
    for group in grouped.values():
        try:
            made.groups.append(Group(tuple(group), planner.keys(group[0])))
        except DataError as error:
            made.refused += [(cell, str(error)) for cell in group]
    if made.refused and not made.groups:
        raise DataError(made.refused[0][1])
    return made


def _results(group: Group) -> list[str]:
    return [key for role, key in group.keys.items() if role in (*group.needed, *WELCOME)]


@dataclass
class _Planner:
    registry: Registry
    bench: Bench
    made: Plan
    sources: dict[type, str] = field(default_factory=dict)
    """The digest of each plugin's source, as it was found."""

    def keys(self, asked: Asked) -> dict[str, str]:
        keys = self.victim(asked)
        match asked:
            case Probe():
                return {**keys, "probe": self._probe(asked, keys)}
            case Check():
                return {**keys, "theorem": self._theorem(asked, keys)}
            case Cell():
                return self._scored(asked, keys)

    def _scored(self, cell: Cell, keys: dict[str, str]) -> dict[str, str]:
        keys["clean"] = self._predict(cell, keys["victim"], keys["data"], ["validation", "test"])
        keys["poisoned"] = self._predict(cell, keys["victim"], keys["poison"], ["first100", "anywhere"])
        if "received" in keys:
            keys["before"] = self._predict(cell, keys["received"], keys["poison"], ["first100"])
        if cell.attack.poisons and "clean" in self.registry.names("attack"):
            control = self.victim(replace(cell, attack=self._named_attack("clean")))["victim"]
            keys["control"] = self._predict(cell, control, keys["poison"], ["first100"])
        keys["score"] = self._score(cell, keys)
        return keys

    def victim(self, planted: Planted) -> dict[str, str]:
        """Give the keys of the data, the poison and the victim that is defended; of the one `received` before fine-tuning."""
        data = self._data(planted.dataset)
        if planted.poisoned_on is None or planted.tuning is None:
            poison, victim = self._planted(planted, planted.attack)
            return {"data": data, "poison": poison, "victim": victim}
        received = self._planted(planted, planted.attack)[1]
        spec = {**self._model(planted), "metric": planted.dataset.metric}
        label = f"{planted.poisoned_on.name}-{planted.dataset.name} {planted.attack.name}"
        tuned = self._job("finetune", spec, {"data": data, "start": received}, label)
        return {"data": data, "poison": self._poison(planted, planted.dataset, planted.attack), "victim": tuned, "received": received}

    def _data(self, dataset: Dataset) -> str:
        goal = ("target_label", "metric", "trigger_sentence")  # the attacker's goal does not change the data
        spec = {name: value for name, value in _options(dataset).items() if name not in goal}
        keyed = {"dataset": spec, "state": dataset.fingerprint()}
        return self._job("data", {"dataset": _options(dataset)}, {}, dataset.name, plugins=[dataset], keyed=keyed)

    def _poison(self, planted: Planted, dataset: Dataset, attack: Attack) -> str:
        spec = {"attack": _options(attack), "target_label": dataset.target_label, "seed": planted.seed}
        return self._job("poison", spec, {"data": self._data(dataset)}, f"{dataset.name} {attack.name}", plugins=[attack])

    def _planted(self, planted: Planted, attack: Attack) -> tuple[str, str]:
        """Give the keys of the attacker's poison and of the victim that he gives away."""
        home = planted.home
        poison = self._poison(planted, home, attack)
        inputs = {"data": self._data(home), "poison": poison}
        if attack.starts_from:
            inputs["start"] = self._planted(planted, self._named_attack(attack.starts_from))[1]
        spec = {**self._model(planted, planted.recipe), "attack": _options(attack), "metric": home.metric}
        keyed = {**spec, "source": _model_state(planted.recipe.model, planted.recipe.revision)}
        return poison, self._job("victim", spec, inputs, f"{home.name} {attack.name}", plugins=[attack], keyed=keyed)

    def _named_attack(self, name: str) -> Attack:
        return cast(Attack, self.registry.parse("attack", name))

    def _predict(self, cell: Planted, victim: str, texts: str, splits: list[str]) -> str:
        label = f"{cell.dataset.name} {cell.attack.name} {splits[-1]}"
        return self._job("predict", {**self._model(cell), "splits": splits}, {"victim": victim, "texts": texts}, label)

    def _score(self, cell: Cell, keys: Mapping[str, str]) -> str:
        defense = cell.defense
        inputs = {role: keys[role] for role in ("data", "poison", "victim", "clean", "poisoned")}
        spec = {**self._model(cell), "defense": _options(defense), "metric": cell.dataset.metric}
        if defense.works_on == "training":  # he trains himself: as the victim's recipe says, on what the attacker published
            spec["attack"] = _options(cell.attack)
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
        inputs |= self._read(cell, keys, inputs.get("prepared"))
        spec["foreign_words"] = sorted(set(cell.attack.words))
        return self._job("score", spec, inputs, f"{cell.dataset.name} {cell.attack.name} {defense.name}", plugins=[defense])

    def _read(self, cell: Cell, keys: Mapping[str, str], prepared: str | None) -> dict[str, str]:
        """Give the keys of what comes of single texts: of clean ones for all attacks and seeds, of triggered ones for all victims."""
        defense, target = cell.defense, cell.dataset.target_label
        reads = defense.reads()
        if reads is None:
            return {}
        spec = {"defense": _options(defense), "target_label": target, "seed": 0}  # nothing is drawn
        keyed = {"reads": dict(reads), "target_label": target}
        clean = {"data": keys["data"], **({"prepared": prepared} if prepared else {})}
        label = f"{cell.dataset.name} {defense.name}"
        found = {"read_clean": self._job("read", spec, clean, label, plugins=[defense], keyed=keyed)}
        if cell.attack.poisons:
            label = f"{cell.dataset.name} {cell.attack.name} {defense.name}"
            triggered = {**clean, "poison": keys["poison"]}
            found["read_triggered"] = self._job("read", spec, triggered, label, plugins=[defense], keyed=keyed)
        return found

    def _probe(self, probe: Probe, keys: Mapping[str, str]) -> str:
        spec = {
            **self._model(probe),
            "attack": _options(probe.attack),
            "source": probe.source,
            "general": str(Path(probe.general).resolve()) if probe.general != WIKITEXT else WIKITEXT,
            "count": probe.count,
            "length": probe.length,
        }
        state = general_state(probe.general) if probe.source == "general" else ""
        keyed = {**spec, "general": state}
        inputs = {role: keys[role] for role in ("poison", "victim")}
        label = f"{probe.dataset.name} {probe.attack.name} {probe.source}"
        return self._job("probe", spec, inputs, label, plugins=[probe.attack], keyed=keyed)

    def _theorem(self, check: Check, keys: Mapping[str, str]) -> str:
        spec = {**self._model(check), "word": check.word, "texts": check.texts}
        inputs = {role: keys[role] for role in ("data", "poison", "victim")}
        return self._job("theorem", spec, inputs, f"{check.dataset.name} {check.attack.name}")

    def _model(self, planted: Planted, recipe: Recipe | None = None) -> dict[str, Any]:
        return {"recipe": asdict(recipe or planted.deployed), "target_label": planted.dataset.target_label, "seed": planted.seed}

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
                "plugins": [self._identity(plugin) for plugin in plugins],
                "code": _code(stage),
                "libraries": {name: _version(name) for name in LIBRARIES.get(stage, ())},
                "bench": {"device": self.bench.device, "threads": self.bench.threads} if stage in LIBRARIES else {},
            }
        )
        self.made.jobs.setdefault(key, Job(stage, key, spec, inputs, label))
        return key

    def _identity(self, plugin: Plugin) -> dict[str, str]:
        kind = cast(Kind, next(base.__name__.lower() for base in type(plugin).__mro__ if base.__name__ in ("Dataset", "Attack", "Defense")))
        found, own = self.registry.get(kind, plugin.name), type(plugin)
        if own not in self.sources:  # a plan is of one moment: its files are read once
            self.sources[own] = source_digest(own)
        return {"name": plugin.name, "package": found.package, "version": found.version, "source": self.sources[own]}


def _options(plugin: Plugin | Recipe) -> dict[str, Any]:
    """Give all options as plain JSON values, defaults included: a spec that spells a default is the same cell."""
    plain = {f.name: list(value) if isinstance(value := getattr(plugin, f.name), tuple) else value for f in fields(plugin)}
    return {"name": plugin.name, **plain} if not isinstance(plugin, Recipe) else plain


@cache
def _code(stage: str) -> str:
    """Give a digest of the core's code that this step runs."""
    folder = Path(rapbench.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for name in MODULES[stage]:
        digest.update((folder / name).read_bytes())
    for function in (stages.STAGES[stage], *HELPERS.get(stage, ())):
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
