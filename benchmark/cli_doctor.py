"""The command that looks for what is wrong with an installation, a machine, a results folder or a cluster: doctor."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapbench.cli_run import FAILED, OUT, Json, Out

if TYPE_CHECKING:
    from rapbench.doctor import Finding
    from rapbench.runner.survey import Seen

GIB = 2**30

Cluster = Annotated[bool, typer.Option("--cluster", help="Join Ray, too, and ask each node what it would run.")]
Address = Annotated[
    str, typer.Option("--ray-address", help="The Ray of --cluster: local (one is started for it), auto, or HOST:PORT of a head.")
]


def doctor(cluster: Cluster = False, ray_address: Address = "local", out: Out = OUT, as_json: Json = False) -> None:
    """Say what is wrong, or worth knowing, before a run; exit code 1 where something is wrong. It changes nothing."""
    from rapbench.doctor import Grade

    found: list[Finding] = []
    for finding in _findings(out):
        found.append(finding)
        if not as_json:
            typer.echo(str(finding))
    seen: list[Seen] = []
    if cluster or ray_address != "local":
        seen, more = _asked(out, ray_address)
        found += more
        if not as_json:
            typer.echo("\n" + "\n".join(map(str, more)))
    if as_json:
        plain = {"findings": [dataclasses.asdict(one) for one in found], "nodes": [dataclasses.asdict(one) for one in seen]}
        typer.echo(json.dumps(plain, indent=1))
    else:
        counts = Counter(one.grade for one in found)
        typer.echo("\n" + ", ".join(f"{counts[grade]} {grade}" for grade in Grade))
    if any(one.grade is Grade.WRONG for one in found):
        raise typer.Exit(FAILED)


def _findings(out: Path) -> Iterator[Finding]:
    from rapbench.doctor import folder, installation
    from rapbench.machine import machine

    yield from machine(out)
    yield from folder(out)
    yield from installation()


def _asked(out: Path, address: str) -> tuple[list[Seen], list[Finding]]:
    """Ask every node; where the cluster cannot be joined, give why."""
    from rapbench.doctor import wrong
    from rapbench.errors import RapbenchError
    from rapbench.runner.connect import Site
    from rapbench.runner.nodes import environment
    from rapbench.runner.survey import survey

    try:
        seen = survey(out, Site(address))
    except RapbenchError as error:
        return [], [wrong("cluster", str(error))]
    own = environment()
    return seen, [one for node in seen for one in _about(node, own.processor)]


def _about(node: Seen, processor: str) -> Iterator[Finding]:
    """Give what is to be said of a node: what it has, and each difference from this machine."""
    from rapbench.doctor import note, ok, wrong

    size, there = node.size, node.environment
    has = [f"{size.cpus} CPUs", f"{size.gpus} GPUs", f"{size.memory / GIB:.1f} GiB for steps"]
    about = f"node {node.name}"
    if there:
        versions = ", ".join(f"{name} {own}" for name, own in there.packages.items())
        yield ok(about, f"{', '.join(has)}; python {there.python}, {versions}")
        if there.processor != processor:
            text = f"{there.processor}, and {processor} here: sums may round otherwise, so a step's figures depend on where it ran"
            yield note(about, text, "use nodes of one kind where results must be equal to the last bit")
    for difference in node.differences:
        yield wrong(about, difference, "install the same everywhere" if there else "look at the logs of Ray there")
