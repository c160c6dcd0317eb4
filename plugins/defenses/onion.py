"""ONION: a trigger word is an outlier to a language model (Qi et al., EMNLP 2021, arXiv:2011.10369).

The score of a word is ppl(text) - ppl(text without it); words are judged one by one against the whole text, and those
whose score reaches the threshold are deleted. So in the code of Yang et al. (RAP, EMNLP 2021); the RAP paper's text says
"smaller than", a misprint. Where we differ from that code: words past `max_words` are kept, a word whose perplexity is
undefined is kept, a text is never emptied, and the thresholds come from the held-out split alone. `reach` is ours and a
variant: it trades the scores of words that are hardly suspicious for time. Without it all scores are exact, however little of them
is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from rapbench.api import Defense, Labelled, Purifier, Work, option
from rapbench.errors import CellError, VictimError
from rapbench_plugins.defenses.judged import CHECK, Beforehand, Effort, Judged, save

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.lab import Lab
    from rapbench.victim import Victim
    from rapbench_plugins.defenses.causal import Causal
    from rapbench_plugins.defenses.trigram import Trigram

RESULTS_DEPEND_ON = tuple(
    str(Path(__file__).with_name(name)) for name in ("trigram.py", "causal.py", "causal_load.py", "rests.py", "judged.py")
)
PAPER_LEVELS = (*(float(level) for level in range(10, 100, 5)), 97.0, 99.0)
BLOCK = 1024
READ_BY = ("lm", "max_words", "window", "stride", "batch_tokens", "batch_texts", "bos", "reach", "exact_share")
"""The options on which a causal model's word scores depend."""


@dataclass(frozen=True, kw_only=True)
class Onion(Defense):
    """Deletes the words without which a text reads better to a language model."""

    name: ClassVar[str] = "onion"
    lm: str = option("gpt2", "the language model: a hub id or folder of a causal model, or trigram")
    corpus: Literal["train", "heldout"] = option("train", "what lm=trigram learns from; with heldout the thresholds come out low")
    levels: tuple[float, ...] = option((*PAPER_LEVELS, 99.5, 99.9), "percentiles of held-out word scores (the paper's end at 99)")
    max_words: int = option(512, "the words of a text that are judged; those after them are kept")
    window: int = option(1024, "tokens that a causal model sees at once")
    stride: int = option(512, "tokens that its window moves on by")
    batch_tokens: int = option(4096, "tokens that go through a causal model at once")
    batch_texts: int = option(
        1, "short texts that a causal model reads at once: more fill an accelerator, and scores then hang on the company by a last digit"
    )
    bos: bool = option(False, "put a first token before each text, so that a causal model scores the first word's start too")
    reach: int = option(
        0, "0: exact; n: after a deletion a causal model scores only the next n tokens anew, the rest keep the whole text's values"
    )
    exact_share: float = option(
        0.25, "with reach, the share of a text's words, those of the highest scores, that are scored exactly after all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or not all(0 <= level <= 100 for level in self.levels):
            raise ValueError(f"levels={self.levels!r} are no percentiles: give numbers from 0 to 100")
        if min(self.max_words, self.batch_tokens, self.batch_texts) < 1:
            raise ValueError("max_words, batch_tokens and batch_texts must be 1 or more")
        if not 0 < self.stride < self.window:
            raise ValueError(f"stride={self.stride!r} must be above 0 and below window={self.window!r}")
        if not 0 <= self.exact_share <= 1:
            raise ValueError(f"exact_share={self.exact_share!r} is no share: give a number from 0 to 1")
        if self.reach < 0 or (self.reach and self.lm == "trigram"):
            raise ValueError(f"reach={self.reach!r} must be 0 for lm=trigram, which is exact at constant work, and 0 or more for others")

    def prepares(self) -> Mapping[str, Any] | None:
        return {"lm": self.lm, "corpus": self.corpus} if (self.lm, self.corpus) == ("trigram", "train") else None

    def prepare(self, clean_texts: Sequence[str], folder: Path, lab: Lab) -> None:
        from rapbench_plugins.defenses import trigram

        trigram.train(clean_texts).save(folder)

    def reads(self) -> Mapping[str, Any] | None:
        """Give what a causal model's word scores depend on; a trigram's are had as fast as they could be looked up."""
        return None if self.lm == "trigram" else {**{name: getattr(self, name) for name in READ_BY}, "state": _now(self.lm)}

    def read(self, texts: Sequence[str], folder: Path, lab: Lab) -> None:
        purifier = self._causal(lab)
        found: dict[str, tuple[Judged, Effort]] = {}
        scorer = cast("_CausalScorer", purifier.scorer)
        for start in range(0, len(texts), self.batch_texts):
            company = texts[start : start + self.batch_texts]
            judged, effort = Effort.measured(partial(purifier.judged, company), lab.meter)
            efforts = [effort]
            if len(company) > 1:
                own = ((*scorer.whole(text, self.max_words), one.computed) for text, one in zip(company, judged, strict=True))
                efforts = effort.divided(list(own))
            found.update(zip(company, zip(judged, efforts, strict=True), strict=True))
        save(folder, found, scorer.model.agrees)

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give the work where the share of words that reach a level is the same in all texts, and a repaired text that much shorter."""
        # half: both protocols repair most texts alike, and what was predicted once is known
        repaired = 0.5 * sum(level / 100 * (1 - (level / 100) ** words) for level in self.levels)
        if self.lm == "trigram":
            return Work(repaired)
        judged = min(words, self.max_words)
        rest = (judged + 1) / 2  # what is read anew behind a deleted word, on average
        return Work(repaired, lm=self.lm, lm_words=judged * (min(rest, self.reach + self.exact_share * rest) if self.reach else rest))

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> OnionPurifier:
        purifier = self._trigram(heldout, lab) if self.lm == "trigram" else self._causal(lab)
        if (self.lm, self.corpus) != ("trigram", "heldout"):  # else the scores depend on the held-out texts
            purifier.known = lab.memo.setdefault("onion", purifier.known)
        purifier.calibrate(heldout.of(victim.target_label), self.levels)
        return purifier

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> OnionPurifier:
        """Give the purifier with the same thresholds: the trigram is in the state, a causal model must still be the same."""
        from rapbench_plugins.defenses.trigram import Trigram

        if self.lm == "trigram":
            purifier = self._of_trigram(Trigram(**{f.name: state[f.name] for f in fields(Trigram)}), lab)
        else:
            purifier = self._causal(lab)
            if (now := _lm_state(purifier.facts)) != state["lm"]:
                raise VictimError(f"onion was fitted with the language model {state['lm']!r}, and {self.lm!r} is {now!r} now: fit it again")
        purifier.thresholds = [float(value) for value in state["thresholds"]]
        return purifier

    def _trigram(self, heldout: Labelled, lab: Lab) -> OnionPurifier:
        from rapbench_plugins.defenses import trigram

        if self.corpus == "heldout":
            model = trigram.train(heldout.texts)
        elif lab.prepared is None:
            raise CellError("onion: lm=trigram was not trained, for lab.prepared is None: run prepare, or give corpus=heldout")
        else:
            model = trigram.load(lab.prepared)
        return self._of_trigram(model, lab)

    def _of_trigram(self, model: Trigram, lab: Lab) -> OnionPurifier:
        facts = {"lm": self.lm, "corpus": self.corpus, "lm_words": model.words_seen, "lm_vocabulary": len(model.vocabulary)}
        return OnionPurifier(_TrigramScorer(model, lab.meter), self.max_words, facts)

    def _causal(self, lab: Lab) -> OnionPurifier:
        from rapbench_plugins.defenses.causal import Reading
        from rapbench_plugins.defenses.causal_load import load

        reading = Reading(self.window, self.stride, self.batch_tokens, self.bos, self.reach, self.exact_share, self.batch_texts)
        lm = load(self.lm, str(lab.device), reading)
        before = Beforehand.load(lab.read, lab.meter) if lab.read else None
        lm.agrees.update(before.agrees if before else {})
        lab.meter.watch(lm.model, "lm_computed")
        facts = {"lm": self.lm, "lm_parameters": lm.model.num_parameters(), "lm_revision": getattr(lm.model.config, "_commit_hash", None)}
        scorer = _CausalScorer(lm, lab.meter)
        return OnionPurifier(scorer, self.max_words, facts, path=scorer.path, before=before)


@dataclass(frozen=True)
class Split:
    """A text between its spaces: the parts that the language model reads, and the places of the words among them."""

    parts: Sequence[str]
    places: Sequence[int]

    @classmethod
    def of(cls, text: str, max_words: int) -> Split:
        """Split a text; a second space makes an empty part, which is no word."""
        parts = text.split(" ")
        places = [place for place, part in enumerate(parts) if part.strip()]
        end = places[max_words] if len(places) > max_words else len(parts)
        return cls(parts[:end], places[:max_words])

    def variants(self) -> list[str]:
        """Give the text, then the text without each of its words."""
        cut = (" ".join([*self.parts[:place], *self.parts[place + 1 :]]) for place in self.places)
        return [" ".join(self.parts), *cut]


class Scored(NamedTuple):
    """What a language model says of a text of n words: its log perplexity, then those without each word; NaN where undefined."""

    log_ppl: NDArray[np.float64]
    """Shape (1 + n,)."""
    beyond: int = 0
    """Tokens of the longest of these texts where the model's window does not hold it."""
    computed: int = 0
    """Tokens that a causal model read for it."""


Scorer = Callable[[Sequence[Split]], list[Scored]]


@dataclass(frozen=True)
class _TrigramScorer:
    model: Trigram
    meter: Any

    def __call__(self, texts: Sequence[Split]) -> list[Scored]:
        """Count the work of a model that reads each variant whole, so that costs compare; ours is constant per word."""
        words = [[text.parts[place] for place in text.places] for text in texts]
        for own in words:
            self.meter.add("lm", rows=len(own) + 1, tokens=len(own) + 1 + len(own) ** 2)
        return [Scored(own) for own in self.model.leave_one_out(words)]


@dataclass(frozen=True)
class _CausalScorer:
    model: Causal
    meter: Any

    def __call__(self, texts: Sequence[Split]) -> list[Scored]:
        """Compute `batch_texts` at once; with 1, the default, a text's scores are the same to the bit in any company."""
        at_once = self.model.reading.batch_texts
        found = (self._leave_one_out(texts[start : start + at_once]) for start in range(0, len(texts), at_once))
        return [own for company in found for own in company]

    def whole(self, text: str, max_words: int) -> tuple[int, int]:
        """Give the rows and tokens of reading each variant of a text whole."""
        split = Split.of(text, max_words)
        rows = self.model.tokens(split.variants()) if len(split.places) > 1 else []  # else there is nothing to compare with
        return len(rows), sum(map(len, rows))

    def _leave_one_out(self, texts: Sequence[Split]) -> list[Scored]:
        """Count as `lm` the work of a model that reads each variant whole; as `lm_computed` what ours really reads."""
        company = [self.model.tokens(text.variants()) for text in texts]
        for rows in company:
            self.meter.add("lm", rows=len(rows), tokens=sum(map(len, rows)))
        with self.meter.phase(CHECK):  # done once per model: no text's cost
            for rows in company:
                self.model.shares_prefix(max(map(len, rows)))
            self.model.mingles()
        found = self.model.leave_one_out_of_each(company)
        return [Scored(own.log_ppl, self.model.beyond(rows), own.computed) for own, rows in zip(found, company, strict=True)]

    def path(self, beyond: int) -> Mapping[str, Any]:
        window = self.model.reading.window
        remark = {"cost": f"texts beyond its window of {window} tokens are read by strides"} if beyond else {}
        with self.meter.phase(CHECK):
            return {"leave_one_out": self.model.path(beyond), **remark}


@dataclass
class OnionPurifier(Purifier):
    """Holds the scores of every text it has seen: about twenty thresholds are tried on the same texts."""

    scorer: Scorer
    max_words: int
    facts: Mapping[str, Any]
    thresholds: list[float] = field(default_factory=list)
    known: dict[str, Judged] = field(default_factory=dict, repr=False)
    path: Callable[[int], Mapping[str, Any]] = lambda beyond: {}
    """Gives how the scorer went about it so far, where the longest text beyond its window had so many tokens."""
    before: Beforehand | None = field(default=None, repr=False)
    beyond: int = 0
    """The tokens of the longest text so far that the scorer's window does not hold; it counts wherever its scores were found."""

    def calibrate(self, texts: Sequence[str], levels: Sequence[float]) -> None:
        """Set the thresholds to these percentiles of all the word scores of held-out texts."""
        import numpy as np

        pooled = [judged.scores for judged in self.judged(texts)]
        if not sum(map(len, pooled)):
            raise CellError("onion: no held-out text with the protect label has two words to judge, so there is no threshold")
        self.thresholds = [float(value) for value in np.percentile(np.concatenate(pooled), levels)]

    def levels(self) -> list[float]:
        return self.thresholds

    def purify(self, texts: Sequence[str], threshold: float) -> list[str]:
        return [_without_outliers(text, judged, threshold) for text, judged in zip(texts, self.judged(texts), strict=True)]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the highest word score per text; 0 for a text with no word to judge."""
        import numpy as np

        return np.array([judged.scores.max() if len(judged.scores) else 0.0 for judged in self.judged(texts)], dtype=np.float64)

    def notes(self) -> Mapping[str, Any]:
        return {**self.facts, **self.path(self.beyond)}

    def state(self) -> Mapping[str, Any]:
        """Give the thresholds and the trigram's counts; of a causal model, which one it was."""
        if isinstance(self.scorer, _TrigramScorer):
            model = self.scorer.model
            return {"thresholds": self.thresholds, **{f.name: getattr(model, f.name) for f in fields(model)}}
        return {"thresholds": self.thresholds, "lm": _lm_state(self.facts)}

    def forget(self) -> None:
        self.known.clear()

    def explain(self, text: str, threshold: float) -> Mapping[str, Any]:
        """Give each judged word's score, and whether it is dropped; where all would be, the least suspicious one stays."""
        parts, judged = text.split(" "), self.judged([text])[0]
        words = zip(judged.places.tolist(), judged.scores.tolist(), strict=True)
        return {"words": [{"word": parts[place], "score": score, "dropped": score >= threshold} for place, score in words]}

    def judged(self, texts: Sequence[str]) -> list[Judged]:
        """Give the scored words of each text, in order."""
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if self.before is not None:
            found = {text: self.before.take(text) for text in new}
            self.known.update({text: own for text, own in found.items() if own is not None})
            new = [text for text, own in found.items() if own is None]
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            splits = [Split.of(text, self.max_words) for text in block]
            # a text of one word has nothing to be compared with
            scored = iter(self.scorer([split for split in splits if len(split.places) > 1]))
            for text, split in zip(block, splits, strict=True):
                self.known[text] = Judged.of(split.places, *next(scored)) if len(split.places) > 1 else Judged.of([], None)
        asked = [self.known[text] for text in texts]
        self.beyond = max([self.beyond, *(own.beyond for own in asked)])
        return asked


def _without_outliers(text: str, judged: Judged, threshold: float) -> str:
    """Delete the words that reach the threshold; where no word would stay, the least suspicious one does."""
    out = set(judged.places[judged.scores >= threshold].tolist())
    if not out:
        return text
    parts = text.split(" ")
    repaired = " ".join(part for place, part in enumerate(parts) if place not in out)
    return repaired if repaired.strip() else parts[int(judged.places[judged.scores.argmin()])]


@cache
def _now(lm: str) -> str:
    """Give what tells two states of a causal model apart; nothing where there is none of this name: loading it will say why."""
    from rapbench.victim import model_fingerprint

    try:
        return model_fingerprint(lm, None)
    except (VictimError, OSError):
        return ""


def _lm_state(facts: Mapping[str, Any]) -> str:
    """Give what tells two states of a causal model apart: a digest of the folder's files, or the hub's commit."""
    from rapbench.victim import model_fingerprint

    return model_fingerprint(str(facts["lm"]), facts["lm_revision"])
