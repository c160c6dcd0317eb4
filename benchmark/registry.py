"""Entry points -> plugin classes; spec text <-> plugin instances; what was left out, and why."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import pluggy
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from rapbench import hookspecs
from rapbench.api import Attack, Dataset, Defense
from rapbench.errors import PluginError, SpecError

Kind = Literal["dataset", "attack", "defense"]
Plugin = Dataset | Attack | Defense
BASES: dict[Kind, type] = {"dataset": Dataset, "attack": Attack, "defense": Defense}
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MAX_SPEC = 10_000
"""Characters of a spec, or of one value where it is a mapping."""
LIFECYCLE = {"rapbench_cell_finished", "rapbench_run_finished"}
SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A registered plugin class and the package it came from."""

    kind: Kind
    cls: type[Plugin]
    package: str
    version: str

    @property
    def name(self) -> str:
        return self.cls.name

    @property
    def reference(self) -> str:
        """`floor` or `ceiling` where it is a defense that others are measured by, else empty."""
        if not issubclass(self.cls, Defense):
            return ""
        return "ceiling" if self.cls.needs_trigger else "floor" if self.cls.floor else ""


@dataclass(frozen=True)
class Registry:
    """All plugins that could be loaded, and the packages that could not, with the reason.

    `listeners`: package -> its hooks, of those that want to hear of cells and runs.
    """

    found: Mapping[tuple[Kind, str], Found]
    left_out: Mapping[str, str] = field(default_factory=dict)
    listeners: Mapping[str, Any] = field(default_factory=dict)

    def names(self, kind: Kind) -> list[str]:
        return sorted(name for own, name in self.found if own == kind)

    def get(self, kind: Kind, name: str) -> Found:
        """Give the plugin of this kind and name, or a SpecError that says what is near and what was left out."""
        try:
            return self.found[kind, name]
        except KeyError:
            raise SpecError(unknown(kind, name, self.names(kind)) + self.left_out_text) from None

    def parse(self, kind: Kind, spec: str | Mapping[str, Any]) -> Plugin:
        """Give the plugin instance that a spec (`strip:copies=20`, or a mapping with `name`) stands for."""
        name, options = split_spec(spec)
        found = self.get(kind, name)
        return build(found.cls, options, f"{kind} {name!r}")

    @property
    def left_out_text(self) -> str:
        """What an error about an unknown name ends with: the packages that were left out, or nothing."""
        if not self.left_out:
            return ""
        return "; left out: " + "; ".join(f"{package} ({reason})" for package, reason in sorted(self.left_out.items()))


def discover(group: Iterable[EntryPoint] | None = None) -> Registry:
    """Load every entry point of the group `rapbench`, each by itself, so that a broken one hides no other."""
    found: dict[tuple[Kind, str], Found] = {}
    left_out: dict[str, str] = {}
    listeners: dict[str, Any] = {}
    for entry in sorted(entry_points(group="rapbench") if group is None else group, key=lambda e: (e.name, e.value)):
        try:
            manager, module = _registered(entry)
            plugins = _plugins(entry, manager)
        except (Exception, SystemExit) as error:  # a module may well call sys.exit when it is imported
            left_out[f"{_package(entry)[0]}:{entry.name}"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if LIFECYCLE & {caller.name for caller in manager.get_hookcallers(module) or ()}:
            listeners[f"{_package(entry)[0]}:{entry.name}"] = manager.hook
        for plugin in plugins:
            other = found.setdefault((plugin.kind, plugin.name), plugin)
            if other.cls is not plugin.cls:
                raise PluginError(_twice(other, plugin))
    return Registry(found, left_out, listeners)


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Word an unknown name: what it was, what is near, what there is."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    meant = f", did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {_shown(name)}{meant} (there are: {', '.join(choices) or 'none'})"


def split_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Split `name:key=value,key="a, b"` or a mapping with the key `name` into the name and its options.

    Inside quotes a comma is a comma, and a doubled quote is a quote.
    """
    for text in _texts(spec):
        if fault := text_fault(text):
            raise SpecError(f"the spec {_shown(text)} {fault}")
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise SpecError(f"{dict(spec)!r} has no name: write {{name: strip, copies: 20}}")
        return str(spec["name"]), {str(key): value for key, value in spec.items() if key != "name"}
    name, colon, rest = spec.partition(":")
    if rest.count('"') % 2:
        raise SpecError(f"{spec!r} opens a quote that it does not close")
    options: dict[str, Any] = {}
    for part in re.findall(r'(?:[^,"]|"[^"]*")+', rest):
        key, equals, value = part.partition("=")
        if not equals:
            raise SpecError(f"{part!r} in {spec!r} is no option: write name:option=value,option=value")
        if key.strip() in options:
            raise SpecError(f"{spec!r} gives {key.strip()!r} twice")
        options[key.strip()] = _unquoted(value.strip())
    if colon and not options:
        raise SpecError(f"{spec!r} ends where options should stand: write name:option=value")
    return name.strip(), options


def text_fault(text: str) -> str | None:
    """Say why this is no name, option or value anywhere, or None; it would fail where files and tables are written."""
    if len(text) > MAX_SPEC:
        return f"is too long: {len(text):,} characters, at most {MAX_SPEC:,} make sense"
    if "\0" in text or SURROGATE.search(text):
        return "holds what is no text: a zero byte, or half of a surrogate pair"
    return None


def build(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of plain or textual options; a SpecError names the option that was wrong."""
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for name in options:
        if name not in fields:
            raise SpecError(unknown(f"option of {where}", name, fields))
    adapter = _adapter(cast(Hashable, cls))
    plain = {name: _plain(value, str(fields[name].type)) for name, value in options.items()}
    try:
        made = adapter.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"][:1])
        messages = [_line(own["msg"]).removeprefix("Value error, ") for own in error.errors() if own["loc"][:1] == first["loc"][:1]]
        message = ", or ".join(dict.fromkeys(own[:1].lower() + own[1:] for own in messages))  # several where a type has several
        value = "" if first["type"] == "missing" else f"={_shown(str(first['input']))}"
        raise SpecError(f"{where}: " + (f"{option}{value}: {message}" if option else message)) from None
    for name in fields:
        if not _finite(getattr(made, name)):
            raise SpecError(f"{where}: {name}={getattr(made, name)!r}: not a finite number")
    return cast(T, made)


def spec_of(plugin: Any, name: str | None = None) -> str:
    """Give the canonical text of a plugin or recipe: its name and the options that are not at their default."""
    changed = [f"{f.name}={_text(getattr(plugin, f.name))}" for f in dataclasses.fields(plugin) if getattr(plugin, f.name) != f.default]
    return (name or plugin.name) + (":" + ",".join(changed) if changed else "")


def source_digest(cls: type) -> str:
    """Give a digest of the source files that a class and its bases outside the standard library are written in."""
    digest = hashlib.blake2b(digest_size=8)
    for base in cls.__mro__:
        if base is object or base.__module__ in ("abc", "builtins", "rapbench.api"):
            continue
        module = inspect.getmodule(base)
        path = getattr(module, "__file__", None)
        digest.update(Path(path).read_bytes() if path else base.__qualname__.encode())
        for sibling in getattr(module, "RESULTS_DEPEND_ON", ()):
            digest.update(Path(sibling).read_bytes())
    return digest.hexdigest()


def _twice(one: Found, other: Found) -> str:
    if one.package == other.package:
        return f"{one.package} brings two classes of the {one.kind} {one.name!r}: {one.cls.__qualname__} and {other.cls.__qualname__}"
    return f"two packages bring the {one.kind} {one.name!r}: {one.package} and {other.package}; uninstall one"


def _texts(value: object) -> Iterator[str]:
    """Give the texts in a spec, the keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in (*value, *value.values()):
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _shown(text: str) -> str:
    """Give a text as an error quotes it: on one line, its start alone where it is very long."""
    return repr(text) if len(text) <= 300 else f"{text[:80]!r}... ({len(text):,} characters)"


def _unquoted(text: str) -> str:
    return re.sub(r'"((?:[^"]|"")*)"', lambda quoted: quoted[1].replace('""', '"'), text)


def _line(text: str) -> str:
    return " ".join(text.split())


def _finite(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


@cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, cls))
        adapter.rebuild()  # raises where a type in an annotation is nowhere to be found
        return adapter
    except (PydanticUserError, NameError) as error:
        raise PluginError(f"{cls!r} has an option whose type cannot be checked: {str(error).splitlines()[0]}") from None


def _plain(value: Any, annotation: str) -> Any:
    if isinstance(value, str) and value.lower() in ("none", "null") and ("None" in annotation or "Optional" in annotation):
        return None
    if isinstance(value, str) and annotation.startswith("tuple"):
        return [part for part in value.split("/") if part]
    return value


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(_text(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text or text != text.strip() else text


def _package(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "?")


def _registered(entry: EntryPoint) -> tuple[pluggy.PluginManager, Any]:
    """Import the module of an entry point and give it with a manager of its own."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    module = entry.load()
    manager.register(module)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise PluginError(f"{entry.value} implements no hook: mark its functions with rapbench.hookimpl")
    return manager, module


def _plugins(entry: EntryPoint, manager: pluggy.PluginManager) -> list[Found]:
    package, version = _package(entry)
    hooks: dict[Kind, Any] = {
        "dataset": manager.hook.rapbench_datasets,
        "attack": manager.hook.rapbench_attacks,
        "defense": manager.hook.rapbench_defenses,
    }
    return [Found(kind, _checked(kind, cls), package, version) for kind, hook in hooks.items() for given in hook() for cls in given]


def _checked(kind: Kind, cls: type) -> type[Plugin]:
    if not (inspect.isclass(cls) and issubclass(cls, BASES[kind])):
        raise PluginError(f"{cls!r} is no subclass of {BASES[kind].__name__}")
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{cls.__qualname__} is no frozen dataclass: write @dataclass(frozen=True, kw_only=True) above it")
    if "name" in {f.name for f in dataclasses.fields(cast(Any, cls))}:
        raise PluginError(f"the name of {cls.__qualname__} is no option: write name: ClassVar[str]")
    if not NAME.fullmatch(str(getattr(cls, "name", ""))):
        raise PluginError(f"{cls.__qualname__} needs a kebab-case class attribute `name`, like 'badnet-rw'")
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{cls.__qualname__} does not define {', '.join(abstract)}")
    return cast(type[Plugin], cls)
