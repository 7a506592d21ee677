"""Packers for whole tiny models, written from the published layouts, bit by bit, and apart from what reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

#: The levels of NF4, of arXiv 2305.14314, appendix E, to six digits.
NF4 = [
    *(-1.0, -0.696193, -0.525073, -0.394917, -0.284441, -0.184773, -0.09105, 0.0),
    *(0.07958, 0.16093, 0.246112, 0.337915, 0.44071, 0.562617, 0.722956, 1.0),
]
Parts = dict[str, torch.Tensor]


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Each row of unsigned numbers as one stream of bits, lowest first, in 32-bit words."""
    stream = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    flat = stream.reshape(len(codes), -1).astype(np.uint8)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(flat, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def rounded(weight: torch.Tensor, bits: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, scales, zeros) by group of columns; scales are exact in float16."""
    groups = weight.double().numpy().reshape(len(weight), -1, size)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float64)
    zeros = np.round(-low / scales)
    codes = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, 2**bits - 1)
    return codes.reshape(weight.shape).astype(np.int64), scales, zeros.astype(np.int64)


def _stands_for(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> torch.Tensor:
    size = codes.shape[1] // scales.shape[1]
    return torch.from_numpy((codes - zeros.repeat(size, 1)) * scales.repeat(size, 1)).float()


def _int32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32))


def gptq(weight: torch.Tensor, size: int = 16) -> tuple[Parts, torch.Tensor]:
    codes, scales, zeros = rounded(weight, 4, size)
    zeros = np.maximum(zeros, 1)  # the layout holds zero − 1
    parts = {"qweight": _int32(words(codes, 4).T), "qzeros": _int32(words(zeros.T - 1, 4))}
    return parts | {"scales": torch.from_numpy(scales.T.copy()).half()}, _stands_for(codes, scales, zeros)


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    codes, scales, zeros = rounded(weight, 4, 16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = {
        key: _int32(words(value.T.reshape(value.shape[1], -1, 8)[..., order].reshape(value.shape[1], -1), 4))
        for key, value in (("qweight", codes), ("qzeros", zeros))
    }
    return parts | {"scales": torch.from_numpy(scales.T.copy()).half()}, _stands_for(codes, scales, zeros)


def compressed_int4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    codes, scales, zeros = rounded(weight, 4, 16)
    parts = {
        "weight_packed": _int32(words(codes, 4)),
        "weight_zero_point": _int32(words(zeros.T, 4).T),
        "weight_scale": torch.from_numpy(scales).half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return parts, _stands_for(codes, scales, zeros)


def mlx(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    codes, scales, zeros = rounded(weight, 4, 16)
    parts = {
        "weight": _int32(words(codes, 4)).view(torch.uint32),
        "scales": torch.from_numpy(scales).float(),
        "biases": torch.from_numpy(-zeros * scales).float(),
    }
    return parts, _stands_for(codes, scales, zeros)


def nf4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Blocks of 64 of the flattened matrix, the last one smaller, and the higher half of a byte first."""
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64))
    largest = flat.reshape(-1, 64).abs().amax(1)
    levels = torch.tensor(NF4)
    nearest = (flat / largest.repeat_interleave(64))[:, None].sub(levels).abs().argmin(1)
    codes = nearest.to(torch.uint8)[: weight.numel()]
    settings = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    state = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2])[:, None],
        "weight.absmax": largest,
        "weight.quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": state,
    }
    values = levels[nearest] * largest.repeat_interleave(64)
    return parts, values[: weight.numel()].reshape(weight.shape)


def int8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight * 127 / largest[:, None]).round()
    return {"weight": codes.to(torch.int8), "SCB": largest}, codes * largest[:, None] / 127


def quantise(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Rewrite the projections of a checkpoint in a format; returns what all its tensors stand for."""
    declared, pack, _ = FORMATS[name]
    expected, stored = load_file(path / "model.safetensors"), {}
    for key, value in expected.items():
        if not key.endswith("_proj.weight"):
            stored[key] = value
            continue
        parts, expected[key] = pack(value.float())
        stored |= {f"{key.removesuffix('weight')}{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(stored, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    where = "quantization" if name == "mlx" else "quantization_config"
    (path / "config.json").write_text(json.dumps(config | {where: declared}))
    return expected


#: Format → (declaration, packer of one matrix, word of its dtype).
FORMATS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], tuple[Parts, torch.Tensor]], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 16}, gptq, "GPTQ4"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, awq, "AWQ4"),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
                }
            },
        },
        compressed_int4,
        "INT4",
    ),
    "mlx": ({"bits": 4, "group_size": 16}, mlx, "MLX4"),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4, "NF4"),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8, "LLM.INT8"),
}
