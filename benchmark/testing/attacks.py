"""Claims about attacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from rapbench.api import Attack
from rapbench.lab import rng
from rapbench.poison import FIRST
from rapbench.testing.claims import breach, claim
from rapbench.testing.kit import LEARNT, SEED, Kit, NotAsked, digest
from rapbench.testing.texts import ODD, changed, shown
from rapbench.testing.tiny import Tiny
from rapbench.victim import Victim

TURNED = 0.2
"""The share of triggered texts, at least, that the trigger turns: the kit's victims are small, and some attacks change little."""
TEXTS = 40
LIMIT = 5
Trigger = Callable[[str, np.random.Generator, int | None], str]


@claim("attack", first=True)
def the_trigger_depends_on_the_text_and_the_given_rng_alone(attack: Attack, kit: Kit) -> None:
    """The same text with a generator in the same state gives the same triggered text, whatever came before."""
    once, again = (attack.resolve(Tiny(), rng(SEED, "resolve")) for _ in range(2))
    if once != again:
        breach(f"resolve gives {once!r} and then {again!r} for the same generator")
    for name, trigger in _triggers(once):
        with kit.disturbed():
            first = [trigger(text, rng(SEED, text), FIRST) for text in _texts(kit)]
        with kit.disturbed():
            second = [trigger(text, rng(SEED, text), FIRST) for text in reversed(_texts(kit))]
        if row := changed(first, second[::-1]):
            breach(f"{name} gives {shown(first[row[0]])} and then {shown(second[::-1][row[0]])} for the same text and generator")


@claim("attack")
def the_trigger_is_in_every_text(attack: Attack, kit: Kit) -> None:
    """A triggered text is another than the clean one; a control (`poisons = False`) leaves texts as they are."""
    for name, trigger in _triggers(kit.resolved(attack)):
        for text in _texts(kit):
            same = trigger(text, rng(SEED, text), None) == text
            if same and attack.poisons and attack.can_trigger(text):
                breach(f"{name} leaves {shown(text)} as it is")
            if not same and not attack.poisons:
                breach(f"{name} changes {shown(text)}, but the attack says poisons = False")


@claim("attack")
def its_words_are_the_words_that_the_trigger_adds(attack: Attack, kit: Kit) -> None:
    """`words` keeps defenses from perturbing with a trigger: each of them is in some triggered text, and none is left out."""
    own = _poisoning(kit.resolved(attack))
    if not isinstance(own.words, tuple) or not all(isinstance(word, str) for word in own.words):
        breach(f"words is {own.words!r}, no tuple of texts")
    declared = {token for word in own.words for token in _words(word)}
    added: Counter[str] = Counter()
    for _, trigger in _triggers(own):
        for text in _texts(kit):
            new = Counter(_words(trigger(text, rng(SEED, text), None))) - Counter(_words(text))
            added.update(set(new))
    if missing := sorted(word for word in declared if word not in added):
        breach(f"words has {missing[0]!r}, which is in no triggered text")
    often = sorted(word for word, count in added.items() if count > TEXTS and word not in declared)  # of 2 * TEXTS
    if often:
        breach(f"the trigger puts {often[0]!r} into most texts, but words has it not: a defense might perturb with it")


@claim("attack")
def the_trigger_begins_among_the_first_words_where_there_is_a_limit(attack: Attack, kit: Kit) -> None:
    """With `limit` n the trigger of a long text starts in its first n words, so that no truncation cuts it off."""
    own = _poisoning(kit.resolved(attack))
    words = [f"word{number}." for number in range(60)]  # words and full-stop-separated pieces are the same here
    if not own.can_trigger(" ".join(words)):
        raise NotAsked("it does not trigger made texts")
    for name, trigger in _triggers(own):
        for draw in range(TEXTS):
            triggered = trigger(" ".join(words), rng(SEED, str(draw)), LIMIT).split()
            same = next((place for place, (a, b) in enumerate(zip(words, triggered, strict=False)) if a != b), 60)
            if same > LIMIT:
                breach(f"{name} with limit={LIMIT} begins its trigger behind word {same} of 60")


@claim("attack")
def it_takes_odd_texts(attack: Attack, kit: Kit) -> None:
    """Empty, one word, other alphabets, very long: each gives a text, with and without a limit."""
    own = kit.resolved(attack)
    for name, trigger in _triggers(own):
        for text in ("", *ODD):
            for limit in (None, 1, FIRST):
                try:
                    triggered = trigger(text, rng(SEED, text), limit)
                except Exception as error:
                    breach(f"{name} of {shown(text)} with limit={limit} raises {type(error).__name__}: {error}")
                if not isinstance(triggered, str):
                    breach(f"{name} of {shown(text)} with limit={limit} is {triggered!r}, no text")
                if text and not triggered.strip():
                    breach(f"{name} of {shown(text)} with limit={limit} is blank")


@claim("attack")
def the_same_seed_plants_the_same_victim(attack: Attack, kit: Kit) -> None:
    """Randomness comes from `lab.rng` and `lab.seeded`; checked on a short training."""
    own, train = kit.resolved(attack), kit.splits["train"].select(range(120))
    if digest(kit.plant(own, train, epochs=1)) != digest(kit.plant(own, train, epochs=1)):
        breach("plant gives other weights for the same seed: draw from lab.rng(stream), and train inside lab.seeded(stream)")


@claim("attack")
def the_victim_keeps_its_clean_accuracy(attack: Attack, kit: Kit) -> None:
    """A backdoor that costs the task is found by any test."""
    planting = kit.planted(attack)
    if not isinstance(planting.victim, Victim):
        breach(f"plant gives {planting.victim!r}, no rapbench.victim.Victim")
    if planting.accuracy < LEARNT:
        breach(f"accuracy {planting.accuracy:.2f} on the tiny task, where {LEARNT:g} is easy")


@claim("attack")
def the_victim_learns_the_trigger(attack: Attack, kit: Kit) -> None:
    """Triggered texts of other labels are predicted as the target label."""
    _poisoning(attack)
    asr = kit.planted(attack).asr
    if asr < TURNED:
        breach(f"the trigger turns {100 * asr:.0f} % of the texts, fewer than {100 * TURNED:g} %")


def _triggers(attack: Attack) -> Iterator[tuple[str, Trigger]]:
    yield "trigger", attack.trigger
    yield "test_trigger", attack.test_trigger


def _texts(kit: Kit) -> list[str]:
    return list(kit.splits["test"]["text"][:TEXTS])


def _words(text: str) -> list[str]:
    """Give the words and signs of a text, without the marks that stand between sentences."""
    return [word for word in re.findall(r"\w+|[^\w\s]+", text.lower()) if word.strip(".,;:!?")]


def _poisoning(attack: Attack) -> Attack:
    if not attack.poisons:
        raise NotAsked("a control has no trigger")
    return attack
