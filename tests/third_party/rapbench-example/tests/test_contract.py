import pytest


@pytest.mark.rapbench("attack", "two-words")
@pytest.mark.rapbench("defense", "confidence")
@pytest.mark.rapbench("dataset", "forecasts")
def test_contract(rapbench_claim):
    rapbench_claim()
