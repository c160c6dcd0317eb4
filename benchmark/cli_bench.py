"""The command bench: the shipped test of `rapbench.bench` run by pytest in this process, and its table."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapbench import cli_run
from rapbench.artifacts import make_folder
from rapbench.errors import SpecError, StoreError

if TYPE_CHECKING:
    import pytest

    from rapbench.bench.subject import Setting

FAILED, INTERRUPTED = 1, 2
STUB = "from rapbench.bench.test_defenses import pytest_generate_tests, test_cost\n"
HEADERS = ("defense", "ms/text", "undefended", "ratio", "victim rows", "victim tokens", "other rows", "other tokens", "fit s")


def bench(
    defense: Annotated[list[str] | None, typer.Option(help="A defense spec; repeatable; all registered ones by default.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set spec; by default the demo grid's.")] = None,
    attack: Annotated[str | None, typer.Option(help="An attack spec; by default the demo grid's.")] = None,
    victim: Annotated[str | None, typer.Option(help="A victim spec; by default the demo grid's.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed.")] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts per round, at most; every round gets fresh ones.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; one more warms up.")] = 5,
    out: cli_run.Out = cli_run.OUT,
    json: Annotated[Path | None, typer.Option(help="Write pytest-benchmark's JSON into this file.")] = None,
) -> None:
    """Measure what defenses cost with pytest-benchmark: one row per defense, the undefended victim first.

    A defense that no grid puts on this attack is told as not benched, with the reason.
    """
    _check(json)
    from rapbench.bench.subject import Setting, Undefended, registered, registry

    setting = Setting(out=out, dataset=dataset, attack=attack, victim=victim, seed=seed, texts=texts, rounds=rounds)
    for spec in (Undefended.name, *(defense or ())):
        setting.cell(spec, registry())  # an unknown name ends here, not in a row
    make_folder(out)
    rows = _Rows()
    specs = list(dict.fromkeys([Undefended.name, *defense])) if defense else registered()
    code = _pytest(setting, specs, json, rows)
    typer.echo(rows.table(specs))
    for spec, reason in {**rows.skipped, **rows.failed}.items():
        typer.echo(f"rapbench: {spec}: {reason}", err=True)
    if rows.failed or code == FAILED:
        raise typer.Exit(FAILED)


class _Rows:
    """A pytest plugin that keeps what the tests measured, and why others did not."""

    def __init__(self) -> None:
        self.specs: dict[str, str] = {}
        self.measured: dict[str, Mapping[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.specs = {item.nodeid: item.callspec.params["defense"] for item in session.items}  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from rapbench.bench.plugin import PROPERTY

        spec = self.specs[report.nodeid]
        if report.failed:
            self.failed.setdefault(spec, _reason(report))
        if report.skipped:
            self.skipped[spec] = _reason(report)
        for name, value in report.user_properties:
            if name == PROPERTY:
                self.measured[spec] = value  # type: ignore[assignment]
        if report.when == "call":
            print(f"[{list(self.specs.values()).index(spec) + 1}/{len(self.specs)}] {spec}: {self._state(spec)}, {report.duration:.1f} s")

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return (report.outcome, "", "") if report.when == "call" else None  # no letter between the lines

    def table(self, specs: Sequence[str]) -> str:
        """Give the table of all that was asked for, and below it on what it was measured."""
        from tabulate import tabulate

        lines = [_line(self.measured[spec]) if spec in self.measured else [spec, self._state(spec)] for spec in specs]
        align = ["left", *["right"] * 5, "left", "left", "right"]
        found = tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True, colalign=align)
        return "\n\n".join([found, *dict.fromkeys(map(_about, self.measured.values()))])

    def _state(self, spec: str) -> str:
        states = {"failed": set(self.failed), "measured": set(self.measured), "not benched": set(self.skipped)}
        return next((state for state, specs in states.items() if spec in specs), "not run")


def _check(json: Path | None) -> None:
    """Refuse what would be noticed only after minutes of measuring."""
    if any(importlib.util.find_spec(name) is None for name in ("pytest", "pytest_benchmark")):
        raise SpecError("rapbench bench needs pytest and pytest-benchmark: pip install 'rapbench[bench]'")
    if json is not None and (json.is_dir() or not os.access(json.resolve().parent, os.W_OK)):
        raise StoreError(f"cannot write the file {str(json)!r}: name one in a folder that is there")


def _pytest(setting: Setting, specs: Sequence[str], json: Path | None, rows: _Rows) -> int:
    """Run the shipped test; all that pytest prints goes to stderr."""
    import pytest

    with tempfile.TemporaryDirectory() as scratch, _undisturbed():
        # imported from here by name: in a source checkout pytest would take the package for the folder it lies in
        (Path(scratch) / "test_defenses.py").write_text(STUB)
        with redirect_stdout(sys.stderr):
            code = pytest.main([*_arguments(setting, specs, json), scratch], plugins=[rows])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (0, FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return int(code)


def _arguments(setting: Setting, specs: Sequence[str], json: Path | None) -> list[str]:
    names = ("dataset", "attack", "victim", "seed", "texts", "rounds")
    given = {name: getattr(setting, name) for name in names if getattr(setting, name) is not None}
    return [
        *("-p", "pytest_benchmark.plugin", "-p", "rapbench.bench.plugin", "-p", "no:cacheprovider"),
        *("-c", os.devnull, "--noconftest", "--import-mode=importlib", "--benchmark-quiet"),
        *("-q", "-s", "--no-header", "--tb=short", "-rN", "--disable-warnings"),
        *([f"--benchmark-json={json.resolve()}"] if json else []),
        f"--rapbench-out={setting.out.resolve()}",
        *(f"--rapbench-{name}={value}" for name, value in given.items()),
        *(f"--rapbench-defense={spec}" for spec in specs),
    ]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep other plugins (xdist, say) and the options of the user's own test runs out."""
    own = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # file, line and words of a skip
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return text.strip().splitlines()[0].removeprefix("Failed: ")


def _line(measured: Mapping[str, Any]) -> list[str]:
    digits = {"ms_per_text": 3, "undefended_ms_per_text": 3, "ratio": 2, "victim_rows_per_text": 3, "victim_tokens_per_text": 1}
    others = [", ".join(f"{who} {n:.1f}" for who, n in measured[f"helper_{what}_per_text"].items()) for what in ("rows", "tokens")]
    return [measured["defense"], *(f"{measured[name]:.{n}f}" for name, n in digits.items()), *others, f"{measured['fit_s']:.2f}"]


def _about(measured: Mapping[str, Any]) -> str:
    return (
        f"{measured['attack']} on {measured['dataset']}, victim {measured['victim']}, seed {measured['seed']}; "
        f"rounds of {measured['texts_per_round']} texts of {measured['words_per_text']:.0f} words, medians; "
        f"{measured['device']}, {measured['threads']} thread"
    )
