"""What a plan will take, before it runs: FLOPs from model shapes and text lengths, seconds from what a device sustains.

A training step takes three times the FLOPs of a forward pass (`shapes`), and twice where only embedding rows are trained:
the gradient passes through the layers and reaches no weight of theirs.
Whatever is not known is assumed, and the estimate says so: a dry run never fails for it. Time is an estimate, counts are not
exact either: good to a factor of about two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from rapbench.api import Attack, Defense, TrainingWork, Work
from rapbench.artifacts import Store
from rapbench.shapes import BASE, Shape, known_shape
from rapbench.sizes import WORD_TOKENS, Sizes, Texts, expected_sizes, joined, kept_sizes
from rapbench.speed import sustained_tflops
from rapbench.victim import Recipe

if TYPE_CHECKING:
    from rapbench.registry import Kind, Registry
    from rapbench.stages import Job

GPU_TFLOPS = 20.0
"""The GPU that an estimate made elsewhere is compared with: an A100 sustains somewhat less in float32, an H100 more."""
FIT_BATCH = 32
"""Texts, of any length, that a defense's fit takes at once."""
SEARCH_ROWS = 8 * 40 * 32
"""Rows of the search for a perturbation in `rapbench theorem`: radii, steps, batch."""
STANDING = (
    f"{WORD_TOKENS} tokens a word; victims err never and attacks succeed always; float32 speed for bf16, too; no retries of RAP; "
    "reading data, tokenising and loading models take no time"
)


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
            "gpu_hours": float(f"{self.gpu_hours:.6g}"),
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
    _found: dict[str, Sizes] = field(default_factory=dict)
    _by_shape: dict[Shape, float] = field(default_factory=dict)

    def flops(self, job: Job) -> float:
        """Give the FLOPs of a job; those that run no model take none."""
        count: Mapping[str, Callable[[Job, _Reader], float]] = {
            "victim": self._victim,
            "finetune": lambda job, reader: self._trained(job, reader, self._sizes(job).train),
            "predict": self._predict,
            "score": self._score,
            "probe": self._probe,
            "theorem": self._theorem,
        }
        if job.stage == "read":
            return self._read_beforehand(job)
        if job.stage not in count:
            return 0.0
        reader = self._reader(job)
        found = count[job.stage](job, reader)
        self._by_shape[reader.shape] = self._by_shape.get(reader.shape, 0.0) + found
        return found

    def measured(self, site: Site) -> float:
        """Give what this machine sustains on the shape that most of the work is on, in TFLOP/s."""
        shape = max(self._by_shape, key=lambda one: self._by_shape[one], default=BASE)
        busy, cores = os.getloadavg()[0], os.cpu_count() or 1
        if site.device == "cpu" and busy > cores / 2:
            self._assume(f"this machine stays as busy as it was when measured (load {busy:.1f} on {cores} cores)")
        try:
            return sustained_tflops(shape, site.device, site.threads, site.workers)
        except (RuntimeError, AssertionError) as error:  # a device that is not there, or has no memory left
            self._assume(f"{GPU_TFLOPS:g} TFLOP/s: {site.device} cannot be measured ({str(error).splitlines()[0]})")
            return GPU_TFLOPS

    def _assume(self, what: str) -> None:
        self.assumed.setdefault(what)

    def _victim(self, job: Job, reader: _Reader) -> float:
        work, train = self._planting(job), self._sizes(job).train
        passes = work.forward_rows + 2 * work.row_trained_rows + 3 * work.trained_rows
        limit, batch = min(reader.limit, work.max_length or reader.limit), work.batch_size or int(job.spec["recipe"]["batch_size"])
        by_recipe = self._trained(job, reader, replace(train, rows=work.texts)) if work.texts else 0.0
        return by_recipe + replace(train, rows=passes).padded(reader.shape, limit, batch)

    def _planting(self, job: Job) -> TrainingWork:
        """Give what planting takes, as the attack says it. The texts of one that plants by data are those that it publishes."""
        attack, sizes = self._attack(job), self._sizes(job)
        candidates = 1.0 if attack.poisons_every_label else 1 - sizes.protect(int(job.spec["target_label"]))
        poisoned = sizes.train.rows * candidates * attack.poison_rate if attack.poisons else 0.0
        given = (sizes.train.rows, poisoned, Recipe(**job.spec["recipe"]))
        why = "it does not say: `expected_work`"
        try:
            work = attack.expected_work(*given)
            says = attack.plants_by_data() or type(attack).expected_work is not Attack.expected_work
        except Exception as error:  # a plugin's: the dry run goes on
            work, says, why = Attack.expected_work(attack, *given), False, f"its expected_work failed: {type(error).__name__}: {error}"
        if not says:
            self._assume(f"{attack.name}: trains by the recipe ({why})")
        return work

    def _trained(self, job: Job, reader: _Reader, texts: Texts) -> float:
        """Give the FLOPs of training on these texts by the recipe, with the prediction of the held-out split after each epoch."""
        recipe = job.spec["recipe"]
        epoch = 3 * texts.padded(reader.shape, reader.limit, int(recipe["batch_size"]))
        return float(recipe["epochs"] * (epoch + self._sizes(job).heldout.forward(reader.shape, reader.limit)))

    def _predict(self, job: Job, reader: _Reader) -> float:
        sizes = self._sizes(job)
        triggered = self._triggered(job)
        splits = {"validation": sizes.heldout, "test": sizes.test, "first100": triggered, "anywhere": triggered}
        return sum(splits[split].forward(reader.shape, reader.limit) for split in job.spec["splits"])

    def _triggered(self, job: Job) -> Texts:
        """Give the triggered test texts: every one of another label."""
        sizes = self._sizes(job)
        return sizes.test.share(1 - sizes.protect(int(job.spec["target_label"])))

    def _score(self, job: Job, reader: _Reader) -> float:
        """Give the FLOPs of both protocols: under `strict` a defense that watches and learns is fitted again, on half, and scores again."""
        defense, sizes = cast(Defense, self._parsed("defense", job.spec["defense"])), self._sizes(job)
        share = sizes.protect(int(job.spec["target_label"]))
        attacked = self._attack(self.jobs[job.inputs["poison"]]).poisons
        had = sizes.heldout if defense.heldout is None else replace(sizes.heldout, rows=min(sizes.heldout.rows, defense.heldout))
        heldout, test = had.share(share), sizes.test.share(share)
        poisoned = self._triggered(job).share(float(attacked))
        tested = joined(test, poisoned)
        scored = joined(heldout, tested)
        found = self._defended(defense, reader, heldout, scored)
        if "read_clean" not in job.inputs:
            found += self._read(defense, scored)
        if defense.works_on != "inputs":  # the deployed victim reads these once more, and all test texts, triggered ones among them
            found += joined(scored, joined(poisoned, sizes.test)).forward(reader.shape, reader.limit)
        if defense.works_on == "training":
            found += self._filtered(job, reader, defense, scored)
        if defense.works_on == "inputs" and defense.learns_from_protect_texts():
            half = heldout.share(0.5)
            found += self._defended(defense, reader, half, joined(half, tested))
        return found

    def _defended(self, defense: Defense, reader: _Reader, heldout: Texts, scored: Texts) -> float:
        """Give the victim's FLOPs of one fit on these held-out texts of the protect label, and of scoring these texts."""
        work = self._work(defense, scored, heldout)
        fit = replace(heldout, rows=work.fit_rows + 2 * work.fit_trained_rows)
        return fit.padded(reader.shape, reader.limit, FIT_BATCH) + scored.share(work.victim_rows).forward(reader.shape, reader.limit)

    def _filtered(self, job: Job, reader: _Reader, defense: Defense, scored: Texts) -> float:
        """Give the FLOPs of looking for poison in the training set, and of training the victim anew on it."""
        self._assume(f"{defense.name}: the victim is trained anew on the whole training set: what it leaves out is not known")
        work = self._work(defense, scored, scored)
        training = replace(self._sizes(job).train, rows=self._planting(job).texts)
        rows = work.training_rows * min(training.rows, work.training_texts or training.rows)
        return replace(training, rows=rows).forward(reader.shape, reader.limit) + self._trained(job, reader, training)

    def _read_beforehand(self, job: Job) -> float:
        """Give the FLOPs of reading the clean texts of the protect label, or the triggered ones, once for all who score them."""
        self._assume("texts that a language model reads anew, for they are timed, are few")
        sizes, share = self._sizes(job), self._sizes(job).protect(int(job.spec["target_label"]))
        clean = joined(sizes.heldout.share(share), sizes.test.share(share))
        texts = self._triggered(job) if "poison" in job.inputs else clean
        return self._read(cast(Defense, self._parsed("defense", job.spec["defense"])), texts)

    def _read(self, defense: Defense, scored: Texts) -> float:
        """Give the language model's FLOPs: of each text once, as its scores are kept."""
        work = self._work(defense, scored, scored)
        if not (work.lm and work.lm_words):
            return 0.0
        shape = self._shape(work.lm)
        shape = shape if shape.vocabulary else replace(shape, vocabulary=shape.words or 50257)
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
        texts = self._sizes(job).test
        count = min(float(job.spec["texts"]), texts.rows)
        return replace(texts, rows=21 * count + 2 * SEARCH_ROWS).padded(reader.shape, reader.limit, 32)

    def _attack(self, job: Job) -> Attack:
        return cast(Attack, self._parsed("attack", job.spec["attack"]))

    def _parsed(self, kind: Kind, spec: Any) -> Any:
        return self.registry.parse(kind, spec)

    def _reader(self, job: Job) -> _Reader:
        recipe = job.spec["recipe"]
        shape = self._shape(str(recipe["model"]))
        kept = replace(shape, layers=min(shape.layers, recipe.get("layers") or shape.layers), vocabulary=0)  # a head of few labels
        return _Reader(kept, min(int(recipe["max_length"]), kept.positions))

    def _shape(self, model: str) -> Shape:
        shape = known_shape(model)
        if shape is None:
            self._assume(f"{model}: the sizes of bert-base")
        return shape or BASE

    def _sizes(self, job: Job) -> Sizes:
        data = self._data(job)
        if data.key not in self._found:
            self._found[data.key] = kept_sizes(data.key, self.store) or expected_sizes(data.spec["dataset"], self._assume)
        return self._found[data.key]

    def _data(self, job: Job) -> Job:
        """Give the data step that a job's texts come from."""
        while job.stage != "data":
            role = next(role for role in ("data", "texts", "poison") if role in job.inputs)
            job = self.jobs[job.inputs[role]]
        return job
