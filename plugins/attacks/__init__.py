"""The built-in attacks."""

from rapbench import Attack, hookimpl
from rapbench_plugins.attacks.adaptive_rap import AdaptiveRap
from rapbench_plugins.attacks.adaptive_strip import AdaptiveStrip
from rapbench_plugins.attacks.badnet import BadNetRW, BadNetSL
from rapbench_plugins.attacks.char import Char
from rapbench_plugins.attacks.clean import Clean
from rapbench_plugins.attacks.ep import EP
from rapbench_plugins.attacks.lwp import Lwp
from rapbench_plugins.attacks.precomputed import Precomputed
from rapbench_plugins.attacks.ripples import Ripples
from rapbench_plugins.attacks.sos import Sos


@hookimpl
def rapbench_attacks() -> list[type[Attack]]:
    return [Clean, BadNetRW, BadNetSL, EP, Ripples, Sos, Lwp, Char, Precomputed, AdaptiveRap, AdaptiveStrip]
