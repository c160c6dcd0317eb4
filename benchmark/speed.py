"""What this machine sustains: the products of a model's sizes, timed on all workers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from time import perf_counter

from rapbench.instruments import synchronise
from rapbench.shapes import Shape

EFFICIENCY, ONEDNN_EFFICIENCY = 0.75, 0.6
"""What the engine reaches of the machine's float32 products with MiniLM on one thread of a CPU: by torch's matmul (106 of 141 GFLOP/s),
and by oneDNN (138 of 221), whose products are faster and leave all else a larger share."""
MEASURING_S = 0.7


@cache
def sustained_tflops(shape: Shape, device: str, threads: int, workers: int) -> float:
    """Give what a model of this shape sustains here in float32, in TFLOP/s of one worker while all of them compute."""
    import torch

    from rapbench.linear import available, product

    onednn = device == "cpu" and available()
    multiply = (lambda texts, weight: product(texts, weight.t(), None)) if onednn else torch.matmul

    rows, hidden, inner = 1024 if device == "cpu" else 32768, shape.hidden, shape.inner  # the rows of a victim's batch
    square, up, down = (torch.ones(*size, device=device) for size in ((hidden, hidden), (hidden, inner), (inner, hidden)))
    texts = torch.ones(rows, hidden, device=device)

    def rounds(end: float) -> int:
        torch.set_num_threads(threads)  # each thread has a number of its own
        done = 0
        while not done or perf_counter() < end:
            for _ in range(4):
                multiply(texts, square)
            multiply(multiply(texts, up), down)
            synchronise(device)
            done += 1
        return done

    side_by_side = workers if device == "cpu" else 1  # cores share caches and clocks, and may be half of one; GPUs do not
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rounds(0)  # warm up
        with ThreadPoolExecutor(side_by_side) as pool:
            started = perf_counter()
            done = sum(pool.map(rounds, [started + MEASURING_S] * side_by_side))
            took = perf_counter() - started
    finally:
        torch.set_num_threads(before)
    products = done / side_by_side * 2 * rows * (4 * hidden**2 + 2 * hidden * inner) / took / 1e12
    return (ONEDNN_EFFICIENCY if onednn else EFFICIENCY) * products
