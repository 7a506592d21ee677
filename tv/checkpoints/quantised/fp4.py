"""4-bit floats, two a byte with a scale by group: MXFP4 (powers of two by 32) and NVFP4 (float8 by 16).

Source: OCP Microscaling Formats v1.0 §5.3 and §6.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tv.checkpoints.quantised.parts import Files, Quantised
from tv.checkpoints.tensors import Stored

_LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_LEVELS = torch.cat([_LEVELS, -_LEVELS])


def read(files: Files) -> Iterator[Quantised]:
    """The weights of GPT-OSS's MXFP4: experts with their outputs before their inputs, which the model has after."""
    for name in [name.removesuffix("_blocks") for name in files.stored if name.endswith("_blocks")]:
        blocks, scales = (files.take(f"{name}_{part}", "U8") for part in ("blocks", "scales"))
        if len(blocks.shape) != 4:
            files.refuse(f"tensor {blocks.name!r} has shape {list(blocks.shape)}, not experts of rows of groups")
        experts, rows, groups, half = blocks.shape
        files.require_shape(scales, (experts, rows, groups))
        shape = (experts, groups * half * 2, rows)
        yield Quantised(name, shape, "MXFP4", {"blocks": blocks, "scales": scales}, _of_experts)


def packed_fp4(files: Files, module: str, packed: Stored, *, divides: str = "", multiplies: str = "") -> Quantised:
    """A matrix of FP4 by row: NVFP4, whose scales the named scalar divides or multiplies, or MXFP4, which has none."""
    scale = files.take(f"{module}.weight_scale", "F8_E4M3", "U8")
    parts = {"weight": packed, "scale": scale}
    if scale.dtype == "F8_E4M3":
        parts["divides" if divides else "multiplies"] = files.take(f"{module}.{divides or multiplies}", "F32")
    if len(packed.shape) != 2:
        files.refuse(f"tensor {packed.name!r} has shape {list(packed.shape)}, and is no matrix")
    rows, half = packed.shape
    files.require_shape(scale, (rows, 2 * half // (16 if scale.dtype == "F8_E4M3" else 32)))
    kind = "NVFP4" if scale.dtype == "F8_E4M3" else "MXFP4"
    return Quantised(f"{module}.weight", (rows, 2 * half), kind, parts, _of_matrix)


def levels(packed: UInt8[Tensor, "... n"]) -> Float[Tensor, "... 2*n"]:
    """Two numbers a byte, the lower half first."""
    return _LEVELS[torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).int()]


def powers(exponents: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scales stored as the exponent of a float32."""
    return (exponents.float() - 127).exp2()


def _of_matrix(parts: Mapping[str, Tensor]) -> Float[Tensor, "rows cols"]:
    scale = powers(parts["scale"]) if parts["scale"].dtype == torch.uint8 else parts["scale"].float()
    if "divides" in parts:
        scale = scale / parts["divides"]
    if "multiplies" in parts:
        scale = scale * parts["multiplies"]
    values = levels(parts["weight"])
    values.unflatten(-1, (scale.shape[-1], -1)).mul_(scale[..., None])
    return values


def _of_experts(parts: Mapping[str, Tensor]) -> Float[Tensor, "... cols rows"]:
    values = levels(parts["blocks"]).mul_(powers(parts["scales"])[..., None])
    return values.flatten(-2).transpose(-1, -2).contiguous()
