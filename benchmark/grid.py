"""A grid file -> cells. A grid names data sets, attacks, defenses, allowed FRRs, a victim and seeds; no wildcards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rapbench.api import Attack, Dataset, Defense
from rapbench.errors import GridError, SpecError
from rapbench.lab import rng
from rapbench.registry import Registry, build, spec_of, split_spec, unknown
from rapbench.victim import Recipe

Spec = str | dict[str, Any]
PROTOCOL = "paper"
MAX_BYTES = 1 << 20


class Block(BaseModel):
    """One product of data sets x attacks x defenses x FRRs x seeds on one victim recipe."""

    model_config = ConfigDict(extra="forbid")

    victim: Spec = "bert-base-uncased"
    datasets: list[Spec] = Field(min_length=1)
    attacks: list[Spec] = Field(min_length=1)
    defenses: list[Spec] = Field(min_length=1)
    frr: list[float] = Field(default=[0.005, 0.01, 0.03, 0.05], min_length=1)
    seeds: list[int] = Field(default=[1234], min_length=1)

    @field_validator("frr")
    @classmethod
    def _in_range(cls, values: list[float]) -> list[float]:
        for value in values:
            if not 0 < value < 1:
                raise ValueError(f"allowed FRR {value!r} is not in (0, 1): 1 % is 0.01")
        return values


@dataclass(frozen=True)
class Cell:
    """One combination to compute. `attack` is resolved (its trigger is decided); `attack_spec` is as it was asked for."""

    dataset: Dataset
    attack: Attack
    attack_spec: str
    defense: Defense
    recipe: Recipe
    seed: int
    frr: float
    skip: str | None = None
    """Why this combination makes no sense, or None."""

    @property
    def names(self) -> dict[str, Any]:
        """What the cell is called in results and tables: canonical specs."""
        return {
            "dataset": spec_of(self.dataset),
            "attack": self.attack_spec,
            "defense": spec_of(self.defense),
            "victim": victim_spec(self.recipe),
            "seed": self.seed,
            "frr": self.frr,
            "protocol": PROTOCOL,
        }


def read_blocks(name: str) -> list[Block]:
    """Give the blocks of a shipped grid (by name) or of a YAML file (by path)."""
    shipped = shipped_grids()
    if name in shipped:  # first: a folder or file of that name may lie around
        text = resources.files("rapbench.grids").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return _blocks(yaml.safe_load(text), name)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name or os.path.isfile(name):
        return _blocks(_yaml(path), str(path))
    raise GridError(unknown("grid", name, shipped) + "; or give the path of a .yaml file")


def shipped_grids() -> list[str]:
    """Give the names of the grids that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in resources.files("rapbench.grids").iterdir() if item.name.endswith(".yaml"))


def checked_block(options: Mapping[str, Any], where: str) -> Block:
    """Give the block of plain options; a GridError names the key that was wrong."""
    known = Block.model_fields
    for key in options:
        if key not in known:
            raise GridError(unknown(f"key of {where}", str(key), known))
    try:
        return Block.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise GridError(f"{where}: {'.'.join(str(part) for part in first['loc'])}: {message[:1].lower() + message[1:]}") from None


def cells_of(blocks: Sequence[Block], registry: Registry) -> list[Cell]:
    """Give every cell of the blocks once, in order; an unknown name or option is a SpecError before anything runs."""
    cells = {tuple(cell.names.values()): cell for block in blocks for cell in _product(block, registry)}
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


def mismatch(attack: Attack, defense: Defense) -> str | None:
    """Say why this attack and this defense cannot be one cell, or None."""
    shared = sorted({word.lower() for word in attack.words} & {word.lower() for word in defense.words})
    if shared:
        return (
            f"{defense.name} perturbs with {shared[0]!r}, a declared trigger of {attack.name}: choose another word, {defense.name}:word=..."
        )
    return None


def _product(block: Block, registry: Registry) -> Iterator[Cell]:
    recipe = recipe_of(block.victim)
    datasets = [cast(Dataset, registry.parse("dataset", spec)) for spec in block.datasets]
    attacks = [cast(Attack, registry.parse("attack", spec)) for spec in block.attacks]
    defenses = [cast(Defense, registry.parse("defense", spec)) for spec in block.defenses]
    for seed in block.seeds:
        for dataset in datasets:
            for attack in attacks:
                resolved = attack.resolve(dataset, rng(seed, f"resolve/{dataset.name}"))
                for defense in defenses:
                    skip = mismatch(resolved, defense)
                    for frr in block.frr:
                        yield Cell(dataset, resolved, spec_of(attack), defense, recipe, seed, frr, skip)


def _blocks(content: Any, where: str) -> list[Block]:
    if not isinstance(content, dict):
        raise GridError(f"grid {where!r} is no mapping: write keys like datasets, attacks, defenses")
    shared = {key: value for key, value in content.items() if key not in ("about", "blocks")}
    own = content.get("blocks", [{}])
    if not isinstance(own, list) or not own or not all(isinstance(block, dict) for block in own):
        raise GridError(f"grid {where!r}: blocks is no list of mappings, at least one")
    return [checked_block({**shared, **block}, f"grid {where!r}") for block in own]


def _yaml(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GridError(f"grid {str(path)!r} is larger than 1 MiB")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GridError(f"cannot read the grid {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date like 2020-99-99
        raise GridError(f"grid {str(path)!r} is no YAML: {' '.join(str(error).split())}") from None
