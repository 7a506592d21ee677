"""How much of a tuning vector can be rounding: the relative error of each stored dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: ‖rounded − W‖/‖W‖ of a stored dtype. Floats: weights spread over many binades (measured: 1.66e-3 in bfloat16; half as
#: much for every bit more of mantissa).
ROUNDING = {
    "BF16": 1.66e-3,
    "F16": 1.66e-3 / 8,
    "F32": 1.66e-3 / 2**16,
    "F64": 0.0,
    "F8_E4M3": 2.66e-2,
    "F8_E5M2": 5.3e-2,
    # GGUF, measured on Gaussian weights with the gguf package's quantiser.
    "Q4_0": 8.59e-2,
    "Q4_1": 7.82e-2,
    "Q5_0": 4.27e-2,
    "Q5_1": 3.79e-2,
    "Q8_0": 5.36e-3,
    "MXFP4": 0.115,
    "TQ1_0": 0.808,
    "TQ2_0": 0.808,
    # That package cannot write these: Gaussian weights in blocks of the format's size (Q2, Q3, Q6: 16; Q4, Q5, IQ4:
    # 32), each rounded to its levels with the block's best scale, as llama.cpp searches it; super-blocks add a little.
    "Q2_K": 0.26,
    "Q3_K": 0.145,
    "Q4_K": 7.0e-2,
    "Q5_K": 3.45e-2,
    "Q6_K": 1.67e-2,
    "IQ4_NL": 7.45e-2,
    "IQ4_XS": 7.45e-2,
    # Lattice codes of R bits a weight: 1.5 dB above a Gaussian's rate-distortion bound 2^−R.
    "IQ3_S": 0.11,
    "IQ3_XXS": 0.14,
    "IQ2_S": 0.20,
    "IQ2_XS": 0.24,
    "IQ2_XXS": 0.28,
    "IQ1_M": 0.35,
    "IQ1_S": 0.40,
    # Whole numbers, rounded to the nearest by compressed-tensors: Gaussian weights in groups of 128, which GPTQ and AWQ
    # (whose zeros are free) use too; MLX's own rounding in groups of 64. INT8 is by row. In groups of 32 the error is a
    # seventh smaller, and by row a fifth larger.
    "INT2": 0.552,
    "INT3": 0.238,
    "INT4": 0.111,
    "INT5": 5.38e-2,
    "INT6": 2.65e-2,
    "INT7": 1.32e-2,
    "INT8": 7.85e-3,
    "GPTQ2": 0.552,
    "GPTQ3": 0.238,
    "GPTQ4": 0.111,
    "GPTQ8": 6.54e-3,
    "AWQ4": 0.101,
    "MLX2": 0.395,
    "MLX3": 0.190,
    "MLX4": 9.11e-2,
    "MLX5": 4.42e-2,
    "MLX6": 2.18e-2,
    "MLX8": 5.37e-3,
    # The same weights through bitsandbytes (blocks of 64) and ModelOpt (NVFP4, groups of 16).
    "NF4": 9.21e-2,
    "FP4": 0.122,
    "LLM.INT8": 7.88e-3,
    "NVFP4": 9.53e-2,
}
#: What weights are trained or published in. A base stored in another type was rounded after T's training began.
PLAIN = frozenset({"BF16", "F16", "F32", "F64"})


def coarsest(dtypes: Iterable[str]) -> str:
    """The stored dtype with the largest rounding error; F32 where there is none."""
    return max(dtypes, key=lambda dtype: ROUNDING.get(dtype, 0.0), default="F32")


def rounding_note(source: object, dtype: str) -> str:
    """The note where most of a source is stored in a quantised dtype."""
    return f"{source}: quantised, mostly as {dtype}: its rounding is part of any T taken with it (see noise_share)"


@dataclass(frozen=True)
class Noise:
    """Relative rounding errors of one tensor of the tuned side."""

    of_weight: float = 0.0  # in units of ‖W‖: the rounding of θ_tuned
    of_delta: float = 0.0  # in units of ‖T‖: the rounding of T's parts, where the source holds T itself

    def share(self, weight_norm: float, delta_norm: float) -> float:
        """The share of ‖T‖² that rounding explains, at most 1; NaN where T = 0."""
        if not delta_norm:
            return math.nan
        return min(1.0, self.of_delta**2 + (self.of_weight * weight_norm / delta_norm) ** 2)
