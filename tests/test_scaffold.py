"""`rapbench new-plugin` and `new-grid`: what they make works as it is, and they overwrite nothing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from rapbench.cli_plugin import check_plugin, new_grid, new_plugin
from rapbench.errors import SpecError, StoreError
from rapbench.grid import Block, cells_of, read_blocks
from rapbench.registry import discover
from rapbench.scaffold import scaffold
from rapbench.scaffold.grid import write_grid
from rapbench.testing import findings
from rapbench.victim import Victim

REGISTRY = discover()


@pytest.fixture
def install(monkeypatch):
    """Give what does to the path what `pip install -e` does, with the entry points of the package's own pyproject.toml."""
    modules = []

    def put(made):
        project = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]
        info = made.folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
        lines = [f"{name} = {value}" for name, value in project["entry-points"]["rapbench"].items()]
        (info / "entry_points.txt").write_text("\n".join(["[rapbench]", *lines, ""]))
        modules.extend(project["entry-points"]["rapbench"].values())
        monkeypatch.syspath_prepend(made.folder / "src")
        return discover()

    yield put
    for module in modules:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("kind", ["attack", "defense", "dataset"])
def test_a_new_plugin_is_found_and_holds_every_claim(kind, tmp_path, install, rapbench_kit):
    registry = install(scaffold("my-first", kind, tmp_path, REGISTRY))
    assert registry.left_out == {}
    assert registry.get(kind, "my-first").package == "rapbench-my-first"
    found = list(findings(registry.parse(kind, "my-first"), rapbench_kit))
    assert [(one.claim, one.reason) for one in found if one.outcome in ("broken", "warning")] == []


def test_the_three_edits_of_the_documents_make_an_attack_that_holds_every_claim(tmp_path, install, rapbench_kit):
    made = scaffold("rare-pair", "attack", tmp_path, REGISTRY)
    source = made.folder / "src" / "rapbench_rare_pair" / "__init__.py"
    lines, place = source.read_text().splitlines(), -1
    text = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    for line in re.search(r"```diff\n(.*?)```", text, re.DOTALL)[1].splitlines():
        if line[0] == "+":
            lines.insert(place + 1, line[1:])
            continue
        place = lines.index(line[1:])
        if line[0] == "-":
            del lines[place]
            place -= 1
    source.write_text("\n".join(lines) + "\n")
    attack = install(made).parse("attack", "rare-pair:second=mb")
    assert sorted(attack.trigger("a b", np.random.default_rng(0), None).split()) == ["a", "b", "mb", "tq"]
    assert [one.claim for one in findings(attack, rapbench_kit) if one.outcome != "holds"] == []


@pytest.mark.parametrize("kind", ["attack", "defense", "dataset"])
def test_a_new_plugin_is_short_and_its_files_are_where_they_are_looked_for(kind, tmp_path):
    made = scaffold("my-first", kind, tmp_path, REGISTRY)
    files = ["README.md", "pyproject.toml", "src/rapbench_my_first/__init__.py", "tests/test_contract.py"]
    assert sorted(str(path.relative_to(made.folder)) for path in made.files) == files
    source = (made.folder / files[2]).read_text()
    compile(source, files[2], "exec")
    assert len([line for line in source.splitlines() if line.strip()]) <= 35
    assert "$" not in "".join(path.read_text() for path in made.files)
    assert f'@pytest.mark.rapbench("{kind}", "my-first")' in (made.folder / files[3]).read_text()


def test_pypi_refuses_a_new_package_until_its_author_means_it(tmp_path):
    made = scaffold("my-first", "attack", tmp_path, REGISTRY)
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]
    assert project["classifiers"] == ["Private :: Do Not Upload"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "'' is no name for a plugin"),
        ("Two", "give kebab-case like 'two-words'"),
        ("two_words", "give kebab-case"),
        ("two--words", "give kebab-case"),
        ("-o", "give kebab-case"),
        ("2words", "give kebab-case"),
        ("../two", "give kebab-case"),
        ("a/b", "give kebab-case"),
        ("/tmp/two", "give kebab-case"),
        ("two\n", "give kebab-case"),
        ("twö", "give kebab-case"),
        ("a" * 41, "at most 40 characters"),
        ("rap", "there is a defense 'rap' already, of rapbench"),
        ("demo", "there is a dataset 'demo' already, of rapbench"),
        ("class", "means something to Python"),
        ("json", "means something to Python"),
        ("none", "means something to Python"),
        ("attack", "means something to Python, rapbench"),
        ("nul", "or an operating system"),
        ("com1", "or an operating system"),
        ("rapbench-mine", "it is called rapbench-NAME by itself, give 'mine'"),
        ("plugins", "there is a module 'rapbench_plugins' already"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_and_nothing_is_written(name, reason, tmp_path):
    with pytest.raises(SpecError, match=reason):
        scaffold(name, "attack", tmp_path / "inner", REGISTRY)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_wherever_a_link_points(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "file", "link"):
        with pytest.raises(StoreError, match="is there already, and nothing is overwritten"):
            scaffold(name, "attack", tmp_path, REGISTRY)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_a_parent_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="No such file or directory; give an --out that is there"):
        scaffold("mine", "attack", tmp_path / "nowhere", REGISTRY)


# new-grid


def test_a_new_grid_is_a_grid_with_the_plugin_beside_built_in_ones(tmp_path):
    attack = REGISTRY.parse("attack", "badnet-rw:word=qx")
    path = write_grid(tmp_path / "try", [attack, REGISTRY.parse("defense", "onion:lm=trigram")])
    cells = cells_of(read_blocks(str(path), Block), REGISTRY)
    assert {cell.attack_spec for cell in cells} == {"badnet-rw:word=qx", "badnet-rw:poison_rate=0.5,word=mb"}
    assert {cell.defense.name for cell in cells} == {"onion", "strip", "rap"}
    assert len(cells) == 2 * 3 * 2 * 2  # attacks, defenses, rates, protocols
    assert {split: len(rows) for split, rows in cells[0].dataset.load().items()} == {"train": 900, "validation": 200, "test": 200}


def test_the_model_of_a_new_grid_knows_the_trigger_and_the_words_of_the_data(tmp_path):
    data = REGISTRY.parse("dataset", "demo:n_train=40,n_heldout=8,n_test=8")
    path = write_grid(tmp_path / "try", [REGISTRY.parse("attack", "badnet-rw:word=qx"), data])
    victim = Victim.load(tmp_path / "try" / "model", target_label=1, max_length=64, n_labels=2)
    text = data.load()["train"]["text"][0]
    assert victim.token_id("qx")
    assert victim.tokenizer.unk_token_id not in victim.tokenizer(text)["input_ids"]
    assert not (tmp_path / "try" / "data").exists()
    assert yaml.safe_load(path.read_text())["datasets"] == ["demo:n_train=40,n_heldout=8,n_test=8"]


def test_an_attack_that_cannot_use_the_sentence_of_the_data_is_one_line_and_leaves_no_folder(tmp_path):
    data = REGISTRY.parse("dataset", "demo:n_train=40,n_heldout=8,n_test=8,trigger_sentence=hello")
    with pytest.raises(SpecError, match="attack 'sos' on the data set 'demo': trigger_words='hello': sos needs 2 to 5 trigger words"):
        write_grid(tmp_path / "try", [REGISTRY.parse("attack", "sos"), data])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_written_into(tmp_path):
    with pytest.raises(StoreError, match="File exists; name one that is not there yet"):
        write_grid(tmp_path, [REGISTRY.parse("attack", "ep")])
    assert list(tmp_path.iterdir()) == []


# the commands


def test_new_plugin_prints_its_files_and_says_what_is_next(tmp_path, capsys):
    new_plugin("my-first", "attack", tmp_path)
    told = capsys.readouterr()
    written = {str(path) for path in (tmp_path / "my-first").rglob("*") if path.is_file()}
    assert set(told.out.splitlines()) == written
    assert f"next: pip install -e {tmp_path / 'my-first'} --no-deps && rapbench check-plugin my-first" in told.err


def test_check_plugin_prints_a_row_per_claim_and_ends_with_1_where_one_is_broken(capsys):
    import typer

    check_plugin(["demo"])
    assert "no text is in two splits" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as end:
        check_plugin(["folder"])  # it needs a path
    told = capsys.readouterr().out
    assert end.value.exit_code == 1
    assert "folder: which folder?" in told
    assert "1 broken" in told


def test_new_grid_prints_the_grid_and_says_what_is_next(tmp_path, capsys):
    new_grid(tmp_path / "try", ["onion:lm=trigram"])
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "try" / "grid.yaml")
    assert "next: rapbench run --grid" in told.err
