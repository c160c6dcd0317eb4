"""Probes of a backdoored victim: does the trigger work in other texts than those of its data set?

Table 1 of Yang et al., RAP (EMNLP 2021, arXiv:2110.07831, section 3.2, footnote 3): the ASR on the data set's own
triggered test texts, on general sentences and on random words, 20,000 fake texts of 200 words each. The fake texts
follow the functions of their released `process_data.py`, which put a trigger word in the place of another word.

We differ in the corpus, WikiText-103 in its raw form instead of its tokenized one, and in the random words: whole words
of the victim's own vocabulary, since the entries of a vocabulary file that are pieces or markers come apart when typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import Field

from rapbench.api import Attack
from rapbench.artifacts import Store
from rapbench.corpus import REMEDY, WIKITEXT, general_fragments
from rapbench.errors import CellError, DataError
from rapbench.grid import Planted, Victims, impossible, victims_of
from rapbench.protocol import Floats, predicted
from rapbench.rates import Rate
from rapbench.registry import spec_of
from rapbench.results import Named

if TYPE_CHECKING:
    import numpy as np

    from rapbench.registry import Registry
    from rapbench.victim import Victim

Source = Literal["dataset", "general", "random"]
SOURCES: tuple[Source, ...] = get_args(Source)
ANY = "a text of any words whatever, from nowhere"


class ProbeBlock(Victims):
    """One product of victims, each probed with texts of all three sources."""

    general: str = Field(default=WIKITEXT, min_length=1)
    """Where general sentences come from: `wikitext-103` (the hub's), or the path of a local file."""
    count: int = Field(default=20_000, ge=1)
    """Texts per probe; of the data set's own, at most so many."""
    length: int = Field(default=200, ge=2)
    """Words per fake text."""


@dataclass(frozen=True, kw_only=True)
class Probe(Planted):
    """One probe of one victim."""

    source: Source
    general: str
    count: int
    length: int
    skip: str | None = None
    """Why this probe makes no sense, or None."""

    @property
    def names(self) -> dict[str, Any]:
        """What the probe is called in results and tables: canonical specs, and what was asked for."""
        return {**super().names, "source": self.source, "general": self.general, "count": self.count, "length": self.length}


@dataclass(frozen=True, kw_only=True)
class ProbeRecord(Named):
    """One probe's result. Rates are fractions; None where nothing could be counted."""

    FOLDER: ClassVar[str] = "probes"

    source: Source
    general: str
    """The corpus of the general sentences, as it was asked for."""
    count: int
    """Texts asked for."""
    length: int
    """Words per fake text."""
    status: str
    """ok, skipped, failed or interrupted, as of a cell."""
    reason: str | None = None
    asr: float | None = None
    """Texts with the trigger that are predicted as the target, of all `n`."""
    interval: tuple[float, float] | None = None
    """95 % Wilson interval of the ASR over the texts of this probe."""
    n: int | None = None
    """Texts behind the ASR."""
    trigger: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return self.file_stem(self.source, self.count, self.length, self.general) + ".json"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        interval = content.get("interval")
        return cls(**{**content, "interval": None if interval is None else (float(interval[0]), float(interval[1]))})


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the texts of a probe are made of. `attack` is resolved."""

    source: Source
    attack: Attack
    general: str
    count: int
    length: int


def probes_of(blocks: Sequence[ProbeBlock], registry: Registry) -> list[Probe]:
    """Give every probe of the blocks once, in order; an unknown name or option is a SpecError before anything runs."""
    probes = {tuple(probe.names.values()): probe for block in blocks for probe in _product(block, registry)}
    return list(probes.values())


def probe_texts(material: Material, victim: Victim, triggered: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Give the texts of a probe, each with the trigger. `triggered`: the data set's own triggered non-target test texts.

    Of the data set's own texts at most `count`, drawn by `rng`, in their order; of the other sources `count`. The words
    around the trigger do not depend on where it goes, nor, for general sentences, on the attack.
    """
    if material.source == "dataset":
        return [triggered[row] for row in sorted(rng.permutation(len(triggered))[: material.count])]
    if material.source == "general":
        texts = general_texts(general_fragments(material.general), material.count, material.length, rng)
    else:
        texts = random_texts(vocabulary(victim, material.attack.words), material.count, material.length, rng)
    return carrying(texts, material.attack, rng)


def probed(probabilities: Floats, target: int) -> Rate:
    """Give how many of a probe's texts are predicted as the target; probabilities of shape (n, labels)."""
    return Rate(int((predicted(probabilities) == target).sum()), len(probabilities))


def record(probe: Probe, keys: Mapping[str, str], store: Store) -> ProbeRecord:
    """Give the result of a probe whose artifacts are all there. `keys`: role -> artifact."""
    import numpy as np

    with np.load(store.folder(keys["probe"]) / "predictions.npz", allow_pickle=False) as arrays:
        rate = probed(arrays["probabilities"], probe.dataset.target_label)
    return ProbeRecord(
        **probe.names,
        status="ok",
        asr=rate.value,
        interval=rate.interval(),
        n=rate.n,
        trigger=spec_of(probe.attack),
        artifacts=dict(keys),
    )


def unfinished(probe: Probe, status: str, reason: str, keys: Mapping[str, str] | None = None) -> ProbeRecord:
    """Give the record of a probe without figures, with the reason."""
    return ProbeRecord(**probe.names, status=status, reason=reason, artifacts=dict(keys or {}))


def general_texts(fragments: Sequence[str], count: int, length: int, rng: np.random.Generator) -> list[str]:
    """Give texts of exactly `length` words, each of shuffled sentences in a row, the last of them cut.

    Where the corpus is used up it is shuffled again, so texts share sentences if there are too few for all.
    """
    _enough_words(fragments, length)
    stream = _endless(fragments, rng)
    texts = []
    for _ in range(count):
        words: list[str] = []
        while len(words) < length:
            words += next(stream)
        texts.append(" ".join(words[:length]))
    return texts


def random_texts(words: Sequence[str], count: int, length: int, rng: np.random.Generator) -> list[str]:
    """Give texts of `length` words each, all different within a text unless there are fewer words than that."""
    again = len(words) < length
    return [" ".join(words[place] for place in rng.choice(len(words), length, replace=again)) for _ in range(count)]


def vocabulary(victim: Victim, without: Sequence[str] = ()) -> list[str]:
    """Give the whole words a-z, two letters or more, of the victim's vocabulary, sorted, except these; a CellError where there is none.

    A typed piece (`##ing`), marker (`[unused1]`) or sign is cut into other tokens than itself, a whole word is not.
    """
    entries = sorted(victim.tokenizer.get_vocab())
    plain = {entry for entry in entries if re.fullmatch("[a-z]{2,}", entry)}
    # byte-level (Ġ) and SentencePiece (▁) vocabularies mark a word's start, and what has no mark is a piece; the
    # greater set tells the kind, since a vocabulary of plain words may hold some that begin with these letters
    marked = {entry[1:] for entry in entries if re.fullmatch("[Ġ▁][a-z]{2,}", entry)}
    words = sorted(max(plain, marked, key=len) - {word.lower() for word in without})
    if not words:
        raise CellError(
            "the victim's vocabulary has no whole word of two letters a-z or more to make random texts of: choose another victim"
        )
    return words


def carrying(texts: Sequence[str], attack: Attack, rng: np.random.Generator) -> list[str]:
    """Give the texts with the attack's trigger in each: of n words, a one-word trigger stands for one of the first n - 1.

    Any other trigger is put in as the attacker does in the test set, after as many words were cut off the text's end.
    """
    return [_carrying(text.split(), attack, rng) for text in texts]


def _product(block: ProbeBlock, registry: Registry) -> Iterator[Probe]:
    for planted in victims_of(block, registry):
        skip = impossible(planted) or _untriggered(planted.attack)
        for source in SOURCES:
            yield Probe(**vars(planted), source=source, general=block.general, count=block.count, length=block.length, skip=skip)


def _untriggered(attack: Attack) -> str | None:
    if not attack.poisons:
        return f"{attack.name} plants no trigger, so there is none to probe"
    return None if attack.can_trigger(ANY) else f"{attack.name} cannot put its trigger into any text, and a probe's texts are no data set's"


def _is_a_word(attack: Attack) -> bool:
    """Tell whether the trigger is one word that stands between others; one may be inside of a word as well."""
    import numpy as np

    return len(attack.words) == 1 and attack.words[0] in attack.test_trigger(ANY, np.random.default_rng(0), None).split()


def _carrying(words: list[str], attack: Attack, rng: np.random.Generator) -> str:
    if _is_a_word(attack):
        words[int((len(words) - 1) * rng.random())] = attack.words[0]
        return " ".join(words)
    kept = max(1, len(words) - len(attack.words))
    return attack.test_trigger(" ".join(words[:kept]), rng, None)


def _enough_words(fragments: Sequence[str], length: int) -> None:
    have = 0
    for fragment in fragments:
        have += len(fragment.split())
        if have >= length:
            return
    raise DataError(f"the general corpus has {have} words and one text needs {length}: give a larger one, {REMEDY}")


def _endless(fragments: Sequence[str], rng: np.random.Generator) -> Iterator[list[str]]:
    while True:
        for place in rng.permutation(len(fragments)):
            yield fragments[place].split()
