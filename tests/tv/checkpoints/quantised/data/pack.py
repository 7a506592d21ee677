"""Writes the files of this folder: a matrix as each library packs it, and what that library takes it for.

Run by hand in an environment with the packages that README.md names: `python pack.py`. A file holds the parts of the
module `proj`, the library's own dequantised weight as `expected`, and the declaration of such a checkpoint as metadata.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROWS, COLS = 32, 96
Case = tuple[str, dict[str, Any], dict[str, torch.Tensor], torch.Tensor]


def weight(seed: int = 0, rows: int = ROWS, cols: int = COLS) -> torch.Tensor:
    """Gaussian, its mean not 0, so that zeros differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * 0.02 + torch.randn(rows, 1, generator=generator) * 0.01


def by_group(value: torch.Tensor, bits: int, size: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) of groups of columns, rows × groups, the zeros unsigned."""
    groups, top = value.unflatten(1, (-1, size)), 2**bits - 1
    if symmetric:
        scales = (groups.abs().amax(-1) * 2 / top).half().float()
        return scales, torch.full_like(scales, 2 ** (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / top).half().float()
    zeros = (-low / scales).round().clamp(0, top)
    zeros[::5] = 0  # of which the first layout of GPTQ stores −1, with a carry
    return scales, zeros


def gptq() -> Iterator[Case]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for bits, size, layout, symmetric, act_order in [
        (4, 32, "gptq", True, False),
        (4, 32, "gptq", False, True),
        (4, 96, "gptq_v2", False, False),
        (2, 32, "gptq", False, False),
        (3, 32, "gptq", True, False),
        (8, 32, "gptq", True, True),
    ]:
        value = weight(bits)
        order = torch.arange(COLS) // size
        if act_order:
            order = order[torch.randperm(COLS, generator=torch.Generator().manual_seed(5))]
        sorted_columns = torch.argsort(order, stable=True)
        scales, zeros = by_group(value[:, sorted_columns], bits, size, symmetric)
        linear = torch.nn.Linear(COLS, ROWS, bias=False)
        linear.weight.data = value
        module = TorchLinear(bits, size, symmetric, act_order, COLS, ROWS, format=FORMAT.GPTQ_V2, register_buffers=True)
        module.pack_original(linear, scales, zeros, order.int())
        module.enable_wf_unsqueeze = True
        module._init_wf_unsqueeze_buffers()
        scales_half = module.scales.clone()
        module.scales = module.scales.float()
        expected = module.dequantize_weight().T.float()
        module.scales = scales_half
        if layout == "gptq":
            convert_gptq_v2_to_v1_format_module(module, type("Q", (), {"bits": bits, "pack_dtype": torch.int32})())
        parts = {key: getattr(module, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
        declared = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": act_order, "sym": symmetric}
        name = f"gptq{bits}-{size}-{layout}-{'sym' if symmetric else 'asym'}{'-act' if act_order else ''}"
        yield name, declared | {"checkpoint_format": layout}, parts, expected


def auto_gptq() -> Iterator[Case]:
    import importlib.util

    # The package itself needs an older transformers; what packs is one file of it.
    root = importlib.util.find_spec("auto_gptq").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("packs", f"{root}/nn_modules/qlinear/qlinear_cuda_old.py")
    packs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packs)
    value = weight(9)
    scales, zeros = by_group(value, 4, 32, False)
    zeros = zeros.clamp(min=1)  # this version packs a zero of 0 wrongly
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = value
    module = packs.QuantLinear(4, 32, COLS, ROWS, bias=False)
    module.pack(linear, scales, zeros, (torch.arange(COLS) // 32).int())
    parts = {key: getattr(module, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
    # Its product with the identity is the weight; in float32, as it multiplies in the dtype of its scales.
    expected = module.float()(torch.eye(COLS)).T
    yield "gptq4-auto-gptq", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}, parts, expected


def awq() -> Iterator[Case]:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    value = weight(1)
    scales, zeros = by_group(value, 4, 32, False)
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = value
    module = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    parts = {key: getattr(module, key) for key in ("qweight", "qzeros", "scales")}
    expected = dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, 32).T
    declared = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    yield "awq4-32", declared, parts, expected


def compressed_tensors() -> Iterator[Case]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    int4, int8, fp8 = ({"num_bits": b, "type": t} for b, t in ((4, "int"), (8, "int"), (8, "float")))
    group, channel = {"strategy": "group", "group_size": 32}, {"strategy": "channel"}
    for name, layout, settings, dtype in [
        ("ct-pack4-group-sym", "pack-quantized", int4 | group | {"symmetric": True}, torch.bfloat16),
        ("ct-pack4-group-asym", "pack-quantized", int4 | group | {"symmetric": False}, torch.bfloat16),
        ("ct-pack8-channel", "pack-quantized", int8 | channel | {"symmetric": True}, torch.float32),
        ("ct-pack3-group", "pack-quantized", int4 | group | {"num_bits": 3, "symmetric": True}, torch.float16),
        ("ct-int8-channel", "int-quantized", int8 | channel | {"symmetric": True}, torch.bfloat16),
        ("ct-int8-asym", "int-quantized", int8 | channel | {"symmetric": False}, torch.float32),
        ("ct-int8-tensor", "int-quantized", int8 | {"strategy": "tensor", "symmetric": True}, torch.float32),
        ("ct-fp8-tensor", "float-quantized", fp8 | {"strategy": "tensor", "symmetric": True}, torch.float32),
        ("ct-fp8-channel", "float-quantized", fp8 | channel | {"symmetric": True}, torch.bfloat16),
        ("ct-fp8-block", "float-quantized", fp8 | {"strategy": "block", "block_structure": [16, 64]}, torch.float32),
        ("ct-naive-fp8", "naive-quantized", fp8 | channel | {"symmetric": True}, torch.bfloat16),
        ("ct-mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", **group}, torch.float32),
        (
            "ct-nvfp4",
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            torch.float32,
        ),
    ]:
        if layout == "mxfp4-pack-quantized":
            settings = settings | {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
        if layout == "nvfp4-pack-quantized":
            settings = settings | {"scale_dtype": "torch.float8_e4m3fn"}
        scheme = QuantizationScheme(targets=["Linear"], weights=settings, format=layout)
        value, args = weight(2), scheme.weights
        state = {}
        tiles = {
            "group": (1, 32),
            "channel": (1, COLS),
            "tensor": (ROWS, COLS),
            "block": (16, 64),
            "tensor_group": (1, 16),
        }
        high, wide = tiles[settings["strategy"]]
        bands = value.split(high)
        low = torch.stack([torch.stack([tile.min() for tile in band.split(wide, 1)]) for band in bands])
        top = torch.stack([torch.stack([tile.max() for tile in band.split(wide, 1)]) for band in bands])
        if settings["strategy"] == "tensor":
            low, top = low.reshape(1), top.reshape(1)
        overall = generate_gparam(low.min(), top.max()) if layout.startswith("nvfp4") else None
        if overall is not None:
            state["weight_global_scale"] = overall.reshape(1)
        scale, zero = calculate_qparams(low, top, args, global_scale=overall)
        state |= {"weight": value, "weight_scale": scale.to(dtype) if scale.is_floating_point() else scale}
        if zero is not None:
            state["weight_zero_point"] = zero
        compressor = BaseCompressor.get_value_from_registry(layout)
        parts = compressor.compress(state, scheme)
        exact = {  # it multiplies in the dtype of the scales
            key: part.float() if part.dtype in (torch.bfloat16, torch.float16) else part for key, part in parts.items()
        }
        expected = compressor.decompress(exact, scheme)["weight"]
        if overall is not None:  # the compressor itself rounds to bfloat16
            levels = unpack_fp4_from_uint8(parts["weight_packed"], ROWS, COLS, dtype=torch.float32)
            expected = dequantize(levels, parts["weight_scale"].float(), args=args, global_scale=overall)
        declared = {"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"]}
        weights = {key: entry for key, entry in settings.items() if not key.endswith("dtype")}
        yield (
            name,
            declared | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}},
            parts,
            expected,
        )


def bitsandbytes() -> Iterator[Case]:
    import bitsandbytes.functional as bnb

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for storage in (torch.uint8,) if nested or kind == "fp4" else (torch.uint8, torch.bfloat16):
                value = weight(3, 40, 412 if nested else 36)  # more than 256 blocks; a last block that is not full
                packed, state = bnb.quantize_4bit(
                    value, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=storage
                )
                parts = {"weight": packed} | {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
                expected = bnb.dequantize_4bit(packed, state)
                declared = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
                name = f"bnb-{kind}{'-double' * nested}{'-bf16' * (storage == torch.bfloat16)}"
                yield name, declared | {"bnb_4bit_use_double_quant": nested}, parts, expected
    value = weight(4)
    codes, statistics, _ = bnb.int8_vectorwise_quant(value.half())
    expected = bnb.int8_vectorwise_dequant(codes, statistics)
    parts = {"weight": codes, "SCB": statistics, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    yield "bnb-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, parts, expected


def modelopt() -> Iterator[Case]:
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    value = weight(5)
    packed, scale = FP8QTensor.quantize(value)
    parts = {
        "weight": packed._quantized_data,
        "weight_scale": scale.float().reshape(()),
        "input_scale": torch.tensor(0.5),
    }
    declared = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    yield "modelopt-fp8", declared, parts, packed.dequantize(torch.float32, scale=scale)
    packed, scale, second = NVFP4QTensor.quantize(value, 16)
    parts = {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": second.float()}
    expected = packed.dequantize(torch.float32, scale=scale, double_scale=second, block_sizes={-1: 16})
    yield "modelopt-nvfp4", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}, parts, expected


def mlx() -> Iterator[Case]:
    import mlx.core as mx
    import numpy as np

    for bits, size in [(2, 32), (3, 32), (4, 64), (5, 32), (6, 32), (8, 64)]:
        value = mx.array(weight(6, ROWS, 128).numpy()).astype(mx.float32 if bits != 6 else mx.float16)
        packed, scales, biases = mx.quantize(value, group_size=size, bits=bits)
        exact = mx.dequantize(packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=size, bits=bits)
        parts = {
            "weight": torch.from_numpy(np.array(packed).view(np.int32)).view(torch.uint32),
            "scales": torch.from_numpy(np.array(scales)),
            "biases": torch.from_numpy(np.array(biases)),
        }
        yield f"mlx{bits}-{size}", {"group_size": size, "bits": bits}, parts, torch.from_numpy(np.array(exact)).float()


LIBRARIES: dict[str, Callable[[], Iterator[Case]]] = {
    f.__name__: f for f in (gptq, auto_gptq, awq, compressed_tensors, bitsandbytes, modelopt, mlx)
}

if __name__ == "__main__":
    for library in sys.argv[1:] or LIBRARIES:
        for name, declared, parts, expected in LIBRARIES[library]():
            tensors = {f"proj.{key}": part.detach().contiguous() for key, part in parts.items() if part is not None}
            tensors["expected"] = expected.detach().float().contiguous()
            save_file(tensors, HERE / f"{name}.safetensors", metadata={"declaration": json.dumps(declared)})
            print(name, {key: (tuple(part.shape), str(part.dtype)) for key, part in tensors.items()})
