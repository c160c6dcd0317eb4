"""The contract kit in anybody's test run: a marked test gets the fixture `rapbench_claim` once per claim.

@pytest.mark.rapbench("defense", "confidence", "confidence:power=2")
def test_contract(rapbench_claim):
    rapbench_claim()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from rapbench.testing import Kit

MARK = "rapbench"
ABOUT = f"{MARK}(kind, *specs): check every claim about these plugins; kind: attack, defense or dataset"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", ABOUT)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rapbench_claim" not in metafunc.fixturenames:
        return
    from rapbench.testing import CHECKS

    asked = [mark.args for mark in metafunc.definition.iter_markers(MARK)]
    if not asked or any(len(args) < 2 or args[0] not in CHECKS for args in asked):
        raise pytest.UsageError(f'{metafunc.definition.nodeid}: mark it with @pytest.mark.rapbench("attack", "my-attack")')
    rows = [(spec, own) for kind, *specs in asked for spec in specs for own in CHECKS[kind]]
    metafunc.parametrize("rapbench_claim", rows, indirect=True, ids=[f"{spec}-{own.text}".replace(" ", "_") for spec, own in rows])


@pytest.fixture(scope="session")
def rapbench_kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """The bench of the contract kit: a tiny task, and victims that have learnt it."""
    from rapbench.testing import Kit

    return Kit(tmp_path_factory.mktemp("rapbench-kit"))


@pytest.fixture
def rapbench_claim(request: pytest.FixtureRequest, rapbench_kit: Kit) -> Callable[[], None]:
    """One claim about one plugin, to be called: it fails with one line where the claim is broken."""
    spec, own = cast(Any, request).param
    return lambda: _asked(spec, own, rapbench_kit)


def _asked(spec: str, own: Any, kit: Kit) -> None:
    from rapbench.errors import RapbenchError
    from rapbench.testing import NotAsked, assert_claim

    try:
        assert_claim(own, kit.registry.parse(own.kind, spec), kit)
    except NotAsked as why:
        pytest.skip(str(why))
    except RapbenchError as error:
        raise pytest.fail.Exception(f"{own.text}: {error}", pytrace=False) from None
