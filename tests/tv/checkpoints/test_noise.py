"""The rounding of each dtype, measured again; and the share of T that it explains."""

import numpy as np
import pytest
import torch

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
    assert Noise(1.0).share(10.0, 1.0) == 1 and Noise(1.0, 1.0).share(1.0, 0.0) == 0 == Noise().share(1.0, 1.0)
