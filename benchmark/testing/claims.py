"""Claims: what a plugin of a kind must satisfy. A claim is a function that raises a ContractError; its name in words is the claim."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from rapbench.errors import PluginError, RapbenchError
from rapbench.registry import BASES, Kind, Plugin, spec_of
from rapbench.testing.kit import Kit, KitError, NotAsked
from rapbench.testing.tiny import settled

Check = Callable[[Any, Kit], None]
Outcome = Literal["holds", "broken", "warning", "not asked"]
CHECKS: dict[Kind, list[Claim]] = {"attack": [], "defense": [], "dataset": []}


class ContractError(PluginError):
    """A claim that does not hold, in one line."""


class Doubt(UserWarning):
    """A claim that need not hold, but had better, in one line."""


@dataclass(frozen=True)
class Claim:
    """One thing that every plugin of a kind must satisfy. `first`: where it is broken, the others are not asked."""

    kind: Kind
    check: Check
    first: bool = False

    @property
    def text(self) -> str:
        return self.check.__name__.replace("_", " ")


@dataclass(frozen=True)
class Finding:
    """What became of a claim on a plugin. `reason`: one line where it does not simply hold."""

    kind: Kind
    plugin: str
    claim: str
    outcome: Outcome
    reason: str
    seconds: float


def claim(*kinds: Kind, first: bool = False) -> Callable[[Check], Check]:
    """Register a function as a claim about plugins of these kinds."""

    def register(check: Check) -> Check:
        for kind in kinds:
            CHECKS[kind].append(Claim(kind, check, first))
        return check

    return register


def breach(reason: str) -> NoReturn:
    raise ContractError(reason)


def findings(plugin: Plugin, kit: Kit) -> Iterator[Finding]:
    """Check all claims about a plugin, one after the other; nothing that it raises stops the next."""
    kind = kind_of(plugin)
    broken = ""
    for own in CHECKS[kind]:
        started = time.perf_counter()
        outcome, reason = _outcome(own, plugin, kit, broken)
        if own.first and outcome == "broken":
            broken = own.text
        yield Finding(kind, spec_of(plugin), own.text, outcome, reason, time.perf_counter() - started)


def assert_claim(own: Claim, plugin: Plugin, kit: Kit) -> None:
    """Raise a ContractError where a claim does not hold, or what the plugin itself raises; NotAsked where it is not about this plugin."""
    with settled(), kit.disturbed():
        own.check(plugin, kit)


def kind_of(plugin: Plugin) -> Kind:
    return next(kind for kind, base in BASES.items() if isinstance(plugin, base))


def _outcome(own: Claim, plugin: Plugin, kit: Kit, broken: str) -> tuple[Outcome, str]:
    """Give what becomes of a claim, and why; `broken`: the claim without which it is not asked, or nothing."""
    if broken:
        return "not asked", f"needs: {broken}"
    try:
        with _doubts() as doubts:
            assert_claim(own, plugin, kit)
    except KitError:
        raise
    except NotAsked as why:
        return "not asked", str(why)
    except ContractError as why:
        return "broken", str(why)
    except (Exception, SystemExit) as error:
        told = str(error) if isinstance(error, RapbenchError) else f"{type(error).__name__}: {error}"
        return "broken", told.strip().splitlines()[0]
    return ("warning", doubts[0]) if doubts else ("holds", "")


@contextmanager
def _doubts() -> Iterator[list[str]]:
    """Give a list that holds the doubts once the block is done; what a plugin prints goes to stderr."""
    doubts: list[str] = []
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        yield doubts
    doubts += [str(one.message) for one in caught if issubclass(one.category, Doubt)]
