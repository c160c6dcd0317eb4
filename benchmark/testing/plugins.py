"""Claims about plugins of every kind."""

from __future__ import annotations

import dataclasses
import inspect
import warnings

from rapbench.registry import Plugin, build, spec_of, split_spec
from rapbench.testing.claims import Doubt, breach, claim, kind_of
from rapbench.testing.kit import Kit


@claim("attack", "defense", "dataset")
def its_spec_reads_back_as_the_same_plugin(plugin: Plugin, kit: Kit) -> None:
    """A result is filed under the spec, and a worker makes the plugin from it."""
    spec = spec_of(plugin)
    again = build(type(plugin), split_spec(spec)[1], f"{kind_of(plugin)} {plugin.name!r}")
    if again != plugin:
        breach(f"{spec!r} reads back as {again!r}, not as {plugin!r}")


@claim("attack", "defense", "dataset")
def it_and_its_options_say_what_they_are(plugin: Plugin, kit: Kit) -> None:
    """`rapbench list` shows the first line of its docstring, `rapbench info` the sentences of its options."""
    cls = type(plugin)
    if (cls.__doc__ or "").startswith(f"{cls.__name__}("):  # what dataclass writes where nothing else stands
        warnings.warn(Doubt(f"{cls.__name__} has no docstring: its first line is what `rapbench list` shows"), stacklevel=2)
    own = [field.name for field in dataclasses.fields(cls) if field.name in inspect.get_annotations(cls)]
    mute = [name for name in own if not any("text" in field.metadata for field in _fields(cls, name))]
    if mute:
        warnings.warn(Doubt(f"the option {mute[0]!r} has no sentence: write option(default, 'what it does')"), stacklevel=2)


def _fields(cls: type, name: str) -> list[dataclasses.Field[object]]:
    """Give the option as this class and its bases declare it: a subclass may change the default alone."""
    found = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return [field for field in found if field is not None]
