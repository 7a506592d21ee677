"""bitsandbytes: NF4 and FP4, two numbers a byte with a scale by block, scales quantised too or not; and LLM.int8.

Source: arXiv 2305.14314 §3 (NF4, double quantisation), arXiv 2208.07339 §3 (LLM.int8: a scale by row).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised.parts import Files, Quantised
from tv.errors import CheckpointError

_STATE = "quant_state.bitsandbytes__"


def read(files: Files) -> Iterator[Quantised]:
    """The weights of a bitsandbytes checkpoint."""
    for kind in ("nf4", "fp4"):
        for name in files.modules(_STATE + kind):
            yield _four_bits(files, name, kind)
    for module in files.modules("SCB"):
        yield _eight_bits(files, module)


def _four_bits(files: Files, name: str, kind: str) -> Quantised:
    packed = files.take(name)
    parts = {"weight": packed, "absmax": files.take(f"{name}.absmax", "F32", "U8")}
    parts["quant_map"] = files.take(f"{name}.quant_map", "F32")
    state = files.take(f"{name}.{_STATE}{kind}", "U8")
    try:  # a few bytes that say what header of the file cannot
        settings = json.loads(bytes(state.load().tolist()))
        shape, block = tuple(int(size) for size in settings["shape"]), int(settings["blocksize"])
        nested = int(settings["nested_blocksize"]) if "nested_blocksize" in settings else 0
        offset = float(settings.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{files.source}: tensor {state.name!r} does not say how {name!r} is quantised; download it again"
        ) from error
    n = math.prod(shape)
    blocks = -(-n // block)
    if packed.stop - packed.start != -(-n // 2):
        files.refuse(f"tensor {name!r} has {packed.stop - packed.start} bytes, not {-(-n // 2)} for {list(shape)}")
    files.require_shape(parts["absmax"], (blocks,))
    files.require_shape(parts["quant_map"], (16,))
    if nested:
        parts |= {key: files.take(f"{name}.{key}", "F32") for key in ("nested_absmax", "nested_quant_map")}
        files.require_shape(parts["nested_absmax"], (-(-blocks // nested),))
        files.require_shape(parts["nested_quant_map"], (256,))
    values = partial(_of_four, shape=shape, block=block, nested=nested, offset=offset)
    return Quantised(name, shape, kind.upper(), parts, values)


def _of_four(
    parts: Mapping[str, Tensor], shape: tuple[int, ...], block: int, nested: int, offset: float
) -> Float[Tensor, "..."]:
    scale = parts["absmax"]
    if nested:
        levels, largest = parts["nested_quant_map"].float(), parts["nested_absmax"].float()
        scale = levels[scale.int()] * largest.repeat_interleave(nested)[: len(scale)] + offset
    packed = parts["weight"].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: math.prod(shape)]
    factors = scale.float().repeat_interleave(block)[: len(codes)]
    return parts["quant_map"].float()[codes.int()].mul_(factors).reshape(shape)


def _eight_bits(files: Files, module: str) -> Quantised:
    parts = {"weight": files.take(f"{module}.weight", "I8"), "SCB": files.take(f"{module}.SCB", "F32")}
    if (layout := files.find(f"{module}.weight_format")) is not None:
        parts["weight_format"] = layout
    weight = parts["weight"]
    files.require_shape(parts["SCB"], weight.shape[:1])
    return Quantised(weight.name, weight.shape, "LLM.INT8", parts, _of_eight)


def _of_eight(parts: Mapping[str, Tensor]) -> Float[Tensor, "rows cols"]:
    if "weight_format" in parts and int(parts["weight_format"]):
        raise ValueError("it is laid out for a GPU, not by row")
    return parts["weight"].float().mul_(parts["SCB"][:, None]).div_(127)
