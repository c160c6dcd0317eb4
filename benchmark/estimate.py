"""What a plan will take, before it runs: FLOPs from model shapes and text lengths, seconds from what a device sustains.

A token of a forward pass takes 2 FLOPs for each weight of the encoder (embeddings left out) and, for attention's scores and
their weighted sum, 4 * layers * hidden for each token of its row. A training step takes three times that, and twice where
only one embedding row is trained: the gradient passes through the layers and reaches no weight of theirs.
Whatever is not known is assumed, and the estimate says so: a dry run never fails for it. Time is an estimate, counts are not
exact either: good to a factor of about two.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist, fmean
from time import perf_counter
from typing import IO, TYPE_CHECKING, Any, cast

from rapbench.api import Attack, Defense, Work
from rapbench.artifacts import Store
from rapbench.errors import RapbenchError

if TYPE_CHECKING:
    from rapbench.registry import Kind, Registry
    from rapbench.stages import Job

WORD_TOKENS = 1.3
"""Word pieces a word: 1.2 to 1.4 for English under the vocabularies of BERT and GPT-2."""
EFFICIENCY, ONEDNN_EFFICIENCY = 0.75, 0.6
"""What the engine reaches of the machine's float32 products with MiniLM on one thread of a CPU: by torch's matmul (106 of 141 GFLOP/s),
and by oneDNN (138 of 221), whose products are faster and leave all else a larger share."""
GPU_TFLOPS = 20.0
"""The GPU that an estimate made elsewhere is compared with: an A100 sustains somewhat less in float32, an H100 more."""
UNKNOWN_WORDS, UNKNOWN_SIZES = 100.0, (10_000.0, 1_000.0, 1_000.0)
SPREAD = 0.5
"""Standard deviation of the logarithm of text lengths where their mean alone is known."""
SAMPLE_TEXTS, SAMPLE_BYTES = 1000, 1 << 18
MEASURING_S = 0.7
FIT_BATCH = 32
"""Texts, of any length, that a defense's fit takes at once."""
SEARCH_ROWS = 8 * 40 * 32
"""Rows of the search for a perturbation in `rapbench theorem`: radii, steps, batch."""
STANDING = (
    f"{WORD_TOKENS} tokens a word; victims err never and attacks succeed always; float32 speed for bf16, too; no retries of RAP; "
    "reading data, tokenising and loading models take no time"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer. `vocabulary`: of the output matrix, which only language models have."""

    layers: int
    hidden: int
    inner: int
    positions: int = 512
    vocabulary: int = 0

    def token(self, length: float) -> float:
        """Give the forward FLOPs of one token in a row of `length` tokens."""
        weights = self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.inner) + self.vocabulary * self.hidden
        return 2 * weights + 4 * self.layers * self.hidden * length

    def row(self, length: float) -> float:
        """Give the forward FLOPs of a row of `length` tokens."""
        return length * self.token(length)


_BASE = Shape(12, 768, 3072)
SHAPES: Mapping[str, Shape] = {
    "minilm-l6": Shape(6, 384, 1536),
    "bert-base-uncased": _BASE,
    "bert-base-cased": _BASE,
    "roberta-base": _BASE,
    "distilbert-base-uncased": replace(_BASE, layers=6),
    "bert-large-uncased": Shape(24, 1024, 4096),
    "roberta-large": Shape(24, 1024, 4096),
    "distilgpt2": replace(_BASE, layers=6, positions=1024, vocabulary=50257),
    "gpt2": replace(_BASE, positions=1024, vocabulary=50257),
    "gpt2-medium": Shape(24, 1024, 4096, 1024, 50257),
}


@dataclass(frozen=True)
class Texts:
    """So many texts. `words`: the word counts of a sample of them, ascending."""

    rows: float
    words: tuple[float, ...]

    def share(self, part: float) -> Texts:
        return replace(self, rows=self.rows * part)

    def lengths(self, limit: float) -> list[float]:
        """Give the tokens of each text of the sample, the two special ones included, cut at `limit`."""
        return [min(words * WORD_TOKENS + 2, limit) for words in self.words]

    def forward(self, shape: Shape, limit: float) -> float:
        """Give the FLOPs of one prediction of each, without padding: they are sorted by length."""
        return self.rows * fmean(shape.row(length) for length in self.lengths(limit)) if self.rows else 0.0

    def padded(self, shape: Shape, limit: float, batch: int) -> float:
        """Give the FLOPs of one forward pass of each, in batches of any texts: all as long as their longest."""
        return self.rows * shape.row(longest(self.lengths(limit), batch))


@dataclass(frozen=True)
class Corpus:
    """The splits of a data set. `shares`: of each label."""

    train: Texts
    heldout: Texts
    test: Texts
    shares: tuple[float, ...] = (0.5, 0.5)

    def protect(self, label: int) -> float:
        """Give the share of the texts that have this label."""
        return self.shares[label] if label < len(self.shares) else 0.5


@dataclass(frozen=True)
class Known:
    """Published sizes of a data set. `words`: the mean."""

    sizes: tuple[float, float, float]
    words: float
    shares: tuple[float, ...] = (0.5, 0.5)


KNOWN: Mapping[str, Known] = {
    "imdb": Known((23_000, 2_000, 25_000), 234),
    "yelp": Known((504_000, 56_000, 38_000), 136),
    "amazon": Known((3_240_000, 360_000, 400_000), 79),
    "twitter": Known((70_000, 8_000, 9_000), 17, (0.63, 0.37)),
    "jigsaw": Known((144_000, 16_000, 64_000), 70, (0.9, 0.1)),
    "demo": Known((1_200, 440, 300), 29),
}
"""Table 5 of the RAP paper (arXiv:2110.07831); shares of the harmless texts from Founta et al. (spam left out) and Jigsaw's train file."""


@dataclass(frozen=True)
class Site:
    """Where a plan would run. `tflops`: what the device sustains; None: measure this one."""

    store: Store
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    tflops: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What the missing jobs of a plan take. `flops`: key of a job -> FLOPs; `path`: FLOPs of the longest chain of jobs."""

    flops: Mapping[str, float]
    path: float
    tflops: float
    measured: bool
    workers: int
    assumed: tuple[str, ...]

    def seconds(self, key: str) -> float:
        """Give the seconds of one job; 0 for one that would not run."""
        return self.flops.get(key, 0.0) / (self.tflops * 1e12)

    @property
    def total(self) -> float:
        """All FLOPs."""
        return sum(self.flops.values())

    @property
    def total_s(self) -> float:
        """Seconds on one worker."""
        return self.total / (self.tflops * 1e12)

    @property
    def makespan_s(self) -> float:
        """Seconds on all workers, at least: the work is shared out evenly, or waits for the longest chain."""
        return max(self.total / self.workers, self.path) / (self.tflops * 1e12)

    @property
    def gpu_tflops(self) -> float:
        """What the GPU of `gpu_hours` sustains."""
        return GPU_TFLOPS if self.measured else self.tflops

    @property
    def gpu_hours(self) -> float:
        return self.total / (self.gpu_tflops * 1e12) / 3600

    def plain(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        return {
            "flops": self.total,
            "seconds": round(self.total_s, 1),
            "makespan_s": round(self.makespan_s, 1),
            "workers": self.workers,
            "tflops": round(self.tflops, 4),
            "measured": self.measured,
            "gpu_hours": round(self.gpu_hours, 4),
            "gpu_tflops": self.gpu_tflops,
            "assumed": list(self.assumed),
        }

    def lines(self) -> list[str]:
        """Give it for people: one line, and one for each assumption."""
        if not self.flops:
            return []
        rate = f"{self.tflops:.2g} TFLOP/s"
        if self.measured:
            shared = f", {duration(self.makespan_s)} on {self.workers} workers" if self.workers > 1 else ""
            head = f"about {duration(self.total_s)} of computing here ({rate} measured){shared}; "
            head += f"{_rounded(self.gpu_hours)} GPU-hours at {self.gpu_tflops:g} TFLOP/s"
        else:
            head = f"about {duration(self.total_s)} of computing, {_rounded(self.gpu_hours)} GPU-hours, on a device that sustains {rate}"
        return [head, *(f"assumed: {one}" for one in self.assumed)]


def estimate(jobs: Mapping[str, Job], missing: Mapping[str, Job], registry: Registry, site: Site) -> Estimate:
    """Give what the missing ones of a plan's jobs take. `jobs`: all of them, each after its inputs."""
    counter = _Counter(jobs, registry, site.store)
    flops = {key: counter.flops(job) for key, job in missing.items()}
    given = site.tflops is not None or not missing
    tflops = (site.tflops or GPU_TFLOPS) if given else counter.measured(site)
    return Estimate(flops, _path(jobs, flops), tflops, not given, site.workers, tuple(counter.assumed))


def duration(seconds: float) -> str:
    """Word a time: `< 1 s`, `12 s`, `3.2 min`, `1.4 h`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{_rounded(seconds / 3600)} h"


def _rounded(value: float) -> str:
    """Word a number with two digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def longest(lengths: Sequence[float], batch: int) -> float:
    """Give the expected length of the longest of `batch` texts drawn from these, which are ascending."""
    n = len(lengths)
    return sum(length * ((rank / n) ** batch - ((rank - 1) / n) ** batch) for rank, length in enumerate(lengths, 1))


def spread_words(mean: float) -> tuple[float, ...]:
    """Give the word counts of a sample of texts of which the mean length alone is known: log-normal."""
    normal = NormalDist(0, SPREAD)
    spread = [math.exp(normal.inv_cdf((rank + 0.5) / 99)) for rank in range(99)]
    return tuple(mean * one / fmean(spread) for one in spread)


@cache
def sustained_tflops(hidden: int, inner: int, site: Site) -> float:
    """Give what a model of these sizes sustains here in float32, in TFLOP/s of one worker while all of them compute."""
    import torch

    from rapbench.linear import available, product

    onednn = site.device == "cpu" and available()
    multiply = (lambda texts, weight: product(texts, weight.t(), None)) if onednn else torch.matmul

    rows = 1024 if site.device == "cpu" else 32768  # the victim's batches
    square, up, down = (torch.ones(*size, device=site.device) for size in ((hidden, hidden), (hidden, inner), (inner, hidden)))
    texts = torch.ones(rows, hidden, device=site.device)

    def rounds(end: float) -> int:
        torch.set_num_threads(site.threads)  # each thread has a number of its own
        done = 0
        while not done or perf_counter() < end:
            for _ in range(4):
                multiply(texts, square)
            multiply(multiply(texts, up), down)
            _wait(site.device)
            done += 1
        return done

    workers = site.workers if site.device == "cpu" else 1  # cores share caches and clocks, and may be half of one; GPUs do not
    before = torch.get_num_threads()
    torch.set_num_threads(site.threads)
    try:
        rounds(0)  # warm up
        with ThreadPoolExecutor(workers) as pool:
            started = perf_counter()
            done = sum(pool.map(rounds, [started + MEASURING_S] * workers))
            took = perf_counter() - started
    finally:
        torch.set_num_threads(before)
    products = done / workers * 2 * rows * (4 * hidden**2 + 2 * hidden * inner) / took / 1e12
    return (ONEDNN_EFFICIENCY if onednn else EFFICIENCY) * products


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def _path(jobs: Mapping[str, Job], flops: Mapping[str, float]) -> float:
    """Give the FLOPs of the longest chain of jobs."""
    ends: dict[str, float] = {}
    for key, job in jobs.items():
        ends[key] = flops.get(key, 0.0) + max((ends.get(own, 0.0) for own in job.inputs.values()), default=0.0)
    return max(ends.values(), default=0.0)


@dataclass(frozen=True)
class _Reader:
    """The victim of a job as it reads texts: cut at `limit` tokens."""

    shape: Shape
    limit: float


@dataclass
class _Counter:
    """Counts the FLOPs of jobs, and notes what it had to assume, each thing once."""

    jobs: Mapping[str, Job]
    registry: Registry
    store: Store
    assumed: dict[str, None] = field(default_factory=lambda: {STANDING: None})
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _by_shape: dict[Shape, float] = field(default_factory=dict)

    def flops(self, job: Job) -> float:
        """Give the FLOPs of a job; those that run no model take none."""
        count: Mapping[str, Callable[[Job, _Reader], float]] = {
            "victim": self._victim,
            "finetune": lambda job, reader: self._trained(job, reader, self._corpus(job).train),
            "predict": self._predict,
            "score": self._score,
            "probe": self._probe,
            "theorem": self._theorem,
        }
        if job.stage not in count:
            return 0.0
        reader = self._reader(job)
        found = count[job.stage](job, reader)
        self._by_shape[reader.shape] = self._by_shape.get(reader.shape, 0.0) + found
        return found

    def measured(self, site: Site) -> float:
        """Give what this machine sustains on the shape that most of the work is on, in TFLOP/s."""
        shape = max(self._by_shape, key=lambda one: self._by_shape[one], default=_BASE)
        busy, cores = os.getloadavg()[0], os.cpu_count() or 1
        if site.device == "cpu" and busy > cores / 2:
            self._assume(f"this machine stays as busy as it was when measured (load {busy:.1f} on {cores} cores)")
        try:
            return sustained_tflops(shape.hidden, shape.inner, site)
        except (RuntimeError, AssertionError) as error:  # a device that is not there, or has no memory left
            self._assume(f"{GPU_TFLOPS:g} TFLOP/s: {site.device} cannot be measured ({str(error).splitlines()[0]})")
            return GPU_TFLOPS

    def _assume(self, what: str) -> None:
        self.assumed.setdefault(what)

    def _victim(self, job: Job, reader: _Reader) -> float:
        attack, corpus, recipe = self._attack(job), self._corpus(job), job.spec["recipe"]
        if not attack.poisons or type(attack).plant is Attack.plant:
            appended = self._poisoned(job, attack) if attack.poisons and attack.poison_mode == "append" else 0.0
            return self._trained(job, reader, corpus.train.share(1 + appended))
        batch = int(getattr(attack, "batch_size", recipe["batch_size"]))
        if isinstance(steps := getattr(attack, "steps", None), int):
            self._assume(f"{attack.name}: {steps} steps of 2 x {batch} texts, each as two training steps (a gradient of a gradient)")
            limit = min(reader.limit, getattr(attack, "max_length", reader.limit))
            return 6 * replace(corpus.train, rows=2.0 * steps * batch).padded(reader.shape, limit, batch)
        if attack.starts_from:
            self._assume(f"{attack.name}: trains one embedding row of the victim of {attack.starts_from}, on its triggered texts alone")
            texts = corpus.train.share(self._poisoned(job, attack) * int(getattr(attack, "epochs", recipe["epochs"])))
            return 2 * texts.padded(reader.shape, reader.limit, batch)
        self._assume(f"{attack.name}: trains by the recipe")
        return self._trained(job, reader, corpus.train.share(1 + self._poisoned(job, attack)))

    def _poisoned(self, job: Job, attack: Attack) -> float:
        """Give the triggered copies as a share of the training texts."""
        candidates = 1.0 if attack.poisons_every_label else 1 - self._corpus(job).protect(int(job.spec["target_label"]))
        return attack.poison_rate * candidates

    def _trained(self, job: Job, reader: _Reader, texts: Texts) -> float:
        """Give the FLOPs of training on these texts by the recipe, with the prediction of the held-out split after each epoch."""
        recipe = job.spec["recipe"]
        epoch = 3 * texts.padded(reader.shape, reader.limit, int(recipe["batch_size"]))
        return float(recipe["epochs"] * (epoch + self._corpus(job).heldout.forward(reader.shape, reader.limit)))

    def _predict(self, job: Job, reader: _Reader) -> float:
        corpus = self._corpus(job)
        triggered = self._triggered(job)
        splits = {"validation": corpus.heldout, "test": corpus.test, "first100": triggered, "anywhere": triggered}
        return sum(splits[split].forward(reader.shape, reader.limit) for split in job.spec["splits"])

    def _triggered(self, job: Job) -> Texts:
        """Give the triggered test texts: every one of another label."""
        corpus = self._corpus(job)
        return corpus.test.share(1 - corpus.protect(int(job.spec["target_label"])))

    def _score(self, job: Job, reader: _Reader) -> float:
        """Give the FLOPs of both protocols: under `strict` a defense that learns is fitted again, on half, and scores again."""
        defense, corpus = cast(Defense, self._parsed("defense", job.spec["defense"])), self._corpus(job)
        share = corpus.protect(int(job.spec["target_label"]))
        attacked = self._attack(self.jobs[job.inputs["poison"]]).poisons
        heldout, test = corpus.heldout.share(share), corpus.test.share(share)
        poisoned = self._triggered(job).share(float(attacked))
        tested = _joined(test, poisoned)
        found = self._defended(defense, reader, heldout, _joined(heldout, tested))
        found += self._read(defense, _joined(heldout, tested))
        if defense.learns_from_protect_texts():
            half = heldout.share(0.5)
            found += self._defended(defense, reader, half, _joined(half, tested))
        return found

    def _defended(self, defense: Defense, reader: _Reader, heldout: Texts, scored: Texts) -> float:
        """Give the victim's FLOPs of one fit on these held-out texts of the protect label, and of scoring these texts."""
        work = self._work(defense, scored, heldout)
        fit = replace(heldout, rows=work.fit_rows + 2 * work.fit_trained_rows)
        return fit.padded(reader.shape, reader.limit, FIT_BATCH) + scored.share(work.victim_rows).forward(reader.shape, reader.limit)

    def _read(self, defense: Defense, scored: Texts) -> float:
        """Give the language model's FLOPs: of each text once, as its scores are kept."""
        work = self._work(defense, scored, scored)
        if not (work.lm and work.lm_words):
            return 0.0
        shape = self._shape(work.lm)
        shape = shape if shape.vocabulary else replace(shape, vocabulary=50257)
        length = min(fmean(scored.words) * WORD_TOKENS, shape.positions)
        return scored.rows * work.lm_words * WORD_TOKENS * shape.token(length)

    def _work(self, defense: Defense, scored: Texts, heldout: Texts) -> Work:
        try:
            work = defense.expected_work(fmean(scored.words), round(heldout.rows))
        except Exception as error:  # a plugin's: the dry run goes on
            self._assume(f"{defense.name}: 2 rows a text and no fit (its expected_work failed: {type(error).__name__}: {error})")
            return Work(2)
        if work is None:
            self._assume(f"{defense.name}: 2 rows a text and no fit (it does not say: `expected_work`)")
        return work or Work(2)

    def _probe(self, job: Job, reader: _Reader) -> float:
        texts, count = self._triggered(job), float(job.spec["count"])
        if job.spec["source"] == "dataset":
            texts = replace(texts, rows=min(texts.rows, count))
        else:
            texts = Texts(count, (float(job.spec["length"]),))
        return texts.forward(reader.shape, reader.limit)

    def _theorem(self, job: Job, reader: _Reader) -> float:
        """Give the FLOPs of p of three kinds of texts, of two of them at eight radii, of one's gradients, and of the search."""
        texts = self._corpus(job).test
        count = min(float(job.spec["texts"]), texts.rows)
        return replace(texts, rows=21 * count + 2 * SEARCH_ROWS).padded(reader.shape, reader.limit, 32)

    def _attack(self, job: Job) -> Attack:
        return cast(Attack, self._parsed("attack", job.spec["attack"]))

    def _parsed(self, kind: Kind, spec: Any) -> Any:
        return self.registry.parse(kind, spec)

    def _reader(self, job: Job) -> _Reader:
        recipe = job.spec["recipe"]
        shape = self._shape(str(recipe["model"]))
        kept = replace(shape, layers=min(shape.layers, recipe.get("layers") or shape.layers))
        return _Reader(kept, min(int(recipe["max_length"]), kept.positions))

    def _shape(self, model: str) -> Shape:
        """Give a model's sizes: from the table, or from the config.json of a folder or of the hub's local cache."""
        if model in SHAPES:
            return SHAPES[model]
        try:
            return shape_of(json.loads(_config(model).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, RapbenchError):
            self._assume(f"{model}: the sizes of bert-base")
            return _BASE

    def _corpus(self, job: Job) -> Corpus:
        data = self._data(job)
        if data.key not in self._corpora:
            self._corpora[data.key] = _kept(data, self.store) or self._uncached(data.spec["dataset"])
        return self._corpora[data.key]

    def _data(self, job: Job) -> Job:
        """Give the data step that a job's texts come from."""
        while job.stage != "data":
            role = next(role for role in ("data", "texts", "poison") if role in job.inputs)
            job = self.jobs[job.inputs[role]]
        return job

    def _uncached(self, options: Mapping[str, Any]) -> Corpus:
        """Give what is known of a data set that is not in the store yet, its caps applied."""
        name = str(options["name"])
        own = tuple(options.get(f"n_{split}") for split in ("train", "heldout", "test"))
        known = KNOWN.get(name) or Known(UNKNOWN_SIZES, UNKNOWN_WORDS)
        splits = _folder(options)
        if splits:
            self._assume(f"{name}: sizes from the beginning and the bytes of its files")
        else:
            sizes = [float(size or other) for size, other in zip(own, known.sizes, strict=True)]
            splits = [Texts(size, spread_words(known.words)) for size in sizes]
            where = "" if name in KNOWN else ", not known before it is loaded"
            self._assume(f"{name}: {'/'.join(f'{size:,.0f}' for size in sizes)} texts before caps, of {known.words:g} words{where}")
        caps = [options.get(f"max_{split}") for split in ("train", "heldout", "test")]
        train, heldout, test = (
            replace(texts, rows=min(texts.rows, float(cap or texts.rows))) for texts, cap in zip(splits, caps, strict=True)
        )
        if name not in KNOWN:
            self._assume(f"{name}: half of the texts have the target label")
        return Corpus(train, heldout, test, known.shares)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Give the sizes that a model's config.json states, in whichever words; a KeyError where it states none."""

    def first(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name)), 0)

    layers, hidden = first("num_hidden_layers", "n_layers", "n_layer"), first("hidden_size", "dim", "n_embd")
    if not (layers and hidden):
        raise KeyError("no sizes")
    inner = first("intermediate_size", "hidden_dim", "n_inner", "ffn_dim") or 4 * hidden
    causal = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or ())
    positions = first("max_position_embeddings", "n_positions") or 1 << 20
    return Shape(layers, hidden, inner, positions, first("vocab_size") if causal else 0)


def _config(model: str) -> Path:
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(model)
    return Path(found)


def _joined(one: Texts, other: Texts) -> Texts:
    """Give two lots of texts as one; the lengths are those of the test texts, the second lot's."""
    return Texts(one.rows + other.rows, other.words)


def _kept(data: Job, store: Store) -> Corpus | None:
    """Give the true sizes of a data set that is in the store, or None."""
    try:
        folder = store.folder(data.key)
        counts = json.loads((folder / "about.json").read_text(encoding="utf-8"))["counts"]
        train, heldout, test = (
            Texts(float(sum(counts[split])), tuple(sorted(_arrow_words(folder / split)))) for split in ("train", "validation", "test")
        )
        shares = tuple(count / max(sum(counts["test"]), 1) for count in counts["test"])
        return Corpus(train, heldout, test, shares) if train.words and heldout.words and test.words else None
    except (OSError, ValueError, KeyError, TypeError, RapbenchError):
        return None


def _arrow_words(folder: Path) -> list[float]:
    """Give the words of the first texts of a split that is kept as Arrow."""
    import pyarrow as pa

    words: list[float] = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                words += (float(len(text.split())) for text in batch.column("text").slice(0, SAMPLE_TEXTS).to_pylist())
                if len(words) >= SAMPLE_TEXTS:
                    return words
    return words


_STEMS = (("train",), ("validation", "valid", "dev", "heldout"), ("test",))


def _folder(options: Mapping[str, Any]) -> list[Texts]:
    """Give the splits of the text files in the folder `path`, or none where there is no such folder or file."""
    path = options.get("path")
    if not isinstance(path, str):
        return []
    try:
        train, heldout, test = (_file(Path(os.path.expanduser(path)), stems) for stems in _STEMS)
    except (OSError, ValueError, EOFError):
        return []
    if train is None or test is None:
        return []
    share = float(options.get("heldout_share") or 0.1)
    return [train, heldout, test] if heldout else [train.share(1 - share), train.share(share), test]


def _file(folder: Path, stems: Sequence[str]) -> Texts | None:
    """Give the lines of the text file of a split, counted at its beginning and carried on to its size."""
    for path in sorted(folder.iterdir()):
        stem, _, suffix = path.name.partition(".")
        if stem in stems and suffix.removesuffix(".gz") in ("csv", "tsv", "jsonl"):
            lines, share = _beginning(path)
            rows = lines if suffix.startswith("jsonl") else lines[1:]
            words = tuple(sorted(float(len(line.split())) for line in rows))
            return Texts(len(rows) / share, words) if rows else None
    return None


def _beginning(path: Path) -> tuple[list[str], float]:
    """Give the whole lines at a file's beginning, and the share of the file's bytes that they take."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            return _lines(raw, raw, path.stat().st_size)
        with gzip.open(raw) as text:
            return _lines(cast("IO[bytes]", text), raw, path.stat().st_size)


def _lines(text: IO[bytes], raw: IO[bytes], size: int) -> tuple[list[str], float]:
    piece = text.read(SAMPLE_BYTES)
    whole = len(piece) < SAMPLE_BYTES
    lines = list(_decoded(piece if whole else piece[: piece.rfind(b"\n") + 1]))
    return lines, 1.0 if whole else min(max(raw.tell() / size, 1e-9), 1.0)


def _decoded(piece: bytes) -> Iterator[str]:
    kept: Iterable[str] = piece.decode("utf-8", errors="replace").splitlines()
    return (line for line in kept if line.strip())
