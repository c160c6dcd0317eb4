"""The commands about what a results folder keeps, or a store elsewhere: cache ls, verify, gc."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from rapbench.artifacts import IDLE_S, Store, alone, read_json, store_at
from rapbench.cli_run import FAILED, OUT, Json
from rapbench.errors import StoreError

KINDS = ("dataset", "attack", "defense")
VICTIMS = ("victim", "finetune")
SHOWN = 10
"""Characters of a key."""

AT_ONCE = 16
"""Manifests that are read at the same time: a store elsewhere takes its time to answer."""

Results = Annotated[
    Path | None, typer.Argument(metavar="RESULTS", help=f"A results folder of `rapbench run --out`.  [default: {OUT}]", show_default=False)
]
Place = Annotated[
    str | None, typer.Option("--store", metavar="URI|FOLDER", help="The store, where `rapbench run --store` keeps artifacts elsewhere.")
]
NeededBy = Annotated[
    list[Path] | None,
    typer.Option("--needed-by", metavar="RESULTS", help="All results folders that use a shared store: what none of them needs goes."),
]
KeepVictims = Annotated[
    bool, typer.Option("--keep-victims", help="Keep trained victims, and what they were made from, though no result refers to them.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Delete; without it, print what would be deleted.")]

cache = typer.Typer(no_args_is_help=True, help="List, check and clean up the finished steps that a results folder keeps.")


@dataclass(frozen=True)
class Artifact:
    """A published artifact, by its manifest and its size on the disk."""

    key: str
    stage: str
    names: Mapping[str, str]
    """The data set, attack and defense among its own options."""
    inputs: tuple[str, ...]
    seconds: float
    size: int
    """In bytes."""
    made: datetime


@dataclass(frozen=True)
class Contents:
    """What a store holds, by key, and what the results beside it refer to."""

    artifacts: Mapping[str, Artifact]
    unreadable: Mapping[str, str]
    """Artifacts whose manifest cannot be read, with the reason."""
    named: frozenset[str]
    """The keys that results name, whether they are here or not."""

    def behind(self, keys: Iterable[str]) -> set[str]:
        """Give these keys and those of all that they were made from."""
        found: set[str] = set()
        ahead = list(keys)
        while ahead:
            key = ahead.pop()
            if key not in found:
                found.add(key)
                ahead += self.artifacts[key].inputs if key in self.artifacts else ()
        return found

    def about(self, key: str) -> dict[str, str]:
        """Give the names of the data set, attack and defense: an artifact's own, or those of the nearest that it was made from."""
        names: dict[str, str] = {}
        level, seen = [key], {key}
        while level:
            near = [self.artifacts[one] for one in level if one in self.artifacts]
            for artifact in near:
                names = {**artifact.names, **names}
            level = [one for artifact in near for one in artifact.inputs if one not in seen]
            seen.update(level)
        return {kind: names[kind] for kind in KINDS if kind in names}

    def title(self, key: str) -> str:
        """Give a line that a reader knows an artifact by: key, stage, names."""
        known = [self.artifacts[key].stage, *self.about(key).values()] if key in self.artifacts else []
        return " ".join([key[:SHOWN], *known])


@dataclass(frozen=True)
class Waste:
    """Something that may be deleted, and why. `path`: in the store; `size`: in bytes."""

    why: str
    path: PurePath
    title: str
    size: int


@cache.command()
def ls(folder: Results = None, place: Place = None, as_json: Json = False) -> None:
    """List the artifacts of a results folder: what each is, what it took, and whether a result refers to it."""
    kept = _contents(_store(folder, place), [folder or OUT])
    for reason in kept.unreadable.values():
        typer.echo(f"rapbench: {reason}", err=True)
    used = kept.behind(kept.named)
    found = sorted(kept.artifacts.values(), key=lambda one: (one.made, one.key))
    if as_json:
        typer.echo(json.dumps({"artifacts": [_plain_form(one, kept, used) for one in found], "stages": _sums(found)}, indent=1))
        return
    rows = [_row(one, kept, used) for one in found]
    sums = [[stage, str(own["artifacts"]), f"{own['seconds']:,.1f}", _mib(own["bytes"])] for stage, own in _sums(found).items()]
    typer.echo(_table(rows, ["key", "step", "of", "s", "MiB", "made", "used"]) + "\n")
    typer.echo(_table(sums, ["step", "artifacts", "s", "MiB"]))


@cache.command()
def verify(folder: Results = None, place: Place = None) -> None:
    """Read every artifact and compare it with its manifest; exit code 1 where one is corrupted. No artifact is changed."""
    store = _store(folder, place)
    kept = _contents(store)
    faults = {key: list(store.faults(key)) for key in _watched(store.published())}
    corrupted = [key for key, own in faults.items() if own]
    for key in corrupted:
        for fault in faults[key]:
            typer.echo(f"corrupted: {kept.title(key)}: {_shown(fault)}")
    for waste in (*_orphans(store), *_aside(store)):
        typer.echo(f"{waste.why}: {waste.title}, {_mib(waste.size)} MiB")
    typer.echo(f"{len(faults)} artifacts, {len(corrupted)} corrupted")
    if corrupted:
        typer.echo("rapbench: the command that made them, given again, sets corrupted artifacts aside and makes them anew", err=True)
        raise typer.Exit(FAILED)


@cache.command()
def gc(
    folder: Results = None, place: Place = None, needed_by: NeededBy = None, keep_victims: KeepVictims = False, yes: Yes = False
) -> None:
    """Delete the attempts of killed runs, what was set aside, and the artifacts that no result needs; never a result.

    Of a store that several results folders share, artifacts go only where --needed-by names all of these folders.
    """
    store = _store(folder, place)
    users = _users(store, folder, place, needed_by or [])
    with ExitStack() as locks:
        for user in {user.resolve() for user in (users if place else [folder or OUT, *users])}:
            locks.enter_context(alone(user))
        found = list(_waste(store, users, keep_victims=keep_victims))
        size = sum(waste.size for waste in found)
        if found:
            typer.echo(_table([[waste.why, waste.title, _mib(waste.size)] for waste in found], ["why", "what", "MiB"]) + "\n")
        if not yes:
            typer.echo(f"{len(found)} to delete, {_mib(size)} MiB" + ("; --yes deletes them" if found else ""))
            return
        for waste in found:
            store.discard(waste.path)
        typer.echo(f"{len(found)} deleted, {_mib(size)} MiB freed")


def _store(folder: Path | None, place: str | None) -> Store:
    return (store_at(place) if place else Store((folder or OUT) / "artifacts")).opened()


def _users(store: Store, folder: Path | None, place: str | None, needed_by: Sequence[Path]) -> list[Path]:
    """Give the results folders by which to judge what is needed; none where nobody says which these are: all artifacts stay then."""
    if place and folder:
        raise StoreError(f"results of other folders may be made from {store.place!r}, too: name all that use it by --needed-by")
    if place and not store.shared:
        raise StoreError(f"{store.place!r} is the store of one results folder: give that folder, not --store")
    if not place and store.root.is_symlink():
        raise StoreError(f"{str(store.root)!r} is a link, and other results may be made from what is behind it: give their folder")
    if not store.shared:
        return [folder or OUT, *needed_by]
    if missing := [str(user) for user in needed_by if not user.is_dir()]:
        raise StoreError(f"no results folder {missing[0]!r}: what it needs cannot be told")
    if not needed_by:
        typer.echo(
            f"rapbench: {store.place!r} is shared: its artifacts are kept, unless --needed-by names every results folder that uses it",
            err=True,
        )
        return []
    return list(needed_by) if place else [folder or OUT, *needed_by]


def _contents(store: Store, folders: Iterable[Path] = ()) -> Contents:
    """Give what a store holds, and what the results in these folders refer to."""

    def read(key: str) -> Artifact | str:
        try:
            return _artifact(store, key)
        except StoreError as error:
            return str(error)

    keys = store.published()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(keys, pool.map(read, keys), strict=True))
    return Contents(
        {key: one for key, one in found.items() if isinstance(one, Artifact)},
        {key: one for key, one in found.items() if isinstance(one, str)},
        frozenset(key for folder in folders for key in _named(folder)),
    )


def _named(folder: Path) -> Iterator[str]:
    """Give the keys that the results of a folder name, of whatever kind and version; a StoreError names one that cannot be read."""
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name == "artifacts":
            continue
        record = read_json(path)
        named = record.get("artifacts") if isinstance(record, dict) else None
        if isinstance(named, dict):
            yield from (key for key in named.values() if isinstance(key, str))


def _artifact(store: Store, key: str) -> Artifact:
    try:
        made = store.provenance(key)
        seconds = float(made["seconds"])
        if not math.isfinite(seconds):
            raise ValueError
        names = {kind: _shown(str(made["spec"][kind]["name"])) for kind in KINDS if kind in made["spec"]}
        inputs = tuple(str(made["inputs"][role]) for role in sorted(made["inputs"]))
        extent = store.extent(key)
        return Artifact(key, _shown(str(made["stage"])), names, inputs, seconds, extent.size, extent.published)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError):
        raise StoreError(f"the manifest of {key} does not say what it was made from: rapbench cannot tell what it is") from None


def _waste(store: Store, users: Sequence[Path], *, keep_victims: bool) -> Iterator[Waste]:
    """Give all that may be deleted, each once; an artifact whose manifest cannot be read is left, with a line that says so."""
    unused: list[str] = []
    if users:
        kept = _contents(store, users)
        for reason in kept.unreadable.values():
            typer.echo(f"rapbench: left where it is: {reason}", err=True)
        unused = _unused(kept, users, keep_victims=keep_victims)
        if store.shared:
            recent = datetime.now().astimezone() - timedelta(seconds=IDLE_S)
            unused = [key for key in unused if kept.artifacts[key].made < recent]  # a run that has no results yet may need it
        yield from (Waste("no result needs it", PurePath(key), kept.title(key), store.size(PurePath(key))) for key in unused)
    yield from (waste for waste in _orphans(store) if waste.path.parent.name not in unused)
    yield from _aside(store)


def _unused(kept: Contents, users: Sequence[Path], *, keep_victims: bool) -> list[str]:
    """Give the keys that nothing refers to; none where results are still to come, or what they need cannot be told."""
    wanted = set(kept.named)
    for user in users:
        if kept.artifacts and next(_named(user), None) is None:
            typer.echo(f"rapbench: no result in {str(user)!r} yet: its artifacts are kept, a run goes on from them", err=True)
            return []
    if keep_victims:
        wanted |= {key for key, artifact in kept.artifacts.items() if artifact.stage in VICTIMS}
    needed = kept.behind(wanted)
    if needed & set(kept.unreadable):
        typer.echo("rapbench: what a result was made from cannot be told: all artifacts are kept; run the same command again", err=True)
        return []
    return [key for key in kept.artifacts if key not in needed]


def _orphans(store: Store) -> Iterator[Waste]:
    for path in store.orphans():
        yield Waste("no manifest names it", path, f"{path.parent.name[:SHOWN]}/{_shown(path.name)}", store.size(path))


def _aside(store: Store) -> Iterator[Waste]:
    for path in store.aside():
        yield Waste("set aside", path, _shown(path.name), store.size(path))


def _watched(keys: Sequence[str]) -> Iterable[str]:
    """Give the keys one by one, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(keys, "reading", console=console, transient=True, disable=not console.is_terminal)


def _plain_form(artifact: Artifact, kept: Contents, used: set[str]) -> dict[str, Any]:
    return {
        "key": artifact.key,
        "stage": artifact.stage,
        **{kind: kept.about(artifact.key).get(kind) for kind in KINDS},
        "seconds": artifact.seconds,
        "bytes": artifact.size,
        "made": artifact.made.isoformat(timespec="seconds"),
        "used": artifact.key in used,
    }


def _row(artifact: Artifact, kept: Contents, used: set[str]) -> list[str]:
    names = " ".join(kept.about(artifact.key).values())
    state = "yes" if artifact.key in used else "no"
    made = f"{artifact.made:%Y-%m-%d %H:%M}"
    return [artifact.key[:SHOWN], artifact.stage, names, f"{artifact.seconds:,.1f}", _mib(artifact.size), made, state]


def _sums(artifacts: Sequence[Artifact]) -> dict[str, dict[str, Any]]:
    """Give number, seconds and bytes of the artifacts by stage, and of all."""
    parts = {stage: [one for one in artifacts if one.stage == stage] for stage in dict.fromkeys(one.stage for one in artifacts)}
    return {
        stage: {"artifacts": len(own), "seconds": round(sum(one.seconds for one in own), 3), "bytes": sum(one.size for one in own)}
        for stage, own in {**parts, "all": list(artifacts)}.items()
    }


def _shown(text: str) -> str:
    """Give text of a manifest or of a file's name without what a terminal would obey, and not without end."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:200])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f}"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    from tabulate import tabulate

    numbers = ["right" if head in ("s", "MiB", "artifacts") else "left" for head in heads]
    return tabulate(rows, heads, disable_numparse=True, colalign=numbers if rows else None)
