"""What each node of a Ray cluster has and would run, whether or not it is what this machine runs: `rapbench doctor --cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rapbench.artifacts import Store, store_of
from rapbench.runner.cluster import RayExecutor
from rapbench.runner.connect import Site
from rapbench.runner.nodes import Environment, environment
from rapbench.runner.placement import Node
from rapbench.stages import Bench


@dataclass(frozen=True)
class Seen:
    """A node of a cluster. `name`: its host and the beginning of its id; `differences`: from this machine, in words."""

    name: str
    size: Node
    environment: Environment | None
    """None where it did not answer; why is the one difference then."""
    differences: tuple[str, ...]


class Surveyor(RayExecutor):
    """An executor that only looks: it takes every node as it is."""

    def seen(self) -> list[Seen]:
        """Give each node with what it would run."""
        own = environment()
        found = self.environments()
        return [_seen(f"{self._hosts[node.name]} ({node.name[:6]})", node, found, own) for node in self._placement.nodes]

    def _settle(self) -> None:
        for one in self._alive():
            self._join(one)


def survey(out: Path, site: Site) -> list[Seen]:
    """Join Ray and give its nodes; a ClusterError where none answers. The folder of results is left as it was."""
    store = store_of(out.resolve())
    with nullcontext() if store.remote else _placed(store):
        surveyor = Surveyor(Bench(getattr(store, "uri", store.root)), site)
        try:
            return surveyor.seen()
        finally:
            surveyor.close()


@contextmanager
def _placed(store: Store) -> Iterator[None]:
    """Make the folder of a store for the time of the look, where it is not there."""
    missing = [one for one in (store.root, *store.root.parents) if not one.exists()]
    try:
        store.create()
        yield
    finally:
        if missing:
            with suppress(OSError):
                (store.root / "about.json").unlink(missing_ok=True)
                for one in missing:
                    one.rmdir()


def _seen(name: str, node: Node, found: dict[str, Environment | str], own: Environment) -> Seen:
    there = found.get(name, "it left while it was asked")
    if isinstance(there, str):
        return Seen(name, node, None, (there,))
    return Seen(name, node, there, tuple(there.differences(own)))
