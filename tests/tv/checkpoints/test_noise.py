"""The rounding of each dtype, measured again; and the share of T that it explains."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tv.checkpoints.noise import PLAIN, ROUNDING, Noise

_TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("dtype", _TORCH)
def test_float_dtypes(dtype: str) -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    rounded = weight.to(_TORCH[dtype]).float()
    assert float((rounded - weight).norm() / weight.norm()) == pytest.approx(ROUNDING[dtype], rel=0.05)


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"])
def test_gguf_dtypes(dtype: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    kind = pytest.importorskip("gguf").GGMLQuantizationType[dtype]
    weight = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    rounded = quants.dequantize(quants.quantize(weight, kind), kind)
    assert float(np.linalg.norm(rounded - weight) / np.linalg.norm(weight)) == pytest.approx(ROUNDING[dtype], rel=0.03)


def test_fewer_bits_round_more() -> None:
    for kinds in (("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "BF16", "F16", "F32", "F64"),):
        values = [ROUNDING[kind] for kind in kinds]
        assert values == sorted(values, reverse=True)
    assert set(ROUNDING) >= PLAIN


def test_share() -> None:
    assert Noise(of_weight=1e-3).share(10.0, 1.0) == pytest.approx(1e-4)
    assert Noise(of_delta=1e-3).share(10.0, 1.0) == Noise(of_delta=1e-3).share(1e9, 1.0) == pytest.approx(1e-6)
    assert Noise(1e-3, 1e-2).share(10.0, 1.0) == pytest.approx(2e-4)
    assert Noise(1.0).share(10.0, 1.0) == 1 and Noise().share(1.0, 1.0) == 0
    assert math.isnan(Noise(1.0, 1.0).share(1.0, 0.0))


def _gaussian() -> torch.Tensor:
    return torch.randn(256, 1024, generator=torch.Generator().manual_seed(1))


def _to_nearest(weight: torch.Tensor, bits: int, size: int, symmetric: bool) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1)
    zero = torch.full_like(low, 2 ** (bits - 1)) if symmetric else (-low / scale).round()
    codes = ((groups / scale).round() + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).flatten(1)


@pytest.mark.parametrize(
    "kind, size, symmetric, every",
    [
        ("INT", 128, True, (2, 3, 4, 5, 6, 7)),
        ("INT", 1024, True, (8,)),
        ("GPTQ", 128, True, (2, 3, 4, 8)),
        ("AWQ", 128, False, (4,)),
        ("MLX", 64, False, (4, 5, 6, 8)),
    ],
)
def test_whole_numbers_in_groups(kind: str, size: int, symmetric: bool, every: tuple[int, ...]) -> None:
    weight = _gaussian()
    for bits in every:
        error = _to_nearest(weight, bits, size, symmetric) - weight
        assert float(error.norm() / weight.norm()) == pytest.approx(ROUNDING[f"{kind}{bits}"], rel=0.03)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_of_bitsandbytes(kind: str) -> None:
    weight = _gaussian()
    data = Path(__file__).parent / f"quantised/data/bnb-{kind}.safetensors"
    levels = load_file(data)["proj.weight.quant_map"].sort().values
    blocks = weight.unflatten(1, (-1, 64))
    scaled = blocks / blocks.abs().amax(-1, keepdim=True)
    nearest = levels[torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)]
    error = (nearest - scaled) * blocks.abs().amax(-1, keepdim=True)
    assert float(error.norm() / weight.norm()) == pytest.approx(ROUNDING[kind.upper()], rel=0.03)


def test_nvfp4() -> None:
    weight = _gaussian()
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    levels = torch.cat([-levels.flip(0), levels[1:]])
    groups = weight.unflatten(1, (-1, 16))
    scale = groups.abs().amax(-1, keepdim=True) / 6
    whole = scale.max() / 448
    scale = (scale / whole).to(torch.float8_e4m3fn).float() * whole
    nearest = levels[torch.bucketize(groups / scale, (levels[1:] + levels[:-1]) / 2)]
    error = nearest * scale - groups
    assert float(error.norm() / weight.norm()) == pytest.approx(ROUNDING["NVFP4"], rel=0.03)
