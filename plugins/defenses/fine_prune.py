"""Fine-pruning: units that clean texts leave idle are cut, since a backdoor may live there; then the rest is trained on clean texts.

Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks" (RAID 2018,
arXiv:1805.12185, section 3), and its released code: by mean activation on clean inputs, the least active units of the last
convolutional layer are cut until the clean accuracy falls by more than the defender allows; then the network is fine-tuned.

Where we choose, since a transformer has no such layer: the units are those between the two products of a feed-forward block, the same
share in each layer (`layers=last`: in the last one alone, the nearest to the paper), ranked by the mean absolute value, as GELU and gates
give values below 0 (after ReLU, as in the paper, that is the mean). A cut unit's outgoing weights are zero and stay so while
the others are trained. How much may be lost is the defender's choice in the paper; the default of 4 points is ours.

What others call by this name for text: BackdoorMBTI zeroes single weights of each layer by their value, all above a low quantile,
looks at no activation and trains nothing after it; for images it cuts units in front of the head. OpenBackdoor has no fine-pruning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rapbench import Defense
from rapbench.api import Work, option
from rapbench_plugins.defenses.finetune import check_training, finetuned, training_work

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.standin import StandIn
    from rapbench.victim import Victim

RESULTS_DEPEND_ON = (str(Path(__file__).with_name("finetune.py")),)
ATTENTION = ("attn", "attention")
"""In the names of what belongs to attention: where its heads are wider than the model, its output looks like a feed-forward one."""
ROUNDING = 1e-9
"""A fall of exactly `max_drop` is allowed, whatever the last digit of a difference of two floats."""


@dataclass(frozen=True, kw_only=True)
class FinePrune(Defense):
    """The received model without its least active feed-forward units, fine-tuned on the clean held-out texts."""

    name: ClassVar[str] = "fine-prune"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "model"
    prune_ratio: float | None = option(None, "share of a layer's units to cut; None: the largest of `ratios` within `max_drop`")
    max_drop: float = option(0.04, "how far cutting may lower the clean metric on the held-out texts (a fraction), before fine-tuning")
    ratios: tuple[float, ...] = option((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "the shares that are tried, smallest first")
    layers: Literal["all", "last"] = option("all", "whose units are cut: every layer's, or the last one's")
    epochs: int = option(3, "passes over the held-out texts after cutting; 0: cut alone")
    lr: float | None = option(None, "the learning rate; None: the victim's")
    batch_size: int | None = option(None, "texts per step; None: the victim's")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self, least_epochs=0)
        if self.prune_ratio is not None and not 0 < self.prune_ratio < 1:
            raise ValueError(f"prune_ratio={self.prune_ratio!r} is not in (0, 1): for no cut take the defense finetune")
        if not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop={self.max_drop!r} is not in [0, 1)")
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"ratios={self.ratios!r} are not one or more numbers in (0, 1)")

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give the work where every ratio is tried; of held-out texts there are about as many of the other labels."""
        passes = 1 + (len(self.ratios) if self.prune_ratio is None else 1)
        return training_work(self.epochs, 2 * heldout, rows=passes * 2 * heldout)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> StandIn:
        """Give the clone of the victim that was cut and fine-tuned; cut units stay cut."""
        from rapbench.standin import StandIn

        own = victim.clone()
        layers = ranked(own, heldout.texts, self.layers)
        metrics = self.cut(own, layers, heldout, lab)
        ratio = layers[0].ratio
        about: dict[str, Any] = {"prune_ratio": ratio, "units": {layer.name: layer.cut for layer in layers}, "metric_by_ratio": metrics}
        if not self.epochs:
            return StandIn(own, about)
        with kept_cut(layers):
            trained, told = finetuned(own, heldout, lab, self)
        return StandIn(trained, {**about, "training": told})

    def cut(self, victim: Victim, layers: Sequence[Layer], heldout: Labelled, lab: Lab) -> dict[str, float]:
        """Cut these layers of the victim as the options say; give the clean metric for each ratio that was tried, 0 among them."""
        from rapbench.rates import clean_metric

        def metric(told: NDArray[np.float64]) -> float:
            return round(clean_metric(told, heldout.labels, lab.metric), 6)

        found, kept = {"0": metric(victim.undefended(heldout.texts))}, 0.0
        for ratio in sorted(self.ratios) if self.prune_ratio is None else [self.prune_ratio]:
            cut_all(layers, ratio)
            after = found[f"{ratio:g}"] = metric(victim.probabilities(heldout.texts))
            if self.prune_ratio is None and found["0"] - after > self.max_drop + ROUNDING:
                break
            kept = ratio
        cut_all(layers, kept)
        return found


@dataclass
class Layer:
    """The feed-forward units of one layer, and the weight of the product that they go into.

    `received`: that weight as it came; `order`: int64, shape (units,), least active first; `columns`: whether the weight has a column,
    and no row, for each unit.
    """

    name: str
    weight: torch.nn.Parameter
    received: torch.Tensor
    order: NDArray[np.int64]
    columns: bool
    ratio: float = 0.0

    @property
    def cut(self) -> int:
        """How many units are cut."""
        return round(self.ratio * len(self.order))

    def cut_to(self, ratio: float) -> None:
        """Zero what this share of the units, the least active ones, gives on; all else is as it was received."""
        self.ratio = ratio
        own = self.weight.detach()  # shares its memory
        own.copy_(self.received)
        self._silence(own)

    def held(self, gradient: torch.Tensor) -> torch.Tensor:
        """Give the gradient of the weight with none for the cut units: AdamW, which decays weights by a share, leaves them at 0."""
        own = gradient.clone()
        self._silence(own)
        return own

    def _silence(self, weight: torch.Tensor) -> None:
        import torch

        by_unit = weight.T if self.columns else weight  # (units, hidden)
        by_unit[torch.from_numpy(self.order[: self.cut]).to(weight.device)] = 0.0


def cut_all(layers: Sequence[Layer], ratio: float) -> None:
    """Cut each layer to this share."""
    for layer in layers:
        layer.cut_to(ratio)


@contextmanager
def kept_cut(layers: Sequence[Layer]) -> Iterator[None]:
    """Keep training from moving the weights of cut units while the block runs."""
    hooks = [layer.weight.register_hook(layer.held) for layer in layers]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ranked(victim: Victim, texts: Sequence[str], which: Literal["all", "last"]) -> list[Layer]:
    """Give the feed-forward layers of a victim, first to last, with their units ranked by what these texts do; a CellError of none."""
    import numpy as np

    from rapbench.errors import CellError

    found = feed_forward_outputs(victim.model)
    if not found:
        raise CellError(
            f"fine-prune: a {type(victim.model).__name__} has no layer that leads from its feed-forward units back to its states: "
            "choose another victim"
        )
    if which == "last":
        found = {name: part for name, part in found.items() if _layer(name) == _layer(list(found)[-1])}
    return [
        Layer(name, part.weight, part.weight.detach().clone(), np.argsort(active, kind="stable"), _in_columns(part))
        for (name, part), active in zip(found.items(), activity(victim, list(found.values()), texts), strict=True)
    ]


def feed_forward_outputs(model: PreTrainedModel) -> dict[str, Any]:
    """Give, by name, the products that lead from feed-forward units back to the model's states: those of that shape in its layers."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    sizes = model.config.get_text_config()
    hidden, stated = sizes.hidden_size, getattr(sizes, "intermediate_size", None)  # GPT-2 and DistilBERT have another name for it
    found = {}
    for name, part in model.base_model.named_modules():
        if not isinstance(part, Linear | Conv1D) or _layer(name) is None or any(sign in name.lower() for sign in ATTENTION):
            continue
        units, out = part.weight.shape[::-1] if _in_columns(part) else part.weight.shape
        if out == hidden != units and units == (stated if isinstance(stated, int) else units):
            found[name] = part
    return found


def activity(victim: Victim, parts: Sequence[Any], texts: Sequence[str]) -> list[NDArray[np.float64]]:
    """Give of each part what its inputs are in absolute value, summed over all tokens of the texts: (units,), which ranks as the mean."""
    import numpy as np

    sums: list[Any] = [np.zeros(part.weight.shape[1 if _in_columns(part) else 0]) for part in parts]

    def hook(row: int) -> Any:
        def see(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sums[row] += args[0].flatten(0, -2).float().abs().sum(0).cpu().numpy()  # (tokens, units) -> (units,)

        return see

    counts = victim.token_counts(texts)
    with ExitStack() as hooks:
        for row, part in enumerate(parts):
            hooks.callback(part.register_forward_pre_hook(hook(row)).remove)
        for count in np.unique(counts):  # texts of one length have no padding, which would be counted
            victim.probabilities([texts[row] for row in np.flatnonzero(counts == count).tolist()])
    return sums


def _in_columns(part: torch.nn.Module) -> bool:
    """Tell whether the weight has a column for each input, as torch's own has; GPT-2's has a row."""
    from torch.nn import Linear

    return isinstance(part, Linear)


def _layer(name: str) -> str | None:
    """Give the name up to the number of the layer; None of what stands in no layer (embeddings, poolers)."""
    found = re.match(r"(.+?\.)?\d+(?=\.|$)", name)
    return found.group() if found else None
