"""Linear layers by oneDNN on a CPU: torch multiplies float32 by its BLAS, which on AMD processors reaches about half of that.

The products are the same but for the order of additions. On other devices, or where torch has no oneDNN, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T", bound="torch.nn.Module")
AGREEMENT = 1e-5
LAID_OUT, LAID_OUT_FOR = "_laid_out", 256
"""Under which name a layer keeps its weight as oneDNN wants it, and for how many rows at once."""


@contextmanager
def onednn(model: torch.nn.Module) -> Iterator[None]:
    """Have the float32 linear layers of a model on a CPU multiply by oneDNN while the block runs; gradients, and theirs, too."""
    forwards = _forwards()
    parts = [part for part in model.modules() if type(part) in forwards and _fits(part.weight)]
    if not parts or not available():
        yield
        return
    before = [vars(part).get("forward") for part in parts]
    for part in parts:
        vars(part)["forward"] = MethodType(forwards[type(part)], part)  # bound, so that a deep copy takes its own weights
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            vars(part).pop("forward", None)
            if own is not None:
                vars(part)["forward"] = own


def lay_out(model: torch.nn.Module) -> None:
    """Keep the weights of a model that will not be trained as oneDNN wants them, too: else every product brings them into that form.

    That is for models of many small products; it takes their memory a second time, and such a model cannot be copied.
    """
    import torch

    if not _lays_out():
        return
    for part in model.modules():
        if type(part) in _forwards() and _fits(part.weight):
            weight: Any = part.weight
            upright = weight if type(part) is torch.nn.Linear else weight.t().contiguous()  # (out, in)
            vars(part)[LAID_OUT] = torch.ops.mkldnn._reorder_linear_weight(upright.detach(), LAID_OUT_FOR)


@cache
def _lays_out() -> bool:
    """Tell whether oneDNN lays weights out here, and its product with such a one agrees with torch's own."""
    import torch

    if not available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator) for shape in ((5, 24), (16, 24)))
    with torch.inference_mode():
        try:
            own = product(inputs, torch.ops.mkldnn._reorder_linear_weight(weight, LAID_OUT_FOR), None)
        except RuntimeError:
            return False
        return torch.allclose(own, torch.nn.functional.linear(inputs, weight), rtol=AGREEMENT, atol=AGREEMENT)


def plainly(model: T) -> T:
    """Take torch's own forwards back into a model that was copied inside of such a block; give the model."""
    forwards = _forwards()
    for part in model.modules():
        own = vars(part).get("forward")
        if isinstance(own, MethodType) and own.__func__ is forwards.get(type(part)):
            del vars(part)["forward"]
    return model


@cache
def available() -> bool:
    """Tell whether torch has oneDNN's product and it agrees with torch's own, values and gradients."""
    import torch

    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 24), (16, 24), (16,))
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        own = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        try:
            sides = [product(*own), torch.nn.functional.linear(*own)]
            told = [(side, *torch.autograd.grad(side.square().sum(), own)) for side in sides]
        except RuntimeError:
            return False
    return all(torch.allclose(one, other, rtol=AGREEMENT, atol=AGREEMENT) for one, other in zip(*told, strict=True))


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Give inputs (..., in) times the weight (out, in) transposed, plus the bias (out,): what torch's `linear` gives."""
    given: torch.Tensor = _product().apply(inputs, weight, bias)
    return given


@cache
def _forwards() -> dict[type, Callable[[Any, torch.Tensor], torch.Tensor]]:
    """Give the forward of each kind of layer: torch's own, and the one that GPT-2 has, whose weight lies the other way."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    def linear(self: Linear, input: torch.Tensor) -> torch.Tensor:
        return product(input, vars(self).get(LAID_OUT, self.weight), self.bias) if _plain(input) else Linear.forward(self, input)

    def turned(self: Any, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = product(x, vars(self).get(LAID_OUT, self.weight.t()), self.bias) if _plain(x) else Conv1D.forward(self, x)
        return given

    return {Linear: linear, Conv1D: turned}


def _plain(inputs: torch.Tensor) -> bool:
    import torch

    return inputs.dtype == torch.float32 and inputs.numel() > 0 and not torch.is_autocast_enabled("cpu")


def _fits(weight: Any) -> bool:
    import torch

    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32)


@cache
def _product() -> Any:
    import torch

    def multiplied(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        done: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return done

    class Product(torch.autograd.Function):
        """The product with its gradients, which are products of the same kind, so that they have gradients as well."""

        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            ctx.save_for_backward(inputs, weight)
            ctx.has_bias = bias is not None
            return multiplied(inputs, weight, bias)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            inputs, weight = ctx.saved_tensors
            (gradient,) = gradients
            rows = gradient.reshape(-1, gradient.shape[-1])  # (n, out)
            needs = ctx.needs_input_grad
            by_inputs = product(gradient, weight.t(), None) if needs[0] else None
            by_weight = product(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t(), None) if needs[1] else None
            return by_inputs, by_weight, rows.sum(0) if ctx.has_bias and needs[2] else None

    return Product
