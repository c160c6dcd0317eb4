"""The built-in attacks."""

from rapbench import Attack, hookimpl
from rapbench_plugins.attacks.badnet import BadNetRW, BadNetSL
from rapbench_plugins.attacks.clean import Clean
from rapbench_plugins.attacks.ep import EP
from rapbench_plugins.attacks.ripples import Ripples


@hookimpl
def rapbench_attacks() -> list[type[Attack]]:
    return [Clean, BadNetRW, BadNetSL, EP, Ripples]
