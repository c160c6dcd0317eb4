"""A grid file -> cells. A grid names data sets, attacks, defenses, allowed FRRs, a victim and seeds; no wildcards."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rapbench.api import Attack, Dataset, Defense
from rapbench.axes import Axes, variants
from rapbench.errors import GridError, SpecError
from rapbench.lab import rng
from rapbench.protocol import PROTOCOLS
from rapbench.registry import Registry, build, spec_of, split_spec, text_fault, unknown
from rapbench.victim import Recipe

Spec = str | dict[str, Any]
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_VALUES = 100_000
"""Values in a grid file, keys and collections included."""
MAX_CELLS = 200_000


class Victims(BaseModel):
    """One product of data sets x attacks x seeds on one victim recipe: the victims of a grid."""

    model_config = ConfigDict(extra="forbid")

    victim: Spec = "bert-base-uncased"
    """The model that becomes the victim, and how it is trained."""
    datasets: list[Spec] = Field(min_length=1)
    """The data sets, each a spec."""
    poisoned_on: list[Spec] = []
    """The fine-tuning setting: the attacker's data sets; the user fine-tunes on, and defends, each of `datasets`."""
    finetune: Spec = {}
    """What the user's fine-tuning does otherwise than the victim's recipe says."""
    attacks: list[Spec] = Field(min_length=1)
    """The attacks, each a spec; `clean` is the control."""
    seeds: list[int] = Field(default=[1234], min_length=1)
    """Everything is computed once for each."""

    @property
    def size(self) -> int:
        """How many cells the block comes to, at most, under one protocol."""
        return math.prod(max(1, len(value)) for value in vars(self).values() if isinstance(value, list))


class Block(Victims):
    """One product of victims x defenses x FRRs."""

    defenses: list[Spec] = Field(min_length=1)
    """The defenses, each a spec."""
    frr: list[float] = Field(default=[0.005, 0.01, 0.03, 0.05], min_length=1)
    """The allowed false-rejection rates, fractions in (0, 1)."""
    axes: Axes = Axes()
    """Values of `poison_rate`, `triggers`, `epochs`, `heldout` and `victim`, each varied alone around the block's own settings."""

    @property
    def size(self) -> int:
        return super().size * (1 + self.axes.size)

    @field_validator("frr")
    @classmethod
    def _in_range(cls, values: list[float]) -> list[float]:
        for value in values:
            if not 0 < value < 1:
                raise ValueError(f"allowed FRR {value!r} is not in (0, 1): 1 % is 0.01")
        return values


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One victim to make. `attack` is resolved (its trigger is decided); `attack_spec` is as it was asked for.

    Main setting: poisoned, defended and attacked on `dataset`. Fine-tuning setting: poisoned on `poisoned_on`, then
    fine-tuned by its user on the clean texts of `dataset` with the recipe `tuning`.
    """

    dataset: Dataset
    poisoned_on: Dataset | None = None
    tuning: Recipe | None = None
    attack: Attack
    attack_spec: str
    recipe: Recipe
    seed: int

    @property
    def home(self) -> Dataset:
        """The attacker's data set."""
        return self.poisoned_on or self.dataset

    @property
    def deployed(self) -> Recipe:
        """The recipe by which the defended victim reads texts: its user's, where there is one."""
        return self.tuning or self.recipe

    @property
    def names(self) -> dict[str, Any]:
        """What the victim is called in results and tables: canonical specs."""
        return {
            "dataset": spec_of(self.dataset),
            "setting": "fine-tuned" if self.poisoned_on else "main",
            "poisoned_on": spec_of(self.poisoned_on) if self.poisoned_on else None,
            "tuning": victim_spec(self.tuning) if self.tuning else None,
            "attack": self.attack_spec,
            "victim": victim_spec(self.recipe),
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Cell(Planted):
    """One combination to compute."""

    defense: Defense
    frr: float
    protocol: str
    skip: str | None = None
    """Why this combination makes no sense, or None."""

    @property
    def names(self) -> dict[str, Any]:
        """What the cell is called in results and tables: canonical specs."""
        return {**super().names, "defense": spec_of(self.defense), "frr": self.frr, "protocol": self.protocol}


B = TypeVar("B", bound=Victims)


def read_blocks(name: str, cls: type[B] = Block) -> list[B]:  # type: ignore[assignment]
    """Give the blocks of a shipped grid (by name) or of a YAML file (by path)."""
    shipped = shipped_grids()
    if name in shipped:  # first: a folder or file of that name may lie around
        text = resources.files("rapbench.grids").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return _blocks(yaml.safe_load(text), name, cls)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name or os.path.isfile(name):
        return _blocks(_yaml(path), str(path), cls)
    raise GridError(unknown("grid", name, shipped) + "; or give the path of a .yaml file")


def shipped_grids() -> list[str]:
    """Give the names of the grids that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in resources.files("rapbench.grids").iterdir() if item.name.endswith(".yaml"))


def checked_block(options: Mapping[str, Any], where: str, cls: type[B] = Block) -> B:  # type: ignore[assignment]
    """Give the block of plain options; a GridError names the key that was wrong."""
    known = cls.model_fields
    for key in options:
        if key not in known:
            raise GridError(unknown(f"key of {where}", str(key), known))
    try:
        return cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise GridError(f"{where}: {'.'.join(str(part) for part in first['loc'])}: {message[:1].lower() + message[1:]}") from None


def cells_of(blocks: Sequence[Block], registry: Registry) -> list[Cell]:
    """Give every cell of the blocks once, in order; an unknown name or option is a SpecError before anything runs."""
    cells: dict[tuple[Any, ...], Cell] = {}
    for block in blocks:
        for own in variants(block, registry):
            cells |= {tuple(cell.names.values()): cell for cell in _product(own, registry)}
    return list(cells.values())


def recipe_of(spec: Spec) -> Recipe:
    """Give the recipe of a victim spec: `bert-base-uncased:epochs=1`, a folder, `minilm-l6`, or a mapping with `name`."""
    model, options = split_spec(spec)
    if not model:
        raise SpecError(f"the victim {spec!r} names no model: give a hub id, a folder or minilm-l6")
    return build(Recipe, {"model": model, **options}, f"victim {model!r}")


def victim_spec(recipe: Recipe) -> str:
    """Give the canonical spec of a recipe."""
    return spec_of(replace(recipe, model=Recipe.model), recipe.model)


def victims_of(block: Victims, registry: Registry) -> Iterator[Planted]:
    """Give the victims of a block; an unknown name or option is a SpecError."""
    recipe = recipe_of(block.victim)
    if block.finetune and not block.poisoned_on:
        raise GridError("finetune without poisoned_on: name the data set that the attacker poisons, or leave finetune out")
    tuning = _tuning(recipe, block.finetune) if block.poisoned_on else None
    datasets = [cast(Dataset, registry.parse("dataset", spec)) for spec in block.datasets]
    homes: list[Dataset | None] = [cast(Dataset, registry.parse("dataset", spec)) for spec in block.poisoned_on] or [None]
    attacks = [cast(Attack, registry.parse("attack", spec)) for spec in block.attacks]
    for seed, dataset, home, attack in product(block.seeds, datasets, homes, attacks):
        origin = home or dataset
        drawn = resolved(attack, origin, seed)
        yield Planted(dataset=dataset, poisoned_on=home, tuning=tuning, attack=drawn, attack_spec=spec_of(attack), recipe=recipe, seed=seed)


def resolved(attack: Attack, dataset: Dataset, seed: int) -> Attack:
    """Give the attack with its trigger decided; a SpecError where the data set's sentence makes none."""
    try:
        return attack.resolve(dataset, rng(seed, f"resolve/{dataset.name}"))
    except ValueError as error:  # of the attack's own check of its options
        raise SpecError(f"attack {attack.name!r} on the data set {dataset.name!r}: {error}") from None


def impossible(planted: Planted) -> str | None:
    """Say why this victim cannot be made, or None."""
    if planted.poisoned_on is None:
        return None
    if not planted.attack.can_be_finetuned:
        return f"{planted.attack.name} makes a victim that cannot be fine-tuned: give another attack, or leave poisoned_on out"
    own, home = planted.dataset, planted.poisoned_on
    if own.target_label != home.target_label:
        return (
            f"the target label is {home.target_label} on {home.name} and {own.target_label} on {own.name}: "
            "fine-tuning keeps the label, choose two data sets with the same target_label"
        )
    return None


def mismatch(attack: Attack, defense: Defense) -> str | None:
    """Say why this attack and this defense cannot be one cell, or None."""
    if defense.needs_trigger and not attack.words:
        return f"{defense.name} looks for the words of a trigger, and {attack.name} declares none"
    if defense.works_on == "training" and not attack.plants_by_data():
        return f"{defense.name} filters a training set, and {attack.name} plants no backdoor by one alone"
    shared = sorted({word.lower() for word in attack.words} & {word.lower() for word in defense.words})
    if shared:
        return (
            f"{defense.name} perturbs with {shared[0]!r}, a declared trigger of {attack.name}: choose another word, {defense.name}:word=..."
        )
    return None


def _product(block: Block, registry: Registry) -> Iterator[Cell]:
    defenses = [cast(Defense, registry.parse("defense", spec)) for spec in block.defenses]
    for planted in victims_of(block, registry):
        for defense in defenses:
            skip = impossible(planted) or mismatch(planted.attack, defense) or _received(planted, defense)
            for frr, protocol in product(block.frr, PROTOCOLS):
                yield Cell(**vars(planted), defense=defense, frr=frr, protocol=protocol, skip=skip)


def _received(planted: Planted, defense: Defense) -> str | None:
    if planted.poisoned_on is None or defense.works_on != "training":
        return None
    return f"{defense.name} filters the set that the victim was poisoned by, which stayed with the attacker: leave poisoned_on out"


def _tuning(recipe: Recipe, spec: Spec) -> Recipe:
    """Give the recipe of the user's fine-tuning: the victim's, with what the grid says otherwise."""
    options = split_spec(f"finetune:{spec}")[1] if isinstance(spec, str) else spec
    for name in ("model", "revision", "layers"):
        if name in options:
            raise SpecError(f"finetune: {name} is the victim's, fine-tuning cannot change it")
    return build(Recipe, {**asdict(recipe), **options}, "finetune")


def _blocks(content: Any, where: str, cls: type[B]) -> list[B]:
    if not isinstance(content, dict):
        raise GridError(f"grid {where!r} is no mapping: write keys like datasets, attacks, defenses")
    shared = {key: value for key, value in content.items() if key not in ("about", "blocks")}
    own = content.get("blocks", [{}])
    if not isinstance(own, list) or not own or not all(isinstance(block, dict) for block in own):
        raise GridError(f"grid {where!r}: blocks is no list of mappings, at least one")
    blocks: list[B] = []
    cells = 0
    for block in own:  # counted one by one: very many blocks are not even checked
        blocks.append(checked_block({**shared, **block}, f"grid {where!r}", cls))
        cells += blocks[-1].size * len(PROTOCOLS)
        if cells > MAX_CELLS:
            raise GridError(f"grid {where!r} comes to more than {MAX_CELLS:,} cells: split it into several")
    return blocks


class _Loader(yaml.SafeLoader):
    """The YAML of a grid: plain values alone, each written once, nothing that grows when it is read."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Give the next value, which is no alias (a few of them stand for billions of values), not too deep, not too many."""
        if self.check_event(yaml.AliasEvent):
            self.refuse("has an alias (*name): write the value out, or put what blocks share beside them")
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"is nested deeper than {MAX_DEPTH} levels")
        if self.values > MAX_VALUES:
            self.refuse(f"has more than {MAX_VALUES:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and (fault := text_fault(node.value)):
            self.refuse(f"has a value that {fault}")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Give a mapping; of a key that stands twice YAML would keep the last without a word."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if keys and (most := keys.most_common(1)[0])[1] > 1:
            self.refuse(f"gives {most[0]!r} twice")
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: Any) -> int:
        value = int(self.construct_yaml_int(node))
        if abs(value) >= 1 << 63:
            self.refuse(f"has an integer of {value.bit_length()} bits, at most 63 make sense")
        return value

    def refuse(self, reason: str) -> NoReturn:
        raise GridError(f"grid {self.name!r} {reason}")


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _yaml(path: Path) -> Any:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise GridError(f"the grid {str(path)!r} is no file")  # a pipe would be waited for, a device has no end
        if found.st_size > MAX_BYTES:
            raise GridError(f"grid {str(path)!r} is larger than 1 MiB")
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)
        return loader.get_single_data()
    except OSError as error:
        raise GridError(f"cannot read the grid {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date like 2020-99-99
        raise GridError(f"grid {str(path)!r} is no YAML: {error}") from None
