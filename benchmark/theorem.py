"""Theorem 1 of RAP as a check on a victim: when a perturbation must exist that clean texts feel more than triggered ones.

Yang et al., "RAP" (EMNLP 2021, arXiv:2110.07831), section 3.4, proof in appendix A. With p the probability of the protect
label, D^T the clean texts of that label, x_2 those of others, t* the trigger and t^ the perturbation:
  (1) p >= sigma_1 > 1/2 on D^T, p <= sigma_2 < 1/2 on the others;  (2) the trigger lifts every text with p <= 1/2 above 1/2;
  a = sup p(x_2 + t*) - 1/4, in (1/4, 3/4);  b = (1/2 - sigma_2) / (2 sup |grad p(x_2)|);
  sigma(delta) = the least |t^| with inf over D^T of p(x_1) - p(x_1 + t^) = delta.
If 2 a sigma(delta) / b < delta, then p falls by less than delta on all triggered texts and by delta or more on all of D^T.

An estimate on samples, and this is how the symbols are read:
- an input is the sequence of word embeddings, (tokens, hidden); position and segment embeddings stay. The gradient's norm is
  the L2 norm over all of it, the proof's "2 |grad|" for the rest of the Taylor series is taken as it stands;
- "x + t^" is additive, so each text is taken with a rare word in front, its row unchanged: that is x. t^ is one change of the
  inserted word's embedding, the same for all texts, as RAP's is; |t^| is the norm of the change (a word that the text has
  itself is not changed);
- sigma(delta) is searched: for each of some radii, projected gradient lowers the least falling texts of D^T. The smallest
  radius that reaches delta is an upper bound: the true sigma(delta) is at most this (the falls are continuous in t^, so
  "at least delta" at a radius means "equal to delta" at it or below). So `holds` true is shown on the sample, false is not refuted;
- condition (2) is about all inputs; here it is about the triggered texts given. A supremum over a sample is below the true one;
- one odd text decides an infimum: beside it (q = 0) stand the q and 1 - q quantiles in the place of every inf and sup;
- condition (1) says that the victim never errs. A victim that does fails it, and no perturbation takes delta from a text whose p is
  below delta: so everything is also given for the texts judged rightly, those that RAP's gate leaves to it, on which (1) holds
  by their choice. The search looks at these clean texts alone.

The inequality is sufficient, not necessary: what the theorem concludes is measured beside it. It asks for much: as
2 a / b = 4 a sup |grad p(x_2)| / (1/2 - sigma_2), p must fall on D^T at least twice as steeply, delta / sigma(delta), as it changes
anywhere on the other texts, and about six times where a is near 3/4 and sigma_2 near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rapbench.checks import Bounds, Distribution, Inequality, Theorem, Verdict
from rapbench.errors import CellError

if TYPE_CHECKING:
    from rapbench.victim import Victim

Floats = NDArray[np.float64]

DELTAS = (0.05, 0.1, 0.2, 0.3)
TRIMS = (0.0, 0.01, 0.05)
RADII = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Sizes of the perturbation that are tried, in norms of the rare word's row."""
PERCENTS = (0, 1, 5, 25, 50, 75, 95, 99, 100)
BATCH = 32
TAIL = 0.25
"""The share of a batch, least falling first, that a step of the search lowers."""


@dataclass(frozen=True)
class Push:
    """What one perturbation of norm `radius` takes from p: of clean texts of the protect label (n,), of triggered ones (m,)."""

    radius: float
    protect: Floats
    triggered: Floats


@dataclass(frozen=True)
class Sample:
    """What was measured, one value per text: p by kind of text, |grad p| of the texts of other labels, falls by radius."""

    p_protect: Floats
    p_other: Floats
    p_triggered: Floats
    gradient_norms: Floats
    pushes: Sequence[Push]

    def judged_rightly(self) -> Sample:
        """Give the sample without clean texts of the wrong side of 1/2 and without triggered ones that the trigger did not lift."""
        protect, other, triggered = self.p_protect > 0.5, self.p_other < 0.5, self.p_triggered > 0.5
        pushes = [Push(push.radius, push.protect[protect], push.triggered[triggered]) for push in self.pushes]
        return Sample(self.p_protect[protect], self.p_other[other], self.p_triggered[triggered], self.gradient_norms[other], pushes)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many texts: of the protect label, of others, triggered."""
        return len(self.p_protect), len(self.p_other), len(self.p_triggered)


def check(
    victim: Victim,
    protect_texts: Sequence[str],
    other_texts: Sequence[str],
    triggered_texts: Sequence[str],
    *,
    word: str,
    rng: np.random.Generator,
    deltas: Sequence[float] = DELTAS,
    trims: Sequence[float] = TRIMS,
    steps: int = 40,
) -> Theorem:
    """Measure the theorem on clean texts of the protect label, clean texts of others, and triggered copies of such.

    `word`: the perturbation's, one token of the vocabulary and no trigger. The victim is as before afterwards.
    """
    kinds = {"protect-label": protect_texts, "other-label": other_texts, "triggered": triggered_texts}
    for kind, texts in kinds.items():
        if not texts:
            raise CellError(f"theorem: there is no {kind} text: give at least one")
    with Probe(victim, word) as probe:
        protect, other, triggered = (sorted(texts, key=lambda text: (len(text), text)) for texts in kinds.values())
        sample = measured(probe, protect, other, triggered, steps, rng)
        norm = float(probe.row.norm())
    return judged(sample, word, norm, deltas, trims)


def judged(sample: Sample, word: str, norm: float, deltas: Sequence[float] = DELTAS, trims: Sequence[float] = TRIMS) -> Theorem:
    """Give the verdicts on all texts and, where there are any of each kind, on those judged rightly. `norm`: of the word's row."""
    rightly = sample.judged_rightly()
    verdicts = [Verdict("all texts", sample.counts, tuple(bounds(sample, q, deltas) for q in trims))]
    if all(rightly.counts):
        verdicts.append(Verdict("texts judged rightly", rightly.counts, tuple(bounds(rightly, q, deltas) for q in trims)))
    return Theorem(word, norm, distributions(sample), tuple(verdicts))


def bounds(sample: Sample, q: float, deltas: Sequence[float]) -> Bounds:
    """Give the symbols and inequalities of the theorem from what was measured, trimmed by q (0: as stated)."""
    sigma_1, sigma_2 = _low(sample.p_protect, q), _high(sample.p_other, q)
    gradient, a = _high(sample.gradient_norms, q), _high(sample.p_triggered, q) - 0.25
    b = 0.5 * (0.5 - sigma_2) / gradient if sigma_2 < 0.5 and gradient > 0 else None
    return Bounds(
        q,
        sigma_1,
        sigma_2,
        gradient,
        a,
        b,
        condition_1=sigma_1 > 0.5 and sigma_2 < 0.5,
        condition_2=_low(sample.p_triggered, q) > 0.5,
        a_in_range=0.25 < a < 0.75,
        inequalities=tuple(_inequality(sample.pushes, q, delta, a, b) for delta in deltas),
    )


def distributions(sample: Sample) -> tuple[Distribution, ...]:
    """Give the quantiles of everything measured, falls by radius."""
    pushes = sorted(sample.pushes, key=lambda push: push.radius)
    return (
        _distribution("p, protect label", sample.p_protect),
        _distribution("p, other labels", sample.p_other),
        _distribution("p, triggered", sample.p_triggered),
        _distribution("gradient norm, other labels", sample.gradient_norms),
        *(_distribution(f"fall at {push.radius:.3g}, protect label", push.protect) for push in pushes),
        *(_distribution(f"fall at {push.radius:.3g}, triggered", push.triggered) for push in pushes),
    )


def measured(probe: Probe, protect: list[str], other: list[str], triggered: list[str], steps: int, rng: np.random.Generator) -> Sample:
    """Measure p, gradients, and the falls under the best perturbation found for each radius."""
    p_protect, p_triggered = probe.p(protect), probe.p(triggered)
    right = np.flatnonzero(p_protect > 0.5)
    looked_at = right if len(right) else np.arange(len(protect))
    search = Search(probe, [protect[row] for row in looked_at.tolist()], p_protect[looked_at], steps, rng)
    change = torch.zeros_like(probe.row)
    pushes = []
    for radius in (size * float(probe.row.norm()) for size in RADII):
        change = search.change(change, radius)
        pushes.append(Push(radius, p_protect - probe.p(protect, change), p_triggered - probe.p(triggered, change)))
    return Sample(p_protect, probe.p(other), p_triggered, probe.gradient_norms(other), pushes)


@dataclass(frozen=True)
class Search:
    """The search for a perturbation that takes p from all of these texts. `p`: without it, shape (texts,)."""

    probe: Probe
    texts: list[str]
    p: Floats
    steps: int
    rng: np.random.Generator

    def change(self, start: torch.Tensor, radius: float) -> torch.Tensor:
        """Give a change, shape (hidden,), of norm at most `radius` under which the least falling texts fall far.

        It starts from the change of a smaller radius, stretched. Steps shrink linearly and add up to the ball's diameter.
        """
        change = start * (radius / start.norm()) if start.norm() > 0 else start
        for number in range(self.steps):
            gradient = self._gradient(change)
            size = 4 * radius / self.steps * (1 - number / self.steps)
            change = change - size * gradient / gradient.norm().clamp_min(1e-30)
            change = change * min(1.0, radius / max(float(change.norm()), 1e-30))  # back onto the ball
        return change

    def _gradient(self, change: torch.Tensor) -> torch.Tensor:
        """Give where the log-odds of the least falling texts of a batch rise; p itself has no slope to follow where it is near 1."""
        rows = self.rng.permutation(len(self.texts))[:BATCH]
        leaf = change.clone().requires_grad_()
        odds = self.probe.log_odds([self.texts[row] for row in rows.tolist()], leaf)  # (texts,)
        falls = self.p[rows] - odds.detach().sigmoid().cpu().numpy()
        least = falls.argsort()[: max(1, round(TAIL * len(rows)))]
        (gradient,) = torch.autograd.grad(odds[torch.as_tensor(least)].mean(), leaf)
        return gradient


class Probe:
    """A victim whose inputs are looked at and changed as embeddings: a hook on the embedding layer, no weight is touched."""

    def __init__(self, victim: Victim, word: str) -> None:
        self.victim, self.word = victim, word
        self.token = victim.token_id(word)
        self.layer = victim.model.get_input_embeddings()
        self.row: torch.Tensor = self.layer(torch.tensor([self.token], device=self.layer.weight.device))[0].detach()
        self._change: torch.Tensor | None = None
        self._inputs: torch.Tensor | None = None

    def __enter__(self) -> Probe:
        model = self.victim.model
        self._before = model.training, [parameter.requires_grad for parameter in model.parameters()]
        model.eval()
        model.requires_grad_(False)
        self._hook = self.layer.register_forward_hook(self._replace)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        training, required = self._before
        self.victim.model.train(training)
        for parameter, before in zip(self.victim.model.parameters(), required, strict=True):
            parameter.requires_grad_(before)

    def log_odds(self, texts: Sequence[str], change: torch.Tensor | None = None) -> torch.Tensor:
        """Give log(p / (1 - p)) of the texts with the word in front and the change on its embedding; float64, shape (texts,)."""
        self._change = change
        batch = self.victim.encode([f"{self.word} {text}" for text in texts])
        logits: torch.Tensor = self.victim.model(**batch).logits.double()  # (texts, labels); a softmax in float32 rounds p to 1
        target = self.victim.target_label
        others = [label for label in range(logits.shape[1]) if label != target]
        return logits[:, target] - logits[:, others].logsumexp(1)

    def p(self, texts: Sequence[str], change: torch.Tensor | None = None) -> Floats:
        """Give the probability of the protect label, shape (texts,)."""
        with torch.no_grad():
            parts = [self.log_odds(texts[start : start + BATCH], change).sigmoid() for start in range(0, len(texts), BATCH)]
        return _finite(torch.cat(parts))

    def gradient_norms(self, texts: Sequence[str]) -> Floats:
        """Give the L2 norm of each text's gradient of p over its embeddings (tokens, hidden), shape (texts,)."""
        norms = []
        for start in range(0, len(texts), BATCH):
            p = self.log_odds(texts[start : start + BATCH]).sigmoid()
            assert self._inputs is not None
            (gradient,) = torch.autograd.grad(p.sum(), self._inputs)  # (texts, tokens, hidden); padding gets none
            norms.append(gradient.double().flatten(1).norm(dim=1))
        return _finite(torch.cat(norms))

    def _replace(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self._change is None:
            leaf = output.detach().requires_grad_(torch.is_grad_enabled())
            self._inputs = leaf
            return leaf
        own = args[0] == self.token  # (texts, tokens)
        first = own & (own.cumsum(1) == 1)
        return output + first.unsqueeze(-1) * self._change  # (texts, tokens, hidden)


def _finite(values: torch.Tensor) -> Floats:
    if not values.isfinite().all():
        raise CellError("theorem: the victim gives a probability or a gradient that is not a finite number")
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


def _inequality(pushes: Sequence[Push], q: float, delta: float, a: float, b: float | None) -> Inequality:
    reaching = [push for push in pushes if _low(push.protect, q) >= delta]
    if not reaching:
        return Inequality(delta, None, None, None, None, None, None)
    push = min(reaching, key=lambda push: push.radius)
    left = None if b is None else 2 * a * push.radius / b
    return Inequality(
        delta,
        push.radius,
        left,
        None if left is None else left < delta,
        float((push.protect >= delta).mean()),
        float((push.triggered < delta).mean()),
        _high(push.triggered, q) < delta,
    )


def _distribution(name: str, values: Floats) -> Distribution:
    at = np.percentile(values, PERCENTS)
    return Distribution(name, len(values), tuple(zip(PERCENTS, at.tolist(), strict=True)))


def _low(values: Floats, q: float) -> float:
    return float(np.quantile(values, q))


def _high(values: Floats, q: float) -> float:
    return float(np.quantile(values, 1 - q))
