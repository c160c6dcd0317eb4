"""What is read off a device: floating-point operations, memory and its peak, the end of what was begun, its name."""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any


def counted_flops(run: Callable[[], object]) -> float:
    """Give the floating-point operations of the torch work in `run`, padding included; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def product(inputs: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * math.prod(inputs) * weight[0])

    # torch has no formula for the kernel that attention takes on a CPU (pytorch issue 195460)
    own: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # nor for the product that rapbench.linear takes
        own[torch.ops.mkldnn._linear_pointwise] = product
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return float(counter.get_total_flops())


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()


def reset_memory(device: str) -> float | None:
    """Begin a new measurement of the peak; give what is in use now, in MiB."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return round(torch.cuda.memory_allocated(device) / 2**20, 1)
    with suppress(OSError, AttributeError):  # not Linux, or not allowed
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator holds back is not in use
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return None


def peak_memory(device: str) -> float | None:
    """Give the highest memory since `reset_memory`, in MiB: of the device's allocator, or of this process on a CPU."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with suppress(OSError):
        return _status("VmHWM")
    return None


def _status(name: str) -> float | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def threads() -> int:
    """Give how many threads torch computes an operation with."""
    import torch

    return int(torch.get_num_threads())


@cache
def device_name(device: str) -> str:
    """Give what the GPU, or the processor, is called."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
