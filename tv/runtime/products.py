"""Products with a matrix of weights in float32, by the quicker of the two libraries that torch has for them.

torch multiplies by MKL, whose kernels for AMD's processors do without AVX-512. oneDNN, which torch uses for 16 bits,
uses it there and takes half the time (benchmarks/products.py); sums are in another order, so values differ by rounding.
`torch.backends.mkldnn.flags(enabled=False)` leaves everything to MKL.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter, functional

#: Entries of a matrix and each of its sides from which on a call is worth it.
LEAST, SIDE = 15_000, 64
#: Multiplications in all, of a matrix with at least `LARGE` entries, and of a smaller one, whose calls are many.
LARGE, WORK, SMALL_WORK = 100_000, 1_600_000, 8_000_000
#: Rows of x from which on it is: the matrix as it lies, another's transpose, a part of another, which is copied first.
ROWS, TURNED, PART = 4, 16, 64


def linear(
    x: Float[Tensor, "... n"], weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "... m"]:
    """x Wᵀ + b, as `torch.nn.functional.linear`.

    Args:
        x: What is multiplied.
        weight: W.
        bias: b; None: 0.

    Returns:
        The products, in the dtype and on the device of x.

    Examples:
        >>> linear(torch.tensor([1.0, 2.0]), torch.eye(2), torch.tensor([0.5, 0.0])).tolist()
        [1.5, 2.0]
    """
    small = weight.numel() < LEAST  # first: of a small product even these questions take a part of the time
    if small or not is_quicker() or _is_watched() or not _is_known(x, weight, bias) or not _is_large(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return functional.linear(x, weight, bias)
        if x.requires_grad:
            product: Tensor = _Product.apply(x, weight, bias)
            return product
    return _by_onednn(x, weight, bias)


class _Product(torch.autograd.Function):
    """With a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(gradient, weight.T), None, None


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    full, shape = _rounded(rows), (*x.shape[:-1], len(weight))
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # of a part of another matrix a product takes a hundred times as long
    if full > rows:
        whole = x.new_empty(full, x.shape[-1])
        whole[:rows].view(x.shape).copy_(x)
        whole[rows:] = 0.0
        x = whole
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product.resize_(shape)  # no view, which models could not change in place


def _rounded(rows: int) -> int:
    """Up to one of 4 numbers between two powers of 2: for each number oneDNN compiles code of half a MiB and keeps it.

    Examples:
        >>> [_rounded(rows) for rows in (3, 16, 17, 130, 1024)]
        [3, 16, 24, 160, 1024]
    """
    step = max(8, 2 ** (rows.bit_length() - 1) // 4)
    return rows if rows < step else -(-rows // step) * step


def _is_watched() -> bool:
    """Whether torch does more with an operation than to run it and note its gradient; of oneDNN's it knows not how."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return traced or transformed or modes > 0 or torch.is_autocast_enabled("cpu")


def _is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether it is a product of a matrix that takes so long that oneDNN is sooner."""
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        return False  # torch says what is wrong
    rows = ROWS if weight.is_contiguous() else TURNED if weight.T.is_contiguous() else PART
    work = WORK if weight.numel() >= LARGE else SMALL_WORK
    enough = x.numel() >= rows * weight.shape[1] and x.numel() * len(weight) >= work
    return enough and min(weight.shape) >= SIDE


def _is_known(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are tensors that the library reads as torch does."""
    fits = bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    given = (x, weight) if bias is None else (x, weight, bias)
    return fits and all(map(_is_plain, given)) and bool(torch.backends.mkldnn.enabled)


def _is_plain(value: Tensor) -> bool:
    dense = value.layout == torch.strided and value.dtype == torch.float32 and value.device.type == "cpu"
    return dense and type(value) in (Tensor, Parameter) and not torch._C._functorch.is_legacy_batchedtensor(value)


@cache
def is_quicker() -> bool:
    """Whether `linear` is another function than torch's on this machine."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    has = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


def _is_amd() -> bool:
    known = Path("/proc/cpuinfo")  # where Python says nothing of the processor
    return "AuthenticAMD" in (known.read_text(encoding="utf-8") if known.exists() else platform.processor())
