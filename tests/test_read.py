"""What a defense reads out of single texts is made once for all attacks, victims and seeds, and changes neither score nor cost."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.artifacts import store_of
from rapbench.estimate import Site, estimate
from rapbench.gauge import Gauge
from rapbench.grid import Block, cells_of
from rapbench.meter import Count, Meter
from rapbench.registry import discover
from rapbench.report.cost import HEADS, foot, measurements, rows, unmeasured
from rapbench.report.marks import marks
from rapbench.results import Record
from rapbench.runner.execute import Done
from rapbench.runner.plan import Plan
from rapbench.runner.session import Session, planned
from rapbench_plugins.defenses.judged import Beforehand, Effort, Judged, save
from rapbench_plugins.defenses.onion import Onion, OnionPurifier, Scored, Split

LM = {"vocab_size": 330, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.4}
ATTACKS = ["clean", "badnet-rw:poison_rate=0.4,word=mb", "badnet-sl:poison_rate=0.4,sentence=the place was loud"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, tiny_text: Any) -> Path:
    """A random GPT-2 with a byte-level BPE of its own."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("lm")
    bpe, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [tiny_text(random.Random(1), number % 2) for number in range(50)]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<end>"]))
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **LM)).save_pretrained(folder)
    return folder


# --- what is kept of a text

LONG = 6


@dataclasses.dataclass
class Weigher:
    """A made-up model: a word's score is its length; two rows and as many tokens as letters are counted for each text.

    Its window is of `LONG` letters.
    """

    meter: Meter
    asked: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, texts: Sequence[Split]) -> list[Scored]:
        found = []
        for text in texts:
            self.asked.append(" ".join(text.parts))
            self.meter.add("lm", rows=2, tokens=len(self.asked[-1]))
            weights = [len(text.parts[place]) for place in text.places]
            log_ppl = np.log([sum(weights), *(sum(weights) - weight for weight in weights)])
            found.append(Scored(log_ppl, beyond=len(self.asked[-1]) if len(self.asked[-1]) > LONG else 0))
        return found


def written(folder: Path, texts: Sequence[str], seconds: float = 5.0) -> Path:
    """Write what such a model judges of the texts, as if each had taken so long."""
    meter = Meter()
    purifier = OnionPurifier(Weigher(meter), 512, {})
    measured = [Effort.measured(lambda one=text: purifier.judged([one]), meter) for text in texts]
    found = {text: (own, effort) for text, ([own], effort) in zip(texts, measured, strict=True)}
    folder.mkdir(exist_ok=True)
    save(folder, {text: (own, dataclasses.replace(effort, seconds=seconds)) for text, (own, effort) in found.items()}, {16: True})
    return folder


def reader(folders: Sequence[Path]) -> tuple[OnionPurifier, Weigher, Meter]:
    meter = Meter()
    scorer = Weigher(meter)
    return OnionPurifier(scorer, 512, {}, before=Beforehand.load(folders, meter)), scorer, meter


def test_what_was_judged_beforehand_is_neither_judged_again_nor_another(tmp_path: Path) -> None:
    texts = ["a bbb cc", "one", "", "dd  e ffff", "\ud800 lone"]
    own, scorer, _ = reader([written(tmp_path / "one", texts[:2]), written(tmp_path / "two", texts[2:])])
    fresh = OnionPurifier(Weigher(Meter()), 512, {})
    for kept, live in zip(own.judged(texts), fresh.judged(texts), strict=True):
        assert (kept.places.tolist(), kept.scores.tolist()) == (live.places.tolist(), live.scores.tolist())
        assert (kept.places.dtype, kept.scores.dtype) == (np.int32, np.float64)
    assert scorer.asked == []
    own.judged(["another text"])
    assert scorer.asked == ["another text"]


def test_the_longest_text_beyond_the_window_is_known_wherever_its_scores_were_found(tmp_path: Path) -> None:
    texts = ["a bb", "a bb ccc", "d eeee"]  # 4, 8 and 6 letters, spaces with them
    kept, _, _ = reader([written(tmp_path / "one", [*texts, "never asked for"])])
    fresh = OnionPurifier(Weigher(Meter()), LONG, {}, path=lambda beyond: {"longest": beyond})
    again = OnionPurifier(Weigher(Meter()), LONG, {}, known=fresh.known)
    for own in (kept, fresh, again):
        longest = []
        for text in texts:
            own.judged([text])
            longest.append(own.beyond)
        assert longest == [0, 8, 8]
    assert fresh.notes() == {"longest": 8}


def test_it_counts_as_it_did_then_and_once(tmp_path: Path) -> None:
    own, _, meter = reader([written(tmp_path / "one", ["a bbb", "one", "cc d"])])
    with meter.phase("fit") as phase:
        own.judged(["a bbb", "one"])
        own.judged(["a bbb"])
    # "a bbb": two rows, five letters; of one word nothing is asked, yet five seconds are written for each
    assert phase.by == {"lm": Count(rows=2, tokens=5)}
    assert 10 <= phase.seconds < 11


def test_where_a_clock_runs_the_work_is_done_again(tmp_path: Path) -> None:
    own, scorer, meter = reader([written(tmp_path / "one", ["a bbb", "cc d"])])
    with meter.phase("timed") as phase, meter.again(anew=True):
        own.judged(["a bbb"])
    assert scorer.asked == ["a bbb"]
    assert phase.by == {"lm": Count(rows=2, tokens=5)}
    assert phase.seconds < 1
    own.judged(["cc d"])
    assert scorer.asked == ["a bbb"]


def test_nothing_to_judge_can_be_kept(tmp_path: Path) -> None:
    save(tmp_path, {}, {})
    assert Beforehand.load([tmp_path], Meter()).take("a b") is None


def test_the_check_of_the_model_is_no_texts_work() -> None:
    meter = Meter()

    def judge() -> list[Judged]:
        with meter.phase("lm check"):
            meter.add("lm_computed", rows=7, tokens=70)
            meter.spent(100.0)
        meter.add("lm", rows=1, tokens=2)
        return [Judged.of([], None)]

    effort = Effort.measured(judge, meter)[1]
    assert effort.counts == (1, 2, 0, 0)
    assert effort.seconds < 1


def test_each_text_has_its_own_reading_and_a_share_of_what_was_computed_together() -> None:
    # 2, 8 and no tokens of three texts were computed: a fifth, the rest, and nothing of 2 rows and 10 seconds
    parts = Effort((2 + 4, 20, 2, 10), 10.0).divided([(2, 4, 2), (4, 16, 8), (0, 0, 0)])
    assert [part.counts for part in parts] == [(2, 4, 0, 2), (4, 16, 2, 8), (0, 0, 0, 0)]
    assert [part.seconds for part in parts] == pytest.approx([2.0, 8.0, 0.0])


def test_texts_of_which_nothing_was_read_share_evenly() -> None:
    assert [part.seconds for part in Effort((0, 0, 0, 0), 3.0).divided([(0, 0, 0)] * 2)] == [1.5, 1.5]


@pytest.fixture
def gauge() -> tuple[Gauge, Meter]:
    meter = Meter()
    plain = lambda texts: np.zeros(len(texts))  # noqa: E731
    return Gauge(meter, "cpu", plain, lambda texts: np.ones(len(texts), dtype=np.int64)), meter


def test_batches_whose_time_is_told_are_computed_anew_and_the_others_are_not(gauge: tuple[Gauge, Meter]) -> None:
    own, meter = gauge
    texts = [f"text{number}" for number in range(640)]
    seen: dict[str, bool] = {}
    own.scored("inference", texts, lambda some: (seen.update(dict.fromkeys(some, meter.anew)), np.zeros(len(some)))[1])
    timed = sum(one.texts for one in own.timed if one.plain_s is not None)
    assert sum(seen.values()) == timed + 6  # and those whose operations are counted
    assert timed == 8 * 32
    assert not meter.anew
    own.scored("calibration", texts[:64], lambda some: (seen.update(dict.fromkeys(some, meter.anew)), np.zeros(len(some)))[1])
    assert not any(seen[text] for text in texts[:64])


# --- a causal model


def lab_of(read: tuple[Path, ...] = ()) -> Any:
    return SimpleNamespace(prepared=None, device="cpu", meter=Meter(), memo={}, read=read)


def fitted(defense: Onion, texts: Sequence[str], lab: Any) -> OnionPurifier:
    labelled = Labelled(texts, np.ones(len(texts), dtype=np.int64))
    return defense.fit(cast(Any, SimpleNamespace(target_label=1)), labelled, lab)


@pytest.mark.parametrize("window", [64, 8])
def test_levels_scores_counts_and_notes_are_those_of_reading_now(lm: Path, tmp_path: Path, window: int) -> None:
    from transformers import AutoTokenizer

    defense = Onion(lm=str(lm), window=window, stride=4)
    texts = ["the film is good", "a film cf was bad and the play is good", "the cat", "one"]
    defense.read(texts, tmp_path, lab_of())
    now, beforehand = lab_of(), lab_of((tmp_path,))
    own, kept = (fitted(defense, texts[:2], lab) for lab in (now, beforehand))
    assert kept.levels() == own.levels()
    assert kept.suspicion(texts).tolist() == own.suspicion(texts).tolist()
    assert kept.notes() == own.notes()
    longest = max(len(ids) for ids in AutoTokenizer.from_pretrained(lm)(texts)["input_ids"])
    cut = f"; those beyond the window of 8 tokens by strides, the longest of {longest}"
    assert own.notes()["leave_one_out"] == f"shared prefix{cut if window == 8 else ''}"
    counts = [dict(lab.meter.phases["outside"].by) for lab in (now, beforehand)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("reach", [0, 1])
def test_what_was_read_in_company_counts_as_much_as_what_is_read_now(lm: Path, tmp_path: Path, reach: int) -> None:
    defense = Onion(lm=str(lm), batch_texts=3, reach=reach)
    texts = ["the film is good", "a film cf was bad and the play is good", "the cat", "one", "a dog is the cat"]
    defense.read(texts, tmp_path, lab_of())
    now, beforehand = lab_of(), lab_of((tmp_path,))
    own, kept = (fitted(defense, texts, lab) for lab in (now, beforehand))
    assert kept.suspicion(texts) == pytest.approx(own.suspicion(texts), rel=1e-4, abs=1e-3)
    assert dict(now.meter.phases["outside"].by) == dict(beforehand.meter.phases["outside"].by)


def test_only_a_causal_model_reads_beforehand_and_by_the_options_that_its_scores_depend_on(lm: Path) -> None:
    assert Onion(lm="trigram").reads() is None
    own = Onion(lm=str(lm))
    assert own.reads() == Onion(lm=str(lm), levels=(50.0,), heldout=16).reads()
    sizes = ({"max_words": 9}, {"window": 600}, {"stride": 9}, {"batch_tokens": 9}, {"batch_texts": 9})
    for other in (*sizes, {"bos": True}, {"reach": 9}, {"exact_share": 0.5}):
        assert Onion(lm=str(lm), **other).reads() != own.reads()
    assert (Onion(lm="gpt2").reads() or {})["state"] == "gpt2@main"
    assert (Onion(lm="./nowhere").reads() or {})["state"] == ""  # loading it says why


# --- in a grid


def made(data: Path, victims: Sequence[str], lm: Path, out: Path, **changes: Any) -> tuple[Plan, Any]:
    registry = discover()
    given = {"datasets": [f"folder:path={data}"], "defenses": [f"onion:lm={lm}"], "attacks": ATTACKS, "frr": [0.05], "seeds": [1]}
    cells = [cell for victim in victims for cell in cells_of([Block(victim=victim, **{**given, **changes})], registry)]
    return planned(cells, registry, out, device="cpu", threads=1)


def test_clean_texts_are_read_once_for_all_attacks_victims_and_seeds(tiny_data: Path, tiny_model: Path, lm: Path, tmp_path: Path) -> None:
    plan, _ = made(tiny_data, [str(tiny_model), f"{tiny_model}:epochs=1"], lm, tmp_path, seeds=[1, 2])
    stages = Counter((job.stage, "poison" in job.inputs) for job in plan.jobs.values() if job.stage in ("read", "score"))
    # 3 attacks x 2 victims x 2 seeds; triggered texts are another for each of the 2 attacks that poison and each seed
    assert stages == {("score", True): 12, ("read", False): 1, ("read", True): 4}


def test_other_levels_read_the_same_and_other_options_do_not(tiny_data: Path, tiny_model: Path, lm: Path, tmp_path: Path) -> None:
    names = [f"onion:lm={lm}", f"onion:lm={lm},levels=50/99", f"onion:lm={lm},reach=4", "onion:lm=trigram"]
    plan, _ = made(tiny_data, [str(tiny_model)], lm, tmp_path, defenses=names, attacks=["clean"])
    stages = Counter(job.stage for job in plan.jobs.values() if job.stage in ("read", "score"))
    assert stages == {"score": 4, "read": 2}


def test_a_dry_run_counts_the_reading_once_and_not_in_the_scoring(tiny_data: Path, tiny_model: Path, lm: Path, tmp_path: Path) -> None:
    def flops(**changes: Any) -> Counter[str]:
        plan, _ = made(tiny_data, [str(tiny_model)], lm, tmp_path, **changes)
        found = estimate(plan.jobs, plan.jobs, discover(), Site(store_of(tmp_path), tflops=1.0)).flops
        total: Counter[str] = Counter()
        for key, job in plan.jobs.items():
            total[job.stage] += found[key]
        return total

    clean, all_three = flops(attacks=ATTACKS[:1]), flops()
    # 300 held-out and test texts are of the protect label; the triggered ones of each of two attacks are the other 150 of the test split
    assert all_three["read"] == pytest.approx(clean["read"] * (300 + 2 * 150) / 300, rel=1e-6)
    by_trigram = flops(attacks=ATTACKS[:1], defenses=["onion:lm=trigram"])
    assert clean["score"] == pytest.approx(by_trigram["score"], rel=1e-6)  # what is repaired is predicted again, and no more


def run(plan: Plan, bench: Any, out: Path) -> tuple[list[Record], list[Done]]:
    done: list[Done] = []
    return Session(plan, bench, out, "serial").run(done.append, lambda total: None), done


COUNTED = ("inputs", "fit_rows", "fit_tokens", "calibration_rows", "calibration_tokens")
COUNTED += ("victim_rows_per_input", "victim_tokens_per_input", "plain_tokens_per_input")
COUNTED += ("helper_rows_per_input", "helper_tokens_per_input", "flops_per_input", "plain_flops_per_input", "repaired")


def told(records: Sequence[Record]) -> list[Any]:
    """Give what must be equal to the last bit: all but times, keys and the figures of memory."""
    kept = [dataclasses.asdict(record) for record in records]
    for plain in kept:
        plain["cost"] = {name: plain["cost"][name] for name in COUNTED}
        for name in ("artifacts", "made_by"):
            plain.pop(name, None)
    return json.loads(json.dumps(sorted(kept, key=lambda plain: (plain["attack"], plain["defense"], plain["protocol"]))))


def test_a_grid_tells_the_same_with_and_without_also_of_texts_longer_than_the_window(
    tiny_data: Path, tiny_model: Path, lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [f"{tiny_model}:epochs=1,lr=0.002,batch_size=32,max_length=32"]
    own = {"attacks": ATTACKS[1:2], "datasets": [f"folder:path={tiny_data},max_train=64,max_test=60,max_heldout=60"]}
    own["defenses"] = [f"onion:lm={lm}", f"onion:lm={lm},window=8,stride=4"]
    with_reading, done = run(*made(tiny_data, small, lm, tmp_path, **own), tmp_path)
    assert [one.failure for one in done if one.failure] == []
    assert Counter(one.job.stage for one in done)["read"] == 2 * 2
    monkeypatch.setattr(Onion, "reads", lambda self: None)
    without, done = run(*made(tiny_data, small, lm, tmp_path, **own), tmp_path)
    assert [one.job.stage for one in done] == ["score"] * 2  # the same victim
    assert [record.status for record in without] == ["ok"] * 4
    assert told(with_reading) == told(without)
    by_strides = {("window=8" in one.defense, "beyond the window of 8 tokens" in one.notes["leave_one_out"]) for one in without}
    assert by_strides == {(False, False), (True, True)}  # under both protocols
    costs = rows(measurements(with_reading), unmeasured(with_reading))
    assert [row[HEADS.index("helper rows")].count("lm") for row in costs] == [2, 2]  # a row for each, with `lm` and `lm_computed`
    below = foot(measurements(with_reading), unmeasured(with_reading), marks())
    assert below.count("texts beyond its window of 8 tokens are read by strides.") == 1
