"""The axes of a grid: what is varied alone, one at a time, around a block's own settings ("does it still work when ...?")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator, model_validator

from rapbench.registry import Registry, split_spec, unknown

if TYPE_CHECKING:
    from rapbench.api import Attack
    from rapbench.grid import Block

Spec = str | dict[str, Any]
B = TypeVar("B", bound="Block")
ALL = "all"
OF_THE_MODEL = ("revision",)
"""Options of a victim that another model does not take over."""


class Axes(BaseModel):
    """The values of each axis, beside those of the block itself."""

    model_config = ConfigDict(extra="forbid")

    poison_rate: list[float] = Field(default=[], min_length=1)
    """The option of that name of every attack that poisons."""
    triggers: list[StrictInt] = Field(default=[], min_length=1)
    """Trigger words in a text, of the attacks that have an option for it (`count`, `word_count`, `test_words`); others stay as they are."""
    epochs: list[StrictInt] = Field(default=[], min_length=1)
    """The victim's epochs of training."""
    heldout: list[StrictInt | str] = Field(default=[], min_length=1)
    """Held-out texts that the defenders have, at most; `all` of them."""
    victim: list[Spec] = Field(default=[], min_length=1)
    """Other victims; an option that a value does not give is as in the block's own victim."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError(f"write a mapping like {{heldout: [16, 64, all]}}, not {given!r}")
        for axis in given:
            if axis not in cls.model_fields:
                raise ValueError(unknown("axis", str(axis), cls.model_fields))
        return given

    @field_validator("poison_rate")
    @classmethod
    def _shares(cls, values: list[float]) -> list[float]:
        for value in values:
            if not 0 < value <= 1:
                raise ValueError(f"{value!r} is no share: give numbers above 0 and at most 1")
        return values

    @field_validator("triggers", "epochs", "heldout")
    @classmethod
    def _counts(cls, values: list[Any]) -> list[Any]:
        for value in values:
            if isinstance(value, str) and value != ALL:
                raise ValueError(f"{value!r} is no number of texts: give numbers from 1 up, or all")
            if value != ALL and value < 1:
                raise ValueError(f"{value!r} is below 1")
        return values

    @property
    def size(self) -> int:
        """How many times the block is computed anew, at most."""
        return sum(len(values) for values in vars(self).values())


def variants(block: B, registry: Registry) -> Iterator[B]:
    """Give the block itself, then for each value of each axis the block with this value alone in the place of its own."""
    yield block
    for axis, change in CHANGES.items():
        for value in getattr(block.axes, axis):
            yield block.model_copy(update=change(block, value, registry))


def _poison_rate(block: Block, value: float, registry: Registry) -> dict[str, Any]:
    def changed(spec: Spec) -> Spec:
        poisons = getattr(registry.get("attack", split_spec(spec)[0]).cls, "poisons", True)
        return _with(spec, "poison_rate", value) if poisons else spec

    return {"attacks": [changed(spec) for spec in block.attacks]}


def _triggers(block: Block, value: int, registry: Registry) -> dict[str, Any]:
    def changed(spec: Spec) -> Spec:
        option = cast("type[Attack]", registry.get("attack", split_spec(spec)[0]).cls).triggers_option
        return _with(spec, option, value) if option else spec

    return {"attacks": [changed(spec) for spec in block.attacks]}


def _epochs(block: Block, value: int, registry: Registry) -> dict[str, Any]:
    return {"victim": _with(block.victim, "epochs", value)}


def _heldout(block: Block, value: int | str, registry: Registry) -> dict[str, Any]:
    return {"defenses": [_with(spec, "heldout", None if value == ALL else value) for spec in block.defenses]}


def _victim(block: Block, value: Spec, registry: Registry) -> dict[str, Any]:
    (before, options), (model, own) = split_spec(block.victim), split_spec(value)
    kept = {name: told for name, told in options.items() if model == before or name not in OF_THE_MODEL}
    return {"victim": {"name": model, **kept, **own}}


CHANGES: Mapping[str, Callable[[Any, Any, Registry], dict[str, Any]]] = {
    "poison_rate": _poison_rate,
    "triggers": _triggers,
    "epochs": _epochs,
    "heldout": _heldout,
    "victim": _victim,
}
AXES: Sequence[str] = tuple(CHANGES)


def _with(spec: Spec, option: str, value: object) -> Spec:
    """Give a spec with one option set."""
    name, options = split_spec(spec)
    return {"name": name, **options, option: value}
