"""GPTQ: whole numbers packed along the inputs, a scale and a zero by group of inputs, in any order of inputs.

Source: arXiv 2210.17323 (the method); the layout is that of AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised.packing import columns, scaled, unpack
from tv.checkpoints.quantised.parts import Files, Quantised

_LAYOUTS = ("gptq", "gptq_v2")


def read(files: Files) -> Iterator[Quantised]:
    """The weights of a GPTQ checkpoint."""
    declared = files.declared
    layout = str(declared.get("checkpoint_format") or declared.get("format") or "gptq").lower()
    if layout not in _LAYOUTS:
        files.refuse(
            f"it is quantised with GPTQ in the layout {layout!r}, which only its own kernel reads",
            "save it in the layout 'gptq' with GPTQModel, or dequantised",
        )
    for module in files.modules("qweight"):
        yield _weight(files, module, layout)


def _weight(files: Files, module: str, layout: str) -> Quantised:
    parts = {key: files.take(f"{module}.{key}", "I32") for key in ("qweight", "qzeros")}
    parts["scales"] = files.take(f"{module}.scales", "F16", "BF16", "F32")
    order = files.find(f"{module}.g_idx")
    if any(len(part.shape) != 2 for part in parts.values()) or not all(parts["scales"].shape):
        files.refuse(f"the parts of {f'{module}.weight'!r} are no matrices", "download it again")
    groups, rows = parts["scales"].shape
    bits = 32 * parts["qzeros"].shape[1] // rows
    asked = files.declared.get("bits")
    if bits not in (2, 3, 4, 8) or (asked != bits and not files.declared.get("dynamic")):
        files.refuse(
            f"tensor {parts['qzeros'].name!r} packs {bits} bits a number, and the declaration says {asked}",
            "the two do not belong together",
        )
    if order is not None:
        parts["g_idx"], cols = order, order.shape[0]
    else:
        cols = 32 * parts["qweight"].shape[0] // bits
    files.require_shape(parts["qweight"], (-(-cols * bits // 32), rows))
    files.require_shape(parts["qzeros"], (groups, -(-rows * bits // 32)))
    size = files.declared.get("group_size", -1)
    size = size if size > 0 else cols
    if files.declared.get("dynamic"):  # modules have settings of their own
        size = -(-cols // groups)
    files.require_shape(parts["scales"], (-(-cols // size), rows))
    values = partial(_values, bits=bits, cols=cols, size=size, one_less=layout == "gptq")
    return Quantised(f"{module}.weight", (rows, cols), f"GPTQ{bits}", parts, values)


def _values(parts: Mapping[str, Tensor], bits: int, cols: int, size: int, one_less: bool) -> Float[Tensor, "rows cols"]:
    scales, zeros = parts["scales"].T, parts["qzeros"]
    if one_less and bits != 3:  # the first layout stores zero − 1, and took 1 off whole words, with their carries
        zeros = zeros + sum(1 << i for i in range(0, 32, bits))
    zero = unpack(zeros, bits, scales.shape[0]).T
    if one_less and bits == 3:
        zero = (zero + 1) % 8
    group = parts["g_idx"].long() if "g_idx" in parts else columns(cols, size)
    if int(group.min()) < 0:
        raise ValueError("g_idx names a group below 0")
    return scaled(unpack(parts["qweight"].T, bits, cols), scales, zero, group).contiguous()
