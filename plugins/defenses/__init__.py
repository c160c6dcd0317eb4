"""The built-in defenses."""

from rapbench import Defense, hookimpl
from rapbench_plugins.defenses.badacts import Badacts
from rapbench_plugins.defenses.badacts_purify import BadactsPurify
from rapbench_plugins.defenses.bki import Bki
from rapbench_plugins.defenses.cube import Cube
from rapbench_plugins.defenses.dan import Dan
from rapbench_plugins.defenses.duet import Duet
from rapbench_plugins.defenses.fine_prune import FinePrune
from rapbench_plugins.defenses.finetune import Finetune
from rapbench_plugins.defenses.length import Length
from rapbench_plugins.defenses.max_softmax import MaxSoftmax
from rapbench_plugins.defenses.onion import Onion
from rapbench_plugins.defenses.oracle import Oracle
from rapbench_plugins.defenses.random_scores import Random
from rapbench_plugins.defenses.rap import Rap
from rapbench_plugins.defenses.strip import Strip
from rapbench_plugins.defenses.token_substitution import TokenSubstitution


@hookimpl
def rapbench_defenses() -> list[type[Defense]]:
    return [
        Rap,
        Strip,
        Onion,
        Dan,
        Duet,
        Badacts,
        TokenSubstitution,
        Bki,
        Cube,
        Finetune,
        FinePrune,
        BadactsPurify,
        Random,
        MaxSoftmax,
        Length,
        Oracle,
    ]
