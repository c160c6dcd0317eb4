"""The built-in defenses."""

from rapbench import Defense, hookimpl
from rapbench_plugins.defenses.length import Length
from rapbench_plugins.defenses.max_softmax import MaxSoftmax
from rapbench_plugins.defenses.onion import Onion
from rapbench_plugins.defenses.oracle import Oracle
from rapbench_plugins.defenses.random_scores import Random
from rapbench_plugins.defenses.rap import Rap
from rapbench_plugins.defenses.strip import Strip


@hookimpl
def rapbench_defenses() -> list[type[Defense]]:
    return [Strip, Onion, Rap, Random, MaxSoftmax, Length, Oracle]
