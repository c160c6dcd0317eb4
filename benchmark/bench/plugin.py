"""The pytest plugin: `rapbench_cost` measures a defense under pytest-benchmark, `rapbench_claim` checks any plugin's contract.

It is loaded by every pytest run where rapbench is installed: nothing heavy is imported before the fixture is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rapbench.bench import contract

if TYPE_CHECKING:
    from rapbench.bench.subject import Measured, Setting

OUT = ".rapbench"
PROPERTY = "rapbench_cost"
"""The name under which a test's report holds what was measured."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rapbench", "what the fixture rapbench_cost measures a defense on (default: what the demo grid says)")
    group.addoption("--rapbench-dataset", metavar="SPEC", help="The data set; demo by default.")
    group.addoption("--rapbench-attack", metavar="SPEC", help="The attack; badnet-rw by default.")
    group.addoption("--rapbench-victim", metavar="SPEC", help="The victim; minilm-l6 by default.")
    group.addoption("--rapbench-seed", metavar="N", type=int, help="The seed.")
    group.addoption("--rapbench-texts", metavar="N", type=int, help="Texts per round, at most; every round gets fresh ones.")
    group.addoption("--rapbench-rounds", metavar="N", type=int, help="Measured rounds; one more warms up.")
    group.addoption("--rapbench-out", metavar="DIR", type=Path, help=f"Where victims are kept; {OUT} in the root folder by default.")
    group.addoption(
        "--rapbench-defense",
        metavar="SPEC",
        action="append",
        help="A defense for the shipped test (--pyargs rapbench.bench), repeatable; all registered ones by default.",
    )


def pytest_configure(config: pytest.Config) -> None:
    there = any(config.pluginmanager.hasplugin(name) for name in ("benchmark", "pytest_benchmark.plugin"))
    config.pluginmanager.register(contract, "rapbench-contract")  # its pytest_configure is called, too: this call is under way
    config.pluginmanager.register(_Measuring() if there else _Missing(), "rapbench-cost")


class _Measuring:
    @pytest.fixture
    def rapbench_cost(self, request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Callable[[str], Measured]]:
        """Measure what a defense costs: call it once per test with a spec, like rapbench_cost("strip:copies=20")."""
        if os.environ.get("PYTEST_XDIST_WORKER"):
            benchmark.skipped = True  # or it warns that nobody used it
            pytest.skip("under xdist pytest-benchmark measures nothing and writes no JSON: run this test with -n 0")
        import torch

        threads = torch.get_num_threads()
        yield lambda defense: _measure(defense, request, benchmark)
        torch.set_num_threads(threads)


class _Missing:
    @pytest.fixture
    def rapbench_cost(self) -> None:
        """Measure what a defense costs; skips here, for pytest-benchmark is missing or switched off."""
        pytest.skip("rapbench_cost needs pytest-benchmark: pip install 'rapbench[bench]', and no -p no:benchmark")


def _measure(defense: str, request: pytest.FixtureRequest, benchmark: Any) -> Measured:
    from rapbench.bench.subject import WARM_UP, NotBenched, subject
    from rapbench.errors import RapbenchError

    try:
        setting = _setting(request.config)
        own = subject(defense, setting)
        benchmark.group = own.group
        benchmark.pedantic(own.run, setup=own.next_texts, teardown=own.ran, rounds=setting.rounds, warmup_rounds=WARM_UP)
    except NotBenched as why:
        benchmark.skipped = True  # or it warns that nobody used it
        pytest.skip(str(why))
    except RapbenchError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    measured = own.measured(list(benchmark.stats["data"]) if benchmark.stats else [])
    benchmark.extra_info.update(asdict(measured))
    request.node.user_properties.append((PROPERTY, asdict(measured)))
    return measured


def _setting(config: pytest.Config) -> Setting:
    from rapbench.bench.subject import Setting

    names = ("dataset", "attack", "victim", "seed", "texts", "rounds")
    given = {name: value for name in names if (value := config.getoption(f"rapbench_{name}")) is not None}
    return Setting(out=config.getoption("rapbench_out") or _own_folder(config.rootpath / OUT), **given)


def _own_folder(folder: Path) -> Path:
    """Make the folder, for git to overlook."""
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder
