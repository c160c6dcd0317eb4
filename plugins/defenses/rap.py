"""RAP: robustness-aware perturbation.

Yang et al., "RAP: Robustness-Aware Perturbations for Defending against Backdoor Attacks on NLP Models" (EMNLP 2021,
arXiv:2110.07831), section 4 and Eq. 4. The embedding of a rare word is trained so that, put in front of a clean text of
the protect label, it takes 0.1-0.3 of the label's probability away. A trigger holds the prediction up: texts whose
probability hardly falls are suspicious.

Recipe `released` follows the authors' code where it and the paper differ: gradients add up over the whole run, the row
keeps its norm, dropout is on while constructing. Recipe `steady` is ours: Adam, no dropout, undefended predictions
computed once; the released one swings between epochs.

A word may have several forms in a vocabulary, each a row (`rapbench.vocabulary`): those are trained that are put into texts, with
position `first` the one at a text's start. Byte-level vocabularies have the same token inside of longer words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from rapbench import Defense, Detector
from rapbench.api import Work, option

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.rows import Row
    from rapbench.victim import Victim
    from rapbench.vocabulary import Place

RESULTS_DEPEND_ON = (str(Path(__file__).with_name("lean.py")),)
RARE_WORDS = ("cf", "tq", "mn", "bb", "mb")


@dataclass(frozen=True, kw_only=True)
class Rap(Defense):
    """One trained rare word; a text whose protect probability hardly falls under it is suspicious."""

    name: ClassVar[str] = "rap"
    recipe: Literal["released", "steady"] = option("released", "how the row is trained, where the next four say nothing else")
    gradient: Literal["accumulate", "sgd", "adam"] | None = option(None, "released: accumulate (never zeroed); steady: adam")
    dropout: bool | None = option(None, "dropout while constructing; released: true, steady: false")
    epochs: int | None = option(None, "passes over the held-out texts of the protect label; released: 5, steady: 4")
    keep_norm: bool = option(True, "scale the row back to its first length after each step")
    word: str = option("cf", "the rare word, one token of the victim's vocabulary and no trigger")
    position: Literal["first", "random"] = option("first", "where the word goes")
    c_low: float = option(0.1, "the fall of probability to reach at least")
    c_up: float = option(0.3, "the fall of probability to reach at most")
    weight: float = option(1.0, "lambda of Eq. 4, the weight of the lower bound")
    lr: float = option(1e-2, "learning rate of the row")
    batch_size: int = option(32, "texts per step")
    retries: int = option(4, "further tries, at most, while the threshold is not above 0")
    retry_frr: float = option(0.01, "the allowed FRR whose threshold must be above 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.c_low < self.c_up <= 1:
            raise ValueError(f"c_low={self.c_low!r} and c_up={self.c_up!r} are no range inside 0..1")
        if not 0 < self.retry_frr < 1:
            raise ValueError(f"retry_frr={self.retry_frr!r} is not in (0, 1)")
        if not self.word or " " in self.word:
            raise ValueError(f"word={self.word!r} is not one word")
        for name, least in (("epochs", 1), ("batch_size", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value!r} is below {least}")
        for name in ("lr", "weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is not above 0")

    @property
    def words(self) -> tuple[str, ...]:
        return (self.word,)

    @property
    def places(self) -> tuple[Place, ...]:
        """The places in which the word has to be one token: where it is put."""
        return ("first",) if self.position == "first" else ("first", "later")

    def settled(self) -> Rap:
        """Give these options with the recipe's values where nothing else was said."""
        steady = self.recipe == "steady"
        return replace(
            self,
            gradient=self.gradient or ("adam" if steady else "accumulate"),
            dropout=(not steady) if self.dropout is None else self.dropout,
            epochs=self.epochs or (4 if steady else 5),
        )

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give the work of one try: retries are not foreseen. Without dropout the predictions before are the gate's."""
        own = self.settled()
        passes = cast(int, own.epochs) * heldout
        return Work(1, fit_rows=heldout + (passes if own.dropout else 0), fit_trained_rows=passes)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        """Construct the row; while its threshold is not above 0, try again as `tries` says; keep the best try."""
        best: RapDetector | None = None
        log: list[dict[str, Any]] = []
        for options in self.tries(victim, lab):
            detector = RapDetector(options, victim, constructed(options, victim, heldout, lab), lab)
            at = detector.lowest_falls(heldout, self.retry_frr)
            log.append(
                {"word": options.word, "weight": options.weight, "epochs": options.epochs, "keep_norm": options.keep_norm, "threshold": at}
            )
            if best is None or at > best.threshold:
                detector.threshold, best = at, detector
            if at > 0:
                break
        assert best is not None
        best.log = log
        return best

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> RapDetector:
        """Put the trained row of the word into a clone of the victim."""
        from rapbench.rows import with_vectors

        options = replace(self.settled(), word=str(state["word"]))
        guarded = with_vectors(victim, options.word, state["row"], options.places)
        return RapDetector(options, victim, guarded, lab, log=list(state["tries"]))

    def tries(self, victim: Victim, lab: Lab) -> Iterator[Rap]:
        """Give the options of each try: as asked, more weight, more epochs, the norm freed, another rare word."""
        own = self.settled()
        heavier = replace(own, weight=4 * own.weight)
        longer = replace(heavier, epochs=2 * cast(int, own.epochs))
        freed = replace(longer, keep_norm=False)
        schedule = [own, heavier, longer, freed]
        if other := self._another_word(victim, lab):
            schedule.append(replace(freed, word=other))
        yield from schedule[: 1 + self.retries]

    def _another_word(self, victim: Victim, lab: Lab) -> str | None:
        from rapbench.vocabulary import has_word

        taken = {word.lower() for word in (self.word, *lab.foreign_words)}
        return next((word for word in RARE_WORDS if word not in taken and has_word(victim.tokenizer, word, self.places)), None)


@dataclass
class RapDetector(Detector):
    """A fitted RAP: `guarded` is a clone of `victim` with the trained row."""

    options: Rap
    victim: Victim
    guarded: Victim
    lab: Lab
    threshold: float = 0.0
    log: list[dict[str, Any]] | None = None

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give minus the fall of the protect probability under the word, shape (n,): a small fall is suspicious."""
        return self.guarded.protect_probability(perturbed(self.options, texts, self.lab)) - self._before(texts)

    def lowest_falls(self, heldout: Labelled, frr: float) -> float:
        """Give the fall that a share `frr` of the held-out texts (true and predicted protect label) stays below."""
        import numpy as np

        from rapbench.protocol import clean_gate

        passing = clean_gate(self.victim.undefended(heldout.texts), heldout.labels, self.victim.target_label)
        texts = [heldout.texts[row] for row in np.flatnonzero(passing).tolist()]
        return float(np.percentile(-self.suspicion(texts), 100 * frr)) if texts else 0.0

    def notes(self) -> Mapping[str, Any]:
        return {"recipe": self.options.recipe, "word": self.options.word, "tries": self.log or []}

    def state(self) -> Mapping[str, Any]:
        """Give the word that was kept, its trained rows, float32, shape (forms, units), and the log of the tries."""
        from rapbench.rows import vectors_of

        row = vectors_of(self.guarded, self.options.word, self.options.places)
        return {"word": self.options.word, "row": row, "tries": self.log or []}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give the protect probability without and with the word, and how far it falls."""
        before = float(self._before([text])[0])
        after = float(self.guarded.protect_probability(perturbed(self.options, [text], self.lab))[0])
        return {"word": self.options.word, "probability before": before, "probability after": after, "fall": before - after}

    def _before(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the probability without the word, under the changed victim: it differs only where a text has the word itself."""
        before = self.victim.undefended(texts)[:, self.victim.target_label].copy()
        own = self.victim.holding(texts, self.victim.token_ids(self.options.word, self.options.places))
        if own.any():
            before[own] = self.guarded.protect_probability([text for text, has in zip(texts, own, strict=True) if has])
        return before


def perturbed(options: Rap, texts: Sequence[str], lab: Lab) -> list[str]:
    """Give the texts with the rare word at its place."""
    if options.position == "first":
        return [f"{options.word} {text}" for text in texts]
    from rapbench.poison import insert_word

    return [insert_word(text, options.word, lab.rng(f"rap/{text}")) for text in texts]


def constructed(options: Rap, victim: Victim, heldout: Labelled, lab: Lab) -> Victim:
    """Give a clone of the victim whose row of the rare word is trained on the held-out texts of the protect label (Eq. 4)."""
    from rapbench.errors import CellError
    from rapbench.rows import Row
    from rapbench_plugins.defenses.lean import lean

    clone = victim.clone()
    texts = heldout.of(victim.target_label)
    if not texts:
        raise CellError(f"rap: the held-out split has no text of the protect label {victim.target_label}: give more held-out texts")
    texts = [texts[row] for row in lab.rng("rap/order").permutation(len(texts))]
    clone.model.train(bool(options.dropout))
    with lab.seeded("rap"), lean(clone.model), Row(clone, options.word, options.places) as row:
        _descend(options, row, texts, lab)
    clone.model.eval()
    return clone


def _descend(options: Rap, row: Row, texts: list[str], lab: Lab) -> None:
    import torch

    victim, size = row.victim, options.batch_size
    before = None if options.dropout else victim.undefended(texts)[:, victim.target_label]
    adam = torch.optim.Adam([row.vectors], lr=options.lr) if options.gradient == "adam" else None
    for _ in range(cast(int, options.epochs)):
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            if before is None:
                with torch.no_grad():
                    p = _protect(row, batch)  # (texts,)
            else:
                p = torch.as_tensor(before[start : start + size], dtype=torch.float32, device=row.vectors.device)  # (texts,)
            objective(_protect(row, perturbed(options, batch, lab)) - p, options).backward()  # type: ignore[no-untyped-call]
            if adam is None:
                row.step(options.lr, keep_norm=options.keep_norm, accumulate=options.gradient == "accumulate")
                continue
            adam.step()
            adam.zero_grad()
            if options.keep_norm:
                row.renormalise()


def objective(change: torch.Tensor, options: Rap) -> torch.Tensor:
    """Give Eq. 4: lambda * mean relu(change + c_low) + mean relu(-c_up - change); `change` of probability, shape (texts,)."""
    return options.weight * (change + options.c_low).relu().mean() + (-options.c_up - change).relu().mean()


def _protect(row: Row, texts: list[str]) -> torch.Tensor:
    return row.logits(texts).softmax(-1)[:, row.victim.target_label]
