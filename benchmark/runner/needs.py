"""What each step takes of its machine: cores, GPUs, memory. The scheduler counts with it; nothing caps what a step really takes."""

from __future__ import annotations

from dataclasses import replace

from rapbench.runner.placement import TRAINS, Needs
from rapbench.shapes import Shape, known_shape
from rapbench.stages import Bench, Job

PROCESS = 2**30
"""Bytes of a Python process with torch, transformers and its texts."""
TRAINING, PREDICTING = 16, 4
"""Bytes per weight: of float32 weights alone, or with gradients and the two moments of Adam."""
WORDS = 30_522
"""The vocabulary of BERT, for the embeddings of a model whose own is not known."""
NO_MODEL = ("data", "poison")


def needs(job: Job, bench: Bench, gpu_share: float = 1.0) -> Needs:
    """Give what a step takes. Where costs are taken on an exclusive node, a score step takes whole GPUs."""
    exclusive = bench.exclusive and job.stage == "score"
    on_gpu = bench.device.startswith("cuda") and job.stage not in NO_MODEL
    return Needs(bench.threads, (1.0 if exclusive else gpu_share) if on_gpu else 0.0, _memory(job), exclusive)


def roomy(own: Needs) -> Needs:
    """Give the needs of a step that ran out of memory: a node to itself, a whole GPU."""
    return replace(own, gpus=float(-(-own.gpus // 1)), exclusive=True)


def _memory(job: Job) -> int:
    """Give the bytes for the weights of a step's model and what comes with them; 0 where its sizes are not known."""
    recipe = job.spec.get("recipe") if job.stage not in NO_MODEL else None
    if not recipe:
        return 0
    shape = known_shape(str(recipe["model"]))
    if shape is None:
        return 0
    kept = replace(shape, layers=min(shape.layers, recipe["layers"] or shape.layers))
    return PROCESS + weights(kept) * (TRAINING if job.stage in TRAINS else PREDICTING)


def weights(shape: Shape) -> int:
    """Give the number of weights of an encoder of this shape, its embeddings included."""
    return shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.inner) + (WORDS + shape.positions) * shape.hidden
