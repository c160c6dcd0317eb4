"""Checks of Theorem 1 as a grid asks for them, and what they leave: one file per victim."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from rapbench.artifacts import Store
from rapbench.grid import Planted, Victims, impossible, victims_of
from rapbench.registry import spec_of
from rapbench.results import Named

if TYPE_CHECKING:
    from rapbench.registry import Registry


@dataclass(frozen=True)
class Inequality:
    """2 a sigma(delta) / b < delta, and the conclusion itself under the perturbation that sigma(delta) belongs to.

    None: no radius reaches delta (sigma and all that follows), or b does not exist (left and holds).
    """

    delta: float
    sigma: float | None
    left: float | None
    holds: bool | None
    protect_share: float | None
    """Share of clean protect-label texts that fall by delta or more."""
    triggered_share: float | None
    """Share of triggered texts that fall by less than delta."""
    concludes: bool | None
    """Whether the conclusion holds, its two "for all" trimmed by q."""


@dataclass(frozen=True)
class Bounds:
    """The symbols of the theorem with inf and sup replaced by the q and 1 - q quantiles; b is None where it is not positive."""

    q: float
    sigma_1: float
    sigma_2: float
    gradient: float
    a: float
    b: float | None
    condition_1: bool
    condition_2: bool
    a_in_range: bool
    inequalities: tuple[Inequality, ...]


@dataclass(frozen=True)
class Verdict:
    """The bounds on one population of texts, by q."""

    population: str
    counts: tuple[int, int, int]
    """How many texts: of the protect label, of others, triggered."""
    bounds: tuple[Bounds, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Give the verdict of its plain JSON form."""
        bounds = [{**one, "inequalities": tuple(Inequality(**side) for side in one["inequalities"])} for one in content["bounds"]]
        return cls(content["population"], tuple(content["counts"]), tuple(Bounds(**one) for one in bounds))


@dataclass(frozen=True)
class Distribution:
    """The quantiles of one measured quantity: (per cent, value), and the number of texts."""

    name: str
    n: int
    quantiles: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Theorem:
    """The verdicts by population and q with the distributions behind them. Norms are L2, in units of the embedding space."""

    word: str
    word_norm: float
    distributions: tuple[Distribution, ...]
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Give the theorem of its plain JSON form."""
        measured = [
            {**one, "quantiles": tuple((percent, value) for percent, value in one["quantiles"])} for one in content["distributions"]
        ]
        verdicts = tuple(Verdict.of(one) for one in content["verdicts"])
        parts = {"distributions": tuple(Distribution(**one) for one in measured), "verdicts": verdicts}
        return cls(**{**content, **parts})


class CheckBlock(Victims):
    """One product of victims, on each of which the theorem is checked."""

    word: str = Field(default="cf", min_length=1)
    """The rare word whose embedding the perturbation changes."""
    texts: int = Field(default=200, ge=1)
    """Test texts per population, at most."""


@dataclass(frozen=True, kw_only=True)
class Check(Planted):
    """One check of one victim."""

    word: str
    texts: int
    skip: str | None = None
    """Why this check makes no sense, or None."""

    @property
    def names(self) -> dict[str, Any]:
        return {**super().names, "word": self.word, "texts": self.texts}


@dataclass(frozen=True, kw_only=True)
class CheckRecord(Named):
    """What a check found."""

    FOLDER: ClassVar[str] = "theorem"

    word: str
    texts: int
    status: str
    reason: str | None = None
    theorem: Theorem | None = None
    trigger: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return self.file_stem(self.word, self.texts) + ".json"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        return cls(**{**content, "theorem": Theorem.of(content["theorem"]) if content.get("theorem") else None})


def checks_of(blocks: Sequence[CheckBlock], registry: Registry) -> list[Check]:
    """Give every check of the blocks once, in order; an unknown name or option is a SpecError before anything runs."""
    checks = {tuple(check.names.values()): check for block in blocks for check in _product(block, registry)}
    return list(checks.values())


def record(check: Check, keys: Mapping[str, str], store: Store) -> CheckRecord:
    """Give the result of a check whose artifacts are all there. `keys`: role -> artifact."""
    theorem = Theorem.of(json.loads((store.folder(keys["theorem"]) / "about.json").read_text()))
    return CheckRecord(**check.names, status="ok", theorem=theorem, trigger=spec_of(check.attack), artifacts=dict(keys))


def unfinished(check: Check, status: str, reason: str, keys: Mapping[str, str] | None = None) -> CheckRecord:
    """Give the record of a check without figures, with the reason."""
    return CheckRecord(**check.names, status=status, reason=reason, artifacts=dict(keys or {}))


def _product(block: CheckBlock, registry: Registry) -> Iterator[Check]:
    for planted in victims_of(block, registry):
        yield Check(**vars(planted), word=block.word, texts=block.texts, skip=impossible(planted) or _useless(planted, block.word))


def _useless(planted: Planted, word: str) -> str | None:
    if not planted.attack.poisons:
        return f"{planted.attack.name} plants no trigger, and the theorem is about one"
    if word.lower() in {own.lower() for own in planted.attack.words}:
        return f"the word {word!r} is a trigger of {planted.attack.name}: choose another, --word"
    return None
