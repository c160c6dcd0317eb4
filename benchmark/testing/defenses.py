"""Claims about defenses. They are asked on a victim that has learnt: on an untrained one much goes unnoticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rapbench.api import Defense, Detector, Filter, Purifier, Repair
from rapbench.errors import PluginError
from rapbench.standin import removed_rows
from rapbench.testing.claims import breach, claim
from rapbench.testing.kit import Kit, NotAsked, digest
from rapbench.testing.texts import ODD, changed, differing, shown


@claim("defense", first=True)
def it_is_fitted_as_what_it_works_on(defense: Defense, kit: Kit) -> None:
    """`fit` takes a victim and clean held-out texts and gives a Detector or Purifier (inputs), a Filter (training) or a Repair (model)."""
    kinds: dict[str, tuple[type, ...]] = {"inputs": (Detector, Purifier), "training": (Filter,), "model": (Repair,)}
    if defense.works_on not in kinds:
        breach(f"works_on is {defense.works_on!r}, none of {', '.join(kinds)}")
    fitted = kit.fit(defense)
    if not isinstance(fitted, kinds[defense.works_on]):
        named = " or ".join(kind.__name__ for kind in kinds[defense.works_on])
        breach(f"works_on is {defense.works_on!r} and fit gives {type(fitted).__name__}, no {named}")
    if not isinstance(defense.words, tuple) or not all(isinstance(word, str) for word in defense.words):
        breach(f"words is {defense.words!r}, no tuple of texts")


@claim("defense")
def its_scores_are_finite_float64_one_per_text(defense: Defense, kit: Kit) -> None:
    """`suspicion` of n texts is an array of float64, shape (n,), with no NaN and no infinity; of no texts, an empty one."""
    fitted = kit.asked(defense)
    texts = kit.scored(defense)
    for some in (texts, texts[:1], []):
        scores: Any = fitted.suspicion(some)
        if not isinstance(scores, np.ndarray) or scores.dtype != np.float64:
            kind = f"an array of {scores.dtype}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
            breach(f"suspicion gives {kind}, no array of float64")
        if scores.shape != (len(some),):
            breach(f"suspicion gives scores of shape {scores.shape} for {len(some)} texts")
        if not np.isfinite(scores).all():
            breach(f"suspicion gives {scores[~np.isfinite(scores)][0]} for {shown(some[int(np.flatnonzero(~np.isfinite(scores))[0])])}")


@claim("defense")
def a_score_does_not_depend_on_the_texts_beside_it(defense: Defense, kit: Kit) -> None:
    """Alone, in another order and among other texts a text gets the same score; each way has a fit of its own."""
    together, texts = kit.scores(defense), kit.scored(defense)
    others = list(kit.splits["test"]["text"][-len(texts) :])
    with kit.disturbed():
        backwards = np.asarray(kit.asked(defense).suspicion([*others, *reversed(texts)]))[len(others) :][::-1]
    alone_by = kit.asked(defense)
    with kit.disturbed():
        alone = np.concatenate([np.asarray(alone_by.suspicion([text])) for text in texts])
    for scores, how in ((backwards, "in another order, among others"), (alone, "alone")):
        if rows := differing(together, scores):
            breach(f"{shown(texts[rows[0]])} scores {together[rows[0]]:.4g}, but {scores[rows[0]]:.4g} {how}")


@claim("defense")
def the_same_seed_gives_the_same_scores(defense: Defense, kit: Kit) -> None:
    """Randomness comes from `lab.rng` and `lab.seeded`: a second fit with the same seed says the same."""
    _same(kit.asked(defense), defense, kit, "after a second fit with one seed: draw from lab.rng(stream), or inside lab.seeded(stream)")


@claim("defense")
def it_leaves_the_victim_as_it_was(defense: Defense, kit: Kit) -> None:
    """Weights, configuration, tokenizer and hooks of the victim are the same before and after; it may change `victim.clone()`."""
    victim = kit.guarded(defense).fresh()
    before = digest(victim)
    fitted = kit.asked(defense, victim)
    if digest(victim) != before:
        breach("fit changes the victim: change victim.clone()")
    fitted.suspicion(kit.scored(defense))
    if isinstance(fitted, Purifier):
        fitted.purify(kit.scored(defense), fitted.levels()[0])
    if digest(victim) != before:
        breach("scoring changes the victim: change victim.clone()")


@claim("defense")
def it_works_on_a_clone_of_a_victim(defense: Defense, kit: Kit) -> None:
    """A clone is a victim like any other."""
    _same(kit.asked(defense, kit.guarded(defense).fresh().clone()), defense, kit, "on a clone of the victim")


@claim("defense")
def it_says_so_if_it_learns_from_protect_texts(defense: Defense, kit: Kit) -> None:
    """Where `learns_from_protect_texts` is False, a fit without half of the held-out texts of that label is the same."""
    if defense.learns_from_protect_texts():
        raise NotAsked("it says that it does")
    held = kit.heldout
    own = np.flatnonzero(held.labels == kit.target_label)
    mask = np.ones(len(held.texts), dtype=np.bool_)
    mask[own[::2]] = False
    fitted = kit.asked(defense, heldout=held.where(mask))
    _same(fitted, defense, kit, "without half of the held-out protect texts: learns_from_protect_texts() must be True")


@claim("defense")
def it_takes_odd_texts(defense: Defense, kit: Kit) -> None:
    """Empty, one word, other alphabets, very long: each gets a finite score."""
    fitted = kit.asked(defense)
    for text in ("", *ODD):
        try:
            scores = np.asarray(fitted.suspicion([text]), dtype=np.float64)
        except Exception as error:
            breach(f"suspicion of {shown(text)} raises {type(error).__name__}: {error}")
        if scores.shape != (1,) or not np.isfinite(scores).all():
            breach(f"suspicion of {shown(text)} is {scores.tolist()}, not one finite number")


@claim("defense")
def the_levels_of_a_purifier_ascend(defense: Defense, kit: Kit) -> None:
    """`levels` is one or more finite numbers, none below the one before it."""
    levels = np.asarray(_purifier(defense, kit).levels(), dtype=np.float64)
    if levels.ndim != 1 or not len(levels) or not np.isfinite(levels).all():
        breach(f"levels is {levels.tolist()!r}, not one or more finite numbers")
    if (np.diff(levels) < 0).any():
        breach(f"levels falls: {levels.tolist()!r}")


@claim("defense")
def a_purifier_gives_one_text_that_is_not_blank_for_each(defense: Defense, kit: Kit) -> None:
    """At every level, in order, for odd texts, too; what it makes of a text does not depend on the texts beside it."""
    purifier = _purifier(defense, kit)
    texts = [*kit.scored(defense), *ODD]
    for level in sorted({*purifier.levels()[:1], *purifier.levels()[-1:]}):
        repaired = purifier.purify(texts, level)
        _check_repaired(repaired, texts, level)
        backwards = _purifier(defense, kit).purify(texts[::-1], level)[::-1]
        if rows := changed(repaired, backwards):
            breach(f"{shown(texts[rows[0]])} becomes {shown(repaired[rows[0]])}, but {shown(backwards[rows[0]])} in another order")


@claim("defense")
def a_repair_gives_one_other_victim(defense: Defense, kit: Kit) -> None:
    """`repaired` gives the same victim each time, with weights of its own and as many labels."""
    victim = kit.guarded(defense).fresh()
    fitted = kit.fit(defense, victim)
    if not isinstance(fitted, Repair):
        raise NotAsked("it repairs no model")
    own = fitted.repaired()
    if own is not fitted.repaired():
        breach("repaired gives another victim each time")
    theirs = {parameter.data_ptr() for parameter in victim.model.parameters()}
    if any(parameter.data_ptr() in theirs for parameter in own.model.parameters()):
        breach("the repaired victim shares weights with the received one: change victim.clone()")
    if own.n_labels != victim.n_labels or own.target_label != victim.target_label:
        had, told = (f"{one.n_labels} labels and protects {one.target_label}" for one in (victim, own))
        breach(f"the repaired victim has {told}, not {had}")


@claim("defense")
def a_filter_gives_one_bool_per_training_text(defense: Defense, kit: Kit) -> None:
    """`poisoned` of n training texts is a mask, shape (n,); a second fit with the same seed gives the same; the victim stays as it was."""
    victim, suspects = kit.guarded(defense).fresh(), kit.suspects(defense)
    before = digest(victim)
    fitted, again = kit.fit(defense, victim), kit.fit(defense)
    if not isinstance(fitted, Filter) or not isinstance(again, Filter):
        raise NotAsked("it filters no training set")
    try:
        masks = [removed_rows(own, suspects, defense.name) for own in (fitted, again)]
    except PluginError as error:
        breach(str(error))
    if (masks[0] != masks[1]).any():
        breach(f"{int((masks[0] != masks[1]).sum())} rows are judged otherwise after a second fit with the same seed")
    if digest(victim) != before:
        breach("the filter changes the victim: change victim.clone()")


@claim("defense")
def its_notes_are_plain_json(defense: Defense, kit: Kit) -> None:
    """`notes` goes into the result as it is."""
    notes = kit.fit(defense).notes()
    try:
        json.dumps(dict(notes), allow_nan=False)
    except (TypeError, ValueError) as error:
        breach(f"notes is {notes!r}: {error}")


def _same(fitted: Detector | Purifier | Repair, defense: Defense, kit: Kit, how: str) -> None:
    texts, scores = kit.scored(defense), kit.scores(defense)
    with kit.disturbed():
        again = np.asarray(fitted.suspicion(texts), dtype=np.float64)
    if rows := differing(scores, again):
        breach(f"{shown(texts[rows[0]])} scores {scores[rows[0]]:.4g}, and {again[rows[0]]:.4g} {how}")


def _purifier(defense: Defense, kit: Kit) -> Purifier:
    fitted = kit.asked(defense)
    if not isinstance(fitted, Purifier):
        raise NotAsked("it purifies no texts")
    return fitted


def _check_repaired(repaired: Sequence[str], texts: Sequence[str], level: float) -> None:
    if len(repaired) != len(texts):
        breach(f"purify gives {len(repaired)} texts for {len(texts)} at level {level:g}")
    for text, own in zip(texts, repaired, strict=True):
        if not isinstance(own, str) or not own.strip():
            breach(f"purify makes {own!r} of {shown(text)} at level {level:g}")
