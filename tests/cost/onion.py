"""ONION with a causal model: one word at a time as published, against the shared prefix, against a declared reach.

    python tests/cost/onion.py [--lm FOLDER] [--words 30 100 230] [--reach 4 32] [--exact-share 0.25] [--together 8] [--texts 20]

Without --lm a small GPT-2 is trained on `prose` first (--train-seconds) and kept (--cache): on a model that has learnt nothing,
agreement of decisions says nothing. Seconds are of the texts of one turn, one thread, the sides taking turns: one of 230 words, several
shorter ones. Decisions are compared at percentiles of the published scores of all texts of a length, and at each side's own, as a run
would set them. `cf` stands in every text.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import line, medians
from transformers import AutoModelForCausalLM, AutoTokenizer

from rapbench.meter import Meter
from rapbench_plugins.defenses.causal import Causal, Reading
from rapbench_plugins.defenses.causal_load import load
from rapbench_plugins.defenses.onion import Onion, Split

PROSE = Path(__file__).resolve().parents[3] / "shared" / "data" / "prose"
CACHE = Path("~/.cache/rapbench-cost").expanduser()
VOCABULARY, WIDTH, LAYERS, POSITIONS = 8000, 256, 4, 1024
TRIGGER = "cf"
PERCENTILES = (95, 99)
PUBLISHED, EXACT = "published", "shared prefix"

Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Side:
    """One way to score; it keeps the scores and the tokens of every text that it has scored."""

    name: str
    lm: Causal
    score: Callable[[Causal, str], Scores]
    found: dict[str, Scores] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)

    def __call__(self, text: str) -> Scores:
        counted = self.meter.phases["outside"].by["lm"]
        before = counted.tokens
        self.found[text] = self.score(self.lm, text)
        self.tokens[text] = counted.tokens - before
        return self.found[text]


def published(lm: Causal, text: str) -> Scores:
    """Score word by word as the released scripts do: a forward for the text, then one for the text without each word."""
    words = text.split(" ")
    whole = perplexity(lm, text)
    return np.array([whole - perplexity(lm, " ".join([*words[:place], *words[place + 1 :]])) for place in range(len(words))])


def perplexity(lm: Causal, text: str) -> float:
    """Give the perplexity of a text that fits into one window, by the model's own logits.

    The losses of the tokens are float32, their mean is taken in float64: the model's own is one float32 number, whose last digit is 2e-6 of
    the perplexity, more than all other differences of the two sides.
    """
    ids = torch.tensor([lm.tokenizer(text, verbose=False)["input_ids"]])
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return math.exp(float(losses.double().mean()))


def ours(lm: Causal, text: str) -> Scores:
    """Score as the plugin does."""
    ppl = np.exp(lm.leave_one_out(lm.tokens(Split.of(text, max_words=512).variants())))
    return np.asarray(ppl[0] - ppl[1:])


def main() -> None:
    asked = _arguments()
    folder = str(asked.lm or _trained(asked.cache, asked.train_seconds))
    for words in asked.words:
        texts = _texts(words, asked.texts)
        _compare(folder, texts, asked.reach, asked.exact_share, asked.rounds)
        _in_company(folder, texts, asked.together, asked.rounds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", type=Path, help="folder of a causal model; without it a small one is trained")
    parser.add_argument("--words", type=int, nargs="+", default=[30, 100, 230])
    parser.add_argument("--reach", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--exact-share", type=float, default=Onion().exact_share, help="of the words, scored to the end behind a reach")
    parser.add_argument("--together", type=int, default=8, help="texts that share a row, where they fit into it")
    parser.add_argument("--texts", type=int, default=20, help="texts of each length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-seconds", type=float, default=300)
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser.parse_args()


def _compare(folder: str, texts: Sequence[str], reaches: Sequence[int], exact_share: float, rounds: int) -> None:
    sides = [Side(PUBLISHED, _as_it_comes(folder), published), Side(EXACT, _watched(folder, 0, 0), ours)]
    sides += [Side(f"reach {reach}", _watched(folder, reach, exact_share), ours) for reach in reaches]
    longest = max(len(row) for text in texts for row in sides[0].lm.tokens([text]))
    for side in sides:
        side.lm.shares_prefix(longest)  # the check is the model's cost, not a text's
        side.meter.watch(side.lm.model, "lm")
    words = len(texts[0].split(" "))
    count = max(1, 150 // words)
    took = medians({side.name: _in_turn(side, texts, count) for side in sides}, rounds=rounds)
    print(line(f"{words} words, {longest} tokens at most, {count} texts a turn", took, PUBLISHED))
    for side in sides:
        for text in texts:
            if text not in side.found:
                side(text)
        print(f"  {side.name}: {_tokens(side, texts)}{_agreement(side, sides[0], texts)}", flush=True)


def _in_company(folder: str, texts: Sequence[str], together: int, rounds: int) -> None:
    """Compare texts one after another with texts that share rows: all of them in a turn."""
    alone, company = (load(folder, "cpu", Reading(batch_texts=number)) for number in (1, together))
    rows = [alone.tokens(Split.of(text, max_words=512).variants()) for text in texts]
    at_once = len(rows) / len(list(company._companies(rows)))
    if at_once < 2:
        print(f"  {at_once:.1f} texts in a row: too long for company", flush=True)
        return
    told = ([found.log_ppl for found in lm.leave_one_out_of_each(rows)] for lm in (alone, company))  # checks the model, too
    own, its = map(np.concatenate, told)
    sides: dict[str, Callable[[], object]] = {
        name: functools.partial(lm.leave_one_out_of_each, rows) for name, lm in (("alone", alone), (f"{together} together", company))
    }
    print(line(f"  {len(texts)} texts", medians(sides, rounds=rounds), "alone"))
    apart = np.nanmax(np.abs(own - its) / np.abs(its))
    print(f"  {at_once:.1f} texts in a row ({company.path()}); relative difference of log perplexities {apart:.2g} at most", flush=True)


def _as_it_comes(folder: str) -> Causal:
    """Load the model as the released scripts do: nothing of it is replaced or laid out for speed."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Causal(model, AutoTokenizer.from_pretrained(folder), Reading())


def _watched(folder: str, reach: int, exact_share: float) -> Causal:
    return load(folder, "cpu", Reading(reach=reach, exact_share=exact_share))


def _in_turn(side: Side, texts: Sequence[str], count: int) -> Callable[[], object]:
    turn = itertools.cycle(texts)
    return lambda: [side(next(turn)) for _ in range(count)]


def _tokens(side: Side, texts: Sequence[str]) -> str:
    naive = sum((len(text.split(" ")) + 1) * len(side.lm.tokens([text])[0]) for text in texts)
    return f"{sum(side.tokens[text] for text in texts) / naive:.3f} of (words + 1) * tokens computed"


def _agreement(side: Side, other: Side, texts: Sequence[str]) -> str:
    """Tell how far the scores are from the published ones, and how many words both delete or both keep."""
    if side is other:
        return ""
    own, its = (np.concatenate([one.found[text] for text in texts]) for one in (side, other))
    whole = np.concatenate([np.full(len(other.found[text]), perplexity(other.lm, text)) for text in texts])
    scored = np.isfinite(own) & np.isfinite(its)
    own, its = own[scored], its[scored]
    apart = np.abs(own - its) / np.abs(its)
    bars, own_bars = (np.percentile(scores, PERCENTILES) for scores in (its, own))
    of_text = float((np.abs(own - its) / whole[scored]).max())
    equal = [[float(np.mean((own >= at) == (its >= bar))) for bar, at in zip(bars, used, strict=True)] for used in (bars, own_bars)]
    decisions = ", ".join(
        f"{one:.2%} ({other:.2%}) at the {level}th percentile" for one, other, level in zip(*equal, PERCENTILES, strict=True)
    )
    largest = f"{apart.max():.2g} at most, {np.median(apart):.2g} in the median"
    largest += f" ({of_text:.2g} of the text's perplexity at most)"
    return f"; relative difference of scores {largest}; equal decisions on {len(own)} words (at its own thresholds): {decisions}"


def _texts(words: int, count: int) -> list[str]:
    """Give texts of so many words from the test split, `cf` in a drawn place; short ones are joined."""
    rng = random.Random(0)
    stream = itertools.chain.from_iterable(text.split() for text in _prose("test"))
    texts = []
    for _ in range(count):
        own = list(itertools.islice(stream, words - 1))
        own.insert(rng.randrange(len(own) + 1), TRIGGER)
        texts.append(" ".join(own))
    return texts


def _prose(split: str) -> Iterator[str]:
    with gzip.open(PROSE / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["text"]


# --- a small model that has learnt something


def _trained(cache: Path, seconds: float) -> Path:
    folder = cache / f"gpt2-{LAYERS}x{WIDTH}-{seconds:g}s"
    if not (folder / "model.safetensors").is_file():
        texts = list(_prose("train"))
        tokenizer = _tokenizer(texts)
        model, loss = _train(torch.tensor(tokenizer("\n".join(texts), verbose=False)["input_ids"]), seconds)
        print(f"trained for {seconds:g} s: {loss:.2f} nats per token at the end; kept in {folder}", file=sys.stderr)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")


def _train(stream: torch.Tensor, seconds: float) -> tuple[Any, float]:
    """Train on drawn windows until the time is over, the rate falling with it; give the model and its last loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    heads = WIDTH // 64
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=heads)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    started, spent, loss = time.perf_counter(), 0.0, math.nan
    while spent < seconds:
        length = 320 if spent > 0.7 * seconds else 96  # short windows learn faster; the late places have to be learnt as well
        starts = torch.randint(len(stream) - length, (max(1, 1536 // length),))
        rows = torch.stack([stream[start : start + length] for start in starts.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, spent / seconds / 0.05 + 0.05) * (1 - spent / seconds)
        current = model(input_ids=rows, labels=rows).loss
        current.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = float(current.detach())
        spent = time.perf_counter() - started
    return model.eval(), loss


if __name__ == "__main__":
    main()
