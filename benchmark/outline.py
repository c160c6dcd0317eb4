"""What a run is about to do, for those who look while it runs: `<results>/plan.json`, written before its first step."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from rapbench.artifacts import read_json, write_atomically
from rapbench.errors import StoreError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from rapbench.runner.plan import Group, Plan
    from rapbench.stages import Job

PLAN, JOURNAL = "plan.json", "attempts.jsonl"
SCHEMA = 1
END_OF_TIME_S = 4e9
"""The year 2096: later than any run, and still a date everywhere."""

Count = Annotated[int, Field(ge=0, le=1_000_000)]
Place = Annotated[int, Field(ge=0)]


class Step(NamedTuple):
    """A step that has to run. `needs`: the places of those before it that it waits for."""

    key: str
    stage: str
    label: str
    needs: tuple[Place, ...]


class Lot(NamedTuple):
    """Cells that wait for the same steps. `key`: of the artifact that they are read off; `needs`, `welcome`: places of steps.

    Without the steps of `needs` there is no result; those of `welcome` may fail.
    """

    key: str
    cells: Count
    needs: tuple[Place, ...]
    welcome: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run as it was at its start. Whether it is still under way, the folder's lock tells."""

    started: Annotated[float, Field(ge=0, le=END_OF_TIME_S)]
    """Seconds since 1970."""
    pid: Annotated[int, Field(ge=1)]
    host: str
    command: tuple[str, ...]
    attempts_at: Annotated[int, Field(ge=0)]
    """Bytes of attempts.jsonl that earlier runs had written."""
    steps: tuple[Step, ...]
    """What has to run, in an order in which it can."""
    lots: tuple[Lot, ...]
    skipped: Mapping[str, Count]
    """Cells that make no sense, by reason."""
    refused: Mapping[str, Count]
    """Cells whose data set cannot be had, by reason."""
    schema_version: int = SCHEMA

    def __post_init__(self) -> None:
        if any(own >= place for place, step in enumerate(self.steps) for own in step.needs):
            raise ValueError("a step waits for one before it")
        if any(own >= len(self.steps) for lot in self.lots for own in (*lot.needs, *lot.welcome)):
            raise ValueError("cells wait for steps that there are")


def forget_plan(out: Path) -> None:
    """Delete what an earlier run was about to do: the next one is planning."""
    (out / PLAN).unlink(missing_ok=True)


def write_plan(plan: Plan, missing: Mapping[str, Job], out: Path) -> None:
    """Write what this process is about to do into the results folder. `missing`: the steps that have to run."""
    write_atomically(out / PLAN, json.dumps(vars(outline(plan, missing, out)), separators=(",", ":")))


def outline(plan: Plan, missing: Mapping[str, Job], out: Path) -> Outline:
    """Give what this process is about to do."""
    places = {key: place for place, key in enumerate(missing)}
    journal = out / JOURNAL
    return Outline(
        started=round(time.time(), 3),
        pid=os.getpid(),
        host=platform.node(),
        command=("rapbench", *sys.argv[1:]),
        attempts_at=journal.stat().st_size if journal.is_file() else 0,
        steps=tuple(
            Step(key, job.stage, job.label, tuple(places[own] for own in job.inputs.values() if own in places))
            for key, job in missing.items()
        ),
        lots=tuple(_lot(group, places) for group in plan.groups),
        skipped=Counter(asked.skip or "" for asked in plan.skipped),
        refused=Counter(reason for _, reason in plan.refused),
    )


def read_plan(out: Path) -> Outline | None:
    """Give what the folder's last run was about to do; None where that is not known. A StoreError where the file says no such thing."""
    path = out / PLAN
    if not path.exists():
        return None
    from pydantic import ValidationError

    try:
        found: Outline = _adapter().validate_python(_known(read_json(path, finite=True)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{str(path)!r} is no plan of this rapbench: {where}: {first['msg']}; delete it, results do not need it") from None
    if found.schema_version != SCHEMA:
        raise StoreError(f"{str(path)!r} has schema version {found.schema_version}, this rapbench reads {SCHEMA}")
    return found


def _lot(group: Group, places: Mapping[str, int]) -> Lot:
    from rapbench.runner.plan import WELCOME

    waits = [(role in WELCOME, places[key]) for role, key in group.keys.items() if key in places]
    needs, welcome = (tuple(sorted({place for own, place in waits if own is kind})) for kind in (False, True))
    return Lot(group.keys[group.needed[-1]], len(group.cells), needs, welcome)


def _known(content: Any) -> Any:
    """Give the fields that this version knows: a later one may have more."""
    names = {field.name for field in dataclasses.fields(Outline)}
    return {key: value for key, value in content.items() if key in names} if isinstance(content, dict) else content


@cache
def _adapter() -> TypeAdapter[Outline]:
    from pydantic import TypeAdapter

    return TypeAdapter(Outline)
