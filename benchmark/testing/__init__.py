"""The contract kit: what any attack, defense and data set must satisfy, checked on a tiny task that is made on the spot.

`rapbench check-plugin NAME` runs it; in a test file of your own:

    @pytest.mark.rapbench("attack", "two-words")
    def test_contract(rapbench_claim):
        rapbench_claim()
"""

from rapbench.testing import attacks, datasets, defenses, plugins
from rapbench.testing.claims import CHECKS, Claim, ContractError, Doubt, Finding, assert_claim, findings
from rapbench.testing.kit import Kit, NotAsked

__all__ = [
    "CHECKS",
    "Claim",
    "ContractError",
    "Doubt",
    "Finding",
    "Kit",
    "NotAsked",
    "assert_claim",
    "attacks",
    "datasets",
    "defenses",
    "findings",
    "plugins",
]
