"""The whole surface on which packages extend rapbench. Entry-point group: `rapbench`."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from rapbench.api import Attack, Dataset, Defense

PROJECT = "rapbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def rapbench_datasets() -> Iterable[type[Dataset]]:
    """Give the data set classes of this package."""
    return ()


@hookspec
def rapbench_attacks() -> Iterable[type[Attack]]:
    """Give the attack classes of this package."""
    return ()


@hookspec
def rapbench_defenses() -> Iterable[type[Defense]]:
    """Give the defense classes of this package."""
    return ()
