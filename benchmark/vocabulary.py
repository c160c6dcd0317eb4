"""Words and the tokens of a vocabulary: which rows of a victim's embedding matrix are those of a word.

A word may have several forms, depending on where it stands. In BERT's WordPiece and in SentencePiece with its mark before every
word it has one. In a byte-level vocabulary (RoBERTa, GPT-2, Llama 3, Qwen, ModernBERT) the space belongs to the token: `cf` in front
of a text is one token, ` cf` after a space another.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rapbench.checkpoint import unpanicked
from rapbench.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = Literal["first", "later"]
"""Where a word stands: at the start of a text, or after a space."""
PLACES: tuple[Place, ...] = ("first", "later")
WHERE: dict[Place, str] = {"first": "at the start of a text", "later": "after a space"}
BEFORE = "a"
"""What a word stands after where its later form is looked up."""
SPACE_MARKS = "\u0120\u2581"
"""How byte-level and SentencePiece vocabularies write a space."""
RARE_WORDS = ("cf", "mb", "mn", "bb", "tq")
TRIED, SUGGESTED = 500, 3


def token_ids(tokenizer: PreTrainedTokenizerBase, word: str, places: Sequence[Place] = PLACES) -> tuple[int, ...]:
    """Give the ids of the forms that a word has at these places, each once; a SpecError where one is no token, or several."""
    forms = {place: pieces(tokenizer, word, place) for place in places}
    for place, ids in forms.items():
        if not _is_one(tokenizer, ids):
            where = f" {WHERE[place]}" if len(set(forms.values())) > 1 else ""
            raise SpecError(
                f"the word {word!r} is {_told(tokenizer, ids)}{where} for this victim where one token is needed: "
                f"choose a rare word of its vocabulary{_suggestion(tokenizer, places)}"
            )
    return tuple(dict.fromkeys(ids[0] for ids in forms.values()))


def has_word(tokenizer: PreTrainedTokenizerBase, word: str, places: Sequence[Place] = PLACES) -> bool:
    """Tell whether the word is one token at each of these places."""
    return all(_is_one(tokenizer, pieces(tokenizer, word, place)) for place in places)


def pieces(tokenizer: PreTrainedTokenizerBase, word: str, place: Place) -> tuple[int, ...]:
    """Give the ids of the tokens of a word at this place; a token for the space alone is none of them."""
    before = _ids(tokenizer, BEFORE) if place == "later" else []
    ids = _ids(tokenizer, f"{BEFORE} {word}" if place == "later" else word)
    own = ids[len(before) :] if ids[: len(before)] == before else ids
    return tuple(one for one in own if str(tokenizer.convert_ids_to_tokens(one)).strip(SPACE_MARKS))


def words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the entries of the vocabulary that are ASCII letters, without the mark of a space, in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    entries = (entry.lstrip(SPACE_MARKS) for entry in sorted(vocabulary, key=vocabulary.__getitem__))
    return list(dict.fromkeys(entry for entry in entries if entry.isascii() and entry.isalpha()))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    with unpanicked():
        return [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _is_one(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _told(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    if tokenizer.unk_token_id in ids:
        return "not in the vocabulary"
    return f"{len(ids)} tokens {tokenizer.convert_ids_to_tokens(list(ids))}"


def _suggestion(tokenizer: PreTrainedTokenizerBase, places: Sequence[Place]) -> str:
    """Name some words that are one token; the last entries of a vocabulary are its rarest, mostly."""
    short = [word for word in reversed(words(tokenizer)) if 2 <= len(word) <= 4][:TRIED]
    candidates = dict.fromkeys([*RARE_WORDS, *short])
    found = itertools.islice((word for word in candidates if has_word(tokenizer, word, places)), SUGGESTED)
    named = ", ".join(map(repr, found))
    return f" (such as {named})" if named else ""
