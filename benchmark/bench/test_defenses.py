"""The shipped test: one row per registered defense, or why it has none, `pytest --pyargs rapbench.bench --benchmark-json=FILE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from rapbench.bench.subject import Measured


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from rapbench.bench.subject import Undefended, registered

    given: list[str] | None = metafunc.config.getoption("rapbench_defense")
    metafunc.parametrize("defense", list(dict.fromkeys([Undefended.name, *given])) if given else registered())


def test_cost(defense: str, rapbench_cost: Callable[[str], Measured]) -> None:
    rapbench_cost(defense)
