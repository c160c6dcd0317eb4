"""What each step takes of its machine: cores, GPUs, memory. The scheduler counts with it; nothing caps what a step really takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from rapbench.api import Defense
from rapbench.registry import Registry, discover, split_spec
from rapbench.runner.placement import Needs
from rapbench.shapes import Shape, known_shape
from rapbench.stages import Bench, Job

PROCESS = 2**30
"""Bytes of a Python process with torch, transformers and its texts."""
TRAINING, PREDICTING = 16, 4
"""Bytes per weight: of float32 weights alone, or with gradients and the two moments of Adam."""
WORDS = 30_522
"""The vocabulary of BERT, for the embeddings of a model whose own is not known."""
POSITIONS = 1 << 14
"""Rows of the longest table of learnt positions. What reads more tokens, and what is gated, turns its queries instead and has no table."""
NO_MODEL = ("data", "poison")
TRAINS = ("victim", "finetune")


def needs(job: Job, bench: Bench, gpu_share: float = 1.0) -> Needs:
    """Give what a step takes. Where costs are taken on an exclusive node, a score step takes whole GPUs."""
    exclusive = bench.exclusive and job.stage == "score"
    on_gpu = bench.device.startswith("cuda") and job.stage not in NO_MODEL
    trains = _trains(job)
    return Needs(bench.threads, (1.0 if exclusive else gpu_share) if on_gpu else 0.0, _memory(job, trains), exclusive, trains)


def roomy(own: Needs) -> Needs:
    """Give the needs of a step that ran out of memory: a node to itself, a whole GPU."""
    return replace(own, gpus=float(-(-own.gpus // 1)), exclusive=True)


def _trains(job: Job) -> bool:
    """Tell whether a step trains: a victim, or with a defense that filters training sets or repairs models."""
    return job.stage in TRAINS or (job.stage == "score" and "defense" in job.spec and _mends(job.spec["defense"]))


def _mends(spec: str | Mapping[str, Any]) -> bool:
    """Tell whether a defense gives another victim; one that is not there gives none, and its step says so."""
    found = _registry().found.get(("defense", split_spec(spec)[0]))
    return found is not None and issubclass(found.cls, Defense) and found.cls.works_on != "inputs"


@cache
def _registry() -> Registry:
    """Give the plugins as workers find them: a job holds names alone, and each of very many is asked for."""
    return discover()


def _memory(job: Job, trains: bool) -> int:
    """Give the bytes for the weights of a step's model and what comes with them; 0 where its sizes are not known."""
    recipe = job.spec.get("recipe") if job.stage not in NO_MODEL else None
    if not recipe:
        return 0
    shape = known_shape(str(recipe["model"]))
    if shape is None:
        return 0
    kept = replace(shape, layers=min(shape.layers, recipe["layers"] or shape.layers))
    return PROCESS + weights(kept) * (TRAINING if trains else PREDICTING)


def weights(shape: Shape) -> int:
    """Give the number of weights of an encoder of this shape, its embeddings included."""
    positions = 0 if shape.gated or shape.positions > POSITIONS else shape.positions
    return shape.layers * shape.layer_weights + ((shape.words or WORDS) + positions) * shape.hidden
