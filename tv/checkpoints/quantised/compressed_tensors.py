"""compressed-tensors: whole numbers, packed or a byte each, with a scale by tensor, row or group; float8; FP4.

Source: the format as the package compressed-tensors writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised import float8
from tv.checkpoints.quantised.fp4 import packed_fp4
from tv.checkpoints.quantised.packing import scaled, unpack
from tv.checkpoints.quantised.parts import Files, Quantised
from tv.checkpoints.tensors import Stored

_LAYOUTS = {
    *("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
}
_SCALES = ("F16", "BF16", "F32")


def read(files: Files) -> Iterator[Quantised]:
    """The weights of a compressed-tensors checkpoint."""
    groups = _groups(files)
    for module in files.modules("weight_packed"):
        packed = files.take(f"{module}.weight_packed", "I32", "U8")
        if packed.dtype == "U8":
            yield packed_fp4(files, module, packed, divides="weight_global_scale")
        else:
            yield _packed(files, module, packed, groups)
    for module in files.modules("weight_scale"):
        weight = files.stored.get(f"{module}.weight")
        if weight is not None and weight.dtype == "I8":
            yield _bytes(files, module, groups)
    block = next((weights["block_structure"] for weights in groups if weights.get("block_structure")), None)
    yield from float8.in_blocks(files, block)


def _groups(files: Files) -> list[Mapping[str, Any]]:
    """The settings of the weights in each of the declared groups."""
    declared = files.declared
    groups = [group for group in (declared.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    sparsity = (declared.get("sparsity_config") or {}).get("format")
    layouts = {
        str(layout) for layout in (declared.get("format"), sparsity, *(g.get("format") for g in groups)) if layout
    }
    if layouts - _LAYOUTS:
        files.refuse(
            f"it is compressed by compressed-tensors as {min(layouts - _LAYOUTS)!r}, which is not read",
            "decompress it with that package, and save it as bfloat16 or float32",
        )
    if (declared.get("transform_config") or {}).get("config_groups"):
        files.refuse("compressed-tensors has rotated its weights, and the model rotates its activations to match")
    return [group["weights"] for group in groups if group.get("weights")]


def _packed(files: Files, module: str, packed: Stored, groups: list[Mapping[str, Any]]) -> Quantised:
    shape_part = files.take(f"{module}.weight_shape", "I64", "I32")
    shape = tuple(shape_part.load().tolist())  # two numbers that no header says
    if len(shape) != 2 or min(shape) <= 0 or len(packed.shape) != 2:
        files.refuse(f"tensor {packed.name!r} has shape {list(packed.shape)}, and stands for {list(shape)}: no matrix")
    rows, cols = shape
    bits = 32 * packed.shape[1] // cols
    fitting = [weights for weights in groups if weights.get("num_bits") == bits]
    if not fitting or not 2 <= bits <= 8:
        said = sorted({str(weights.get("num_bits")) for weights in groups})
        files.refuse(
            f"tensor {packed.name!r} packs {bits} bits a number, and the declaration says {' or '.join(said)}",
            "the two do not belong together",
        )
    files.require_shape(packed, (rows, -(-cols * bits // 32)))
    parts = {"weight": packed, **_scales(files, module, shape, fitting)}
    if "zero" in parts and parts["zero"].dtype == "I32":
        files.require_shape(parts["zero"], (-(-rows * bits // 32), parts["scale"].shape[-1]))
    return Quantised(f"{module}.weight", shape, f"INT{bits}", parts, partial(_of_packed, bits=bits, shape=shape))


def _bytes(files: Files, module: str, groups: list[Mapping[str, Any]]) -> Quantised:
    weight = files.take(f"{module}.weight", "I8")
    if len(weight.shape) != 2:
        files.refuse(f"tensor {weight.name!r} has shape {list(weight.shape)}, and is no matrix")
    parts = {"weight": weight, **_scales(files, module, weight.shape, groups)}
    return Quantised(weight.name, weight.shape, "INT8", parts, _of_bytes)


def _scales(files: Files, module: str, shape: tuple[int, ...], groups: list[Mapping[str, Any]]) -> dict[str, Stored]:
    """The scale by tensor, row or group of columns, and the zero and the order of columns where there are any."""
    rows, cols = shape
    scale = files.take(f"{module}.weight_scale", *_SCALES)
    sizes = {int(weights["group_size"]) for weights in groups if (weights.get("group_size") or 0) > 0}
    grids = {(1,), (), (1, 1), (rows,), (rows, 1), *((rows, cols // size) for size in sizes if cols % size == 0)}
    if scale.shape not in grids:
        files.refuse(
            f"tensor {scale.name!r} has shape {list(scale.shape)}, which is no scale for {list(shape)} by tensor, by "
            f"row or by a declared group ({', '.join(map(str, sorted(sizes))) or 'none'})",
            "the two do not belong together",
        )
    parts = {"scale": scale}
    asymmetric = bool(groups) and not any(weights.get("symmetric", True) for weights in groups)
    for key, name in (("zero", "weight_zero_point"), ("order", "weight_g_idx")):
        part = files.take(f"{module}.{name}") if asymmetric and key == "zero" else files.find(f"{module}.{name}")
        if part is not None:
            parts[key] = part
    return parts


def _of_packed(parts: Mapping[str, Tensor], bits: int, shape: tuple[int, int]) -> Float[Tensor, "rows cols"]:
    codes, half = unpack(parts["weight"], bits, shape[1]), 2 ** (bits - 1)
    zero: Tensor | int = half
    if "zero" in parts and parts["zero"].dtype.itemsize == 4:  # packed along the rows, by the same half too large
        zero = unpack(parts["zero"].T, bits, shape[0]).T
    elif "zero" in parts:
        zero = _in_rows(parts["zero"]).int() + half
    return _scaled(parts, codes, zero)


def _of_bytes(parts: Mapping[str, Tensor]) -> Float[Tensor, "rows cols"]:
    return _scaled(parts, parts["weight"], _in_rows(parts["zero"]) if "zero" in parts else 0)


def _in_rows(zero: Tensor) -> Tensor:
    """Zero points with a row for each row of scales; one for the whole matrix as a single entry."""
    return zero.reshape(len(zero), -1) if zero.ndim else zero.reshape(1, 1)


def _scaled(parts: Mapping[str, Tensor], codes: Tensor, zero: Tensor | int) -> Float[Tensor, "rows cols"]:
    scale = parts["scale"]
    scale = scale if scale.ndim == 2 else scale.reshape(-1, 1)
    order = parts["order"].long() if "order" in parts else None
    return scaled(codes, scale.expand(len(codes), -1), zero, order)
