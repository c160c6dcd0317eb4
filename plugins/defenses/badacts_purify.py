"""BadActs, the purification: what the layers give is clipped, neuron by neuron, to the narrowest intervals that clean texts bear.

Yi et al., "BadActs: A Universal Backdoor Defense in the Activation Space" (Findings of ACL 2024, arXiv:2405.11227), and its released code
(clearloveclearlove/BadActs). Every layer's output is clipped at every token, the embeddings are not. An interval is its upper end and
the logarithm of its width, trained by Adam on the held-out texts that are rightly predicted: the squared change of the logits, plus
`weight` times the norm of all widths. From three tenths of the epochs on, at each tenth, the weight is multiplied by 1.2 where 98 % of
these texts are still rightly predicted and divided by it where fewer are. Below 97 % at the end all begins again with half the weight.

Where we differ. All texts are clipped, as in the released purification: the paper's recommended pair, which clips detected texts alone,
is not a victim of its own. The code begins with the interval (1 - e, 1) for every neuron, which suits BERT, and never learns where the
states of MiniLM or of a decoder lie, a thousand times narrower or wider: with `start=clean` an interval begins at 3 deviations around
the mean of clean tokens, and all is counted in deviations; `start=fixed` is the code's. Its 50 epochs at a rate of 0.01 are 10 at 0.05
here, a way of the same length in a fifth of the time; it begins anew without end, here `restarts` times; it counts the right
predictions after the epochs, here they are those of the epochs' own passes, but for the last count; and its batches are drawn by
chance, here of texts of similar length. Nothing else is random: dropout is off, as in the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rapbench import Defense, Repair
from rapbench.api import Work, option
from rapbench.linear import onednn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

BATCH = 32
FACTOR = 1.2
KEPT, LEAST = 0.98, 0.97
"""Shares of the texts rightly predicted: from which the weight grows, and below which all begins again."""
REACH = 3.0
NARROWEST = 1e-6
"""Of the deviations that are counted in: a neuron may have none."""


@dataclass(frozen=True, kw_only=True)
class BadactsPurify(Defense):
    """Clip each neuron of each layer to an interval that is as narrow as clean held-out texts bear."""

    name: ClassVar[str] = "badacts-purify"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "model"
    start: Literal["clean", "fixed"] = option("clean", "where intervals begin: 3 deviations around clean means, or (1 - e, 1)")
    epochs: int = option(10, "passes over the held-out texts")
    lr: float = option(0.05, "Adam's learning rate")
    weight: float = option(0.1, "weight of the intervals' widths beside the change of the logits, at the start")
    restarts: int = option(2, "times that all begins again with half the weight where clean accuracy suffers")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("epochs", 1), ("restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r} is below {least}")
        for name in ("lr", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is not above 0")

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give the work of one try on the texts of all labels: one pass before, one after, and one with gradients in each epoch."""
        return Work(1, fit_rows=2 * 2 * heldout, fit_trained_rows=self.epochs * 2 * heldout)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> BadactsRepair:
        """Give the repair by the first try that keeps 97 % of the held-out texts right, or by the last one."""
        from rapbench.errors import CellError
        from rapbench.protocol import predicted

        right = predicted(victim.undefended(heldout.texts)) == heldout.labels
        if not right.any():
            raise CellError("badacts-purify: no held-out text is rightly predicted: give more held-out texts or a better victim")
        repair = BadactsRepair(victim.clone(), heldout.where(right))
        repair.clips = clipped(repair.victim)
        weight = self.weight
        for _ in range(1 + self.restarts):
            trained(repair, self, weight, lab)
            kept = predicted(repair.victim.probabilities(repair.texts.texts)) == repair.texts.labels
            repair.tries.append({"weight": weight, "accuracy": round(float(kept.mean()), 6)})
            if kept.mean() >= LEAST:
                break
            weight /= 2
        return repair


@dataclass
class Clip:
    """A forward hook that clips a layer's output. `low`, `high`: float32, shape (units,); None: nothing is clipped.

    It is deep-copied and pickled with the model that it hangs on.
    """

    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def __call__(self, layer: Any, args: Any, output: Any) -> Any:
        import torch

        if self.low is None or self.high is None:
            return output
        state = output[0] if isinstance(output, tuple) else output
        within = torch.maximum(torch.minimum(state, self.high.to(state.dtype)), self.low.to(state.dtype))
        return (within, *output[1:]) if isinstance(output, tuple) else within


@dataclass
class BadactsRepair(Repair):
    """A clipped clone of the received victim. `texts`: the held-out ones that the received one predicts rightly."""

    victim: Victim
    texts: Labelled
    clips: list[Clip] = field(default_factory=list)
    tries: list[dict[str, float]] = field(default_factory=list)

    def repaired(self) -> Victim:
        return self.victim

    def logits(self, rows: list[int]) -> torch.Tensor:
        """Give the logits of these of the texts, float32, shape (rows, labels), with gradients where they are on."""
        told: torch.Tensor = self.victim.model(**self.victim.encode([self.texts.texts[row] for row in rows])).logits
        return told.float()

    def notes(self) -> Mapping[str, Any]:
        return {"texts": len(self.texts.texts), "tries": self.tries}


@dataclass
class Intervals:
    """An interval per neuron, each tensor float32 of shape (layers, units).

    `top` and `log_width` are trained and in units of `scale`, as seen from `centre`.
    """

    centre: torch.Tensor
    scale: torch.Tensor
    top: torch.Tensor
    log_width: torch.Tensor

    @classmethod
    def around(cls, means: torch.Tensor, deviations: torch.Tensor) -> Intervals:
        """Give intervals that reach 3 deviations to both sides."""
        import torch

        top = torch.full_like(means, REACH)
        return cls(means, deviations.clamp(min=NARROWEST), top.requires_grad_(), (2 * top.detach()).log().requires_grad_())

    @classmethod
    def fixed(cls, like: torch.Tensor) -> Intervals:
        """Give the interval (1 - e, 1) for each neuron: as many as `like` has."""
        import torch

        zeros, ones = torch.zeros_like(like), torch.ones_like(like)
        return cls(zeros, ones, ones.clone().requires_grad_(), ones.clone().requires_grad_())

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lower and the upper ends, as the neurons' values are counted."""
        return self.centre + self.scale * (self.top - self.log_width.exp()), self.centre + self.scale * self.top

    def width(self) -> torch.Tensor:
        """Give the norm of all widths, in units of `scale`."""
        norm: torch.Tensor = self.log_width.exp().norm()
        return norm

    def put(self, clips: list[Clip]) -> None:
        """Have the layers clipped to these intervals; with gradients, where they are on."""
        for clip, low, high in zip(clips, *self.ends, strict=True):
            clip.low, clip.high = low, high


def clipped(victim: Victim) -> list[Clip]:
    """Hang a clip that does nothing yet on each layer of this victim, lowest first; a CellError where it has no list of layers."""
    clips = [Clip() for _ in range(victim.model.config.get_text_config().num_hidden_layers)]
    for layer, clip in zip(layers(victim), clips, strict=True):
        layer.register_forward_hook(clip)
    return clips


def layers(victim: Victim) -> list[Any]:
    """Give the modules whose outputs are the states of the layers, lowest first; a CellError where they are not known."""
    from torch.nn import ModuleList

    from rapbench.errors import CellError

    base, n = victim.model.base_model, victim.model.config.get_text_config().num_hidden_layers
    for part in base.modules():
        if isinstance(part, ModuleList) and len(part) == n:
            return list(part)
    raise CellError(f"badacts-purify: a {type(victim.model).__name__} has no list of its {n} layers: choose another victim")


def trained(repair: BadactsRepair, options: BadactsPurify, weight: float, lab: Lab) -> None:
    """Train intervals from their start on, and leave the repair's clips with them."""
    import torch

    from rapbench.lab import bucketed

    texts, wanted = repair.texts.texts, torch.as_tensor(repair.texts.labels, device=repair.victim.device)
    lengths, draw = repair.victim.token_counts(texts).tolist(), lab.rng("badacts-purify/order")
    with frozen(repair.victim.model):
        logits, means, deviations = seen(repair)
        intervals = Intervals.around(means, deviations) if options.start == "clean" else Intervals.fixed(means)
        adam = torch.optim.Adam([intervals.top, intervals.log_width], lr=options.lr)
        for epoch in range(options.epochs):
            right = 0
            for rows in batches(bucketed(lengths, BATCH, draw).tolist()):
                intervals.put(repair.clips)
                told = repair.logits(rows)
                adam.zero_grad()
                loss = torch.nn.functional.mse_loss(told, logits[rows]) + weight * intervals.width()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                right += int((told.argmax(1) == wanted[rows]).sum())
            if adjusts(epoch, options.epochs):
                weight *= FACTOR if right >= KEPT * len(texts) else 1 / FACTOR
    with torch.no_grad():
        intervals.put(repair.clips)


def adjusts(epoch: int, epochs: int) -> bool:
    """Tell whether the weight is adjusted after this epoch, counted from 0: where a tenth, from the third on, begins with it."""
    return 3 <= 10 * epoch // epochs != 10 * (epoch - 1) // epochs


def seen(repair: BadactsRepair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the unclipped logits of the texts, (n, labels), and each neuron's mean and deviation over their tokens, (layers, units)."""
    import torch

    victim, parts = repair.victim, layers(repair.victim)
    for clip in repair.clips:
        clip.low = clip.high = None
    logits, sums, n = [], torch.zeros(0), 0
    with torch.no_grad():
        for rows in batches(range(len(repair.texts.texts))):
            batch = victim.encode([repair.texts.texts[row] for row in rows])
            with outputs(parts) as states:
                logits.append(victim.model(**batch).logits.float())
            real = batch["attention_mask"].bool()  # (rows, tokens)
            own = torch.stack([state[real] for state in states]).double()  # (layers, tokens of all rows, units)
            new = torch.stack([own.sum(1), own.square().sum(1)])  # (2, layers, units)
            sums, n = (sums + new if n else new), n + int(real.sum())
    mean = sums[0] / n
    deviation = (sums[1] / n - mean.square()).clamp(min=0).sqrt()
    return torch.cat(logits), mean.float(), deviation.float()


def batches(rows: Sequence[int]) -> Iterator[list[int]]:
    """Give the rows 32 by 32, in their order."""
    for start in range(0, len(rows), BATCH):
        yield list(rows[start : start + BATCH])


@contextmanager
def outputs(parts: list[Any]) -> Iterator[list[torch.Tensor]]:
    """Give a list that the layers' states go into while the block runs, each of shape (rows, tokens, units)."""
    states: list[torch.Tensor] = []

    def keep(layer: Any, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Have no weight of the model take a gradient while the block runs, and its dropout off."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        with onednn(model):
            yield
    finally:
        for parameter, own in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(own)
