"""The registry as a stranger meets it: a module and a `.dist-info` on the path are a package; specs are plugins in text."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rapbench.api import Attack, Labelled
from rapbench.errors import PluginError, SpecError
from rapbench.lifecycle import Herald, Waiting
from rapbench.registry import Registry, build, discover, source_digest, spec_of, split_spec
from rapbench.runner.plan import Group

REGISTRY = discover()
BUILT_IN = sorted(REGISTRY.found)

ATTACK = '''
from dataclasses import dataclass
from typing import ClassVar
from rapbench import Attack, hookimpl

@dataclass(frozen=True, kw_only=True)
class Tail(Attack):
    """The trigger is the last word."""
    name: ClassVar[str] = "tail"
    word: str = "qx"

    @property
    def words(self):
        return (self.word,)

    def trigger(self, text, rng, limit):
        return " ".join([*text.split()[: limit and limit - 1], self.word])

@hookimpl
def rapbench_attacks():
    return [Tail]
'''
DEFENSE = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from rapbench import Defense, Detector, hookimpl

@dataclass(frozen=True, kw_only=True)
class Length(Defense):
    """A text whose length is far from the usual is suspicious."""
    name: ClassVar[str] = "odd-length"
    power: float = 1.0

    def fit(self, victim, heldout, lab):
        return Far(np.mean([len(text) for text in heldout.texts]), self.power)

@dataclass
class Far(Detector):
    usual: float
    power: float

    def suspicion(self, texts):
        return np.abs([len(text) - self.usual for text in texts]) ** self.power

@hookimpl
def rapbench_defenses():
    return [Length]
'''
DATASET = '''
from dataclasses import dataclass
from typing import ClassVar
from rapbench import Dataset, hookimpl

@dataclass(frozen=True, kw_only=True)
class Weather(Dataset):
    """Six forecasts."""
    name: ClassVar[str] = "weather"

    def load(self):
        import datasets
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["wet", "dry"])})
        rows = {"text": ["much rain", "much sun"], "label": [0, 1]}
        made = datasets.Dataset.from_dict(rows, features=features)
        return datasets.DatasetDict({"train": made, "validation": made, "test": made})

@hookimpl
def rapbench_datasets():
    return [Weather]
'''

Installer = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Give what does to the path what `pip install` does: a module, and its metadata beside it."""
    modules: list[str] = []

    def put(package: str, source: str, version: str = "1.0") -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[rapbench]\nplugins = {module}\n")
        modules.append(module)

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    for module in modules:
        sys.modules.pop(module, None)


def attack(body: str, above: str = "@dataclass(frozen=True, kw_only=True)", bases: str = "Attack") -> str:
    """Give the module of a package that brings one class."""
    return (
        "from dataclasses import dataclass, field\nfrom typing import ClassVar\nfrom rapbench import Attack, Defense, hookimpl\n"
        f"{above}\nclass Odd({bases}):\n    {body}\n    def trigger(self, text, rng, limit): return text\n"
        "@hookimpl\ndef rapbench_attacks(): return [Odd]\n"
    )


# the built-ins


def test_the_built_ins_come_through_entry_points_like_everybody_s():
    assert discover([]).found == {}
    assert {(kind, found.package) for (kind, _), found in REGISTRY.found.items()} == {
        ("attack", "rapbench"),
        ("dataset", "rapbench"),
        ("defense", "rapbench"),
    }


def test_the_plugins_that_were_promised_are_there():
    assert set(REGISTRY.names("attack")) >= {"clean", "badnet-rw", "badnet-sl", "ep"}
    assert set(REGISTRY.names("defense")) >= {"strip", "onion", "rap"}
    assert set(REGISTRY.names("dataset")) >= {"demo", "imdb", "yelp", "amazon", "twitter", "jigsaw", "sst2", "agnews", "folder"}


def test_names_come_sorted():
    assert REGISTRY.names("dataset") == sorted(REGISTRY.names("dataset"))


# a stranger's package


def test_a_stranger_s_attack_of_fifteen_lines_is_found_and_works(install):
    install("tail-attack", ATTACK, version="0.3")
    found = discover().get("attack", "tail")
    made = discover().parse("attack", "tail:word=zz,poison_rate=0.2")
    assert (found.package, found.version) == ("tail-attack", "0.3")
    assert len([line for line in ATTACK.splitlines() if line]) <= 18  # 15 beside the imports
    assert made.poison_rate == 0.2
    assert made.trigger("a b c", np.random.default_rng(0), None) == "a b c zz"


def test_a_stranger_s_defense_of_twenty_lines_is_found_and_works(install):
    install("length-defense", DEFENSE)
    fitted = discover().parse("defense", "odd-length:power=2").fit(None, Labelled(["aa", "bbbb"], np.array([0, 1])), None)
    assert fitted.suspicion(["ccc", "ccccc"]).tolist() == [0.0, 4.0]  # the usual length is 3
    assert len([line for line in DEFENSE.splitlines() if line]) <= 24


def test_a_stranger_s_data_set_is_found_and_loads(install):
    install("weather-data", DATASET)
    splits = discover().parse("dataset", "weather:target_label=0").load()
    assert splits["test"]["text"][:] == ["much rain", "much sun"]


def test_a_stranger_s_plugin_stands_beside_the_built_ins(install):
    install("tail-attack", ATTACK)
    assert set(discover().found) == {*REGISTRY.found, ("attack", "tail")}


def test_a_plugin_has_a_digest_of_its_own_source(install):
    install("tail-attack", ATTACK)
    install("length-defense", DEFENSE)
    registry = discover()
    names = (("attack", "tail"), ("defense", "odd-length"), ("attack", "ep"))
    digests = {source_digest(registry.get(kind, name).cls) for kind, name in names}
    assert len(digests) == 3


# packages that are left out


BROKEN = {
    "a missing module": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "a syntax error": ("def (", "SyntaxError"),
    "an exit": ("raise SystemExit('bye')", "SystemExit: bye"),
    "a hook that raises": ("import rapbench\n@rapbench.hookimpl\ndef rapbench_attacks(): raise OSError('disk')", "OSError: disk"),
    "a hook that is misspelt": ("import rapbench\n@rapbench.hookimpl\ndef rapbench_atacks(): return []", "rapbench_atacks"),
    "no hook": ("def rapbench_attacks(): return []", "implements no hook: mark its functions with rapbench.hookimpl"),
    "no list": ("import rapbench\n@rapbench.hookimpl\ndef rapbench_attacks(): return 5", "TypeError"),
    "no class": ("import rapbench\n@rapbench.hookimpl\ndef rapbench_attacks(): return ['x']", "'x' is no subclass of Attack"),
    "another kind": (
        attack("name = 'odd'\n    def fit(self, victim, heldout, lab): ...", bases="Defense"),
        "is no subclass of Attack",
    ),
    "no dataclass": (attack("name = 'odd'", above=""), "Odd is no frozen dataclass: write @dataclass(frozen=True, kw_only=True)"),
    "no name": (attack("x: int = 1"), "Odd needs a kebab-case class attribute `name`"),
    "a bad name": (attack("name = 'Odd_One'"), "Odd needs a kebab-case class attribute `name`"),
    "a name that is a number": (attack("name = 5.5"), "Odd needs a kebab-case class attribute `name`"),
    "a name that is an option": (attack("name: str = 'odd'"), "the name of Odd is no option: write name: ClassVar[str]"),
    "an abstract class": (attack("name = 'odd'").replace("def trigger", "def triger"), "Odd does not define trigger"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_package_that_breaks_the_contract_is_left_out_with_the_reason(case, install):
    source, reason = BROKEN[case]
    install("broken-one", source)
    registry = discover()
    assert list(registry.left_out) == ["broken-one:plugins"]
    assert reason in registry.left_out["broken-one:plugins"]
    assert "\n" not in registry.left_out["broken-one:plugins"]


def test_a_package_that_does_not_import_hides_no_other(install):
    install("broken-one", "import no_such_module_anywhere")
    install("tail-attack", ATTACK)
    assert set(discover().found) == {*REGISTRY.found, ("attack", "tail")}


def test_an_unknown_name_ends_with_what_was_left_out(install):
    install("broken-one", "import no_such_module_anywhere")
    with pytest.raises(SpecError, match=r"unknown attack 'tail' .*; left out: broken-one:plugins \(ModuleNotFoundError: .*\)$"):
        discover().get("attack", "tail")


def test_two_packages_with_one_name_are_an_error_that_names_both(install):
    install("tail-attack", ATTACK)
    install("other-tail", ATTACK)
    with pytest.raises(PluginError, match=r"two packages bring the attack 'tail': \S+ and \S+; uninstall one") as caught:
        discover()
    assert "tail-attack" in str(caught.value)
    assert "other-tail" in str(caught.value)


def test_a_stranger_cannot_take_the_name_of_a_built_in(install):
    install("my-rap", DEFENSE.replace('"odd-length"', '"rap"'))
    with pytest.raises(PluginError, match=r"two packages bring the defense 'rap': .*rapbench"):
        discover()


def test_one_package_with_one_name_twice_is_told_which_classes(install):
    install("twice", ATTACK.replace("return [Tail]", "return [Tail, dataclass(frozen=True)(type('Tale', (Tail,), {}))]"))
    with pytest.raises(PluginError, match="twice brings two classes of the attack 'tail': Tail and Tale"):
        discover()


def test_two_kinds_may_share_a_name(install):
    install("rap-attack", ATTACK.replace('"tail"', '"rap"'))
    assert discover().get("attack", "rap").package == "rap-attack"


# spec -> plugin


@dataclass(frozen=True, kw_only=True)
class Sample(Attack):
    """One option of each type."""

    name: ClassVar[str] = "sample"
    count: int = 1
    share: float = 0.5
    flag: bool = False
    word: str | None = None
    other: Optional[str] = "cf"  # noqa: UP045
    levels: tuple[float, ...] = (1.0, 2.5)
    side: Literal["left", "right"] = "left"
    text: str = ""

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        return text


def sample(spec: str) -> Sample:
    return build(Sample, split_spec(spec)[1], "attack 'sample'")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("count=20", {"count": 20}),
        ("share=1e-3", {"share": 0.001}),
        ("flag=true", {"flag": True}),
        ("flag=False", {"flag": False}),
        ("word=None", {"word": None}),
        ("word=mb", {"word": "mb"}),
        ("other=none", {"other": None}),
        ("levels=10/20.5", {"levels": (10.0, 20.5)}),
        ("levels=10", {"levels": (10.0,)}),
        ("side=right", {"side": "right"}),
        ('text="well, yes"', {"text": "well, yes"}),
        ('text="a=b, c:d",count=2', {"text": "a=b, c:d", "count": 2}),
        ('text="she said ""no"""', {"text": 'she said "no"'}),
        ('text=" padded "', {"text": " padded "}),
        ("text=none", {"text": "none"}),
        (" count = 3 , text = two words ", {"count": 3, "text": "two words"}),
        ("text=http://a.b/c", {"text": "http://a.b/c"}),
    ],
)
def test_an_option_is_read_as_its_type(options, expected):
    assert sample(f"sample:{options}") == Sample(**expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("count=2.5", "attack 'sample': count='2.5': "),
        ("count=many", "attack 'sample': count='many': "),
        ("flag=perhaps", "attack 'sample': flag='perhaps': "),
        ("levels=1/x", "attack 'sample': levels='x': "),
        ("side=up", "attack 'sample': side='up': input should be 'left' or 'right'"),
        ("poison_rate=2", "poison_rate=2.0 is no share: give a number above 0 and at most 1"),
        ("share=nan", "attack 'sample': share=nan: not a finite number"),
        ("levels=1/inf", r"attack 'sample': levels=\(1.0, inf\): not a finite number"),
        ("cuont=2", "unknown option of attack 'sample' 'cuont', did you mean 'count'"),
        ("name=x", "unknown option of attack 'sample' 'name'"),
        ("count", "'count' in 'sample:count' is no option: write name:option=value"),
        ("", "'sample:' ends where options should stand"),
        ("count=2,count=3", "gives 'count' twice"),
        ('text="open', "opens a quote that it does not close"),
    ],
)
def test_a_bad_option_is_named_with_its_value(options, reason):
    with pytest.raises(SpecError, match=reason):
        sample(f"sample:{options}")


def test_an_unknown_plugin_is_told_what_is_near_and_what_there_is():
    with pytest.raises(SpecError, match=r"^unknown defense 'stirp', did you mean 'strip'\? \(there are: .*onion, .*rap, strip.*\)$"):
        Registry({key: found for key, found in REGISTRY.found.items() if found.package == "rapbench"}).parse("defense", "stirp:copies=3")


def test_an_option_without_default_is_asked_for(install):
    install("must", attack("name = 'odd'\n    word: str = field()"))
    with pytest.raises(SpecError, match=r"attack 'odd': word: .*required"):
        discover().parse("attack", "odd")


def test_an_option_whose_type_is_nowhere_is_the_plugin_s_error(install):
    install("nowhere", "from __future__ import annotations\n" + attack("name = 'odd'\n    word: Word = 'x'"))
    with pytest.raises(PluginError, match=r"Odd.* has an option whose type cannot be checked"):
        discover().parse("attack", "odd")


def test_a_mapping_needs_a_name():
    with pytest.raises(SpecError, match=r"\{'copies': 3\} has no name: write \{name: strip, copies: 20\}"):
        REGISTRY.parse("defense", {"copies": 3})


def test_a_mapping_says_what_the_text_says():
    assert REGISTRY.parse("defense", {"name": "strip", "copies": 3}) == REGISTRY.parse("defense", "strip:copies=3")
    assert REGISTRY.parse("defense", {"name": "onion", "levels": [10, 90]}) == REGISTRY.parse("defense", "onion:levels=10/90")
    assert REGISTRY.parse("attack", {"name": "badnet-rw", "word": None}) == REGISTRY.parse("attack", "badnet-rw:word=none")


# plugin -> spec


def test_a_spelled_default_is_the_same_plugin_as_an_omitted_one():
    assert spec_of(REGISTRY.parse("defense", "strip:copies=20")) == spec_of(REGISTRY.parse("defense", "strip")) == "strip"


def test_a_canonical_spec_holds_what_is_not_default_in_the_order_of_the_class():
    assert spec_of(Sample(share=0.25, flag=True, levels=(3.0, 4.5), text="a, b")) == (
        'sample:share=0.25,flag=true,levels=3/4.5,text="a, b"'
    )


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_the_canonical_spec_of_a_built_in_s_defaults_is_its_name(kind, name):
    assert spec_of(REGISTRY.parse(kind, name)) == name


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Give values of an option's type. The text `none` is left out: as a spec it stands for None."""
    plain = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(0.001, 1),
        str: st.text().filter(lambda text: text.lower() not in ("none", "null")),
        type(None): st.none(),
    }
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is tuple:
        return st.lists(values(get_args(annotation)[0]), min_size=1, max_size=4).map(tuple)
    return st.one_of([values(part) for part in get_args(annotation)])


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_the_canonical_spec_of_a_built_in_reads_back_as_the_same_plugin(kind, name, data):
    cls = REGISTRY.get(kind, name).cls
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)) if names else []
    mapping = {"name": name, **{option: data.draw(values(hints[option]), label=option) for option in chosen}}
    try:
        made = REGISTRY.parse(kind, mapping)
    except SpecError:  # values that make no sense together
        assume(False)
    assert REGISTRY.parse(kind, spec_of(made)) == made


# lifecycle


LISTENER = """
from rapbench import hookimpl
heard = []

@hookimpl
def rapbench_cell_finished(record):
    print("told of", record)
    heard.append(record)

@hookimpl
def rapbench_run_finished(records, folder):
    heard.append((list(records), folder))
"""
DEAF = """
from rapbench import hookimpl

@hookimpl
def rapbench_cell_finished(record):
    raise {error}
"""


def test_a_package_that_only_listens_is_no_broken_package(install):
    install("my-tracker", LISTENER)
    registry = discover()
    assert registry.left_out == {}
    assert list(registry.listeners) == ["my-tracker:plugins"]
    assert set(registry.found) == set(REGISTRY.found)


def test_a_package_without_lifecycle_hooks_is_no_listener(install):
    install("tail-attack", ATTACK)
    assert discover().listeners == {}


def test_a_listener_hears_of_each_cell_and_of_the_run(install, tmp_path, capsys):
    install("my-tracker", LISTENER)
    herald = Herald.of(discover())
    herald.cell_finished("one")
    herald.run_finished(["one", "two"], tmp_path)
    assert sys.modules["my_tracker"].heard == ["one", (["one", "two"], tmp_path)]
    assert capsys.readouterr() == ("", "told of one\n")  # stdout is the result


@pytest.mark.parametrize(("error", "told"), [("OSError('disk\\nfull')", "OSError: disk full"), ("SystemExit(3)", "SystemExit: 3")])
def test_a_listener_that_raises_is_one_line_on_stderr_and_silences_no_other(error, told, install, capsys):
    install("a-deaf-one", DEAF.format(error=error))
    install("my-tracker", LISTENER)
    herald = Herald.of(discover())
    herald.cell_finished("one")
    herald.cell_finished("two")
    assert sys.modules["my_tracker"].heard == ["one", "two"]
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("told of")]
    assert lines == [f"rapbench: a-deaf-one:plugins: rapbench_cell_finished failed: {told}; the run goes on"]


def test_an_interrupt_is_no_fault_of_the_listener(install):
    install("a-deaf-one", DEAF.format(error="KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        Herald.of(discover()).cell_finished("one")


def groups() -> list[Group]:
    first = Group(("cell",), {"victim": "v", "score": "s1", "control": "c"})
    return [first, Group(("cell",), {"victim": "v", "score": "s2"}), Group(("cached",), {"victim": "old", "score": "s0"})]


def test_a_group_is_told_of_once_when_its_last_step_has_ended():
    first, second, _ = groups()
    waiting = Waiting(groups(), {"v", "s1", "s2", "c"})
    told = [waiting.settled(key, failed=False) for key in ("v", "s1", "s2", "c", "c")]
    assert told == [[], [], [second], [first], []]


def test_a_group_fails_with_the_first_step_that_it_needs():
    first, second, _ = groups()
    waiting = Waiting(groups(), {"v", "s1", "s2", "c"})
    assert waiting.settled("v", failed=True) == [first, second]
    assert waiting.settled("s1", failed=True) == []


def test_a_group_can_do_without_its_control():
    first, _, _ = groups()
    waiting = Waiting(groups()[:1], {"s1", "c"})
    assert waiting.settled("c", failed=True) == []
    assert waiting.settled("s1", failed=False) == [first]
